//! Who may write what: the chart's policies and roles, asked one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use lockstep::decide::mail;
use serde_json::{Value, json};

use crate::memory;
use crate::strangers;
use crate::support::{
    API, Ask, GATEWAY, OPERATOR, Team, Who, annotation, document, policies_mine, policies_whole, refused, stamps,
    step_run, until, workflow,
};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const STAMPS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings";

/// Deadlines that have passed, and that have not, whatever the time is.
const PAST: &str = "2020-01-01T00:00:00Z";
const FUTURE: &str = "2099-01-01T00:00:00Z";

/// A request that exactly one rule refuses; `words` are in that rule's message and in no other's.
pub struct Case {
    pub policy: &'static str,
    pub words: &'static str,
    pub who: Who,
    pub ask: Ask,
    /// Where the server stamps names, the fault is gone before the rule looks.
    pub unstamped_only: bool,
}

fn gate(state: &str, round: i32, decided: &[&str]) -> Value {
    let decisions: Vec<_> = decided
        .iter()
        .map(|by| {
            json!({"documentType": "brief", "scopeId": "u-1", "accepted": true, "decidedBy": by,
                "decidedAt": "2026-01-01T00:00:00Z", "digest": "sha256:a", "round": round})
        })
        .collect();
    json!({"phase": "WaitingForAcceptance", "gate": {"state": state, "round": round, "outputDigest": "sha256:a",
        "openedAt": "2026-01-01T00:00:00Z", "policy": "p", "decisions": decisions}})
}

/// A gate, or a step's own question, that waits until then.
fn until_then(mut waits: Value, deadline: &str) -> Value {
    let place = if waits["gate"].is_null() { "waitingFor" } else { "gate" };
    waits[place]["deadline"] = json!(deadline);
    waits
}

/// A step that is a question, and waits for its answer.
fn question() -> (Value, Value) {
    let wait = json!({"id": "1-0", "kind": "Question", "question": "How much?", "options": [],
        "since": "2026-01-01T00:00:00Z"});
    let spec = json!({"agentId": null, "ask": {"name": "budget", "question": "How much?"}});
    (spec, json!({"phase": "WaitingForInput", "waitingFor": wait}))
}

/// An entry of managedFields that owns one field.
fn owns(place: &str, field: &str, time: &str) -> Value {
    json!({"manager": "somebody", "operation": "Update", "apiVersion": "lockstep.dev/v1alpha1", "time": time,
        "fieldsType": "FieldsV1", "fieldsV1": {place: {field: {}}}})
}

/// An agent's request for one action, as it waits for people.
fn request(gate_name: &str, digest: &str, decided: &[&str]) -> Value {
    let open = gate("Waiting", 1, decided)["gate"].clone();
    let mut request = json!({"gateName": gate_name, "action": "Send the mail", "payload": "{\"to\":\"ann\"}", "attempt": 1,
        "requestedAt": "2026-01-01T00:00:00Z", "agentWaitsUntil": "2026-01-01T00:05:00Z", "gate": open});
    request["gate"]["outputDigest"] = json!(digest);
    request
}

/// A step whose agent has requested actions at each of its gates; the last of them is decided already.
fn acting() -> (Value, Value) {
    let gates = json!([{"name": "brief"}, {"name": "mail", "acceptors": {"users": ["carol"]}}, {"name": "own", "notBy": "alice"}]);
    let mut over = request("brief", "sha256:over", &["carol"]);
    over["gate"]["state"] = json!("Accepted");
    let requests = json!([
        request("brief", "sha256:brief", &[]),
        request("mail", "sha256:mail", &[]),
        request("own", "sha256:own", &[]),
        request("brief", "sha256:twice", &["alice"]),
        over
    ]);
    (json!({"actionGates": gates}), json!({"phase": "WaitingForAcceptance", "approvalRequests": requests}))
}

/// The owner reference of what a run controls.
pub fn owner(run: &Value) -> Value {
    json!([{"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "name": run["metadata"]["name"],
        "uid": run["metadata"]["uid"], "controller": true}])
}

/// So many keys.
pub fn flood(keys: usize) -> Value {
    (0..keys).map(|n| (format!("k{n:x}"), json!(""))).collect::<serde_json::Map<_, _>>().into()
}

fn accepted(by: &str) -> Value {
    json!({"lockstep.dev/decision": "accepted", "lockstep.dev/decided-by": by})
}

fn agent_part() -> Value {
    json!({"status": {"agent": {"progress": {"percent": 1, "message": "on it", "at": "2026-01-01T00:00:00Z"}}}})
}

/// StepRuns in every state that the rules tell apart.
async fn stage(team: &Team) -> Result<()> {
    let guarded = || json!({"gate": {"name": "brief"}});
    let named = json!({"gate": {"name": "brief", "acceptors": {"users": ["carol"], "groups": ["product"]}}});
    let asking = json!({"phase": "WaitingForInput"});
    team.step_run("open", guarded(), gate("Waiting", 1, &[])).await?;
    team.step_run("named", named, gate("Waiting", 1, &[])).await?;
    team.step_run("second", guarded(), gate("Waiting", 2, &[])).await?;
    team.step_run("decided", guarded(), gate("Waiting", 1, &["alice"])).await?;
    team.step_run("closed", guarded(), gate("Accepted", 1, &[])).await?;
    team.step_run("asking", json!({}), asking.clone()).await?;
    team.step_run("asking-gated", guarded(), asking.clone()).await?;
    let question = json!({"agentId": null, "ask": {"name": "budget", "question": "How much?"}});
    team.step_run("question", question.clone(), asking).await?;
    let of_agent = json!({"id": "1-0", "kind": "Question", "question": "How much?", "options": ["skip", "fail"],
        "since": "2026-01-01T00:00:00Z"});
    for (name, spec) in [("agent-asks", json!({})), ("agent-asks-too", json!({})), ("agent-asks-gated", guarded())] {
        team.step_run(name, spec, json!({"phase": "WaitingForInput", "waitingFor": of_agent})).await?;
    }
    let spent = json!({"id": "1-0", "kind": "BudgetSpent", "question": "it is spent", "options": ["skip", "fail"],
        "since": "2026-01-01T00:00:00Z"});
    team.step_run("spent", json!({}), json!({"phase": "WaitingForInput", "waitingFor": spent})).await?;
    team.step_run("question-asked", question, json!({"phase": "Running"})).await?;
    let eyes = |who: &str| json!({"agentId": null, "gate": {"name": "brief", "notBy": who}});
    team.step_run("eyes", eyes("alice"), gate("Waiting", 1, &[])).await?;
    team.step_run("eyes-unknown", eyes(""), gate("Waiting", 1, &[])).await?;
    team.step_run("reviewed", json!({"gate": {"name": "brief", "requireReview": true}}), gate("Waiting", 1, &[]))
        .await?;
    team.step_run("revising", json!({"gate": {"name": "brief", "revise": true}}), gate("Waiting", 1, &[])).await?;
    team.step_run("several", json!({"gate": {"name": "brief", "approvals": 2}}), gate("Waiting", 1, &["alice"]))
        .await?;
    team.step_run("cancelled", guarded(), gate("Closed", 1, &[])).await?;
    let (spec, status) = acting();
    team.step_run("acting", spec, status).await?;
    deadlines(team).await?;
    team.step_run("running", json!({}), json!({"phase": "Running"})).await?;
    team.step_run("ended", json!({}), json!({"phase": "Completed", "completedAt": "2026-01-01T00:00:00Z"})).await?;
    team.step_run("fresh", json!({}), Value::Null).await?;
    team.step_run("pending", guarded(), gate("Waiting", 1, &[])).await?;
    let carol = Who::user("carol", &[]).await?;
    carol.gets(&Ask::annotate(team.one("stepruns", "pending"), accepted("carol"))).await?;
    let renaming = workflow("renaming", &json!({"parameters": {"a": 1}}));
    let run = team.admin.gets(&Ask::post(team.all("workflows"), renaming)).await?;
    let mut owned = step_run("owned", &json!({}));
    owned["metadata"]["ownerReferences"] = owner(&run);
    team.operator.gets(&Ask::post(team.all("stepruns"), owned)).await?;
    Ok(())
}

