//! What the API server makes of the kinds.

use anyhow::{Context as _, Result, ensure};
use lockstep::api::crd;
use serde_json::{Value, json};

use crate::support::{Ask, Team, Who, document, object, policies_whole, refused, step_run, until, workflow};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// The server keeps every word of ours: nothing pruned, structural, names accepted, rules within their cost budget.
#[tokio::test]
async fn the_server_accepts_the_kinds_as_they_are() -> Result<()> {
    let admin = Who::admin().await?;
    for ours in crd::all() {
        let name = ours.pointer("/metadata/name").and_then(Value::as_str).context("no name")?;
        let stored = until(name, || async {
            let stored = admin.gets(&Ask::get(format!("{DEFINITIONS}/{name}"))).await?;
            Ok(condition(&stored, "Established").is_some_and(|c| c == "True").then_some(stored))
        })
        .await?;
        ensure!(condition(&stored, "NonStructuralSchema").is_none(), "{name} is not structural");
        for field in ["scope", "names", "versions"] {
            holds(&stored["spec"][field], &ours["spec"][field], &format!("{name}.{field}"))?;
        }
        // Strictly: a word that the API server does not know would be an error here.
        let mut fresh = ours.clone();
        fresh["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
        admin
            .asks_strictly(&Ask::put(format!("{DEFINITIONS}/{name}?dryRun=All"), fresh))
            .await
            .map_err(|r| anyhow::anyhow!("{name}: {} {}", r.code, r.message))?;
        ensure!(
            stored.pointer("/metadata/annotations/helm.sh~1resource-policy") == Some(&json!("keep")),
            "{name} would go with the chart, and all runs with it"
        );
    }
    Ok(())
}

#[tokio::test]
#[rustfmt::skip] // one case, one line
async fn objects_are_refused_for_each_fault_alone() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("faults").await?;
    let long = "n".repeat(53);
    let step = json!({"name": "a", "agentId": "x"});
    let nested = json!([{"name": "a", "steps": [{"name": "b", "steps": [{"name": "c", "agentId": "x"}]}]}]);
    let too_deep = json!([{"name": "a", "steps": [{"name": "b", "steps": [{"name": "c", "steps": [step]}]}]}]);
    let run = |name: &str, steps: Value| workflow(name, &json!({"templateRef": null, "steps": steps}));
    let many = |count: usize| (0..count).map(|i| json!({"name": format!("s{i}"), "agentId": "x"})).collect::<Vec<_>>();
    let group = |steps: Vec<Value>| json!([{"name": "g", "steps": steps}]);
    let inner = |steps: Vec<Value>| json!([{"name": "g", "steps": [{"name": "h", "steps": steps}]}]);

    for (what, body) in [
        ("name of 52 characters", workflow(&"n".repeat(52), &json!({}))),
        ("three levels", run("nested", nested)),
        ("200 steps", run("s200", json!(many(200)))),
        ("32 in a group", run("s32", group(many(32)))),
        ("16 in a group's group", run("s16", inner(many(16)))),
    ] {
        team.admin.asks_strictly(&Ask::post(team.all("workflows"), body)).await.map_err(|r| {
            anyhow::anyhow!("{what}: {} {}", r.code, r.message)
        })?;
    }

    let agent = json!({"template": {}});
    let prompt = json!({"system": "s", "model": "m", "baseURL": "https://models.example/v1", "temperature": 0.5, "apiKeySecretRef": {"name": "keys", "key": "api"}, "caConfigMapRef": {"name": "models-ca"}});
    let only_told = object("Agent", "told", &json!({"prompt": prompt}));
    team.admin.asks_strictly(&Ask::post(team.all("agents"), only_told)).await.map_err(|r| anyhow::anyhow!("a prompt: {} {}", r.code, r.message))?;
    let cases: Vec<(&str, Value, u16, &str)> = vec![
        ("workflows", workflow(&long, &json!({})), 422, "at most 52 characters"),
        ("agents", object("Agent", &long, &agent), 422, "at most 52 characters"),
        ("workflowtemplates", object("WorkflowTemplate", &long, &json!({"steps": [step]})), 422, "at most 52 characters"),
        ("workflows", workflow("x", &json!({"nosuch": 1})), 400, "unknown field \"spec.nosuch\""),
        ("workflows", run("x", json!([{"name": "a", "agentId": "x", "nosuch": 1}])), 400, "nosuch"),
        ("workflows", run("x", too_deep), 400, "unknown field"),
        ("workflows", run("x", json!([step, step])), 422, "Duplicate value"),
        ("workflows", run("x", group(vec![step.clone(), step.clone()])), 422, "Duplicate value"),
        ("workflows", run("x", json!([{"name": "a"}])), 422, "exactly one of agentId, ask and steps"),
        ("workflows", run("x", json!([{"name": "a", "agentId": "x", "steps": [step]}])), 422, "exactly one of agentId, ask and steps"),
        ("workflows", run("x", json!([{"name": "a", "steps": [step], "produces": {"type": "t"}}])), 422, "go with agentId"),
        ("workflows", run("x", json!([{"name": "a", "agentId": "x", "ask": {"question": "?"}}])), 422, "exactly one of agentId, ask and steps"),
        ("workflows", run("x", json!([{"name": "a", "ask": {"question": "?"}, "retry": {}}])), 422, "go with agentId"),
        ("workflows", run("x", json!([{"name": "a", "agentId": "x", "onFailure": "Retry"}])), 422, "Unsupported value"),
        ("workflows", run("x", json!([{"name": "a", "agentId": "x", "forEach": {"in": "x", "as": "y", "tolerate": "101%"}}])), 422, "tolerate"),
        ("workflows", run("x", json!([{"name": "a", "agentId": "x", "forEach": {"in": "x", "as": "y", "tolerate": 5001}}])), 422, "tolerate"),
        ("workflows", run("x", json!([{"name": "a", "agentId": "x", "gate": {"approvals": 17}}])), 422, "less than or equal to 16"),
        ("workflows", workflow("x", &json!({"steps": null, "templateRef": {"name": "t"}, "order": "Graph"})), 422, "go with steps"),
        ("workflows", workflow("x", &json!({"order": "Circle"})), 422, "Unsupported value"),
        ("workflows", run("x", inner(vec![json!({"name": "a"})])), 422, "groups nest at most three deep"),
        ("workflows", run("x", json!(many(201))), 422, "must have at most 200 items"),
        ("workflows", run("x", group(many(33))), 422, "must have at most 32 items"),
        ("workflows", run("x", inner(many(17))), 422, "must have at most 16 items"),
        ("workflows", run("x", json!([])), 422, "should have at least 1 items"),
        ("workflows", workflow("x", &json!({"steps": [step]})), 422, "exactly one of templateRef and steps"),
        ("workflows", workflow("x", &json!({"templateRef": null})), 422, "exactly one of templateRef and steps"),
        ("workflows", workflow("x", &json!({"input": "x".repeat(65_537)})), 422, "Too long"),
        ("documents", document("x", &json!({"scope": "Session"})), 422, "scope Session needs"),
        ("documents", document("x", &json!({"scope": "Project"})), 422, "scope Session needs"),
        ("documents", document("x", &json!({"format": "yaml"})), 422, "Unsupported value"),
        ("documents", document("x", &json!({"content": "x".repeat(524_289)})), 422, "Too long"),
        ("agents", object("Agent", "x", &json!({"template": {}, "timeoutSeconds": 0})), 422, "greater than or equal to 1"),
        ("agents", object("Agent", "x", &json!({})), 422, "exactly one of template and prompt"),
        ("agents", object("Agent", "x", &json!({"template": {}, "prompt": prompt})), 422, "exactly one of template and prompt"),
        ("agents", object("Agent", "x", &json!({"prompt": {"system": "s", "model": "m"}})), 422, "spec.prompt.baseURL: Required value"),
        ("agents", object("Agent", "x", &json!({"prompt": {"system": "s", "model": "m", "baseURL": "https://a:b@models.example/v1"}})), 422, "spec.prompt.baseURL in body should match"),
        ("agents", object("Agent", "x", &json!({"prompt": {"system": "s", "model": "m", "baseURL": "https://models.example/v1", "temperature": 2.5}})), 422, "less than or equal to 2"),
        ("agents", object("Agent", "x", &json!({"prompt": {"system": "s", "model": "m", "baseURL": "https://models.example/v1", "caConfigMapRef": {"name": "Own_CA"}}})), 422, "spec.prompt.caConfigMapRef.name in body should match"),
        ("agents", object("Agent", "x", &json!({"prompt": {"system": "s", "model": "m", "baseURL": "https://models.example/v1", "caConfigMapRef": {"key": "ca.crt"}}})), 422, "spec.prompt.caConfigMapRef.name: Required value"),
        ("agents", json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "x"}}), 422, "spec: Required value"),
    ];
    for (plural, body, code, words) in cases {
        let answer = team.admin.asks_strictly(&Ask::post(team.all(plural), body)).await;
        refused(&answer, code, words).with_context(|| format!("{plural}: {words}"))?;
    }
    team.close().await
}

