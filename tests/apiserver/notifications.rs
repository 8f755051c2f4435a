//! Notifications with the operator's account, against the API server, to a receiver behind a port of this machine: what one
//! operator did not tell, or did not get to write down, the next one tells.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::http::Api;
use crate::receiver::Receiver;
use crate::support::{Ask, Team, object, policies_whole, token_of, until};
use crate::working::Working;

/// The run and its step as they are stored.
async fn stored(team: &Team) -> Result<(Value, Value)> {
    let run = team.admin.gets(&Ask::get(team.one("workflows", "shop"))).await?;
    let steps = team.admin.gets(&Ask::get(team.all("stepruns"))).await?;
    let own = steps["items"].as_array().into_iter().flatten().find(|step| step["spec"]["path"] == "release");
    Ok((run, own.cloned().unwrap_or_default()))
}

fn told(of: &Value) -> BTreeSet<String> {
    let marks = of["status"]["notified"].as_array().into_iter().flatten();
    let told = marks.flat_map(|mark| mark["told"].as_array().into_iter().flatten());
    told.filter_map(|what| what.as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn what_an_operator_did_not_tell_or_write_down_is_told_by_the_next_one() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("notify").await?;
    let gate = json!({"name": "release", "parameters": {"version": "1.2"}, "gate": {"name": "plan", "message": "Is it right?"}});
    let template = object("WorkflowTemplate", "default", &json!({"steps": [gate]}));
    team.admin.gets(&Ask::post(team.all("workflowtemplates"), template)).await?;
    let receiver = Receiver::open("apiserver");
    let closed = Arc::new(AtomicBool::new(false));

    // The gate is open and latched, and the receiver is down.
    receiver.answers(503);
    let first = Working::start(&team, &closed, receiver.sinks(&json!({})));
    let run = object("Workflow", "shop", &json!({"templateRef": {"name": "default"}, "session": "s"}));
    team.bob.gets(&Ask::post(team.all("workflows"), run)).await?;
    until("the gate is open, and the receiver was tried", || async {
        let (run, step) = stored(&team).await?;
        let waits = run["status"]["phase"] == "WaitingForAcceptance" && step["status"]["gate"]["state"] == "Waiting";
        Ok((waits && !receiver.all().is_empty()).then_some(()))
    })
    .await?;
    first.dies().await?;
    let (run, step) = stored(&team).await?;
    ensure!(told(&run).is_empty() && told(&step).is_empty(), "{run} {step}");
    let tried: BTreeSet<String> = receiver.all().iter().map(|one| one.headers["webhook-id"].clone()).collect();
    receiver.answers(200);
    let second = Working::start(&team, &closed, receiver.sinks(&json!({})));
    until("the next one has told it, and written that down", || async {
        let (run, step) = stored(&team).await?;
        Ok((told(&run).contains("started") && told(&step).contains("gate1")).then_some(()))
    })
    .await?;
    let mut facts = receiver.taken();
    facts.sort();
    ensure!(facts == ["started", "waiting"], "{facts:?}");
    let taken: BTreeSet<String> = of_taken(&receiver, |_| true).into_iter().collect();
    ensure!(tried.is_subset(&taken), "other ids: {tried:?}, then {taken:?}");

    // The decision is latched and delivered, and that cannot be written down any more.
    let shut = Arc::clone(&closed);
    receiver.reacts(move |heard| {
        if heard.fact() == "decided" {
            shut.store(true, Ordering::SeqCst);
        }
    });
    let api = Api::open(&team).await?;
    let path = "/runs/shop/steps/release/decision";
    let review = step_review(&team).await?;
    let decision = json!({"accepted": true, "comment": "good", "review": review});
    let (code, said) = api.ask(&token_of("alice")?, "POST", path, &decision).await?;
    ensure!(matches!(code, 200 | 202), "{code} {said}");
    until("the decision is told", || async { Ok(receiver.taken().contains(&"decided".to_owned()).then_some(())) })
        .await?;
    second.dies().await?;
    let (_, step) = stored(&team).await?;
    ensure!(step["status"]["gate"]["decisions"][0]["decidedBy"] == "alice", "it is not latched: {step}");
    ensure!(told(&step) == BTreeSet::from(["gate1".to_owned()]), "{step}");
    receiver.reacts(|_| {});
    closed.store(false, Ordering::SeqCst);
    let third = Working::start(&team, &closed, receiver.sinks(&json!({})));
    until("all of it is told and written down", || async {
        let (run, step) = stored(&team).await?;
        Ok((told(&run).contains("ended") && told(&step).len() == 2).then_some(()))
    })
    .await?;
    third.dies().await?;
    // How often each was told, under one id. Whether the run was over before its operator could write nothing more is chance.
    let told_of = |fact: &str| {
        let ids = of_taken(&receiver, |one| one == fact);
        (ids.len(), ids.into_iter().collect::<BTreeSet<_>>().len())
    };
    for (fact, times) in [("started", 1..=1), ("waiting", 1..=1), ("decided", 2..=2), ("completed", 1..=2)] {
        let (told, ids) = told_of(fact);
        ensure!(times.contains(&told) && ids == 1, "{fact} was told {told} times, with {ids} ids");
    }
    let ids: BTreeSet<String> = of_taken(&receiver, |_| true).into_iter().collect();
    ensure!(ids.len() == 4, "{ids:?}");
    for heard in receiver.all() {
        heard.is_genuine();
    }
    team.close().await
}

/// Ids of what was taken of these facts.
fn of_taken(receiver: &Receiver, is: impl Fn(&str) -> bool) -> Vec<String> {
    let taken = receiver.all().into_iter().filter(|one| one.answered == 200 && is(&one.fact()));
    taken.map(|one| one.headers["webhook-id"].clone()).collect()
}

async fn step_review(team: &Team) -> Result<Value> {
    Ok(stored(team).await?.1["status"]["gate"]["outputDigest"].clone())
}