/// Waits with a deadline: one of each kind that is over, and some that are not.
async fn deadlines(team: &Team) -> Result<()> {
    let guarded = || json!({"gate": {"name": "brief"}});
    let (ask, asking) = question();
    team.step_run("late", guarded(), until_then(gate("Waiting", 1, &[]), PAST)).await?;
    team.step_run("late-question", ask.clone(), until_then(asking.clone(), PAST)).await?;
    team.step_run("in-time-question", ask, until_then(asking, FUTURE)).await?;
    for name in ["in-time", "applied", "reset", "undated"] {
        team.step_run(name, guarded(), until_then(gate("Waiting", 1, &[]), FUTURE)).await?;
    }
    // Whoever may, takes all entries away: the API server keeps none for this object from then on.
    let emptied = json!({"metadata": {"managedFields": [{}]}});
    let undated = team.operator.gets(&Ask::patch(team.one("stepruns", "undated"), emptied)).await?;
    ensure!(undated["metadata"]["managedFields"].is_null(), "{undated}");
    Ok(())
}

/// At least one case a rule.
#[rustfmt::skip] // one case, one line
async fn cases(team: &Team) -> Result<Vec<Case>> {
    let steps = |name: &str| team.one("stepruns", name);
    let status = |name: &str| team.one("stepruns", &format!("{name}/status"));
    let mark = |name: &str, annotations: Value| Ask::annotate(steps(name), annotations);
    let answer = |action: &str, by: &str| json!({"lockstep.dev/action": action, "lockstep.dev/decided-by": by});
    let reply = |text: &str, by: &str| json!({"lockstep.dev/answer": text, "lockstep.dev/decided-by": by});
    let with = |mut base: Value, key: &str, value: &str| {
        base[format!("lockstep.dev/{key}")] = json!(value);
        base
    };
    let (admin, operator, gateway) = (&team.admin, &team.operator, &team.gateway);
    let (alice, bob) = (&team.alice, &team.bob);
    let bot_name = format!("system:serviceaccount:{}:bot", team.namespace);
    let bot = Who::user(&bot_name, &[]).await?;
    let in_pod = Who::in_pod("alice", "agent-1").await?;

    let mut decided_at_birth = step_run("born", &json!({}));
    decided_at_birth["metadata"]["annotations"] = accepted("alice");
    let mut forged_creator = workflow("forged", &json!({}));
    forged_creator["metadata"]["annotations"] = json!({"lockstep.dev/created-by": "alice"});

    let mut cases = Vec::new();
    let mut add = |policy: &'static str, words: &'static str, who: &Who, ask: Ask| {
        cases.push(Case { policy, words, who: who.clone(), ask, unstamped_only: false });
    };
    let g = "lockstep-gate";
    add(g, "cannot be created with a decision", operator, Ask::post(team.all("stepruns"), decided_at_birth));
    add(g, "canary ok", operator, mark("fresh", json!({"lockstep.dev/canary": "x"})));
    add(g, "only the operator creates StepRuns", admin, Ask::post(team.all("stepruns"), step_run("mine", &json!({}))));
    add(g, "only the operator may change '", alice, mark("open", json!({"lockstep.dev/attempt": "9"})));
    add(g, "only the operator may change '", alice, mark("open", json!({"x.lockstep.dev/y": "9"})));
    add(g, "is already there and only", alice, mark("pending", with(accepted("alice"), "decision", "rejected")));
    add(g, "nothing recorded for you", alice, mark("pending", json!({"lockstep.dev/decision": "accepted"})));
    add(g, "never both at once", alice, mark("asking", with(answer("retry", "alice"), "decision", "accepted")));
    add(g, "never both at once", alice, mark("asking", with(answer("retry", "alice"), "review", "sha256:a")));
    add(g, "never both at once", alice, mark("question", with(answer("fail", "alice"), "answer", "5")));
    add(g, "never both at once", alice, mark("question", with(reply("5", "alice"), "decision", "accepted")));
    add(g, "must be accepted or rejected", alice, mark("open", with(accepted("alice"), "decision", "maybe")));
    add(g, "must be accepted or rejected", alice, mark("open", json!({"lockstep.dev/decided-by": "alice"})));
    add(g, "must be retry, skip or fail", alice, mark("asking", answer("dance", "alice")));
    add(g, "this step is a question", alice, mark("question", answer("retry", "alice")));
    add(g, "this step is a question", alice, mark("question", answer("skip", "alice")));
    add(g, "this step is a question", alice, mark("agent-asks", answer("retry", "alice")));
    add(g, "this step is a question", alice, mark("spent", answer("retry", "alice")));
    add(g, "lacks the permission answer", bob, mark("spent", reply("{\"tokens\": 5}", "bob")));
    add(g, "this step is no question", alice, mark("asking", reply("5", "alice")));
    add(g, "at most 16384 characters", alice, mark("question", reply(&"ü".repeat(16385), "alice")));
    add(g, "at most 4096 characters", alice, mark("open", with(accepted("alice"), "comment", &"ü".repeat(4097))));
    add(g, "not waiting for a decision", alice, mark("closed", accepted("alice")));
    add(g, "not waiting for a decision", alice, mark("fresh", accepted("alice")));
    add(g, "the run ended or was cancelled", alice, mark("cancelled", accepted("alice")));
    add(g, "not waiting for an answer", alice, mark("question-asked", reply("5", "alice")));
    add(g, "not waiting for an answer", alice, mark("running", answer("retry", "alice")));
    add(g, "too late, the deadline was", alice, mark("late", accepted("alice")));
    add(g, "too late, the deadline was", alice, mark("late-question", reply("5", "alice")));
    add(g, "too late, the deadline was", alice, mark("undated", accepted("alice")));
    let entries = |entry: Value| json!({"metadata": {"managedFields": [entry]}});
    add(g, "are the API server's", alice, Ask::patch(steps("open"), entries(json!({}))));
    add(g, "are the API server's", alice, Ask::patch(steps("open"), entries(owns("f:spec", "f:path", FUTURE))));
    add(g, "are the API server's", alice, Ask::patch(steps("pending"), entries(owns("f:spec", "f:path", PAST))));
    let mut beside = entries(owns("f:spec", "f:path", FUTURE));
    beside["metadata"]["annotations"] = json!({"example.com/note": "x"});
    add(g, "are the API server's", bob, Ask::patch(steps("open"), beside));
    add(g, "cannot be skipped", alice, mark("asking-gated", answer("skip", "alice")));
    add(g, "cannot be skipped", alice, mark("agent-asks-gated", answer("skip", "alice")));
    add(g, "is a machine identity", &bot, mark("open", accepted(&bot_name)));
    add(g, "is a machine identity", &in_pod, mark("open", accepted("alice")));
    add(g, "is a machine identity", &bot, mark("asking", answer("retry", &bot_name)));
    add(g, "is a machine identity", &bot, mark("question", reply("5", &bot_name)));
    add(g, "lacks the permission approve", bob, mark("open", accepted("bob")));
    add(g, "lacks the permission answer", bob, mark("asking", answer("retry", "bob")));
    add(g, "lacks the permission answer", bob, mark("question", reply("5", "bob")));
    add(g, "lacks the permission answer", bob, mark("agent-asks", reply("5", "bob")));
    add(g, "is not an acceptor", alice, mark("named", accepted("alice")));
    add(g, "is not an acceptor", admin, mark("named", accepted(&person(admin).await?)));
    add(g, "stale review", alice, mark("open", with(accepted("alice"), "review", "sha256:b")));
    add(g, "say which output you reviewed", alice, mark("second", accepted("alice")));
    add(g, "say which output you reviewed", alice, mark("reviewed", accepted("alice")));
    add(g, "say which output you reviewed", alice, mark("reviewed", with(accepted("alice"), "decision", "rejected")));
    add(g, "somebody else must decide", alice, mark("eyes", accepted("alice")));
    add(g, "somebody else must decide", alice, mark("eyes", with(accepted("alice"), "decision", "rejected")));
    add(g, "nobody may decide it", alice, mark("eyes-unknown", accepted("alice")));
    add(g, "say what to change", alice, mark("revising", with(accepted("alice"), "decision", "rejected")));
    add(g, "say what to change", alice, mark("revising", with(with(accepted("alice"), "decision", "rejected"), "comment", " ")));
    add(g, "has already decided this round", alice, mark("several", accepted("alice")));
    add(g, "has already decided this round", alice, mark("decided", accepted("alice")));
    // What an agent requests in the middle of its work is decided under the rules of the gate that it names.
    let about = |by: &str, digest: &str| with(accepted(by), "review", digest);
    add(g, "say which one", alice, mark("acting", accepted("alice")));
    add(g, "is a machine identity", &bot, mark("acting", about(&bot_name, "sha256:brief")));
    add(g, "lacks the permission approve", bob, mark("acting", about("bob", "sha256:brief")));
    add(g, "is not an acceptor", alice, mark("acting", about("alice", "sha256:mail")));
    add(g, "somebody else must decide", alice, mark("acting", about("alice", "sha256:own")));
    add(g, "has already decided this round", alice, mark("acting", about("alice", "sha256:twice")));
    add(g, "labels and finalizers", alice, Ask::patch(steps("open"), json!({"metadata": {"labels": {"a": "b"}}})));
    add(g, "labels and finalizers", bob, Ask::patch(steps("open"), json!({"metadata": {"finalizers": ["a.b/c"]}})));
    let adopted = || json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": "x", "uid": "y"}]}});
    add(g, "the owners of a StepRun", admin, Ask::patch(steps("open"), adopted()));
    add(g, "the owners of a StepRun", admin, Ask::patch(steps("owned"), json!({"metadata": {"ownerReferences": null}})));
    add(g, "a StepRun may have 1000", bob, Ask::annotate(steps("open"), flood(1001)));
    add(g, "a StepRun may have 1000", admin, Ask::patch(steps("open"), json!({"metadata": {"labels": flood(1001)}})));

    let s = "lockstep-status";
    let phase = || json!({"status": {"phase": "Completed"}});
    add(s, "canary ok", operator, Ask::patch(status("fresh"), json!({"status": {"canary": "x"}})));
    add(s, "canary ok", operator, Ask::patch(status("open"), json!({"status": {"canary": "x"}})));
    add(s, "may not write the status", admin, Ask::patch(status("running"), agent_part()));
    add(s, "status.agent of a StepRun only", gateway, Ask::patch(status("running"), phase()));
    add(s, "status.agent of a StepRun only", gateway, Ask::patch(status("running"), json!({"status": {"phase": null}})));
    add(s, "status.agent of a StepRun only", gateway, Ask::patch(status("fresh"), json!({"status": {"attempt": 2}})));
    add(s, "status.agent of a StepRun only", gateway, Ask::patch(status("acting"), json!({"status": {"approvalRequests": null}})));
    add(s, "ended or is under review", gateway, Ask::patch(status("ended"), agent_part()));
    add(s, "ended or is under review", gateway, Ask::patch(status("open"), agent_part()));

    // A renamed key in free JSON, which the CRD's own rule does not see.
    add("lockstep-spec", "is immutable", admin,
        Ask::patch(team.one("workflows", "renaming"), json!({"spec": {"parameters": {"a": null, "b": 1}}})));
    add("lockstep-spec", "is immutable", admin,
        Ask::patch(team.one("workflows", "renaming"), json!({"spec": {"suspend": true, "parameters": {"a": null, "b": 1}}})));
    add("lockstep-delete", "never alone", admin, Ask::delete(steps("owned")));
    for key in ["decision", "action", "answer", "review", "comment", "decided-by"] {
        let astray = json!({format!("lockstep.dev/{key}"): "accepted"});
        add("lockstep-creator", "decides nothing", bob, Ask::annotate(team.one("workflows", "renaming"), astray));
    }

    let mut unstamped = |policy: &'static str, words: &'static str, who: &Who, ask: Ask| {
        cases.push(Case { policy, words, who: who.clone(), ask, unstamped_only: true });
    };
    unstamped(g, "must be your own name", alice, mark("open", accepted("carol")));
    unstamped(g, "cannot stamp your name", alice, mark("open", json!({"lockstep.dev/decision": "accepted"})));
    unstamped(g, "must be your own name", alice, mark("asking", answer("retry", "carol")));
    let c = "lockstep-creator";
    unstamped(c, "must be your own name", bob, Ask::post(team.all("workflows"), forged_creator));
    unstamped(c, "cannot be changed", bob, Ask::annotate(team.one("workflows", "nobodys"), json!({"lockstep.dev/created-by": "bob"})));
    cases.extend(strangers::cases(team).await?);
    cases.extend(memory::cases(team).await?);
    Ok(cases)
}