#[tokio::test]
async fn specs_of_runs_steps_and_documents_never_change() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("immutable").await?;
    team.admin.gets(&Ask::post(team.all("workflows"), workflow("run", &json!({"input": "a"})))).await?;
    team.admin.gets(&Ask::post(team.all("documents"), document("doc", &json!({})))).await?;
    team.step_run("step", json!({}), Value::Null).await?;
    for (who, plural, name, change, words) in [
        (&team.admin, "workflows", "run", json!({"input": "b"}), "the spec of a run is immutable"),
        (&team.admin, "workflows", "run", json!({"input": null}), "the spec of a run is immutable"),
        (&team.admin, "workflows", "run", json!({"session": "s"}), "the spec of a run is immutable"),
        (&team.admin, "documents", "doc", json!({"content": "b"}), "a document is immutable"),
        (&team.operator, "stepruns", "step", json!({"path": "b"}), "the spec of a StepRun is immutable"),
    ] {
        who.is_refused(&Ask::patch(team.one(plural, name), json!({"spec": change})), 422, words).await?;
    }
    // What may change: both ways, one way, any way.
    for (change, refused) in [
        (json!({"suspend": true}), None),
        (json!({"suspend": false}), None),
        (json!({"cancel": true}), None),
        (json!({"cancel": false}), Some("cancel cannot be taken back")),
        (json!({"cancel": null}), Some("cancel cannot be taken back")),
        (json!({"ttlSecondsAfterFinished": 60}), None),
        (json!({"ttlSecondsAfterFinished": null}), None),
    ] {
        let ask = Ask::patch(team.one("workflows", "run"), json!({"spec": change}));
        match refused {
            Some(words) => team.admin.is_refused(&ask, 422, words).await?,
            None => team.admin.gets(&ask).await.map(|_| ())?,
        }
    }
    let ask = Ask::patch(team.one("workflows", "run"), json!({"spec": null}));
    team.admin.is_refused(&ask, 422, "spec: Required value").await?;
    team.close().await
}

