//! What agents request in the middle of their work, as people see and decide it with the plugin.

use anyhow::{Context as _, Result, ensure};
use lockstep::decide::approval::{GatedAction, digest};
use serde_json::{Value, json};

use crate::plugin::{AT, ends, letter, start};
use crate::support::{Ask, Team, annotation, policies_whole, until};

const NAME: &str = "shop-offer";

/// A request as the operator has taken it up, and its digest.
fn request(uid: &str, action: &str) -> (Value, String) {
    let payload = "{\"to\":\"ann\"}".to_owned();
    let wanted =
        GatedAction { gate_name: "brief".to_owned(), action: action.to_owned(), payload: Some(payload.clone()) };
    let digest = digest(uid, &wanted, 0);
    let gate = json!({"state": "Waiting", "round": 1, "outputDigest": digest, "openedAt": AT, "policy": "p"});
    let request = json!({"gateName": "brief", "action": action, "payload": payload, "attempt": 1, "requestedAt": AT,
        "agentWaitsUntil": AT, "gate": gate});
    (request, digest)
}

/// Takes a decision up as the operator does, when it comes, and empties the mailbox; gives the review that it named.
async fn taken_up(team: &Team) -> Result<String> {
    let step = until("a decision", || async {
        let step = letter(team, NAME).await?;
        Ok(annotation(&step, "lockstep.dev/decision").is_some().then_some(step))
    })
    .await?;
    let note = |key: &str| annotation(&step, key).unwrap_or_default().to_owned();
    let (review, accepted) = (note("lockstep.dev/review"), note("lockstep.dev/decision") == "accepted");
    let mut requests = step["status"]["approvalRequests"].clone();
    let all = requests.as_array_mut().context("no requests")?;
    let own = all.iter_mut().find(|own| own["gate"]["outputDigest"] == review).context("it is about none of them")?;
    own["gate"]["state"] = json!(if accepted { "Accepted" } else { "Rejected" });
    own["gate"]["decisions"] = json!([{"documentType": "brief", "scopeId": "u", "accepted": accepted,
        "decidedBy": note("lockstep.dev/decided-by"), "decidedAt": AT, "digest": review, "round": 1}]);
    let status = json!({"status": {"approvalRequests": requests}});
    team.operator.gets(&Ask::patch(team.one("stepruns", &format!("{NAME}/status")), status)).await?;
    let keys = ["decision", "review", "comment", "decided-by"];
    let empty: serde_json::Map<String, Value> =
        keys.iter().map(|key| (format!("lockstep.dev/{key}"), Value::Null)).collect();
    team.operator.gets(&Ask::annotate(team.one("stepruns", NAME), Value::Object(empty))).await?;
    Ok(review)
}

#[tokio::test]
async fn an_action_is_shown_and_decided_by_the_plugin() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("plugin-action").await?;
    let run = start(&team, "shop").await?;
    let spec = json!({"workflow": {"name": "shop", "uid": run}, "path": "offer", "agentId": "writer",
        "scopeChain": [{"scope": "workflow", "scopeId": run}], "actionGates": [{"name": "brief", "message": "May it go?"}]});
    let made = team.step_run(NAME, spec, Value::Null).await?;
    let uid = made["metadata"]["uid"].as_str().context("no UID")?;
    let ((send, first), (push, second)) = (request(uid, "Send the offer"), request(uid, "Push the branch"));
    let status = json!({"status": {"phase": "WaitingForAcceptance", "approvalRequests": [send, push]}});
    team.operator.gets(&Ask::patch(team.one("stepruns", &format!("{NAME}/status")), status)).await?;

    let inbox =
        ends(&team, "alice", &["inbox"], 0, "a decision on an action at the gate brief: Send the offer").await?;
    ensure!(
        inbox.out.contains("Push the branch") && inbox.out.contains("approve shop/offer --review sha256:"),
        "{inbox:?}"
    );
    let shown = ends(&team, "alice", &["show", "shop/offer"], 0, "requests an action").await?;
    ensure!(shown.out.contains("May it go?") && shown.out.contains("\"to\":\"ann\""), "{shown:?}");
    ends(&team, "alice", &["approve", "shop/offer", "--yes"], 4, "several actions of shop/offer wait").await?;
    ends(&team, "alice", &["approve", "shop/offer"], 4, "several actions of shop/offer wait").await?;
    ends(&team, "bob", &["approve", "shop/offer", "--review", &first], 5, "lacks the permission approve").await?;

    let words = ["approve", "shop/offer", "--review", &first[..20]];
    let (said, decided) = tokio::join!(ends(&team, "alice", &words, 0, "the agent may do it, once"), taken_up(&team));
    said?;
    ensure!(decided? == first);
    // One is left: it need not be named.
    let words = ["reject", "shop/offer", "-m", "not on a Friday", "--yes"];
    let (said, decided) = tokio::join!(ends(&team, "alice", &words, 0, "the agent may not do it"), taken_up(&team));
    said?;
    ensure!(decided? == second);
    let shown = ends(&team, "alice", &["show", "shop/offer"], 0, "Send the offer").await?;
    ensure!(shown.out.contains("accepted by alice") && shown.out.contains("rejected by alice"), "{shown:?}");

    // What says another thing than what its digest binds is not decided.
    let (mut forged, _) = request(uid, "Something small");
    forged["action"] = json!("Something large");
    let status = json!({"status": {"approvalRequests": [forged]}});
    team.operator.gets(&Ask::patch(team.one("stepruns", &format!("{NAME}/status")), status)).await?;
    ends(&team, "alice", &["approve", "shop/offer", "--yes"], 6, "another action than the one that it says").await?;
    team.close().await
}