async fn person(who: &Who) -> Result<String> {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let review = who.gets(&Ask::post("/apis/authentication.k8s.io/v1/selfsubjectreviews", body)).await?;
    Ok(review["status"]["userInfo"]["username"].as_str().context("no name")?.to_owned())
}

#[tokio::test]
async fn every_rule_refuses() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("rules").await?;
    stage(&team).await?;
    strangers::stage(&team).await?;
    memory::stage(&team).await?;
    let stamping = stamps(&team.admin).await?;
    if !stamping {
        // A run that nobody is known to have made: only a server that stamps no names lets it pass.
        team.bob.gets(&Ask::post(team.all("workflows"), workflow("nobodys", &json!({})))).await?;
    }
    for case in cases(&team).await?.iter().filter(|case| !(stamping && case.unstamped_only)) {
        let words = case.words.trim_end_matches(" '");
        for words in [&format!("{}/v1: ", case.policy), words] {
            case.who.is_refused(&case.ask, 403, words).await.with_context(|| format!("{:?}", case.ask.body))?;
        }
    }
    team.close().await
}

/// Each request is decided by its digest, under the rules of its own gate, while the agent goes on and the gateway writes.
#[tokio::test]
async fn an_action_is_decided_by_the_digest_of_what_was_requested() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("actions").await?;
    let (alice, carol) = (&team.alice, Who::user("carol", &[]).await?);
    for (number, (who, by, digest, decision)) in [
        (alice, "alice", "sha256:brief", "accepted"),
        (alice, "alice", "sha256:brief", "rejected"),
        (&carol, "carol", "sha256:mail", "accepted"),
        (&carol, "carol", "sha256:own", "accepted"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("acting-{number}");
        let (spec, status) = acting();
        team.step_run(&name, spec, status).await?;
        let step_run = team.one("stepruns", &name);
        // What is decided already, and what nobody requested, is not decided again.
        for stale in ["sha256:over", "sha256:nothing"] {
            let letter =
                json!({"lockstep.dev/decision": decision, "lockstep.dev/review": stale, "lockstep.dev/decided-by": by});
            who.is_refused(&Ask::annotate(&step_run, letter), 403, "an action waits for a decision here").await?;
        }
        team.gateway.gets(&Ask::patch(team.one("stepruns", &format!("{name}/status")), agent_part())).await?;
        let letter =
            json!({"lockstep.dev/decision": decision, "lockstep.dev/review": digest, "lockstep.dev/decided-by": by});
        who.gets(&Ask::annotate(&step_run, letter)).await?;
        let other = json!({"lockstep.dev/decision": "rejected", "lockstep.dev/review": "sha256:brief", "lockstep.dev/decided-by": "carol"});
        carol.is_refused(&Ask::annotate(&step_run, other), 403, "is already there").await?;
    }
    team.close().await
}

