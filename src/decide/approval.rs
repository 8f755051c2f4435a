//! Approvals of single actions: what an agent that requests one is told. Pure, so that any gateway says the same, and writes what
//! the operator takes. The request is the agent's, the decision people's, and a permission is used once.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use crate::api::limits::{ACTION_BYTES, ACTION_PAYLOAD_BYTES, APPROVAL_REQUESTS};
use crate::api::name;
use crate::api::step_run::{
    ApprovalRequest, ApprovalUse, Decision, GateState, RequestedApproval, StepRun, StepRunGate, StepRunStatus,
};
use crate::decide::claim;
use crate::definition::digits;

/// An action for which an agent needs a permission, and the gate where people give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatedAction {
    pub gate_name: String,
    pub action: String,
    /// Canonical JSON.
    pub payload: Option<String>,
}

/// How far the permission for an action has come.
#[derive(Clone, Debug, PartialEq)]
pub enum PermissionState {
    /// Nobody has requested it: it is written as the next of its kind.
    New {
        repeats: i32,
    },
    /// It waits for people.
    Waits {
        digest: String,
    },
    /// People have allowed it, and nobody has used it: the use is written, and then it is told.
    Allowed {
        digest: String,
        decisions: Vec<Decision>,
    },
    /// The same call was told before: its answer was lost.
    AllowedAgain {
        digest: String,
        decisions: Vec<Decision>,
    },
    Denied {
        digest: String,
        decisions: Vec<Decision>,
    },
}

/// The gate of this name; without one the only one. An error says what there is.
pub fn gate<'a>(gates: &'a [StepRunGate], named: Option<&str>) -> Result<&'a StepRunGate, String> {
    let all: Vec<&str> = gates.iter().map(|gate| gate.name.as_str()).collect();
    let all = all.join(", ");
    match (named, gates) {
        (_, []) => Err("gate: the step declares none; add actionGates to the step".to_owned()),
        (None, [only]) => Ok(only),
        (None, _) => Err(format!("gate: name one of the step's actionGates: {all}")),
        (Some(named), _) => gates
            .iter()
            .find(|gate| gate.name == named)
            .ok_or_else(|| format!("gate: {named:?} is none of the step's actionGates: {all}")),
    }
}

/// What an agent says, bounded; the payload is text, of JSON or else as it is.
pub fn wanted(gate: &StepRunGate, action: &str, payload: Option<&str>) -> Result<GatedAction, String> {
    let action = action.trim();
    if action.is_empty() {
        return Err("action: is empty; say in words what is to be done".to_owned());
    }
    if action.len() > ACTION_BYTES {
        return Err(format!(
            "action: has {} bytes, at most {ACTION_BYTES} are allowed; the rest is the payload",
            action.len()
        ));
    }
    let payload = payload.map(canonical);
    match payload.as_ref().map(String::len) {
        Some(bytes) if bytes > ACTION_PAYLOAD_BYTES => Err(format!(
            "payload: has {bytes} bytes as canonical JSON, at most {ACTION_PAYLOAD_BYTES} are allowed; name what is large by its digest"
        )),
        _ => Ok(GatedAction { gate_name: gate.name.clone(), action: action.to_owned(), payload }),
    }
}

/// One text for what is the same JSON: keys in the order of their bytes, no spaces; integers beyond 64 bits are texts of their digits.
/// A text that is no JSON is the string of it.
pub fn canonical(payload: &str) -> String {
    let value = digits::read(payload).unwrap_or_else(|_| Value::String(payload.to_owned()));
    sorted(value).to_string()
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Object(members) => {
            let mut members: Vec<(String, Value)> = members.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(members.into_iter().collect())
        }
        other => other,
    }
}

/// What a decision binds.
pub fn digest(step_run_uid: &str, wanted: &GatedAction, repeats: i32) -> String {
    let repeats = repeats.to_string();
    let (given, payload) = wanted.payload.as_deref().map_or(("none", ""), |payload| ("given", payload));
    let parts = ["approval", step_run_uid, &wanted.gate_name, &wanted.action, given, payload, &repeats];
    name::digest(parts.map(str::as_bytes))
}

fn of_request(request: &ApprovalRequest) -> GatedAction {
    let ApprovalRequest { gate_name, action, payload, .. } = request;
    GatedAction { gate_name: gate_name.clone(), action: action.clone(), payload: payload.clone() }
}

fn of_requested(requested: &RequestedApproval) -> GatedAction {
    let RequestedApproval { gate_name, action, payload, .. } = requested;
    GatedAction { gate_name: gate_name.clone(), action: action.clone(), payload: payload.clone() }
}