/// kstatus must read "in progress" before the first look and after a write that leaves observedGeneration out.
#[tokio::test]
async fn a_status_reads_as_unseen_until_the_operator_says_otherwise() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("unseen").await?;
    let steps = json!({"steps": [{"name": "a", "agentId": "x"}]});
    for (plural, body) in [
        ("agents", object("Agent", "a", &json!({"template": {}}))),
        ("workflowtemplates", object("WorkflowTemplate", "a", &steps)),
        ("workflows", workflow("a", &json!({}))),
    ] {
        let made = team.admin.gets(&Ask::post(team.all(plural), body)).await?;
        ensure!(made["status"]["observedGeneration"] == -1, "{plural}: {}", made["status"]);
        let patch = Ask::patch(
            team.one(plural, "a/status"),
            json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "Fine", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
        );
        let written = team.operator.gets(&patch).await?;
        ensure!(written["status"]["observedGeneration"] == -1, "{plural}: {}", written["status"]);
    }
    // A document that an older version published says nothing of it, and is no longer unseen.
    let put = object("Document", "a", &json!({"type": "brief", "scope": "Namespace", "content": "a brief"}));
    let made = team.admin.gets(&Ask::post(team.all("documents"), put)).await?;
    ensure!(made["status"] == json!({"observedGeneration": -1}), "{}", made["status"]);
    let patch = json!({"status": {"phase": "Published", "observedGeneration": null}});
    let written = team.operator.gets(&Ask::patch(team.one("documents", "a/status"), patch)).await?;
    ensure!(written["status"] == json!({"phase": "Published"}), "{}", written["status"]);
    let fresh = team.step_run("a", json!({}), Value::Null).await?;
    ensure!(fresh["status"]["observedGeneration"] == -1 && fresh["status"]["attempt"] == 1, "{}", fresh["status"]);
    // The Rust types must read what the server says of an object that nobody has touched.
    let typed: lockstep::api::StepRun = serde_json::from_value(fresh)?;
    ensure!(typed.status.is_some_and(|s| s == lockstep::api::step_run::StepRunStatus::default()));
    team.close().await
}