/// Takes each rule out of the live policies in turn (if it is killed meanwhile, install the chart anew): then, and only then, its cases pass. So no rule is covered by
/// another, none reads a field that is not there, and each has a case.
#[tokio::test]
async fn every_rule_alone_refuses() -> Result<()> {
    let _mine = policies_mine().await;
    let team = Team::open("alone").await?;
    stage(&team).await?;
    strangers::stage(&team).await?;
    memory::stage(&team).await?;
    let kept = without_stamps(&team).await?;
    let outcome = take_rules_out(&team).await;
    for binding in kept {
        team.admin.gets(&Ask::post(STAMPS, binding)).await?;
    }
    outcome?;
    team.policies_stand().await?;
    team.close().await
}

async fn take_rules_out(team: &Team) -> Result<()> {
    let nobodys = Ask::post(team.all("workflows"), workflow("nobodys", &json!({})));
    team.bob.gets(&nobodys).await?;
    let cases = cases(team).await?;
    let mut by_policy: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    for case in &cases {
        by_policy.entry(case.policy).or_default().push(case);
    }
    for (policy, cases) in by_policy {
        let path = format!("{POLICIES}/{policy}");
        let whole = team.admin.gets(&Ask::get(&path)).await?;
        let rules = whole["spec"]["validations"].as_array().context("no rules")?.clone();
        let outcome = take_out_of(team, &path, &rules, &cases).await;
        team.admin.gets(&Ask::patch(&path, json!({"spec": {"validations": rules}}))).await?;
        for case in &cases {
            until(case.words, || async { Ok(refused(&case.who.tries(&case.ask).await, 403, policy).ok()) })
                .await
                .context("the rule is put back and refuses")?;
        }
        outcome.with_context(|| policy.to_owned())?;
    }
    Ok(())
}

async fn take_out_of(team: &Team, path: &str, rules: &[Value], cases: &[&Case]) -> Result<()> {
    let mut covered = BTreeSet::new();
    for case in cases {
        let holders: Vec<usize> = (0..rules.len()).filter(|i| says(&rules[*i]).contains(case.words)).collect();
        let [index] = holders[..] else {
            bail!("{:?} is in the message of rules {holders:?}", case.words);
        };
        covered.insert(index);
    }
    let missing: Vec<_> = (0..rules.len()).filter(|i| !covered.contains(i)).map(|i| says(&rules[i])).collect();
    ensure!(missing.is_empty(), "rules without a case: {missing:?}");
    for index in covered {
        let mut rest = rules.to_vec();
        let removed = rest.remove(index);
        if rest.is_empty() {
            rest.push(json!({"expression": "true"}));
        }
        team.admin.gets(&Ask::patch(path, json!({"spec": {"validations": rest}}))).await?;
        for case in cases.iter().filter(|case| says(&removed).contains(case.words)) {
            let mut last = None;
            let passed = until("passes without its rule", || async { Ok(case.who.tries(&case.ask).await.ok()) }).await;
            if passed.is_err() {
                last = case.who.tries(&case.ask).await.err();
            }
            passed.with_context(|| format!("{:?} {:?}: {last:?}", case.words, case.ask.body))?;
        }
    }
    Ok(())
}

/// The fixed text and the expression of a rule's message.
fn says(rule: &Value) -> String {
    format!("{}\n{}", rule["message"].as_str().unwrap_or(""), rule["messageExpression"].as_str().unwrap_or(""))
}

/// Takes the stamping away, and gives what is needed to put it back.
async fn without_stamps(team: &Team) -> Result<Vec<Value>> {
    let mut kept = Vec::new();
    if !stamps(&team.admin).await? {
        return Ok(kept);
    }
    for name in ["lockstep-stamp-decision", "lockstep-stamp-creator"] {
        let path = format!("{STAMPS}/{name}");
        let mut binding = team.admin.gets(&Ask::get(&path)).await?;
        for field in ["resourceVersion", "uid", "managedFields", "creationTimestamp", "generation"] {
            binding["metadata"].as_object_mut().context("no metadata")?.remove(field);
        }
        team.admin.gets(&Ask::delete(&path)).await?;
        kept.push(binding);
    }
    let run = Ask::post(team.all("workflows"), workflow("probe", &json!({})));
    let bare = Ask::annotate(team.one("stepruns", "open"), json!({"lockstep.dev/decision": "accepted"}));
    until("names are stamped no more", || async {
        let made = team.bob.tries(&run).await.map_err(|r| anyhow!(r.message))?;
        let asked = team.alice.tries(&bare).await.is_err();
        Ok((asked && annotation(&made, "lockstep.dev/created-by").is_none()).then_some(()))
    })
    .await?;
    Ok(kept)
}

/// The operator compares what the server stores with the files that it was built with: they must be equal, key by key.
#[tokio::test]
async fn the_server_stores_the_policies_as_the_files_have_them() -> Result<()> {
    let _whole = policies_whole().await;
    let admin = Who::admin().await?;
    let mut compared = 0;
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/lockstep/policies"))? {
        let text = std::fs::read_to_string(file?.path())?;
        for document in serde_saphyr::from_multiple::<Value>(&text)? {
            let name = document["metadata"]["name"].as_str().context("no name")?;
            let list = match document["kind"].as_str() {
                Some("ValidatingAdmissionPolicy") => POLICIES,
                Some("ValidatingAdmissionPolicyBinding") => BINDINGS,
                _ => continue,
            };
            let stored = admin.gets(&Ask::get(format!("{list}/{name}"))).await?;
            ensure!(stored["spec"] == document["spec"], "{name}:\n{}\n{}", stored["spec"], document["spec"]);
            if list == POLICIES {
                let checked = until("type checking", || async {
                    let stored = admin.gets(&Ask::get(format!("{list}/{name}"))).await?;
                    let seen = stored["status"]["observedGeneration"] == stored["metadata"]["generation"];
                    Ok(seen.then_some(stored["status"]["typeChecking"].clone()))
                })
                .await?;
                ensure!(checked["expressionWarnings"].is_null(), "{name}: {checked}");
            }
            compared += 1;
        }
    }
    ensure!(compared == 22, "compared {compared}");
    Ok(())
}

