//! What a decision turns on and only others can tell. Each is asked for only where it matters: the decision says what it
//! lacks, its caller gets that, and it is taken again.

use super::slot::{Need, need};
use super::{Changed, Observed, Plan, StepRunStatus, advanced};
use crate::decide::egress::PolicySeen;
use crate::decide::memory::MemorySeen;

/// What is asked for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// What the ledger of slots says to this.
    Slot(Need),
    /// The pinned definition: nothing is launched without it. It is gone or changed, which ends the run in its own pass.
    Definition,
    /// What the attempt is to read, what its agent remembers, and whether what limits its network is there.
    Input,
    /// Whether the admission policies stand, which costs two requests.
    Policies,
    /// When what lies in the mailbox was written, or that nothing lies there: one read of the StepRun itself, where a person has
    /// decided or answered, or a deadline passes.
    Mail,
    /// The number of the document that is published: nobody else gets it.
    Revision,
}

/// What a launch turns on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Input {
    /// The first document that the attempt is to read and that is not what was pinned.
    pub changed: Option<Changed>,
    /// What the agent remembers in the run's session.
    pub memory: MemorySeen,
    /// The NetworkPolicy that its Agent asks for.
    pub egress: PolicySeen,
}

/// What to do with this StepRun now, or what must be known before that can be said.
pub fn decide(o: &Observed) -> Result<Plan<StepRunStatus>, Lack> {
    if let Some(lack) = lacks(o) {
        return Err(lack);
    }
    let pass = advanced(o);
    let lacking =
        [(pass.lacks_policies, Lack::Policies), (pass.lacks_mail, Lack::Mail), (pass.lacks_revision, Lack::Revision)];
    match lacking.into_iter().find(|(lacks, _)| *lacks) {
        Some((_, lack)) => Err(lack),
        None => Ok(pass.finish()),
    }
}

fn lacks(o: &Observed) -> Option<Lack> {
    let need = need(o);
    match o.slot {
        None => Some(Lack::Slot(need)),
        Some(_) if need == Need::Launch && o.definition.is_none() => Some(Lack::Definition),
        Some(_) if need == Need::Launch && o.input.is_none() => Some(Lack::Input),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::api::agent::Agent;
    use crate::api::definition::Definition;
    use crate::api::name::{ACTION, DECIDED_BY};
    use crate::api::step_run::{StepRunAsk, WaitKind};
    use crate::decide::mail::Mail;
    use crate::decide::step_run::{Guard, Slot};
    use crate::definition::program::Program;

    #[test]
    fn each_is_asked_for_once_and_only_where_the_decision_turns_on_it() {
        let template = json!({"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}});
        let spec = serde_json::from_value(json!({"template": template})).expect("a spec");
        let mut o = Observed {
            agent: Some(Arc::new(Agent::new("writer", spec))),
            slot: None,
            guard: Guard::NotAsked,
            ..crate::decide::step_run::tests::observed(&json!(null))
        };
        assert_eq!(decide(&o), Err(Lack::Slot(Need::Launch)));
        o.slot = Some(Slot::Yours);
        assert_eq!(decide(&o), Err(Lack::Definition));
        let definition: Definition = serde_json::from_value(json!({"workflow": "shop", "workflowUid": "w",
            "session": "s", "steps": [{"name": "draft", "agentId": "writer"}]}))
        .expect("a definition");
        o.definition = Some(Arc::new(Program::compile(&definition).expect("a program")));
        assert_eq!(decide(&o), Err(Lack::Input));
        o.input = Some(Input::default());
        assert!(decide(&o).is_ok_and(|plan| !plan.effects.is_empty()), "it launches");
        let (agent, definition) = (o.agent.clone(), o.definition.clone());

        let asks = json!({"waitingFor": {"id": "1-0", "kind": "RetriesSpent", "question": "?", "options": [],
            "since": "1970-01-01T00:00:00Z"}});
        let mut o = Observed {
            slot: Some(Slot::Yours),
            guard: Guard::NotAsked,
            ..crate::decide::step_run::tests::observed(&asks)
        };
        assert_eq!(decide(&o), Err(Lack::Policies));
        o.guard = Guard::Proven("policies".into());
        assert!(decide(&o).is_ok());
        // Whatever opens a wait, the policies stand in it from the first: who answers at once is not refused.
        let spent = json!({"attempt": 2, "phase": "Pending", "usage": {"tokensIn": 9, "tokensOut": 9}});
        let mut o = Observed {
            agent,
            definition,
            input: Some(Input::default()),
            guard: Guard::NotAsked,
            ..crate::decide::step_run::tests::observed(&spent)
        };
        Arc::make_mut(&mut o.step_run).spec.budget = serde_json::from_value(json!({"tokens": 10})).expect("a budget");
        assert_eq!(decide(&o), Err(Lack::Policies));
        o.guard = Guard::Proven("policies".into());
        let plan = decide(&o).expect("a plan");
        let wait = plan.status.and_then(|status| status.waiting_for).expect("a wait");
        assert_eq!((wait.kind, wait.policy.as_str()), (WaitKind::BudgetSpent, "policies"));

        let ended = json!({"phase": "Completed", "completedAt": "1970-01-01T00:00:00Z"});
        let o = Observed { guard: Guard::NotAsked, ..crate::decide::step_run::tests::observed(&ended) };
        assert!(decide(&o).is_ok(), "nothing more is asked for");
    }

    #[test]
    fn the_mailbox_is_read_only_where_a_person_wrote_or_a_deadline_passes() {
        let at = "1970-01-01T00:00:00Z";
        let waits = |kind: &str, deadline: Option<&str>| {
            json!({"waitingFor": {"id": "1-0", "kind": kind, "question": "?", "options": ["retry"], "policy": "p",
                "since": at, "deadline": deadline}})
        };
        let observed = |status: &serde_json::Value| {
            let mut o = crate::decide::step_run::tests::observed(status);
            Arc::make_mut(&mut o.step_run).spec.ask =
                Some(StepRunAsk { deadline_seconds: Some(60), ..StepRunAsk::default() });
            o
        };
        let mail = [(ACTION, "retry"), (DECIDED_BY, "ann")].map(|(key, text)| (key.to_owned(), text.to_owned()));
        for (what, status, answers, lacks) in [
            ("nobody has answered", waits("RetriesSpent", None), false, false),
            ("somebody has", waits("RetriesSpent", None), true, true),
            ("before the deadline", waits("Question", Some("1970-01-01T00:01:00Z")), false, false),
            ("at the deadline", waits("Question", Some(at)), false, true),
        ] {
            let mut o = observed(&status);
            if answers {
                Arc::make_mut(&mut o.step_run).metadata.annotations = Some(mail.clone().into());
            }
            assert_eq!(decide(&o).is_err_and(|lack| lack == Lack::Mail), lacks, "{what}");
            o.mail = Mail::Read(None);
            assert!(decide(&o).is_ok(), "{what}");
        }
    }
}
