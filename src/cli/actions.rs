//! What agents request in the middle of their work, each as a gate of its own: whatever is told of a gate, and done with one, is told
//! of it and done with it.

use super::fault::{Code, Fault};
use super::spread::pretty;
use super::text::{inline, short_digest};
use crate::api::StepRun;
use crate::api::step_run::{ApprovalRequest, GateStatus};
use crate::decide::approval::{self, GatedAction};

/// The step as it stands at the gate of that request: its gate is the action's, and it waits for nothing else.
fn view(step: &StepRun, request: &ApprovalRequest) -> Option<StepRun> {
    let wanted = step.spec.action_gates.iter().find(|gate| gate.name == request.gate_name)?;
    let mut view = step.clone();
    view.spec.gate = Some(wanted.clone());
    view.spec.action_gates.clear();
    let status = view.status.get_or_insert_default();
    status.gate = Some(request.gate.clone());
    status.waiting_for = None;
    status.approval_requests = vec![request.clone()];
    Some(view)
}

/// The request that a step stands at the gate of; none of a step as it is.
pub fn of_view(step: &StepRun) -> Option<&ApprovalRequest> {
    match step.status.as_ref()?.approval_requests.as_slice() {
        [only] if step.spec.action_gates.is_empty() => Some(only),
        _ => None,
    }
}

/// The step at each gate at which one of its agent's requests waits.
pub fn waiting(step: &StepRun) -> Vec<StepRun> {
    let is_over = step.status.as_ref().is_none_or(|status| status.completed_at.is_some());
    let open = step.status.iter().filter(|_| !is_over && of_view(step).is_none()).flat_map(approval::waiting);
    open.filter_map(|request| view(step, request)).collect()
}

/// The step at the gate of the request of that digest, if there is one: else as it is.
pub fn at(step: &StepRun, digest: &str) -> StepRun {
    let requests = step.status.iter().flat_map(|status| &status.approval_requests);
    let of = requests.into_iter().find(|request| request.gate.output_digest == digest);
    of.and_then(|request| view(step, request)).unwrap_or_else(|| step.clone())
}

/// The gate that this digest is about; the step's own where none is.
pub fn gate(step: &StepRun, digest: &str) -> Option<GateStatus> {
    at(step, digest).status.and_then(|status| status.gate)
}

/// The one that is to be decided: what `review` names, else the only one that waits.
pub fn chosen(step: StepRun, name: &str, review: Option<&str>) -> Result<StepRun, Fault> {
    let mut open = waiting(&step);
    if let Some(review) = review {
        let hex = |digest: &str| digest.strip_prefix("sha256:").unwrap_or(digest).to_owned();
        let (given, is_long) = (hex(review), hex(review).len() >= 8);
        let named = |one: &StepRun| of_view(one).is_some_and(|own| hex(&own.gate.output_digest).starts_with(&given));
        open.retain(|one| is_long && named(one));
    }
    match open.len() {
        0 => Ok(step),
        1 => Ok(open.remove(0)),
        _ => {
            let told = |one: &StepRun| {
                let own = of_view(one)?;
                Some(format!("{} ({})", short_digest(&own.gate.output_digest), inline(&own.action, 80)))
            };
            let all: Vec<String> = open.iter().filter_map(told).collect();
            Err(Fault::new(
                Code::NotFound,
                format!("several actions of {name} wait; name one of them with --review: {}", all.join(", ")),
            ))
        }
    }
}

/// What the digest of a request binds is what it says; an error where it is not.
pub fn trouble(step: &StepRun) -> Option<String> {
    let request = of_view(step)?;
    let ApprovalRequest { gate_name, action, payload, repeats, .. } = request;
    let wanted = GatedAction { gate_name: gate_name.clone(), action: action.clone(), payload: payload.clone() };
    let bound = approval::digest(step.metadata.uid.as_deref().unwrap_or_default(), &wanted, *repeats);
    (bound != request.gate.output_digest)
        .then(|| "the request is about another action than the one that it says".to_owned())
}