#[tokio::test]
async fn people_decide_and_answer() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("people").await?;
    stage(&team).await?;
    let at = |name: &str| team.one("stepruns", name);
    let dave = Who::user("dave", &["product"]).await?;
    let erin = Who::user("erin", &[]).await?;
    let review = json!({"lockstep.dev/review": "sha256:a", "lockstep.dev/comment": "ü".repeat(4096),
        "lockstep.dev/decision": "rejected", "lockstep.dev/decided-by": "alice"});
    team.alice.gets(&Ask::annotate(at("open"), accepted("alice"))).await?;
    team.alice.gets(&Ask::annotate(at("open"), accepted("alice"))).await.context("the same again")?;
    team.alice.gets(&Ask::annotate(at("second"), review)).await?;
    dave.gets(&Ask::annotate(at("named"), accepted("dave"))).await.context("member of an accepting group")?;
    let answer = json!({"lockstep.dev/action": "retry", "lockstep.dev/comment": "mind the tax", "lockstep.dev/decided-by": "alice"});
    team.alice.gets(&Ask::annotate(at("asking"), answer)).await?;
    let fail = json!({"lockstep.dev/action": "fail", "lockstep.dev/decided-by": "alice"});
    team.alice.gets(&Ask::annotate(at("asking-gated"), fail)).await?;
    let reply = json!({"lockstep.dev/answer": "ü".repeat(16384), "lockstep.dev/decided-by": "alice"});
    team.alice.gets(&Ask::annotate(at("question"), reply)).await.context("a question is answered")?;
    let reply = json!({"lockstep.dev/answer": "5", "lockstep.dev/decided-by": "alice"});
    team.alice.gets(&Ask::annotate(at("agent-asks"), reply)).await.context("a question of an agent is answered")?;
    let raise = json!({"lockstep.dev/answer": "{\"tokens\": 5000}", "lockstep.dev/decided-by": "alice"});
    team.alice.gets(&Ask::annotate(at("spent"), raise)).await.context("a budget is raised")?;
    let skip = json!({"lockstep.dev/action": "skip", "lockstep.dev/decided-by": "alice"});
    team.alice.gets(&Ask::annotate(at("agent-asks-too"), skip)).await.context("and may be skipped")?;
    let review = json!({"lockstep.dev/decision": "accepted", "lockstep.dev/review": "sha256:a",
        "lockstep.dev/decided-by": "alice"});
    team.alice.gets(&Ask::annotate(at("reviewed"), review)).await.context("the review that the gate asks for")?;
    let why = json!({"lockstep.dev/decision": "rejected", "lockstep.dev/comment": "shorter",
        "lockstep.dev/decided-by": "alice"});
    team.alice.gets(&Ask::annotate(at("revising"), why)).await.context("a rejection that says why")?;
    let carol = Who::user("carol", &[]).await?;
    carol.gets(&Ask::annotate(at("eyes"), accepted("carol"))).await.context("not the one who made the run")?;
    carol.gets(&Ask::annotate(at("several"), accepted("carol"))).await.context("the second of two")?;
    team.bob
        .gets(&Ask::annotate(at("open"), json!({"example.com/note": "x"})))
        .await
        .context("foreign annotations are free")?;
    erin.is_refused(&Ask::annotate(at("open"), accepted("erin")), 403, "cannot patch resource").await?;

    // Withdrawing, by whomever; then the operator empties the mailbox, and the next decision finds it free.
    let withdraw = json!({"lockstep.dev/decision": null, "lockstep.dev/decided-by": null});
    team.alice.is_refused(&Ask::annotate(at("open"), withdraw.clone()), 403, "only the operator may change it").await?;
    team.admin.is_refused(&Ask::annotate(at("open"), withdraw.clone()), 403, "only the operator may change it").await?;
    team.operator.gets(&Ask::annotate(at("open"), withdraw)).await?;
    carol.gets(&Ask::annotate(at("open"), accepted("carol"))).await?;

    // What is written to the status subresource never reaches the mailbox.
    let smuggled = json!({"metadata": {"annotations": accepted("alice")}, "status": {"phase": "WaitingForAcceptance"}});
    team.operator.gets(&Ask::patch(team.one("stepruns", "decided/status"), smuggled)).await?;
    let stored = team.admin.gets(&Ask::get(at("decided"))).await?;
    ensure!(annotation(&stored, "lockstep.dev/decision").is_none());
    // Nor does a status that is sent along open a gate.
    let forged = json!({"metadata": {"annotations": accepted("alice")}, "status": gate("Waiting", 1, &[])});
    team.alice.is_refused(&Ask::patch(at("closed"), forged), 403, "not waiting for a decision").await?;
    team.close().await
}

/// What came in time is known by the API server's own time, whichever way it was written; and nobody changes that, or does without.
#[tokio::test]
async fn a_deadline_holds_by_the_time_of_the_api_server() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("deadlines").await?;
    deadlines(&team).await?;
    let at = |name: &str| team.one("stepruns", name);
    let began = Timestamp::now();
    let written = |stored: &Value| -> Result<Timestamp> {
        let meta: ObjectMeta = serde_json::from_value(stored["metadata"].clone())?;
        Ok(mail::written(&meta).context("nobody knows when")?.0)
    };
    let is_now = |stored: &Value| -> Result<()> {
        let (time, now) = (written(stored)?, Timestamp::now());
        ensure!(
            time.as_second() >= began.as_second() - 5 && time.as_second() <= now.as_second() + 5,
            "{time} at {now}"
        );
        Ok(())
    };
    is_now(&team.alice.gets(&Ask::annotate(at("in-time"), accepted("alice"))).await?)?;
    let reply = json!({"lockstep.dev/answer": "5", "lockstep.dev/decided-by": "alice"});
    is_now(&team.alice.gets(&Ask::annotate(at("in-time-question"), reply)).await?)?;
    // Server-side apply has an entry of another kind.
    let applies = |name: &str| Ask {
        path: format!("{}?fieldManager=gitops&force=true", at(name)),
        kind: "application/apply-patch+yaml",
        ..Ask::patch(
            "",
            json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": name, "annotations": accepted("alice")}}),
        )
    };
    is_now(&team.alice.gets(&applies("applied")).await?)?;
    team.alice.is_refused(&applies("late"), 403, "too late, the deadline was").await?;
    // A time of one's own does not count: what a request adds is its own, whatever entries it sends along.
    let forged = || {
        let mut forged = owns("f:spec", "f:path", PAST);
        forged["fieldsV1"]["f:metadata"] = json!({"f:annotations": {"f:lockstep.dev/decision": {}}});
        json!({"metadata": {"annotations": accepted("alice"), "managedFields": [forged]}})
    };
    team.alice.is_refused(&Ask::patch(at("late"), forged()), 403, "too late, the deadline was").await?;
    team.alice.is_refused(&Ask::patch(at("reset"), forged()), 403, "are the API server's").await?;
    // A status that no schema fits is not stored, but the API server gives up dating the request.
    let mut misfit = forged();
    misfit["status"] = json!({"phase": 5});
    team.alice.is_refused(&Ask::patch(at("reset"), misfit), 403, "nobody knows when this was written").await?;
    // A decision whose own request takes the entries away has no time.
    let reset = json!({"metadata": {"annotations": accepted("alice"), "managedFields": [{}]}});
    team.alice.is_refused(&Ask::patch(at("reset"), reset), 403, "nobody knows when this was written").await?;
    // The status is the operator's, and what gateways write has other entries: neither dates a decision anew.
    let before = written(&team.admin.gets(&Ask::get(at("in-time"))).await?)?;
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    let status = json!({"status": {"phase": "WaitingForAcceptance", "observedGeneration": 7}});
    team.operator.gets(&Ask::patch(team.one("stepruns", "in-time/status"), status)).await?;
    let after = written(&team.admin.gets(&Ask::get(at("in-time"))).await?)?;
    ensure!(before == after, "{before} became {after}");
    team.close().await
}