#[tokio::test]
async fn fields_select_columns_print_and_the_category_lists() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("lists").await?;
    team.step_run("one", json!({"agentId": "writer"}), json!({"phase": "Running"})).await?;
    team.step_run(
        "two",
        json!({"workflow": {"name": "other", "uid": "u-2"}}),
        json!({"phase": "WaitingForAcceptance"}),
    )
    .await?;
    team.admin.gets(&Ask::post(team.all("documents"), document("doc", &json!({"type": "plan"})))).await?;
    for (plural, selector, name) in [
        ("stepruns", "status.phase=WaitingForAcceptance", "two"),
        ("stepruns", "spec.workflow.name=other", "two"),
        ("stepruns", "spec.agentId=writer,status.phase=Running", "one"),
        ("documents", "spec.type=plan", "doc"),
    ] {
        let selector = selector.replace('=', "%3D").replace(',', "%2C");
        let list = team.bob.gets(&Ask::get(format!("{}?fieldSelector={selector}", team.all(plural)))).await?;
        let names: Vec<_> = list["items"].as_array().into_iter().flatten().map(|i| &i["metadata"]["name"]).collect();
        ensure!(names == [&json!(name)], "{plural} {selector}: {names:?}");
    }
    let resources = team.admin.gets(&Ask::get("/apis/lockstep.dev/v1alpha1")).await?;
    let mut short = Vec::new();
    for resource in resources["resources"].as_array().context("no resources")? {
        let name = resource["name"].as_str().unwrap_or_default();
        if !name.contains('/') {
            ensure!(resource["categories"] == json!(["lockstep"]), "{name}");
            short.extend(resource["shortNames"].as_array().into_iter().flatten().map(ToString::to_string));
        }
    }
    short.sort();
    ensure!(short == ["\"ldoc\"", "\"lmem\"", "\"lsr\"", "\"ltr\"", "\"lwf\"", "\"lwt\""], "{short:?}");
    team.close().await
}

/// The step list of a template, too, is checked at apply time; and a name that only hashes reach is legal.
#[tokio::test]
async fn names_that_lockstep_makes_are_legal() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("names").await?;
    let key = "Größe/1 ".repeat(20);
    let name = lockstep::api::name::step_run(&"w".repeat(52), "uid", "group/step", std::slice::from_ref(&key));
    let body = step_run(&name, &json!({"item": {"key": "k", "index": 0, "value": {"any": [1, null, {"a": "b"}]}}}));
    let made = team.operator.gets(&Ask::post(team.all("stepruns"), body)).await?;
    ensure!(made["spec"]["item"]["value"] == json!({"any": [1, null, {"a": "b"}]}), "{}", made["spec"]["item"]);
    team.close().await
}

/// Everything that we state is stored as we state it; the server may add its own defaults.
fn holds(stored: &Value, ours: &Value, path: &str) -> Result<()> {
    match (stored, ours) {
        (Value::Object(stored), Value::Object(ours)) => {
            for (key, value) in ours {
                let found = stored.get(key).with_context(|| format!("{path}.{key} is not stored"))?;
                holds(found, value, &format!("{path}.{key}"))?;
            }
        }
        (Value::Array(stored), Value::Array(ours)) => {
            ensure!(stored.len() == ours.len(), "{path} has another length");
            for (index, (stored, ours)) in stored.iter().zip(ours).enumerate() {
                holds(stored, ours, &format!("{path}[{index}]"))?;
            }
        }
        (Value::Number(stored), Value::Number(ours)) => {
            ensure!(stored.as_f64() == ours.as_f64(), "{path}: {stored} is not {ours}");
        }
        _ => ensure!(stored == ours, "{path}: {stored} is not {ours}"),
    }
    Ok(())
}

fn condition(object: &Value, kind: &str) -> Option<String> {
    let all = object.pointer("/status/conditions")?.as_array()?;
    let one = all.iter().find(|c| c["type"] == kind)?;
    Some(one["status"].as_str()?.to_owned())
}
