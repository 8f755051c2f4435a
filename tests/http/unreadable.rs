//! Objects that cannot be read, at the start of the operator and at run time: they say so themselves, and nobody else
//! notices.

use lockstep::api::name::LABEL_MADE_BY;
use lockstep::apiserver::{Key, Kind, Part, Writer};
use lockstep::cluster::sinks::Sinks;
use serde_json::{Value, json};

use super::town::{Deed, NAMESPACE, Town};

fn deep(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!({"a": inner}))
}

/// One of each kind that an author writes, and the field that is wrong.
fn made(town: &Town, suffix: &str) {
    let step = |tolerate: &Value| json!({"name": "a", "agentId": "flow", "forEach": {"in": "[1]", "as": "e", "tolerate": tolerate}});
    let (fine, wide) = (json!(1), json!(3_000_000_000_u32));
    let make = |kind: Kind, name: &str, spec: Value| town.make(kind, &format!("{name}-{suffix}"), &spec);
    make(Kind::Workflow, "deep", json!({"parameters": deep(150), "steps": [step(&fine)]}));
    make(Kind::Workflow, "wide", json!({"steps": [step(&wide)]}));
    make(Kind::WorkflowTemplate, "deep", json!({"parametersSchema": deep(150), "steps": [step(&fine)]}));
    make(Kind::WorkflowTemplate, "wide", json!({"steps": [step(&wide)]}));
    make(Kind::Agent, "deep", json!({"template": {}, "outputSchema": deep(150)}));
    make(Kind::Agent, "wide", json!({"template": {}, "maxConcurrent": wide}));
    make(
        Kind::Trigger,
        "deep",
        json!({"event": {}, "run": {"templateRef": {"name": "flow"}, "parameters": deep(150)}}),
    );
    make(
        Kind::Document,
        "wide",
        json!({"type": "x", "scope": "Namespace", "format": "text", "content": "x", "attempt": wide}),
    );
}

/// What stands in the status of an object: its phase, and the conditions that say why.
fn said(town: &Town, kind: Kind, name: &str) -> Option<(String, String)> {
    let object = town.objects(kind).into_iter().find(|object| object["metadata"]["name"] == name)?;
    let conditions = object["status"]["conditions"].as_array()?.clone();
    let why = conditions.iter().find(|condition| condition["reason"] == "Unreadable")?;
    let phase = object["status"]["phase"].as_str().unwrap_or_default().to_owned();
    Some((phase, why["message"].as_str().unwrap_or_default().to_owned()))
}

/// Why a run does not go on.
fn waits_for(town: &Town, name: &str) -> Option<(String, String)> {
    let object = town.objects(Kind::Workflow).into_iter().find(|object| object["metadata"]["name"] == name)?;
    let conditions = object["status"]["conditions"].as_array()?.clone();
    let why = conditions.iter().find(|condition| condition["type"] == "Succeeded")?;
    Some((why["reason"].as_str()?.to_owned(), why["message"].as_str()?.to_owned()))
}