/// The permission to approve is of one gate, by its name, and of one namespace.
#[tokio::test]
async fn who_may_approve_one_gate_may_approve_no_other() -> Result<()> {
    let _whole = policies_whole().await;
    let (team, other) = (Team::open("one-gate").await?, Team::open("one-gate").await?);
    let rules = json!([
        {"apiGroups": ["lockstep.dev"], "resources": ["gates"], "resourceNames": ["backlog"], "verbs": ["approve"]},
        {"apiGroups": ["lockstep.dev"], "resources": ["stepruns"], "verbs": ["get", "patch"]}]);
    team.grant("erin", "backlog-approver", rules).await?;
    let patching = json!([{"apiGroups": ["lockstep.dev"], "resources": ["stepruns"], "verbs": ["get", "patch"]}]);
    other.grant("erin", "patcher", patching).await?;
    for (team, name, named) in
        [(&team, "mine", "backlog"), (&team, "theirs", "release"), (&other, "elsewhere", "backlog")]
    {
        team.step_run(name, json!({"gate": {"name": named}}), gate("Waiting", 1, &[])).await?;
        until("erin may patch", || async {
            Ok(team.may("erin", &[], "patch", "lockstep.dev", "stepruns").await?.then_some(()))
        })
        .await?;
    }
    let erin = Who::user("erin", &[]).await?;
    let lacks = "lacks the permission approve";
    erin.is_refused(&Ask::annotate(team.one("stepruns", "theirs"), accepted("erin")), 403, lacks).await?;
    erin.is_refused(&Ask::annotate(other.one("stepruns", "elsewhere"), accepted("erin")), 403, lacks).await?;
    until("erin's gate takes her decision", || async {
        Ok(erin.asks(&Ask::annotate(team.one("stepruns", "mine"), accepted("erin"))).await.ok())
    })
    .await?;
    other.close().await?;
    team.close().await
}

/// The permission to answer likewise: of one question by its name, of what an agent leaves to people by the agent's.
#[tokio::test]
async fn who_may_answer_one_input_may_answer_no_other() -> Result<()> {
    let _whole = policies_whole().await;
    let (team, other) = (Team::open("one-input").await?, Team::open("one-input").await?);
    let patching = json!({"apiGroups": ["lockstep.dev"], "resources": ["stepruns"], "verbs": ["get", "patch"]});
    let inputs = json!({"apiGroups": ["lockstep.dev"], "resources": ["inputs"], "resourceNames": ["budget", "planner"], "verbs": ["answer"]});
    team.grant("fred", "budget-answerer", json!([inputs, patching])).await?;
    other.grant("fred", "patcher", json!([patching])).await?;
    let question = |name: &str| json!({"agentId": null, "ask": {"name": name, "question": "How much?"}});
    let of_agent = |agent: &str| json!({"agentId": agent});
    let asking = json!({"phase": "WaitingForInput"});
    for (team, name, spec) in [
        (&team, "mine", question("budget")),
        (&team, "my-agents", of_agent("planner")),
        (&team, "theirs", question("date")),
        (&team, "their-agents", of_agent("clerk")),
        (&other, "elsewhere", question("budget")),
    ] {
        team.step_run(name, spec, asking.clone()).await?;
        until("fred may patch", || async {
            Ok(team.may("fred", &[], "patch", "lockstep.dev", "stepruns").await?.then_some(()))
        })
        .await?;
    }
    let fred = Who::user("fred", &[]).await?;
    let lacks = "lacks the permission answer";
    let reply = json!({"lockstep.dev/answer": "5", "lockstep.dev/decided-by": "fred"});
    let retry = json!({"lockstep.dev/action": "retry", "lockstep.dev/decided-by": "fred"});
    for (team, name, letter) in
        [(&team, "theirs", &reply), (&team, "their-agents", &retry), (&other, "elsewhere", &reply)]
    {
        fred.is_refused(&Ask::annotate(team.one("stepruns", name), letter.clone()), 403, lacks).await.context(name)?;
    }
    for (name, letter) in [("mine", &reply), ("my-agents", &retry)] {
        until("what fred may answer takes his answer", || async {
            Ok(fred.asks(&Ask::annotate(team.one("stepruns", name), letter.clone())).await.ok())
        })
        .await?;
    }
    other.close().await?;
    team.close().await
}

/// Of a run its maker may change whether it is held, whether it goes on, and how long it is kept.
#[tokio::test]
async fn runs_are_held_and_ended_by_people() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("held").await?;
    team.bob.gets(&Ask::post(team.all("workflows"), workflow("run", &json!({"parameters": {"a": 1}})))).await?;
    let change = |spec: Value| Ask::patch(team.one("workflows", "run"), json!({"spec": spec}));
    for spec in [
        json!({"suspend": true}),
        json!({"suspend": false, "ttlSecondsAfterFinished": 60}),
        json!({"suspend": null, "ttlSecondsAfterFinished": 0}),
        json!({"cancel": true, "ttlSecondsAfterFinished": null}),
    ] {
        team.bob.gets(&change(spec.clone())).await.with_context(|| spec.to_string())?;
    }
    for spec in [json!({"input": "x"}), json!({"suspend": true, "onFailure": "Fail"}), json!({"parameters": null})] {
        team.bob.is_refused(&change(spec), 422, "immutable but for suspend, cancel").await?;
    }
    for spec in [json!({"cancel": false}), json!({"cancel": null})] {
        team.bob.is_refused(&change(spec), 422, "cancel cannot be taken back").await?;
    }
    team.close().await
}

#[tokio::test]
async fn names_are_stamped_where_the_server_can() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("stamped").await?;
    if !stamps(&team.admin).await? {
        return team.close().await;
    }
    stage(&team).await?;
    for (name, annotations) in [
        ("open", json!({"lockstep.dev/decision": "accepted"})),
        (
            "second",
            json!({"lockstep.dev/decision": "rejected", "lockstep.dev/review": "sha256:a", "lockstep.dev/decided-by": "carol"}),
        ),
        ("asking", json!({"lockstep.dev/action": "skip"})),
        ("question", json!({"lockstep.dev/answer": "5"})),
    ] {
        let stored = team.alice.gets(&Ask::annotate(team.one("stepruns", name), annotations)).await?;
        ensure!(annotation(&stored, "lockstep.dev/decided-by") == Some("alice"), "{stored}");
    }
    let mut forged = workflow("run", &json!({}));
    forged["metadata"]["annotations"] = json!({"lockstep.dev/created-by": "alice"});
    let made = team.bob.gets(&Ask::post(team.all("workflows"), forged)).await?;
    ensure!(annotation(&made, "lockstep.dev/created-by") == Some("bob"), "{made}");
    for value in [json!("alice"), Value::Null] {
        let ask = Ask::annotate(team.one("workflows", "run"), json!({"lockstep.dev/created-by": value}));
        let kept = team.admin.gets(&ask).await?;
        ensure!(annotation(&kept, "lockstep.dev/created-by") == Some("bob"), "{kept}");
    }
    team.close().await
}

/// Whoever writes a value of another type is told so by the schema, with its path, and not by what stamps names.
#[tokio::test]
async fn the_schema_speaks_before_names_are_stamped() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("types").await?;
    stage(&team).await?;
    let stamps = stamps(&team.admin).await?;
    let annotated = |name: &str, more: Value, annotations: Option<&Value>| {
        let mut run = workflow(name, &more);
        if let Some(annotations) = annotations {
            run["metadata"]["annotations"] = annotations.clone();
        }
        Ask::post(team.all("workflows"), run)
    };
    for (n, annotations) in
        [None, Some(json!({})), Some(Value::Null), Some(json!({"example.com/a_b": "x"}))].iter().enumerate()
    {
        let (name, notes) = (format!("typed-{n}"), annotations.as_ref());
        // `input: y`, as YAML 1.1 reads it.
        let words = "spec.input: Invalid value: \"boolean\": spec.input in body must be of type string";
        team.bob.is_refused(&annotated(&name, json!({"input": true}), notes), 422, words).await?;
        let made = team.bob.gets(&annotated(&name, json!({"input": "y"}), notes)).await?;
        ensure!(annotation(&made, "lockstep.dev/created-by") == stamps.then_some("bob"), "{made}");
        let kept = annotations.as_ref().map_or(Value::Null, |all| all["example.com/a_b"].clone());
        ensure!(made["metadata"]["annotations"]["example.com/a_b"] == kept, "{made}");
        let words = "spec.suspend in body must be of type boolean";
        let change = Ask::patch(team.one("workflows", &name), json!({"spec": {"suspend": "yes"}}));
        team.bob.is_refused(&change, 422, words).await?;
    }
    let step = json!({"name": "a", "agentId": "x", "parameters": "deep"});
    let inner = annotated("inner", json!({"templateRef": null, "steps": [step]}), None);
    team.bob.is_refused(&inner, 422, "spec.steps[0].parameters in body must be of type object").await?;
    let decided = json!({"metadata": {"annotations": accepted("alice")}, "spec": {"path": true}});
    let words = "spec.path in body must be of type string";
    team.alice.is_refused(&Ask::patch(team.one("stepruns", "open"), decided), 422, words).await?;
    team.close().await
}

