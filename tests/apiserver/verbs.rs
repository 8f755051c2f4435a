//! Every verb of `kubectl lockstep`, by people who are no administrators: in each format, on wide and narrow terminals and
//! without one. No operator is there; what it writes, the test writes in its name. How whole pages look is kept as golden
//! text beside the code (src/cli/golden).

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::plugin::{AT, Said, Terminal, at_gate, ends, letter, run, taken_up};
use crate::support::{Ask, Team, annotation, object, policies_whole, until};

/// A run with a step at its gate, a question, and a forEach of which one item cannot start. Gives its UID.
async fn busy(team: &Team) -> Result<String> {
    let template = json!({"parametersSchema": {"properties": {"version": {"type": "string"}, "depth": {"type": "integer"}}},
        "steps": [{"name": "plan", "agentId": "a", "gate": {"name": "brief"}},
            {"name": "budget", "ask": {"question": "How much?", "schema": {"type": "integer"}}},
            {"name": "parts", "agentId": "a", "forEach": {"in": "[]", "as": "part"}}, {"name": "report", "agentId": "a"}]});
    team.bob.gets(&Ask::post(team.all("workflowtemplates"), object("WorkflowTemplate", "default", &template))).await?;
    let words = ["run", "default", "--name", "shop", "--param", "version=3.10", "--param", "depth=2", "-o", "json"];
    let made = json_of(&ends(team, "bob", &words, 0, "\"kind\": \"Workflow\"").await?)?;
    ensure!(made["spec"]["parameters"] == json!({"version": "3.10", "depth": 2}), "{made}");
    let uid = made["metadata"]["uid"].as_str().context("no UID")?.to_owned();
    at_gate(team, ("shop", &uid), "plan", "# Plan\n", "# Plan\n").await?;
    let of = |path: &str| json!({"workflow": {"name": "shop", "uid": uid}, "path": path});
    let mut question = of("budget");
    question["agentId"] = Value::Null;
    question["ask"] = json!({"name": "budget", "question": "How much may it cost?"});
    let asked = json!({"phase": "WaitingForInput", "waitingFor": {"id": "1-0", "kind": "Question", "question": "How much may it cost?",
        "options": [], "since": AT}});
    team.step_run("shop-budget", question, asked).await?;
    let image = "ErrImagePull: the image registry.example/team/a-rather-long-name-of-an-agent:1.2.3 cannot be pulled";
    let started = json!({"type": "Started", "status": "False", "reason": "PodNotReady", "message": image,
        "lastTransitionTime": AT, "observedGeneration": 1});
    for (index, (key, status)) in [
        ("E1", json!({"phase": "Running", "startedAt": AT, "conditions": [started]})),
        ("E2", json!({"phase": "Running", "startedAt": AT, "attempt": 2})),
    ]
    .into_iter()
    .enumerate()
    {
        let mut spec = of("parts");
        spec["item"] = json!({"key": key, "index": index, "value": key});
        spec["scopeChain"] =
            json!([{"scope": "workflow", "scopeId": uid}, {"scope": "part", "scopeId": format!("{uid}/{key}")}]);
        team.step_run(&format!("shop-parts-{}", key.to_lowercase()), spec, status).await?;
    }
    let listed = |path: &str, phase: &str| json!({"path": path, "phase": phase, "startedAt": AT});
    let mut parts = listed("parts", "Running");
    parts["counts"] = json!({"total": 3, "started": 2, "done": 0, "failed": 0});
    let steps = json!([listed("plan", "WaitingForAcceptance"), listed("budget", "WaitingForInput"), parts, {"path": "report", "phase": "Pending"}]);
    of_run(
        team,
        "shop",
        json!({"phase": "WaitingForAcceptance", "startedAt": AT, "currentStep": "plan", "steps": steps,
        "waiting": {"gates": 1, "questions": 1, "summary": "1 gate, 1 question"}}),
    )
    .await?;
    Ok(uid)
}

/// What the operator says of a run.
async fn of_run(team: &Team, name: &str, status: Value) -> Result<()> {
    let path = team.one("workflows", &format!("{name}/status"));
    team.operator.gets(&Ask::patch(path, json!({"status": status}))).await.map(|_| ())
}

fn json_of(said: &Said) -> Result<Value> {
    serde_json::from_str(&said.out).with_context(|| format!("no JSON: {said:?}"))
}

