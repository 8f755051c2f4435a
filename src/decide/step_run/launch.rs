//! Before an attempt runs: what it waits for, its Job, its start.

use super::{
    Agent, AttemptResult, Effect, Hold, JobSeen, Pass, Phase, SKEW_SECONDS, SignedDuration, Slot, Time, Truth, after,
    build, clip, condition, failure, name, slot,
};
use crate::definition::agent::CheckedAgent;
use crate::mutant::{self, Mutant};

/// Names that are tried one after the other without a pause.
const NAMES_AT_ONCE: i32 = 3;
const WAITING_FOR_SLOT: &str = "WaitingForSlot";

impl Pass<'_> {
    pub(super) fn launch(&mut self) {
        match self.o.job.clone() {
            JobSeen::Present { deleting: true, .. } => self.lost("the Job was deleted before the agent started"),
            JobSeen::Present { ended: true, .. } => {
                let pod = self.o.pod.as_ref();
                let why = pod.map_or("its pod is gone", |p| match p.termination.trim() {
                    "" => "no reason known",
                    known => known,
                });
                self.lost(&format!("the Job ended before the agent started: {why}"));
            }
            JobSeen::Present { created, .. } => self.starting(created),
            // That it was launched is stored after the Job was made: it is gone, and not to be made twice in one attempt.
            JobSeen::Absent if self.was_launched() => self.lost("the Job was deleted before the agent started"),
            JobSeen::Absent | JobSeen::Foreign(_) => self.prepare(),
        }
    }

    fn lost(&mut self, why: &str) {
        self.end_attempt(AttemptResult::Infrastructure, None, why);
    }

    /// Whether the Job of this attempt was made.
    pub(super) fn was_launched(&self) -> bool {
        slot::launched(&self.status)
    }

    /// Everything that must be there before the Job is.
    fn prepare(&mut self) {
        if self.o.hold == Hold::Suspended {
            self.pend("Suspended", "the run is suspended; it starts when spec.suspend is false");
            // The pod of an attempt that was given up still ends: only then nothing of it runs.
            self.status.phase = Some(if self.o.pods_alive > 0 { Phase::Running } else { Phase::Suspended });
            return;
        }
        if let Some(why) = self.nobody_may_decide() {
            return self.fail(AttemptResult::GateNotProven, why);
        }
        let name = &self.o.step_run.spec.agent_id;
        let Some(agent) = self.o.agent.as_deref() else {
            let why = format!("Agent {name} does not exist in this namespace; it starts when it does");
            return self.pend("AgentNotFound", &why);
        };
        // Its status may be behind its spec, and says nothing then.
        let agent = match CheckedAgent::of(agent, self.o.evaluator.as_ref()) {
            Ok(agent) => agent,
            Err(faults) => {
                let faults = clip(&faults.join("; "), 600);
                return self.pend("AgentInvalid", &format!("Agent {name} is not ready: {faults}"));
            }
        };
        if let Some(not_before) = self.status.not_before.clone()
            && self.o.now.0 < not_before.0
        {
            // What it waited for before is there now.
            condition::clear(&mut self.status.conditions, "Started");
            self.status.phase = Some(Phase::Running);
            return self.wake_at(&not_before);
        }
        if let JobSeen::Foreign(holder) = &self.o.job {
            return self.name_taken(holder);
        }
        if let Some(why) = &self.o.refusal {
            return self.lost(&format!("the API server refused the Job: {why}"));
        }
        if let Some(changed) = self.o.changed_input.clone() {
            return self.fail_changed(&changed);
        }
        match self.o.slot {
            Slot::Yours => self.create_job(&agent),
            Slot::Wait { .. } if mutant::on(Mutant::TurnNotAwaited) => self.create_job(&agent),
            Slot::Wait { ahead } => self.wait_for_slot(ahead),
        }
    }

    /// Somebody else's Job has the name. The names of attempts can be foreseen, so the next has something in it that nobody
    /// could know. Nothing ran, and it is not the agent's doing: no budget is spent.
    fn name_taken(&mut self, holder: &str) {
        let attempt = self.status.attempt;
        let name = build::job_name(&self.o.step_run, &self.status, attempt);
        let why = format!("Job {name} is there and is not Lockstep's: {holder}");
        self.plan.warn("NameTaken", format!("attempt {attempt}: {why}; the next attempt takes another name"));
        self.record(AttemptResult::NameConflict, None, Some(&why));
        condition::clear(&mut self.status.conditions, "Started");
        let version = self.o.step_run.metadata.resource_version.as_deref().unwrap_or_default();
        let now = self.o.now.0.to_string();
        let salt = name::digest([self.uid().as_bytes(), version.as_bytes(), now.as_bytes()]);
        self.status.job_salt = Some(salt[salt.len() - 16..].to_owned());
        // Whoever reads the status knows the next name too. Who does so again and again is not raced for ever.
        let in_a_row =
            self.status.attempts.iter().rev().take_while(|a| a.result == AttemptResult::NameConflict).count();
        let again = i32::try_from(in_a_row).unwrap_or(i32::MAX) - NAMES_AT_ONCE;
        let wait = (again > 0).then(|| failure::backoff(self.policy, again, &salt));
        self.next_attempt(wait.map(|wait| Time(self.o.now.0 + SignedDuration::try_from(wait).unwrap_or_default())));
    }

    /// Its place in the queue is told once: a queue that moves must not write to all that wait in it.
    fn wait_for_slot(&mut self, ahead: usize) {
        let told = condition::get(&self.status.conditions, "Started").filter(|c| c.reason == WAITING_FOR_SLOT);
        let message = told.map_or_else(
            || match ahead {
                0 => "as many attempts run as may at once; it is the next of its Agent".to_owned(),
                1 => "as many attempts run as may at once; one of its Agent was ahead when it began to wait".to_owned(),
                n => format!("as many attempts run as may at once; {n} of its Agent were ahead when it began to wait"),
            },
            |c| c.message.clone(),
        );
        self.pend(WAITING_FOR_SLOT, &message);
    }

    fn create_job(&mut self, agent: &CheckedAgent<'_>) {
        if let Some(faults) = self.parameter_faults(agent.agent()) {
            return self.end_attempt(AttemptResult::InvalidParameters, None, &faults);
        }
        let job = build::job(&self.o.step_run, &self.status, agent, &self.policy, &self.o.surroundings);
        self.plan.effects.push(Effect::CreateJob(Box::new(job)));
        self.launched(Truth::Unknown, "Launched", "");
        self.wake_in(self.policy.start_timeout);
    }

    fn parameter_faults(&self, agent: &Agent) -> Option<String> {
        let wanted = agent.spec.parameters_schema.as_ref()?;
        let parameters = serde_json::from_str(&self.o.step_run.spec.parameters).ok()?;
        let faults = match self.o.evaluator.faults(wanted, &parameters) {
            Ok(faults) => faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            Err(fault) => vec![fault],
        };
        (!faults.is_empty())
            .then(|| format!("the parameters do not meet the Agent's parametersSchema: {}", faults.join("; ")))
    }

    fn starting(&mut self, created: Option<Time>) {
        let deadline = after(&created.unwrap_or_else(|| self.o.now.clone()), self.policy.start_timeout + SKEW_SECONDS);
        let obstacle = self.o.pod.as_ref().and_then(|p| p.obstacle.clone());
        if self.o.now.0 >= deadline.0 {
            let slow = if self.o.pod.is_some() { "its pod is still being set up" } else { "it has no pod yet" };
            let why = obstacle.unwrap_or_else(|| slow.to_owned());
            return self.end_attempt(
                AttemptResult::Infrastructure,
                None,
                &format!("not started within {} s: {why}", self.policy.start_timeout),
            );
        }
        match obstacle {
            Some(obstacle) => self.launched(Truth::False, "PodNotReady", &obstacle),
            None => self.launched(Truth::Unknown, "Launched", ""),
        }
        self.wake_at(&deadline);
    }

    /// Sets the condition once a pass: by way of another state its time would move, and every pass would write.
    pub(super) fn launched(&mut self, started: Truth, reason: &str, message: &str) {
        self.status.phase = Some(Phase::Running);
        self.status.started_at.get_or_insert_with(|| self.o.now.clone());
        self.condition("Started", started, reason, message);
    }
}
