//! What tools that know nothing of Lockstep read of a step: the two conditions of kstatus.

use super::{Pass, Phase, Truth, condition};
use crate::api::condition::{RECONCILING, STALLED};

impl Pass<'_> {
    /// What kstatus reads, from phase and obstacle: it changes only where the status does anyway. What ended under a version that
    /// did not say it stays as it is: an upgrade writes no status of what is over.
    pub(super) fn tell_tools(&mut self) {
        if self.o.step_run.status.as_ref().is_some_and(|s| s.completed_at.is_some()) {
            return;
        }
        let phase = self.status.phase.unwrap_or_default();
        let kind = match phase {
            Phase::Completed | Phase::Skipped => None,
            Phase::Failed | Phase::Cancelled => Some(STALLED),
            _ => Some(RECONCILING),
        };
        for other in [RECONCILING, STALLED].into_iter().filter(|other| kind != Some(*other)) {
            condition::clear(&mut self.status.conditions, other);
        }
        let Some(kind) = kind else { return };
        let started = condition::get(&self.status.conditions, "Started").filter(|c| c.status == "False");
        let (reason, message) = match (phase, &self.status.error, started) {
            (Phase::Failed, Some(error), _) => (error.class.to_string(), error.message.clone()),
            (_, _, Some(why)) => (why.reason.clone(), why.message.clone()),
            _ => (phase.to_string(), String::new()),
        };
        self.condition(kind, Truth::True, &reason, &message);
    }
}

#[cfg(test)]
mod tests {
    use super::super::step_run;
    use super::super::tests::observed;
    use super::*;
    use serde_json::json;

    fn told(status: &serde_json::Value) -> Vec<(String, String)> {
        let status = step_run(&observed(status)).status.map(|s| s.conditions).unwrap_or_default();
        let of_tools =
            status.iter().filter(|c| [RECONCILING, STALLED].contains(&c.type_.as_str()) && c.status == "True");
        of_tools.map(|c| (c.type_.clone(), c.reason.clone())).collect()
    }

    #[test]
    fn what_runs_is_on_its_way_and_what_failed_stands() {
        let report = |class: &str| {
            let claim = json!({"attempt": 1, "id": "i", "podName": "p", "podUID": "u", "at": "1970-01-01T00:00:00Z"});
            let report = json!({"attempt": 1, "class": class, "digest": "d", "at": "1970-01-01T00:00:00Z"});
            json!({"attempt": 1, "phase": "Running", "agent": {"claim": claim, "report": report},
                "conditions": [{"type": "Reconciling", "status": "True", "reason": "Running", "message": "",
                    "lastTransitionTime": "1970-01-01T00:00:00Z"}]})
        };
        for (name, status, expected) in [
            ("one that cannot start yet", json!({"attempt": 1}), vec![("Reconciling", "AgentInvalid")]),
            ("one that completed", report("Succeeded"), vec![]),
            ("one that failed", report("Unrecoverable"), vec![("Stalled", "Unrecoverable")]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(k, r)| (k.to_owned(), r.to_owned())).collect();
            assert_eq!(told(&status), expected, "{name}");
        }
    }

    #[test]
    fn what_ended_under_an_older_version_is_not_written_again() {
        let mut o = observed(&json!({"attempt": 1, "phase": "Failed", "completedAt": "1970-01-01T00:00:00Z"}));
        let step_run_object = std::sync::Arc::make_mut(&mut o.step_run);
        step_run_object.metadata.generation = Some(1);
        step_run_object.status.as_mut().expect("a status").observed_generation = 1;
        assert_eq!(step_run(&o).status, None);
    }
}