#[tokio::test]
async fn of_many_approvers_at_once_one_is_recorded() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("race").await?;
    team.step_run("race", json!({"gate": {"name": "brief"}}), gate("Waiting", 1, &[])).await?;
    let mut people = Vec::new();
    for number in 0..16 {
        people.push(Who::user(&format!("p{number}"), &["product"]).await?);
    }
    let asks: Vec<_> = people.iter().map(|p| Ask::annotate(team.one("stepruns", "race"), accepted(&p.name))).collect();
    let answers = join_all(people.iter().zip(&asks).map(|(who, ask)| who.asks(ask))).await;
    let winners: Vec<_> =
        people.iter().zip(&answers).filter(|(_, a)| a.is_ok()).map(|(p, _)| p.name.as_str()).collect();
    ensure!(winners.len() == 1, "{winners:?}");
    for answer in answers.iter().filter(|a| a.is_err()) {
        refused(answer, 403, "a decision by ")?;
    }
    let stored = team.admin.gets(&Ask::get(team.one("stepruns", "race"))).await?;
    ensure!(annotation(&stored, "lockstep.dev/decided-by") == winners.first().copied());
    team.close().await
}

/// A refusal says who may, or how the step stands, and never half of it with nothing behind.
#[tokio::test]
async fn refusals_are_whole_whatever_there_is_to_name() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("refusals").await?;
    let decision = || accepted("alice");
    for (name, acceptors, words) in [
        ("users", json!({"users": ["ann", "carol"]}), "(users: ann, carol)"),
        ("groups", json!({"groups": ["legal", "product"]}), "(groups: legal, product)"),
        ("both", json!({"users": ["carol"], "groups": ["product"]}), "(users: carol; groups: product)"),
        ("empty-groups", json!({"users": ["carol"], "groups": []}), "(users: carol)"),
        ("empty-users", json!({"users": [], "groups": ["product"]}), "(groups: product)"),
    ] {
        let spec = json!({"gate": {"name": "brief", "acceptors": acceptors}});
        team.step_run(name, spec, gate("Waiting", 1, &[])).await?;
        let words = format!("lockstep-gate/v1: alice is not an acceptor of gate brief {words}");
        team.alice.is_refused(&Ask::annotate(team.one("stepruns", name), decision()), 403, &words).await?;
    }
    let retry = || json!({"lockstep.dev/action": "retry", "lockstep.dev/decided-by": "alice"});
    for (name, status, phase) in
        [("unwritten", Value::Null, "Pending"), ("begun", json!({"phase": "Running"}), "Running")]
    {
        team.step_run(name, json!({}), status).await?;
        let words = format!("lockstep-gate/v1: this step is not waiting for an answer (phase: {phase})");
        team.alice.is_refused(&Ask::annotate(team.one("stepruns", name), retry()), 403, &words).await?;
    }
    team.close().await
}

/// Real tokens, not impersonation: one bound to a pod, one bound to nothing.
#[tokio::test]
async fn tokens_of_service_accounts_decide_nothing() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("tokens").await?;
    stage(&team).await?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent"}, "spec": {
        "serviceAccountName": "bot", "containers": [{"name": "agent", "image": "none"}]}});
    let pod = team.admin.gets(&Ask::post(team.core("pods"), pod)).await?;
    let bound =
        json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "agent", "uid": pod["metadata"]["uid"]}});
    for (spec, words) in [(json!({}), "is a machine identity"), (bound, "is a machine identity (pod agent)")] {
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let token = team.admin.gets(&Ask::post(format!("{}/bot/token", team.core("serviceaccounts")), request)).await?;
        let bot = Who::token("bot", token["status"]["token"].as_str().context("no token")?).await?;
        let name = format!("system:serviceaccount:{}:bot", team.namespace);
        ensure!(person(&bot).await? == name);
        bot.is_refused(&Ask::annotate(team.one("stepruns", "open"), accepted(&name)), 403, words).await?;
        let answer = json!({"lockstep.dev/action": "retry", "lockstep.dev/decided-by": name});
        bot.is_refused(&Ask::annotate(team.one("stepruns", "asking"), answer), 403, words).await?;
    }
    team.close().await
}

#[tokio::test]
async fn operator_and_gateway_may_do_their_work() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("work").await?;
    stage(&team).await?;
    // The gateway's first word on a StepRun whose status nobody has written: as a patch, and as a whole.
    team.gateway.gets(&Ask::patch(team.one("stepruns", "fresh/status"), agent_part())).await?;
    team.step_run("untouched", json!({}), Value::Null).await?;
    let mut whole = team.gateway.gets(&Ask::get(team.one("stepruns", "untouched"))).await?;
    whole["status"]["agent"] = agent_part()["status"]["agent"].clone();
    team.gateway.gets(&Ask::put(team.one("stepruns", "untouched/status"), whole)).await?;
    team.gateway.gets(&Ask::patch(team.one("stepruns", "running/status"), agent_part())).await?;
    let made = json!({"scope": "Workflow", "scopeId": "u-1", "workflow": "shop", "path": "discovery", "attempt": 1});
    team.gateway.gets(&Ask::post(team.all("documents"), document("made", &made))).await?;
    team.operator
        .gets(&Ask::post(team.all("documents"), document("inline", &json!({"scope": "Workflow", "scopeId": "u-1"}))))
        .await?;
    for (scope, field) in [("Session", "session"), ("Project", "project")] {
        let mine = document(&format!("mine-{field}"), &json!({"scope": scope, field: "shop"}));
        team.bob.gets(&Ask::post(team.all("documents"), mine)).await?;
    }
    let phase = json!({"status": {"phase": "Published", "revision": 1}});
    team.operator.gets(&Ask::patch(team.one("documents", "made/status"), phase.clone())).await?;
    team.admin
        .is_refused(&Ask::patch(team.one("documents", "made/status"), phase), 403, "may not write the status")
        .await?;
    let phase = json!({"status": {"phase": "Running"}});
    team.operator.gets(&Ask::patch(team.one("workflows", "renaming/status"), phase.clone())).await?;
    team.admin
        .is_refused(&Ask::patch(team.one("workflows", "renaming/status"), phase), 403, "may not write the status")
        .await?;
    team.operator.gets(&Ask::delete(team.one("stepruns", "fresh"))).await?;
    team.close().await
}

/// Deletion by those whom Kubernetes sends: the garbage collector after the run, the namespace controller after all.
#[tokio::test]
async fn runs_and_namespaces_go_with_all_they_hold() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("gone").await?;
    stage(&team).await?;
    strangers::stage(&team).await?;
    memory::stage(&team).await?;
    let all = Ask::delete(team.all("stepruns"));
    team.admin.is_refused(&all, 403, "never alone").await?;
    team.admin.gets(&Ask::delete(team.one("workflows", "renaming"))).await?;
    until("the StepRun goes with its run", || async {
        Ok(team.admin.asks(&Ask::get(team.one("stepruns", "owned"))).await.err().filter(|r| r.code == 404))
    })
    .await?;
    team.close().await?;
    until("the namespace goes, a decision in the mailbox and all", || async {
        let namespace = Ask::get(format!("/api/v1/namespaces/{}", team.namespace));
        Ok(team.admin.asks(&namespace).await.err().filter(|r| r.code == 404))
    })
    .await?;
    Ok(())
}