/// What the agent of the current attempt has requested, and the operator has not taken up yet.
pub fn untaken(step_run: &StepRun) -> Vec<(RequestedApproval, String)> {
    let Some(status) = &step_run.status else { return Vec::new() };
    let uid = step_run.metadata.uid.as_deref().unwrap_or_default();
    let agent = status.agent.as_ref().filter(|_| claim::current_claim(status).is_some());
    let requested = agent.into_iter().flat_map(|agent| &agent.approval_requests);
    let declared = |name: &str| step_run.spec.action_gates.iter().any(|gate| gate.name == name);
    let own = requested.filter(|own| own.attempt == status.attempt && declared(&own.gate_name));
    let all = own.map(|requested| (requested.clone(), digest(uid, &of_requested(requested), requested.repeats)));
    all.filter(|(_, digest)| !status.approval_requests.iter().any(|known| known.gate.output_digest == *digest))
        .collect()
}

/// The use that was made of that permission, as far as anybody has written it down.
fn used<'a>(status: &'a StepRunStatus, digest: &str) -> Option<&'a ApprovalUse> {
    let known = status.approval_requests.iter().find(|known| known.gate.output_digest == digest);
    let said = status.agent.iter().flat_map(|agent| &agent.used_approvals).find(|used| used.digest == digest);
    known.and_then(|known| known.used.as_ref()).or(said)
}

/// What this call is told. `call` is its id, the same if its answer was lost.
pub fn standing(step_run: &StepRun, wanted: &GatedAction, call: &str) -> Result<PermissionState, String> {
    let status = step_run.status.clone().unwrap_or_default();
    let uid = step_run.metadata.uid.as_deref().unwrap_or_default();
    let same: Vec<&ApprovalRequest> =
        status.approval_requests.iter().filter(|known| of_request(known) == *wanted).collect();
    let repeats = i32::try_from(same.len()).unwrap_or(i32::MAX);
    let next = digest(uid, wanted, repeats);
    let all = untaken(step_run);
    // What was told to this very call comes first, whatever was requested since.
    let told = same.iter().find(|known| used(&status, &known.gate.output_digest).is_some_and(|used| used.call == call));
    if told.is_none() && all.iter().any(|(_, digest)| *digest == next) {
        return Ok(PermissionState::Waits { digest: next });
    }
    let Some(last) = told.or(same.last()) else { return anew(&status, all.len(), repeats) };
    let (digest, decisions) = (last.gate.output_digest.clone(), last.gate.decisions.clone());
    Ok(match (last.gate.state, used(&status, &digest)) {
        (GateState::Rejected, _) => PermissionState::Denied { digest, decisions },
        (GateState::Waiting, _) => PermissionState::Waits { digest },
        (GateState::Accepted, None) => PermissionState::Allowed { digest, decisions },
        (GateState::Accepted, Some(used)) if used.call == call => PermissionState::AllowedAgain { digest, decisions },
        _ => return anew(&status, all.len(), repeats),
    })
}

fn anew(status: &StepRunStatus, untaken: usize, repeats: i32) -> Result<PermissionState, String> {
    let before = status.approval_requests.len() + untaken;
    if before < APPROVAL_REQUESTS {
        return Ok(PermissionState::New { repeats });
    }
    Err(format!(
        "a step may request {APPROVAL_REQUESTS} approvals, and this one has requested {before}: go on without, or end the attempt with `lockstep fail`"
    ))
}

/// What the gateway writes for a new one: all that the attempt has requested.
pub fn requested(
    step_run: &StepRun,
    wanted: &GatedAction,
    repeats: i32,
    at: &Time,
    until: &Time,
) -> Vec<RequestedApproval> {
    let status = step_run.status.clone().unwrap_or_default();
    let mut all = status.agent.map(|agent| agent.approval_requests).unwrap_or_default();
    all.push(RequestedApproval {
        attempt: status.attempt,
        gate_name: wanted.gate_name.clone(),
        action: wanted.action.clone(),
        payload: wanted.payload.clone(),
        repeats,
        at: at.clone(),
        until: until.clone(),
    });
    all
}

/// What the gateway writes for a use: all that the attempt has used.
pub fn using(status: &StepRunStatus, digest: &str, call: &str, at: &Time) -> Vec<ApprovalUse> {
    let mut all = status.agent.as_ref().map(|agent| agent.used_approvals.clone()).unwrap_or_default();
    all.push(ApprovalUse { digest: digest.to_owned(), attempt: status.attempt, call: call.to_owned(), at: at.clone() });
    all
}