#[tokio::test]
async fn what_people_look_at_is_right_in_every_format() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("formats").await?;
    busy(&team).await?;
    for (words, told) in [
        (&["list"][..], "parts/E1: PodNotReady: ErrImagePull"),
        (&["inbox"], "kubectl lockstep -n "),
        (&["inbox"], "ErrImagePull: the image registry.example"),
        (&["show", "shop"], "PodNotReady: ErrImagePull"),
        (&["show", "shop/plan"], "waits for acceptance by anyone with the permission approve on gates/brief"),
        (&["show", "shop/budget"], "WHAT IT TAKES (as the template has it now)"),
        (&["show", "shop/parts"], "1 of 3 items have not begun"),
        (&["show", "shop/parts/E1"], "Held up by  PodNotReady: ErrImagePull"),
        (&["show", "shop/report"], "it has not begun"),
        (&["history", "shop"], "STEPID"),
        (&["history", "shop", "--decisions"], "nobody has decided anything"),
        (&["can-i", "run", "default"], "yes"),
        (&["version"], "cannot be seen: you may not list Deployments in all namespaces"),
    ] {
        let plain = ends(&team, "bob", words, 0, told).await?;
        ensure!(!plain.out.contains('\u{1b}'), "colours without a terminal: {plain:?}");
        let wide = [words, &["-o", "wide"]].concat();
        ends(&team, "bob", &wide, 0, if words == ["inbox"] { "" } else { told }).await?;
        // What has no StepRun is no object.
        let code = if words == ["show", "shop/report"] { 4 } else { 0 };
        for format in ["json", "yaml", "name"] {
            let said = run(&team, "bob", &[words, &["-o", format]].concat()).await?;
            ensure!(said.code == code, "{words:?} -o {format}: {said:?}");
            if code == 0 && format == "json" {
                json_of(&said)?;
            } else if code == 0 && format == "name" && matches!(words[0], "list" | "inbox" | "show") {
                let names = said.out.lines().all(|line| {
                    line.starts_with("workflow.lockstep.dev/") || line.starts_with("steprun.lockstep.dev/")
                });
                ensure!(names && !said.out.is_empty(), "{words:?}: {said:?}");
            }
        }
    }
    // Whoever may see everything is told where the operator is and how it is.
    ends(&team, "root", &["--as-group", "system:masters", "version"], 0, "lockstep-system/lockstep-operator, ").await?;
    let waits = ends(&team, "bob", &["watch", "shop", "--until-wait"], 3, "approve shop/plan --review sha256:").await?;
    ensure!(waits.out.contains("answer shop/budget ANSWER"), "{waits:?}");
    ends(&team, "bob", &["watch", "shop", "-o", "json"], 2, "watch prints text only").await?;
    team.close().await
}

#[tokio::test]
async fn every_page_fits_its_terminal() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("widths").await?;
    busy(&team).await?;
    for words in [
        "list",
        "list -o wide",
        "inbox",
        "show shop",
        "show shop/plan",
        "show shop/parts",
        "history shop",
        "version",
        "can-i run default",
        "watch shop --until-wait",
    ] {
        for columns in [40, 72, 160] {
            let terminal = Terminal::wide(&team, "bob", words, columns, "1")?;
            let (code, text) = tokio::task::spawn_blocking(move || terminal.left()).await??;
            ensure!(code == if words.starts_with("watch") { 3 } else { 0 }, "{words}: {code} {text}");
            for line in text.lines().map(|line| line.trim_start_matches("\u{1b}[J")) {
                ensure!(
                    !line.contains('\u{1b}') || words.starts_with("watch"),
                    "colours in spite of NO_COLOR: {words}: {line:?}"
                );
                let copied = line.contains("kubectl ") || line.contains("sha256:");
                ensure!(line.chars().count() <= columns || copied, "{words}: more than {columns} columns: {line:?}");
            }
        }
        let terminal = Terminal::wide(&team, "bob", words, 100, "")?;
        let (_, text) = tokio::task::spawn_blocking(move || terminal.left()).await??;
        ensure!(text.contains("\u{1b}["), "no colours on a terminal: {words}: {text}");
    }
    team.close().await
}