#[tokio::test]
#[rustfmt::skip] // one case, one line
async fn roles_hold_no_more_than_they_need() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("roles").await?;
    let roles = team.admin.gets(&Ask::get("/apis/rbac.authorization.k8s.io/v1/clusterroles?labelSelector=app.kubernetes.io%2Fpart-of%3Dlockstep")).await?;
    let roles = roles["items"].as_array().context("no roles")?;
    ensure!(roles.len() == 9, "{} roles", roles.len());
    for role in roles {
        ensure!(!role["rules"].to_string().contains('*'), "{} has a wildcard", role["metadata"]["name"]);
    }
    for (user, verb, group, resource) in [
        (OPERATOR, "get", "", "secrets"), (OPERATOR, "list", "", "secrets"), (OPERATOR, "create", "", "pods"),
        (OPERATOR, "delete", "", "pods"), (OPERATOR, "update", "", "pods"), (OPERATOR, "create", "", "serviceaccounts/token"),
        (OPERATOR, "impersonate", "", "users"), (OPERATOR, "update", "lockstep.dev", "workflows"),
        (OPERATOR, "approve", "lockstep.dev", "gates"), (OPERATOR, "answer", "lockstep.dev", "inputs"),
        (OPERATOR, "create", "lockstep.dev", "triggers"), (OPERATOR, "update", "batch", "jobs"),
        (OPERATOR, "update", "admissionregistration.k8s.io", "validatingadmissionpolicies"),
        (OPERATOR, "bind", "rbac.authorization.k8s.io", "clusterroles"), (OPERATOR, "create", "", "pods/exec"),
        (OPERATOR, "update", "apps", "controllerrevisions"), (OPERATOR, "update", "lockstep.dev", "agents/finalizers"),
        (GATEWAY, "update", "lockstep.dev", "workflows/finalizers"), (GATEWAY, "create", "lockstep.dev", "stepruns"),
        (GATEWAY, "patch", "lockstep.dev", "stepruns"), (GATEWAY, "create", "batch", "jobs"), (GATEWAY, "get", "", "secrets"),
        (GATEWAY, "approve", "lockstep.dev", "gates"), (GATEWAY, "update", "lockstep.dev", "workflows/status"),
        (GATEWAY, "list", "lockstep.dev", "memories"), (GATEWAY, "create", "lockstep.dev", "memories"),
        (API, "get", "", "secrets"), (API, "create", "lockstep.dev", "workflows"), (API, "patch", "lockstep.dev", "stepruns"),
        (API, "impersonate", "", "users"), (API, "create", "lockstep.dev", "documents"), (API, "list", "", "pods"),
        (API, "create", "", "serviceaccounts/token"), (API, "list", "lockstep.dev", "memories"),
        (GATEWAY, "delete", "lockstep.dev", "memories"), (OPERATOR, "update", "lockstep.dev", "memories"),
        (OPERATOR, "update", "networking.k8s.io", "networkpolicies"), (OPERATOR, "patch", "networking.k8s.io", "networkpolicies"),
        (GATEWAY, "create", "networking.k8s.io", "networkpolicies"), (API, "create", "networking.k8s.io", "networkpolicies"),
        (OPERATOR, "run", "lockstep.dev", "workflowtemplates"), (OPERATOR, "patch", "lockstep.dev", "triggers"),
        (API, "trigger", "lockstep.dev", "triggers"), (API, "run", "lockstep.dev", "workflowtemplates"),
        (GATEWAY, "list", "lockstep.dev", "triggers"),
        (OPERATOR, "watch", "lockstep.dev", "memories"), ("bob", "create", "lockstep.dev", "memories"),
        ("bob", "approve", "lockstep.dev", "gates"), ("bob", "answer", "lockstep.dev", "inputs"),
        ("bob", "create", "lockstep.dev", "stepruns"), ("bob", "delete", "lockstep.dev", "stepruns"),
        ("bob", "create", "lockstep.dev", "agents"), ("bob", "patch", "lockstep.dev", "stepruns/status"),
    ] {
        ensure!(!team.may(user, &[], verb, group, resource).await?, "{user} may {verb} {resource}.{group}");
    }
    for (user, verb, group, resource) in [
        (OPERATOR, "create", "batch", "jobs"), (OPERATOR, "create", "apps", "controllerrevisions"),
        (OPERATOR, "delete", "apps", "controllerrevisions"), (OPERATOR, "update", "lockstep.dev", "workflows/finalizers"),
        (OPERATOR, "update", "lockstep.dev", "stepruns/finalizers"),
        (OPERATOR, "create", "networking.k8s.io", "networkpolicies"), (OPERATOR, "delete", "networking.k8s.io", "networkpolicies"),
        (OPERATOR, "create", "events.k8s.io", "events"), (OPERATOR, "patch", "lockstep.dev", "agents/status"),
        (OPERATOR, "watch", "admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
        (OPERATOR, "delete", "lockstep.dev", "stepruns"), (OPERATOR, "delete", "lockstep.dev", "workflows"),
        (OPERATOR, "delete", "lockstep.dev", "documents"), (GATEWAY, "create", "authentication.k8s.io", "tokenreviews"),
        (GATEWAY, "get", "apps", "controllerrevisions"), (GATEWAY, "get", "", "pods"), (GATEWAY, "list", "lockstep.dev", "stepruns"), (GATEWAY, "watch", "lockstep.dev", "stepruns"),
        (GATEWAY, "update", "lockstep.dev", "stepruns/status"), ("bob", "create", "lockstep.dev", "workflows"),
        (API, "watch", "lockstep.dev", "stepruns"), (API, "list", "lockstep.dev", "documents"),
        (GATEWAY, "patch", "lockstep.dev", "memories"), (OPERATOR, "create", "lockstep.dev", "memories"),
        (OPERATOR, "delete", "lockstep.dev", "memories"), ("bob", "patch", "lockstep.dev", "memories"),
        (OPERATOR, "create", "lockstep.dev", "workflows"), (OPERATOR, "patch", "lockstep.dev", "workflows"),
        (OPERATOR, "patch", "lockstep.dev", "triggers/status"), (OPERATOR, "patch", "lockstep.dev", "stepruns/status"),
        (OPERATOR, "patch", "lockstep.dev", "workflows/status"), (OPERATOR, "patch", "lockstep.dev", "workflowtemplates/status"), (API, "watch", "lockstep.dev", "triggers"),
        ("bob", "create", "lockstep.dev", "triggers"), ("bob", "trigger", "lockstep.dev", "triggers"),
        ("bob", "watch", "lockstep.dev", "stepruns"), ("alice", "answer", "lockstep.dev", "inputs"),
    ] {
        ensure!(team.may(user, &[], verb, group, resource).await?, "{user} may not {verb} {resource}.{group}");
    }
    // The built-in roles take the kinds in, and none of them the right to approve.
    for (role, verb, resource) in [("view", "list", "stepruns"), ("edit", "create", "workflows"), ("admin", "create", "agents")] {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}");
        until(&format!("{role} may {verb} {resource}"), || async {
            let role = team.admin.gets(&Ask::get(&path)).await?;
            let ours: Vec<_> = role["rules"].as_array().into_iter().flatten().filter(|r| r["apiGroups"] == json!(["lockstep.dev"])).cloned().collect();
            let text = Value::from(ours.clone()).to_string();
            ensure!(!text.contains("approve") && !text.contains("answer"), "{text}");
            let has = |list: &Value, word: &str| list.as_array().is_some_and(|l| l.contains(&json!(word)));
            Ok(ours.iter().any(|r| has(&r["verbs"], verb) && has(&r["resources"], resource)).then_some(()))
        })
        .await?;
    }
    team.close().await
}
