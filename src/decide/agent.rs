//! The statuses of what authors write for others to use, Agents and WorkflowTemplates: `Ready`, or every fault.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::plan::Plan;
use crate::api::agent::{Agent, AgentStatus};
use crate::api::condition::{self, STALLED, Truth, clip};
use crate::api::workflow_template::{WorkflowTemplate, WorkflowTemplateStatus};
use crate::definition::agent::{faults, is_readable};
use crate::definition::expression::Evaluate;
use crate::definition::validate;

/// How long to wait before the API server is asked again that could not say.
const DRY_RUN_AGAIN: Duration = Duration::from_secs(300);

/// What the API server says of a Job with the Agent's pod template, which it was not to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// Nothing new: see `needs_dry_run`.
    NotAsked,
    Accepted,
    /// What it would refuse, and what it would silently drop, each with its path.
    Refused(Vec<String>),
    /// It could not be asked: a quota, or a webhook that refuses dry runs.
    Unknown(String),
}

/// Whether the API server is to be asked: not of what cannot even be read, and once for what it accepts.
pub fn needs_dry_run(agent: &Agent) -> bool {
    let ready = ready_now(agent).is_some_and(|ready| ready.status == "True");
    !ready && is_readable(agent)
}

/// What to do about an Agent: its status, and to ask again where nothing could be learned.
pub fn agent(agent: &Agent, dry_run: &DryRun, evaluator: &dyn Evaluate, now: &Time) -> Plan<AgentStatus> {
    let status = agent_status(agent, dry_run, evaluator, now);
    let mut plan = Plan { status: Some(status).filter(|s| agent.status.as_ref() != Some(s)), ..Plan::default() };
    if matches!(dry_run, DryRun::Unknown(_)) {
        plan.look_again(DRY_RUN_AGAIN);
    }
    plan
}

/// The status of an Agent: `Ready`, with every fault.
fn agent_status(agent: &Agent, dry_run: &DryRun, evaluator: &dyn Evaluate, now: &Time) -> AgentStatus {
    let mut status = agent.status.clone().unwrap_or_default();
    status.observed_generation = agent.metadata.generation.unwrap_or_default();
    let mut faults = faults(agent, evaluator);
    let at = (now, status.observed_generation);
    match dry_run {
        DryRun::Unknown(why) if faults.is_empty() => {
            let words = clip(
                &format!(
                    "the API server could not be asked whether it takes the pod template; steps run all the same: {why}"
                ),
                1024,
            );
            condition::set(&mut status.conditions, "Ready", Truth::Unknown, "NotChecked", &words, at);
            condition::clear(&mut status.conditions, STALLED);
            return status;
        }
        DryRun::Refused(told) => {
            // Of one place our own words say more.
            let place = |fault: &str| fault.split(": ").next().unwrap_or_default().to_owned();
            let known: Vec<String> = faults.iter().map(|fault| place(fault)).collect();
            faults.extend(told.iter().filter(|fault| !known.contains(&place(fault))).cloned());
        }
        _ => {}
    }
    ready(&mut status.conditions, &faults, at);
    status
}

/// The status of a WorkflowTemplate: `Ready`, with every fault.
pub fn template_status(template: &WorkflowTemplate, evaluator: &dyn Evaluate, now: &Time) -> WorkflowTemplateStatus {
    let mut status = template.status.clone().unwrap_or_default();
    status.observed_generation = template.metadata.generation.unwrap_or_default();
    let faults = validate::template(&template.spec, evaluator);
    ready(&mut status.conditions, &faults, (now, status.observed_generation));
    status
}

/// Whether its status says of this very spec that it has faults.
pub fn is_known_faulty(agent: &Agent) -> bool {
    known_faults(agent).is_some()
}

/// The faults that its status tells of this very spec.
pub fn known_faults(agent: &Agent) -> Option<&str> {
    ready_now(agent).filter(|ready| ready.status == "False").map(|ready| ready.message.as_str())
}

/// `Ready`, if it speaks of this very spec.
fn ready_now(agent: &Agent) -> Option<&Condition> {
    let current = agent.status.as_ref().filter(|s| Some(s.observed_generation) == agent.metadata.generation);
    current.and_then(|s| condition::get(&s.conditions, "Ready"))
}

