//! Slots: the ledger of `cluster/slots.rs` in each life of an operator, asked as `cluster/observe.rs` asks it.

use std::sync::Arc;

use futures::FutureExt;
use lockstep::api::{Agent, StepRun, Workflow};
use lockstep::cluster::slots::{Applicant, Limit, QueuePosition};
use lockstep::decide::seen;
use lockstep::decide::step_run::{Need, Slot};

use super::server::{Kind, Object};
use super::world::World;

impl World {
    pub fn slot(&mut self, op: usize, need: Need, step_run: &StepRun) -> Slot {
        let identity = &step_run.spec.workflow;
        let run = self.cached(op, Kind::Workflow, &identity.name).filter(|w| w.uid == identity.uid);
        let run = run.map(|w| w.typed::<Workflow>());
        let who = self.applicant(op, step_run, run.as_deref());
        let there = self.cached(op, Kind::StepRun, &who.position.name).map(|s| s.uid.clone());
        let Some(slots) = &self.operators[op].slots else { return Slot::Yours };
        let slot = match need {
            Need::Nothing => {
                slots.release(&who.position.uid);
                Slot::Yours
            }
            Need::Holds => {
                slots.hold(&who);
                Slot::Yours
            }
            Need::Launch => slots.ask(&who),
        };
        if there.as_ref() != Some(&who.position.uid) {
            slots.release(&who.position.uid);
        }
        self.turns(op);
        slot
    }

    fn applicant(&self, op: usize, step_run: &StepRun, run: Option<&Workflow>) -> Applicant {
        let agent = self.cached(op, Kind::Agent, &step_run.spec.agent_id).map(|a| a.typed::<Agent>());
        let meta = &step_run.metadata;
        Applicant {
            limit: Limit::of(agent.as_deref()),
            agent: step_run.spec.agent_id.clone(),
            position: QueuePosition {
                run_created: run.and_then(|r| r.metadata.creation_timestamp.clone()),
                run: step_run.spec.workflow.name.clone(),
                created: meta.creation_timestamp.clone(),
                name: meta.name.clone().unwrap_or_default(),
                uid: meta.uid.clone().unwrap_or_default(),
            },
            namespace: String::new(),
        }
    }

    /// What runs holds its slot before anybody asks for one.
    pub fn restore_slots(&mut self, op: usize) {
        for cached in self.cached_all(op, Kind::StepRun).cloned().collect::<Vec<_>>() {
            let step_run: Arc<StepRun> = cached.typed();
            let attempt = step_run.status.as_ref().map_or(1, |s| s.attempt);
            let own = self.cached_all(op, Kind::Job).filter(|j| j.is_controlled_by("StepRun", &cached.uid));
            let own: Vec<Arc<Object>> = own.cloned().collect();
            let job = self.job_seen(op, &seen::job_name(&step_run, attempt), &own);
            if lockstep::decide::step_run::holds_slot(&step_run, &job) {
                let run = self.cached(op, Kind::Workflow, &step_run.spec.workflow.name);
                let run = run.map(|r| r.typed::<Workflow>());
                let who = self.applicant(op, &step_run, run.as_deref());
                if let Some(slots) = &self.operators[op].slots {
                    slots.hold(&who);
                }
            }
        }
    }

    /// A StepRun that is not there any more gives its slot back.
    pub fn left(&mut self, op: usize, step_run: &Object) {
        let there = self.cached(op, Kind::StepRun, &step_run.name);
        if there.is_none_or(|s| s.uid != step_run.uid) {
            if let Some(slots) = &self.operators[op].slots {
                slots.release(&step_run.uid);
            }
            self.turns(op);
        }
    }

    /// Those whose turn has come are looked at.
    fn turns(&mut self, op: usize) {
        let granted = self.operators[op].slots.as_ref().and_then(|slots| slots.granted().now_or_never());
        for (_, name) in granted.unwrap_or_default() {
            self.wake(op, (Kind::StepRun, name), self.now);
        }
    }

    /// Whether the limits are exact here: one operator that knows of every Job it has asked for.
    pub fn counts_slots(&self) -> bool {
        let exact = self.operators.len() == 1 && self.epochs() == 1;
        exact && !self.judge.blind
    }

    fn epochs(&self) -> u32 {
        self.operators.iter().map(|o| o.epoch).max().unwrap_or_default()
    }
}