#[tokio::test]
async fn people_act_by_every_verb() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("acts").await?;
    busy(&team).await?;
    // Decisions and answers, by somebody who may.
    let words = ["approve", "shop/plan", "--yes", "-m", "good"];
    let (said, sent) = tokio::join!(ends(&team, "alice", &words, 0, "accepted by alice"), taken_up(&team, "shop-plan"));
    ensure!(said?.out.contains("the run goes on") && sent?.starts_with("sha256:"));
    ends(&team, "bob", &["reject", "shop/plan", "-m", "no", "--yes"], 1, "was accepted by alice").await?;
    ends(&team, "bob", &["history", "shop", "--decisions"], 0, "accepted").await?;
    ends(&team, "bob", &["can-i", "approve", "brief"], 1, "--clusterrole=lockstep-approver --user=bob").await?;
    let (said, value) = tokio::join!(
        ends(&team, "alice", &["answer", "shop/budget", "12345678901234567890"], 0, "answered by alice"),
        answered(&team, "shop-budget")
    );
    // Without the definition nobody but the operator knows the schema: the words go as they are.
    ensure!(said?.code == 0 && value? == "12345678901234567890");
    // The course of a run.
    for (verb, told) in [
        ("suspend", "is suspended: nothing new starts"),
        ("suspend", "is suspended already"),
        ("resume", "goes on"),
        ("cancel", "is being cancelled"),
    ] {
        ends(&team, "bob", &[verb, "shop"], 0, told).await?;
    }
    ends(&team, "alice", &["cancel", "shop"], 0, "is being cancelled already").await?;
    ends(&team, "erin", &["cancel", "shop"], 5, "erin").await?;
    ends(&team, "bob", &["lint", concat!(env!("CARGO_MANIFEST_DIR"), "/examples/product-discovery")], 0, "errors: 0")
        .await?;
    team.close().await
}

/// Takes an answer up as the operator does, when it comes; gives what was written.
async fn answered(team: &Team, name: &str) -> Result<String> {
    let value = until("an answer", || async {
        Ok(annotation(&letter(team, name).await?, "lockstep.dev/answer").map(str::to_owned))
    })
    .await?;
    let status = json!({"status": {"phase": "Completed", "completedAt": AT, "waitingFor": null}});
    team.operator.gets(&Ask::patch(team.one("stepruns", &format!("{name}/status")), status)).await?;
    Ok(value)
}

#[tokio::test]
async fn an_answer_takes_the_type_that_the_question_gives() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("typed").await?;
    let ask = |name: &str, schema: Value| json!({"name": name, "ask": {"question": "What?", "schema": schema}});
    let steps = json!([ask("version", json!({"type": "string"})), ask("size", json!({"enum": ["small", "large"]})), {"name": "free", "ask": {"question": "What?"}}]);
    let made =
        team.bob.gets(&Ask::post(team.all("workflows"), object("Workflow", "asks", &json!({"steps": steps})))).await?;
    let uid = made["metadata"]["uid"].as_str().context("no UID")?.to_owned();
    for name in ["version", "size", "free"] {
        let spec = json!({"workflow": {"name": "asks", "uid": uid}, "path": name, "agentId": null, "ask": {"name": name, "question": "What?"}});
        let asked = json!({"phase": "WaitingForInput", "waitingFor": {"id": "1-0", "kind": "Question", "question": "What?", "options": [], "since": AT}});
        team.step_run(&format!("asks-{name}"), spec, asked).await?;
    }
    ends(&team, "alice", &["show", "asks/size"], 0, "one of small, large").await?;
    ends(&team, "alice", &["answer", "asks/size", "medium"], 2, "it takes one of small, large").await?;
    ends(
        &team,
        "alice",
        &["answer", "asks/free", "{\"id\": 12345678901234567890}"],
        2,
        "more digits than the API server keeps",
    )
    .await?;
    for (name, typed, sent) in [
        ("version", "3.10", "\"3.10\""),
        ("size", "small", "small"),
        ("free", "12345678901234567890", "\"12345678901234567890\""),
    ] {
        let words = ["answer", &format!("asks/{name}"), typed];
        let own = format!("asks-{name}");
        let (said, value) = tokio::join!(ends(&team, "alice", &words, 0, "answered by alice"), answered(&team, &own));
        ensure!(said?.code == 0 && value? == sent, "{name}");
    }
    team.close().await
}

