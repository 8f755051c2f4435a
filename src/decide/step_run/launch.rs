//! Before an attempt runs: what it waits for, its Job, its start.

use super::{
    Agent, AttemptResult, Duration, Effect, Hold, Input, JobSeen, Pass, Phase, SKEW_SECONDS, SignedDuration, Slot,
    SourceAgent, Time, Truth, after, build, clip, condition, failure, name,
};
use crate::decide::agent::known_faults;
use crate::decide::budget;
use crate::decide::egress::{self, PolicySeen};
use crate::decide::memory::{self, MemorySeen};
use crate::definition::agent::{CA_VOLUME, CheckedAgent, work_digest};

/// Names that are tried one after the other without a pause.
const NAMES_AT_ONCE: i32 = 3;
/// For so long the condition says that a pod can never start, before its attempt ends.
const NEVER_STARTS_SECONDS: i64 = 5;
/// How long to wait before a NetworkPolicy is looked at again that is not as it was made: nothing tells that it is gone.
const POLICY_AGAIN: Duration = Duration::from_secs(30);
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
        self.status.launched_at.is_some()
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
            let Some(fault) = &self.o.agent_fault else {
                let why = format!("Agent {name} does not exist in this namespace; it starts when it does");
                return self.pend("AgentNotFound", &why);
            };
            return self
                .pend("AgentInvalid", &format!("Agent {name} cannot be read: {fault}; it starts when it is mended"));
        };
        // Its status may be behind its spec, and says nothing then.
        let agent = match CheckedAgent::of(agent, self.o.evaluator.as_ref()) {
            // What the API server said of it, the status tells.
            Ok(agent) => match known_faults(agent.agent()) {
                None => agent,
                Some(faults) => {
                    let faults = clip(faults, 600);
                    return self.pend("AgentInvalid", &format!("Agent {name} is not ready: {faults}"));
                }
            },
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
        let input = self.o.input.clone().unwrap_or_default();
        if let Some(changed) = &input.changed {
            return self.fail_changed(changed);
        }
        if let Some(spent) = budget::spent(&self.o.step_run, &self.o.budget) {
            return self.budget_spent(&spent);
        }
        match self.o.slot {
            Some(Slot::Wait { ahead }) => self.wait_for_slot(ahead),
            Some(Slot::Yours) | None => self.create_job(&agent, &input),
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

    fn create_job(&mut self, agent: &CheckedAgent<'_>, input: &Input) {
        if let Some(faults) = self.parameter_faults(agent.agent()) {
            return self.end_attempt(AttemptResult::InvalidParameters, None, &faults);
        }
        match self.memory(agent.agent(), &input.memory) {
            Ok(effect) => self.plan.effects.extend(effect),
            Err(why) => return self.pend("MemoryNotOurs", &why),
        }
        match self.network_policy(agent.agent(), &input.egress) {
            Ok(effect) => self.plan.effects.extend(effect),
            Err(why) => {
                self.plan.look_again(POLICY_AGAIN);
                return self.pend("NetworkPolicyNotOurs", &why);
            }
        }
        let job = build::job(&self.o.step_run, &self.status, agent, &self.policy, &self.o.installation);
        self.plan.effects.push(Effect::CreateJob(Box::new(job)));
        self.launched(Truth::Unknown, "Launched", "");
        self.wake_in(self.policy.start_timeout);
    }

    /// What the agent remembers is there before it runs; or why it cannot be.
    fn memory(&self, agent: &Agent, seen: &MemorySeen) -> Result<Option<Effect>, String> {
        let Some(session) = self.o.definition.as_deref().map(|d| d.run.session.as_str()) else { return Ok(None) };
        let ends = agent.spec.memory.as_ref().is_some_and(|m| m.ttl_seconds_after_last_use.is_some());
        let made = || memory::initial(&self.o.step_run, session, &self.o.now);
        match seen {
            MemorySeen::Absent => Ok(Some(Effect::CreateMemory(Box::new(made())))),
            MemorySeen::There { uid } if ends && !name::is_private(session) => Ok(Some(Effect::UseMemory {
                name: name::memory(&self.o.step_run.spec.agent_id, session),
                uid: uid.clone(),
                at: self.o.now.clone(),
            })),
            MemorySeen::There { .. } | MemorySeen::NotAsked => Ok(None),
            MemorySeen::Foreign(holder) => Err(format!(
                "Memory {} is there and is not that of agent {} in session {session}: {holder}; it starts when that is deleted",
                name::memory(&self.o.step_run.spec.agent_id, session),
                self.o.step_run.spec.agent_id
            )),
        }
    }

    /// What limits the network of its pods is there before they are; or why it cannot be.
    fn network_policy(&self, agent: &Agent, seen: &PolicySeen) -> Result<Option<Effect>, String> {
        let namespace = self.o.step_run.metadata.namespace.as_deref().unwrap_or_default();
        let Some(policy) = egress::policy(agent, namespace, &self.o.installation.network) else { return Ok(None) };
        match seen {
            PolicySeen::There => Ok(None),
            PolicySeen::Absent | PolicySeen::NotAsked => Ok(Some(Effect::CreateNetworkPolicy(Box::new(policy)))),
            PolicySeen::Other => Err(format!(
                "NetworkPolicy {} is there and is not what the egress of Agent {} says; it starts when that is deleted",
                policy.metadata.name.unwrap_or_default(),
                self.o.step_run.spec.agent_id
            )),
        }
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
        let obstacle = self.o.pod.as_ref().and_then(|p| p.obstacle.clone()).or_else(|| self.o.event.clone());
        let obstacle = obstacle.map(with_field);
        if let Some(obstacle) = obstacle.as_deref().filter(|_| self.is_agent_changed()) {
            return self.start_anew(obstacle);
        }
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
            Some(obstacle) if self.never_starts() => return self.end_never_started(&obstacle),
            Some(obstacle) => self.launched(Truth::False, "PodNotReady", &obstacle),
            None => self.launched(Truth::Unknown, "Launched", ""),
        }
        self.wake_at(&deadline);
    }

    /// Whether its Job was made from an Agent whose template or schemas are others by now.
    fn is_agent_changed(&self) -> bool {
        let JobSeen::Present { ran: SourceAgent { digest: Some(ran), .. }, .. } = &self.o.job else { return false };
        self.o.agent.as_deref().is_some_and(|agent| work_digest(agent) != *ran)
    }

    /// Nothing ran, and the Agent was mended: another attempt takes it as it is now, free of any budget. The fence moves
    /// first, so the pod that still waits cannot begin.
    fn start_anew(&mut self, obstacle: &str) {
        let attempt = self.status.attempt;
        let why = format!("the Agent was changed while the attempt waited for its pod ({obstacle})");
        self.plan
            .notice("AgentChanged", format!("attempt {attempt}: {}; another one takes its place", clip(&why, 400)));
        self.record(AttemptResult::AgentChanged, None, Some(&why));
        condition::clear(&mut self.status.conditions, "Started");
        self.next_attempt(None);
    }

    /// Whether its pod can never start, as it is.
    pub(super) fn never_starts(&self) -> bool {
        self.o.pod.as_ref().is_some_and(|p| p.never_starts)
    }

    /// What is malformed is told, and then ends the attempt; neither waiting nor another attempt can help.
    fn end_never_started(&mut self, obstacle: &str) {
        let told = condition::get(&self.status.conditions, "Started").filter(|c| c.reason == "PodNotReady");
        let since = told.map(|c| c.last_transition_time.clone());
        if since.is_some_and(|at| self.o.now.0 >= after(&at, NEVER_STARTS_SECONDS).0) {
            return self.lost(&format!("the pod cannot start: {obstacle}"));
        }
        self.launched(Truth::False, "PodNotReady", obstacle);
        self.wake_in(NEVER_STARTS_SECONDS);
    }

    /// Sets the condition once a pass: by way of another state its time would move, and every pass would write.
    pub(super) fn launched(&mut self, started: Truth, reason: &str, message: &str) {
        self.status.phase = Some(Phase::Running);
        self.status.started_at.get_or_insert_with(|| self.o.now.clone());
        self.status.launched_at.get_or_insert_with(|| self.o.now.clone());
        self.condition("Started", started, reason, message);
    }
}

/// The volume of a prompt's authorities is none that the author wrote: the field is, which it comes from.
fn with_field(obstacle: String) -> String {
    if !obstacle.contains(CA_VOLUME) {
        return obstacle;
    }
    format!(
        "{obstacle}; spec.prompt.caConfigMapRef of the Agent asks for it: make that ConfigMap with that key, or mend the Agent"
    )
}