/// What it is about, for a page.
pub fn payload(request: &ApprovalRequest) -> String {
    request.payload.as_deref().map(pretty).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::line::RenderOptions;
    use crate::cli::wait::{self, Ways};
    use serde_json::{Value, json};

    const AT: &str = "2026-11-21T10:00:00Z";

    fn step(requests: &[(&str, &str, &str)]) -> StepRun {
        let request = |(action, state, waits): &(&str, &str, &str)| {
            let wanted = GatedAction {
                gate_name: "mail".to_owned(),
                action: (*action).to_owned(),
                payload: Some("{\"to\":1}".to_owned()),
            };
            let until = if waits.is_empty() { Value::Null } else { json!(waits) };
            json!({"gateName": "mail", "action": action, "payload": "{\"to\":1}", "attempt": 1, "requestedAt": AT,
                "agentWaitsUntil": until, "gate": {"state": state, "round": 1, "openedAt": AT, "policy": "p",
                "outputDigest": approval::digest("uid", &wanted, 0)}})
        };
        let all: Vec<Value> = requests.iter().map(request).collect();
        let spec = json!({"workflow": {"name": "shop", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "offer", "agentId": "writer", "parameters": "{}", "inputDigest": "d",
            "gate": {"name": "end"}, "actionGates": [{"name": "mail", "message": "May it go?"}]});
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": "shop-offer-1", "namespace": "team-a", "uid": "uid"}, "spec": spec,
            "status": {"phase": "WaitingForAcceptance", "approvalRequests": all}}))
        .expect("a step")
    }

    #[test]
    fn an_action_is_told_as_what_waits_at_its_gate() {
        let one = step(&[("Send it", "Waiting", AT), ("Push it", "Accepted", "")]);
        let digest = short_digest(&one.status.as_ref().expect("a status").approval_requests[0].gate.output_digest);
        assert_eq!(
            wait::text(&one, Ways::Asked, RenderOptions::default()),
            format!(
                "◆ shop/offer requests an action, by anyone with the permission approve on gates/mail\n    | May it go?\n    | Send it\n    | {{\"to\":1}}\n    | its agent waits until 2026-11-21T10:00:00Z; after that the decision starts another attempt\n    kubectl lockstep -n team-a approve shop/offer --review {digest}\n    kubectl lockstep -n team-a reject shop/offer -m WHY --review {digest}\n"
            )
        );
    }

    #[test]
    fn the_one_that_is_meant_is_decided() {
        let two = step(&[("Send it", "Waiting", ""), ("Push it", "Waiting", ""), ("Old", "Rejected", "")]);
        let digest = |n: usize| two.status.as_ref().expect("a status").approval_requests[n].gate.output_digest.clone();
        let action = |review: Option<&str>| {
            chosen(two.clone(), "shop/offer", review).map(|one| of_view(&one).map(|own| own.action.clone()))
        };
        assert_eq!(action(Some(&digest(1))), Ok(Some("Push it".to_owned())));
        assert_eq!(action(Some(&digest(0)[7..20])), Ok(Some("Send it".to_owned())));
        // Too short, decided already, of something else: then it is about the step's own gate.
        for review in [&digest(1)[..10], &digest(2), "sha256:00000000"] {
            assert_eq!(action(Some(review)), Ok(None), "{review}");
        }
        let fault = action(None).expect_err("two wait");
        assert!(
            fault.text.contains("several actions of shop/offer wait") && fault.text.contains("Push it"),
            "{}",
            fault.text
        );
        let one = step(&[("Send it", "Waiting", ""), ("Old", "Closed", "")]);
        let seen = chosen(one, "shop/offer", None).expect("one waits");
        assert_eq!((of_view(&seen).map(|own| own.action.as_str()), trouble(&seen)), (Some("Send it"), None));
        let mut forged = seen.clone();
        forged.status.iter_mut().for_each(|status| status.approval_requests[0].payload = Some("{\"to\":2}".to_owned()));
        assert!(trouble(&forged).is_some(), "another payload than the one that is bound");
    }
}
