use super::*;
use crate::api::name::LABEL_EGRESS;
use crate::decide::egress::PolicySeen;

fn launching(egress: &serde_json::Value, seen: PolicySeen) -> Observed {
    let mut o = ready(&json!(null));
    o.input = Some(Input { egress: seen, ..Input::default() });
    let mut agent = o.agent.as_deref().cloned().expect("an Agent");
    agent.spec.egress = Some(egress.clone()).filter(|egress| !egress.is_null());
    o.agent = Some(Arc::new(agent));
    o
}

#[test]
fn what_limits_the_network_is_there_before_the_pod() {
    let plan = step_run(&launching(&json!("None"), PolicySeen::Absent));
    let [Effect::CreateNetworkPolicy(policy), Effect::CreateJob(job)] = &plan.effects[..] else {
        panic!("first the one, then the other: {:?}", plan.effects);
    };
    let selected = policy.spec.as_ref().and_then(|s| s.pod_selector.as_ref()?.match_labels.clone()).expect("labels");
    let on_pod = job.spec.as_ref().and_then(|s| s.template.metadata.as_ref()?.labels.clone()).expect("labels");
    assert_eq!(selected.get(LABEL_EGRESS), on_pod.get(LABEL_EGRESS));
    assert!(selected.iter().all(|(key, value)| on_pod.get(key) == Some(value)), "{selected:?} {on_pod:?}");
    assert_eq!(job.metadata.labels.as_ref().and_then(|l| l.get(LABEL_EGRESS)), on_pod.get(LABEL_EGRESS));
    let sent = job.body.pointer("/spec/template/metadata/labels").and_then(|labels| labels.get(LABEL_EGRESS)?.as_str());
    assert_eq!(sent, on_pod.get(LABEL_EGRESS).map(String::as_str), "and so it is sent");

    // Who finds it there writes nothing more, and where nothing is said nothing is made.
    let plan = step_run(&launching(&json!("None"), PolicySeen::There));
    assert!(matches!(&plan.effects[..], [Effect::CreateJob(_)]), "{:?}", plan.effects);
    let plan = step_run(&launching(&json!(null), PolicySeen::NotAsked));
    let [Effect::CreateJob(job)] = &plan.effects[..] else { panic!("{:?}", plan.effects) };
    assert!(!job.body.to_string().contains(LABEL_EGRESS));
    // Not even by mistake a pod starts without it.
    let plan = step_run(&launching(&json!("Internet"), PolicySeen::NotAsked));
    assert!(matches!(&plan.effects[..], [Effect::CreateNetworkPolicy(_), Effect::CreateJob(_)]), "{:?}", plan.effects);
}

#[test]
fn nothing_starts_behind_a_policy_that_was_changed() {
    let plan = step_run(&launching(&json!("None"), PolicySeen::Other));
    assert!(plan.effects.is_empty() && plan.requeue.is_some(), "{:?}", plan.effects);
    let status = plan.status.expect("a status");
    let started = condition::get(&status.conditions, "Started").expect("a condition");
    assert_eq!((status.phase, started.reason.as_str()), (Some(Phase::Pending), "NetworkPolicyNotOurs"));
    assert!(started.message.contains("lockstep-egress-") && started.message.contains("writer"), "{}", started.message);
}

#[test]
fn an_agent_that_may_be_wrong_about_its_network_never_starts() {
    let plan = step_run(&launching(&json!("internet"), PolicySeen::NotAsked));
    assert!(plan.effects.is_empty(), "{:?}", plan.effects);
    let status = plan.status.expect("a status");
    let started = condition::get(&status.conditions, "Started").expect("a condition");
    assert!(started.message.contains("spec.egress: must be None, Internet"), "{}", started.message);
}

#[test]
fn an_attempt_that_ran_out_of_time_hears_what_it_could_not_reach() {
    let claim = json!({"attempt": 1, "id": "i", "podName": "p", "podUID": "u", "at": "1970-01-01T00:00:00Z"});
    let report = json!({"attempt": 1, "class": "Timeout", "digest": "d", "at": "1970-01-01T00:00:00Z"});
    let status = json!({"attempt": 1, "phase": "Running", "agent": {"claim": claim, "report": report}});
    for (egress, told) in [(json!("None"), true), (json!("Internet"), false), (json!(null), false)] {
        let of = launching(&egress, PolicySeen::There);
        let o = Observed { agent: of.agent, ..observed(&status) };
        let error = step_run(&o).status.and_then(|s| s.error).expect("an error");
        assert_eq!(error.message.contains("reaches nothing but the gateway and DNS"), told, "{}", error.message);
    }
}