/// Whoever refers to them waits, and hears that they are there and why they cannot be read.
async fn told_to_others(town: &Town, suffix: &str) {
    let of_template = json!({"templateRef": {"name": format!("deep-{suffix}")}});
    let of_agent = json!({"steps": [{"name": "a", "agentId": format!("wide-{suffix}")}]});
    for (name, spec, reason, words) in [
        ("template", of_template, "TemplateInvalid", "cannot be read: spec.parametersSchema: nests 150 levels"),
        ("agent", of_agent, "AgentInvalid", "cannot be read: spec.maxConcurrent: "),
    ] {
        let name = format!("{name}-{suffix}");
        town.make(Kind::Workflow, &name, &spec);
        let (found, message) = town.until(&name, || waits_for(town, &name)).await;
        assert!(found == reason && message.contains(words), "{name}: {found} {message}");
    }
    let reply = town.get(&format!("/runs/deep-{suffix}")).await.is(409);
    let detail = reply.body["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("cannot be read: spec.parameters: nests 150 levels"), "{detail}");
}

async fn told(town: &Town, suffix: &str) {
    for (kind, name, phase, words) in [
        (Kind::Workflow, "deep", "Failed", "spec.parameters: nests 150 levels"),
        (Kind::Workflow, "wide", "Failed", "spec.steps[0].forEach.tolerate: "),
        (Kind::WorkflowTemplate, "deep", "", "spec.parametersSchema: nests 150 levels"),
        (Kind::WorkflowTemplate, "wide", "", "spec.steps[0].forEach.tolerate: "),
        (Kind::Agent, "deep", "", "spec.outputSchema: nests 150 levels"),
        (Kind::Agent, "wide", "", "spec.maxConcurrent: "),
        (Kind::Trigger, "deep", "", "spec.run: nests 151 levels"),
    ] {
        let name = format!("{name}-{suffix}");
        let (found, message) = town.until(&name, || said(town, kind, &name)).await;
        assert!(found == phase && message.contains(words), "{name}: {found} {message}");
    }
    // Of a Document nothing else tells it.
    let name = format!("wide-{suffix}");
    let is_told = |event: &Value| {
        event["reason"] == "Unreadable"
            && event["regarding"]["kind"] == "Document"
            && event["regarding"]["name"] == name.as_str()
    };
    town.until("the Event", || town.objects(Kind::Event).iter().any(is_told).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_says_so_and_others_go_on() {
    let mut town = Town::open().await;
    town.echo("flow");
    let run = |story: &str| json!({"input": story, "story_id": story, "flow": "flow"});
    made(&town, "early");
    told(&town, "early").await;
    told_to_others(&town, "early").await;
    assert_eq!(town.post("/run", run("beside")).await.is(200).body["result"], "beside");
    // They are there when operator and API begin.
    town.restart().await;
    town.replace_operator(Sinks::default());
    assert_eq!(town.post("/run", run("after")).await.is(200).body["result"], "after");
    made(&town, "late");
    told(&town, "late").await;
    told_to_others(&town, "late").await;
    assert_eq!(town.post("/run", run("again")).await.is(200).body["result"], "again");
}

#[tokio::test(start_paused = true)]
async fn the_run_of_a_step_run_that_cannot_be_read_fails_and_names_it() {
    let mut town = Town::open().await;
    town.agent("slow", &json!({}), |_| Deed { seconds: 5.0, output: json!(1), ..Deed::default() });
    town.flow("slow", &json!({"forEach": {"in": "[1, 2, 3]", "as": "e", "maxParallel": 1}}));
    let deepen = |object: &Value| {
        let (mut deeper, name) = (object.clone(), object["metadata"]["name"].as_str().expect("a name").to_owned());
        deeper["spec"]["item"]["value"] = deep(150);
        let (key, by) = (Key::new(Kind::StepRun, NAMESPACE, &name), Writer { user: "admin", is_dry_run: false });
        town.api.with(|registry| registry.replace(&key, Part::Main, deeper, by)).expect("it is written");
        name
    };
    town.post("/run", json!({"input": "x", "story_id": "s", "flow": "slow", "wait": 0})).await.is(202);
    let name = town.until("a StepRun", || town.objects(Kind::StepRun).first().map(&deepen)).await;
    let failed = || {
        let run = town.objects(Kind::Workflow).into_iter().next()?;
        let message = run["status"]["conditions"][0]["message"].as_str()?.to_owned();
        (run["status"]["phase"] == "Failed").then_some(message)
    };
    let message = town.until("the end", failed).await;
    assert!(message.contains(&name) && message.contains("cannot be read"), "{message}");
    let (_, told) = town.until("the condition", || said(&town, Kind::StepRun, &name)).await;
    assert!(told.contains("spec.item: nests"), "{told}");
    town.replace_operator(Sinks::default());
    town.echo("flow");
    let body = json!({"input": "others", "story_id": "t", "flow": "flow"});
    assert_eq!(town.post("/run", body).await.is(200).body["result"], "others");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_cannot_be_read_goes_when_its_time_has_passed() {
    let town = Town::open().await;
    let make = |name: &str, ttl: Value| {
        let object = json!({"apiVersion": Kind::Workflow.api_version(), "kind": "Workflow",
            "metadata": {"name": name, "labels": {LABEL_MADE_BY: "plugin"}},
            "spec": {"parameters": deep(150), "ttlSecondsAfterFinished": ttl, "steps": [{"name": "a", "agentId": "flow"}]}});
        let (key, by) = (Key::new(Kind::Workflow, NAMESPACE, name), Writer { user: "admin", is_dry_run: false });
        town.api.with(|registry| registry.create(&key, object, by)).expect("it is made");
    };
    make("kept", json!(null));
    make("short", json!(60));
    let (phase, _) = town.until("the condition", || said(&town, Kind::Workflow, "short")).await;
    assert_eq!(phase, "Failed");
    let names =
        || -> Vec<Value> { town.objects(Kind::Workflow).iter().map(|run| run["metadata"]["name"].clone()).collect() };
    town.until("the end of one", || (names() == ["kept"]).then_some(())).await;
}