/// kstatus takes `Ready=False` for work that goes on; that waiting does not help is said by `Stalled`.
fn ready(conditions: &mut Vec<Condition>, faults: &[String], at: (&Time, i64)) {
    if faults.is_empty() {
        condition::set(conditions, "Ready", Truth::True, "Valid", "", at);
        condition::clear(conditions, STALLED);
    } else {
        let faults = faults.join("; ");
        condition::set(conditions, "Ready", Truth::False, "Invalid", &faults, at);
        condition::set(conditions, STALLED, Truth::True, "Invalid", &faults, at);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::definition::expression::InProcess;

    const NOW: Time = Time(Timestamp::UNIX_EPOCH);

    fn agent(container: &Value) -> Agent {
        let spec = json!({"template": {"spec": {"containers": [container]}}});
        let mut agent = Agent::new("writer", serde_json::from_value(spec).expect("a spec"));
        agent.metadata.generation = Some(2);
        agent
    }

    fn good() -> Agent {
        agent(&json!({"name": "agent", "image": "i", "command": ["run"]}))
    }

    fn ready_of(agent: &Agent, dry_run: &DryRun) -> (String, String, String) {
        let status = agent_status(agent, dry_run, &InProcess, &NOW);
        assert_eq!(status.observed_generation, 2);
        let ready = condition::get(&status.conditions, "Ready").cloned().expect("a condition");
        (ready.status, ready.reason, ready.message)
    }

    #[test]
    fn ready_says_what_the_api_server_would_say() {
        let refused = DryRun::Refused(vec!["spec.template.spec.containers[0].resourcess: is no field".into()]);
        let unknown = DryRun::Unknown("exceeded quota".into());
        for (dry_run, status, reason, words) in [
            (DryRun::Accepted, "True", "Valid", ""),
            (DryRun::NotAsked, "True", "Valid", ""),
            (refused.clone(), "False", "Invalid", "containers[0].resourcess"),
            (unknown.clone(), "Unknown", "NotChecked", "exceeded quota"),
        ] {
            let ready = ready_of(&good(), &dry_run);
            assert_eq!((ready.0.as_str(), ready.1.as_str()), (status, reason), "{dry_run:?}");
            assert!(ready.2.contains(words), "{}", ready.2);
        }
        // Both are said, each place once.
        let both = DryRun::Refused(vec![
            "spec.template.spec.containers[0].resourcess: is no field".into(),
            "spec.template.spec.containers[0].command: no".into(),
        ]);
        let (status, _, words) = ready_of(&agent(&json!({"name": "agent", "image": "i"})), &both);
        assert_eq!((status.as_str(), words.matches("containers[0].command: ").count()), ("False", 1), "{words}");
        assert!(words.contains("containers[0].resourcess: is no field"), "{words}");
        // What is known without it stays said.
        let ready = ready_of(&agent(&json!({"name": "agent", "image": "i"})), &unknown);
        assert!(ready.0 == "False" && ready.2.contains("command"), "{ready:?}");
        let again = |dry_run: &DryRun| super::agent(&good(), dry_run, &InProcess, &NOW).requeue.is_some();
        assert!(again(&unknown) && !again(&refused) && !again(&DryRun::Accepted));
    }

    /// An author mends it, or nobody does: a tool that waits must not wait for its own timeout.
    #[test]
    fn faults_are_stalled_for_as_long_as_they_are_there() {
        let refused = DryRun::Refused(vec!["spec.template: is no field".into()]);
        let mut agent = good();
        for (dry_run, stalled) in [
            (DryRun::NotAsked, false),
            (refused.clone(), true),
            (DryRun::Unknown("exceeded quota".into()), false),
            (refused, true),
            (DryRun::Accepted, false),
        ] {
            let status = agent_status(&agent, &dry_run, &InProcess, &NOW);
            let found = condition::get(&status.conditions, "Stalled");
            assert_eq!(found.map(|c| (c.status.as_str(), c.reason.as_str())), stalled.then_some(("True", "Invalid")));
            agent.status = Some(status);
        }
        let step = json!({"name": "a", "agentId": "x"});
        let spec = serde_json::from_value(json!({"steps": [step, step]})).expect("a spec");
        let mut template = WorkflowTemplate::new("t", spec);
        let status = template_status(&template, &InProcess, &NOW);
        assert!(condition::get(&status.conditions, "Stalled").is_some(), "one name twice: {status:?}");
        template.status = Some(status);
        template.spec.steps.pop();
        let status = template_status(&template, &InProcess, &NOW);
        assert!(condition::get(&status.conditions, "Stalled").is_none(), "{status:?}");
    }

    #[test]
    fn the_api_server_is_asked_until_it_has_accepted_this_very_spec() {
        let with = |generation: i64, status: &str| {
            let mut agent = good();
            let ready = json!({"type": "Ready", "status": status, "reason": "r", "message": "m",
                "lastTransitionTime": "1970-01-01T00:00:00Z"});
            agent.status = serde_json::from_value(json!({"observedGeneration": generation, "conditions": [ready]}))
                .expect("a status");
            agent
        };
        for (what, agent, asked) in [
            ("a new one", good(), true),
            ("accepted", with(2, "True"), false),
            ("accepted before it was changed", with(1, "True"), true),
            ("refused: the cluster may know the field by now", with(2, "False"), true),
            ("not known", with(2, "Unknown"), true),
            ("with faults that are known without it: both are told at once", agent(&json!({"name": "agent"})), true),
            ("that cannot be read", agent(&json!({"name": "agent", "image": 7})), false),
        ] {
            assert_eq!(needs_dry_run(&agent), asked, "{what}");
        }
        assert_eq!(known_faults(&with(2, "False")), Some("m"));
        assert_eq!(known_faults(&with(1, "False")).or(known_faults(&with(2, "Unknown"))), None);
    }
}