/// Whether people have decided that request, or it is withdrawn.
pub fn is_decided(status: &StepRunStatus, digest: &str) -> bool {
    let known = status.approval_requests.iter().find(|known| known.gate.output_digest == digest);
    known.is_some_and(|known| known.gate.state != GateState::Waiting)
}

/// Whether the current attempt has requested anything: then it may end to let people decide.
pub fn has_requested(step_run: &StepRun, attempt: i32) -> bool {
    let status = step_run.status.as_ref();
    let known = status.is_some_and(|s| s.approval_requests.iter().any(|known| known.attempt == attempt));
    known || !untaken(step_run).is_empty()
}

/// The requests that wait for people.
pub fn waiting(status: &StepRunStatus) -> impl Iterator<Item = &ApprovalRequest> {
    status.approval_requests.iter().filter(|request| request.gate.state == GateState::Waiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const AT: &str = "2026-01-01T00:00:00Z";

    fn mail() -> GatedAction {
        GatedAction {
            gate_name: "mail".to_owned(),
            action: "send".to_owned(),
            payload: Some("{\"to\":\"ann\"}".to_owned()),
        }
    }

    fn request(repeats: i32, state: &str, used: &Value) -> Value {
        let by = json!({"documentType": "t", "scopeId": "s", "accepted": state == "Accepted", "decidedBy": "ann", "decidedAt": AT,
            "digest": "d", "round": 1});
        let decisions = if state == "Waiting" { json!([]) } else { json!([by]) };
        let gate = json!({"state": state, "round": 1, "outputDigest": digest("uid", &mail(), repeats), "openedAt": AT, "policy": "p",
            "decisions": decisions});
        let used = if used.is_null() {
            Value::Null
        } else {
            json!({"digest": digest("uid", &mail(), repeats), "attempt": 1, "call": used, "at": AT})
        };
        json!({"gateName": "mail", "action": "send", "payload": "{\"to\":\"ann\"}", "repeats": repeats, "attempt": 1,
            "requestedAt": AT, "gate": gate, "used": used})
    }

    fn step_run(requests: &Value, agent: &Value) -> StepRun {
        let mut step_run = StepRun::new("s", crate::api::StepRunSpec::default());
        step_run.metadata.uid = Some("uid".to_owned());
        step_run.spec.action_gates = vec![StepRunGate { name: "mail".to_owned(), ..StepRunGate::default() }];
        let claim = json!({"attempt": 2, "id": "i", "podName": "p", "podUID": "u", "at": AT});
        let mut said = json!({"claim": claim});
        for (key, value) in agent.as_object().into_iter().flatten() {
            said[key] = value.clone();
        }
        step_run.status = serde_json::from_value(json!({"attempt": 2, "approvalRequests": requests, "agent": said}))
            .expect("a status");
        step_run
    }

    fn asked(attempt: i32, repeats: i32) -> Value {
        json!({"attempt": attempt, "gateName": "mail", "action": "send", "payload": "{\"to\":\"ann\"}", "repeats": repeats,
            "at": AT, "until": AT})
    }

    #[test]
    fn a_permission_is_used_once_and_a_denial_stays() {
        let word = |standing: PermissionState| match standing {
            PermissionState::New { repeats } => format!("new {repeats}"),
            PermissionState::Waits { digest: found } if found == digest("uid", &mail(), 0) => "waits 0".to_owned(),
            PermissionState::Waits { .. } => "waits".to_owned(),
            PermissionState::Allowed { decisions, .. } => format!("allowed by {}", decisions[0].decided_by),
            PermissionState::AllowedAgain { .. } => "allowed again".to_owned(),
            PermissionState::Denied { decisions, .. } => format!("denied by {}", decisions[0].decided_by),
        };
        let none = json!(null);
        let uses = |call: &str| json!({"digest": digest("uid", &mail(), 0), "attempt": 2, "call": call, "at": AT});
        for (requests, agent, expected) in [
            (json!([]), none.clone(), "new 0"),
            (json!([]), json!({"approvalRequests": [asked(2, 0)]}), "waits 0"),
            // What an earlier attempt requested, and the operator did not take up, nobody has asked.
            (json!([]), json!({"approvalRequests": [asked(1, 0)]}), "new 0"),
            (json!([request(0, "Waiting", &none)]), json!({"approvalRequests": [asked(2, 0)]}), "waits 0"),
            (json!([request(0, "Rejected", &none)]), none.clone(), "denied by ann"),
            (json!([request(0, "Accepted", &none)]), none.clone(), "allowed by ann"),
            // Its answer was lost: written by the gateway, and latched by the operator.
            (json!([request(0, "Accepted", &none)]), json!({"usedApprovals": [uses("mine")]}), "allowed again"),
            (json!([request(0, "Accepted", &json!("mine"))]), none.clone(), "allowed again"),
            (
                json!([request(0, "Accepted", &json!("mine"))]),
                json!({"approvalRequests": [asked(2, 1)]}),
                "allowed again",
            ),
            // Somebody else has used it.
            (json!([request(0, "Accepted", &none)]), json!({"usedApprovals": [uses("another")]}), "new 1"),
            (json!([request(0, "Accepted", &json!("another"))]), none.clone(), "new 1"),
            (json!([request(0, "Closed", &none)]), none.clone(), "new 1"),
            (json!([request(0, "Accepted", &json!("another")), request(1, "Waiting", &none)]), none.clone(), "waits"),
            (
                json!([request(0, "Accepted", &json!("mine")), request(1, "Waiting", &none)]),
                none.clone(),
                "allowed again",
            ),
            (json!([request(0, "Closed", &none), request(1, "Accepted", &none)]), none, "allowed by ann"),
        ] {
            let found = standing(&step_run(&requests, &agent), &mail(), "mine").map(word);
            assert_eq!(found.as_deref(), Ok(expected), "{requests} {agent}");
        }
        let other = GatedAction { payload: None, ..mail() };
        let before = step_run(&json!([request(0, "Accepted", &json!(null))]), &json!({}));
        assert_eq!(
            standing(&before, &other, "mine"),
            Ok(PermissionState::New { repeats: 0 }),
            "another payload is another action"
        );
        let many: Vec<Value> = (0..20).map(|repeats| request(repeats, "Closed", &json!(null))).collect();
        let full = standing(&step_run(&json!(many), &json!({})), &mail(), "mine").expect_err("too many");
        assert!(full.contains("may request 20 approvals"), "{full}");
    }

    #[test]
    fn what_is_the_same_has_one_digest() {
        for (payload, expected) in [
            (" {\"b\": [2, {\"y\": 1, \"x\": 1.50}], \"a\": null} ", "{\"a\":null,\"b\":[2,{\"x\":1.5,\"y\":1}]}"),
            ("say \"it\"", "\"say \\\"it\\\"\""),
            ("12", "12"),
            ("", "\"\""),
        ] {
            assert_eq!(canonical(payload), expected);
        }
        let with = |payload: Option<&str>| GatedAction { payload: payload.map(str::to_owned), ..mail() };
        let all = [
            digest("uid", &with(None), 0),
            digest("uid", &with(Some("")), 0),
            digest("uid", &with(Some("1")), 0),
            digest("uid", &with(Some("1")), 1),
            digest("other", &with(Some("1")), 1),
            digest("uid", &GatedAction { action: "sen".to_owned(), payload: Some("d1".to_owned()), ..mail() }, 0),
            digest("uid", &GatedAction { gate_name: "post".to_owned(), ..with(Some("1")) }, 0),
        ];
        let different: std::collections::BTreeSet<&String> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }

    #[test]
    fn only_what_the_step_declares_and_what_is_bounded_can_be_requested() {
        let named = |name: &str| StepRunGate { name: name.to_owned(), ..StepRunGate::default() };
        let (one, two) = ([named("mail")], [named("mail"), named("push")]);
        for (gates, asked, expected) in [
            (&[][..], None, Err("declares none")),
            (&[][..], Some("mail"), Err("declares none")),
            (&one[..], None, Ok("mail")),
            (&one[..], Some("push"), Err("\"push\" is none of the step's actionGates: mail")),
            (&two[..], None, Err("name one of the step's actionGates: mail, push")),
            (&two[..], Some("push"), Ok("push")),
        ] {
            match (gate(gates, asked), expected) {
                (Ok(found), Ok(name)) => assert_eq!(found.name, name),
                (Err(found), Err(words)) => assert!(found.contains(words), "{found}"),
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        }
        for (action, payload, words) in [
            (" ", None, "action: is empty"),
            (&*"x".repeat(1025), None, "action: has 1025 bytes"),
            ("send", Some("x".repeat(8191)), "payload: has 8193 bytes"),
        ] {
            let found = wanted(&one[0], action, payload.as_deref()).expect_err("refused");
            assert!(found.contains(words), "{found}");
        }
        assert!(wanted(&one[0], "send", Some(&"x".repeat(8190))).is_ok());
    }
}