#[tokio::test]
async fn a_retry_says_what_it_takes_over() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("retry").await?;
    let steps = json!([{"name": "brief", "agentId": "a"}, {"name": "plan", "agentId": "b"}, {"name": "report", "agentId": "a"}]);
    let spec = json!({"steps": steps, "ttlSecondsAfterFinished": 3600});
    let made = team.bob.gets(&Ask::post(team.all("workflows"), object("Workflow", "shop", &spec))).await?;
    let uid = made["metadata"]["uid"].as_str().context("no UID")?.to_owned();
    let of = |path: &str| json!({"workflow": {"name": "shop", "uid": uid}, "path": path});
    let attempt = json!({"number": 1, "round": 1, "result": "Succeeded", "completedAt": AT});
    team.step_run("shop-brief", of("brief"), json!({"phase": "Completed", "completedAt": AT, "result": {"attempt": 1, "digest": "sha256:d"}, "attempts": [attempt]})).await?;
    let error = json!({"class": "Unrecoverable", "message": "no such epic", "attempt": 1});
    team.step_run("shop-plan", of("plan"), json!({"phase": "Failed", "completedAt": AT, "error": error})).await?;
    let listed = |path: &str, phase: &str| json!({"path": path, "phase": phase, "stepRun": format!("shop-{path}")});
    let steps = json!([listed("brief", "Completed"), listed("plan", "Failed"), {"path": "report", "phase": "Pending"}]);
    of_run(&team, "shop", json!({"phase": "Failed", "completedAt": AT, "steps": steps})).await?;
    ends(&team, "bob", &["show", "shop"], 0, "not started: the run failed before").await?;
    let said = ends(&team, "bob", &["retry", "shop"], 0, "plan     runs again: it failed (Unrecoverable)").await?;
    ensure!(said.out == "shop-r2\n", "only the name on standard output: {said:?}");
    ensure!(
        said.wrong.contains("brief    taken over")
            && said.wrong.contains("report   runs again: plan before it runs again"),
        "{said:?}"
    );
    let said =
        ends(&team, "bob", &["retry", "shop", "--from", "brief"], 0, "brief    runs again: --from names it").await?;
    ensure!(said.out == "shop-r3\n", "{said:?}");

    // What the TTL takes away: the operator deletes the StepRuns.
    for name in ["shop-brief", "shop-plan"] {
        team.admin
            .gets(&Ask::edit(
                team.one("stepruns", name),
                json!([{"op": "add", "path": "/metadata/labels", "value": {"x": "y"}}]),
            ))
            .await?;
        team.operator.gets(&Ask::delete(team.one("stepruns", name))).await?;
    }
    let told =
        ends(&team, "bob", &["retry", "shop"], 2, "its ttlSecondsAfterFinished took them away 1h00m after its end")
            .await?;
    ensure!(told.wrong.contains("say --all; nothing was started"), "{told:?}");
    let said = ends(&team, "bob", &["retry", "shop", "--all", "-o", "json"], 0, "nothing is taken over").await?;
    let made = json_of(&said)?;
    ensure!(made["spec"].get("retryOf").is_none() && made["metadata"]["name"] == "shop-r4", "{made}");
    team.close().await
}

#[tokio::test]
async fn what_was_refused_and_where_the_operator_is_can_be_seen_by_who_may() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("seen").await?;
    busy(&team).await?;
    let step = letter(&team, "shop-budget").await?;
    let of = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun", "namespace": team.namespace, "name": "shop-budget",
        "uid": step["metadata"]["uid"]});
    for (name, at, message) in [
        ("first", "2026-01-01T00:00:00Z", "it is many"),
        ("second", "2026-01-01T00:01:00Z", "it is less than the minimum of 1"),
    ] {
        let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": of, "type": "Warning",
            "reason": "AnswerRefused", "message": format!("the answer was not recorded: {message}; answer again"), "lastTimestamp": at});
        team.admin.gets(&Ask::post(team.core("events"), event)).await?;
    }
    // Who may not read Events is shown everything else.
    let said = ends(&team, "bob", &["show", "shop/budget"], 0, "How much may it cost?").await?;
    ensure!(!said.out.contains("REFUSED LAST"), "{said:?}");
    let labels = json!({"app.kubernetes.io/name": "lockstep-operator", "app.kubernetes.io/version": "9.9.9"});
    let pod = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "operator", "image": "example/lockstep:9"}]}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "another-release", "labels": labels},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod}});
    team.admin.gets(&Ask::post(format!("/apis/apps/v1/namespaces/{}/deployments", team.namespace), deployment)).await?;
    let rules = json!([{"apiGroups": [""], "resources": ["events"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]}]);
    team.grant("bob", "looks", rules).await?;
    until("bob may list Deployments", || async {
        Ok(team.may("bob", &[], "list", "apps", "deployments").await?.then_some(()))
    })
    .await?;
    let said = ends(
        &team,
        "bob",
        &["show", "shop/budget"],
        0,
        "REFUSED LAST\n  2026-01-01T00:01:00Z: the answer was not recorded: it is less",
    )
    .await?;
    ensure!(!said.out.contains("it is many"), "{said:?}");
    let place = format!("9.9.9 (example/lockstep:9), {}/another-release, 0 of 1 ready", team.namespace);
    ends(&team, "bob", &["version"], 0, &place).await?;
    team.close().await
}
