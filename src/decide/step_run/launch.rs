//! Before an attempt runs: what it waits for, its Job, its start.

use super::{
    Agent, Arc, AttemptResult, Effect, JobSeen, Pass, Phase, SKEW_SECONDS, START_TIMEOUT_SECONDS, TIMEOUT_SECONDS,
    Time, Truth, after, build, schema,
};

impl Pass<'_> {
    pub(super) fn launch(&mut self) {
        let Some(agent) = &self.o.agent else {
            return self.pend(
                "AgentNotFound",
                &format!(
                    "Agent {} does not exist in this namespace; it starts when it does",
                    self.o.step_run.spec.agent_id
                ),
            );
        };
        if let Some(faults) = build::not_ready(agent) {
            return self
                .pend("AgentInvalid", &format!("Agent {} is not ready: {faults}", self.o.step_run.spec.agent_id));
        }
        if let Some(not_before) = &self.status.not_before
            && self.o.now.0 < not_before.0
        {
            self.status.phase = Some(Phase::Running);
            return self.wake_at(&not_before.clone());
        }
        match self.o.job.clone() {
            JobSeen::Foreign => self.end_attempt(
                AttemptResult::NameConflict,
                None,
                "a Job of that name exists and is not ours; delete it or rename the run",
            ),
            JobSeen::Absent => self.create_job(&Arc::clone(agent)),
            JobSeen::Present { deleting: true, .. } => {
                self.end_attempt(AttemptResult::Infrastructure, None, "the Job was deleted before the agent started");
            }
            JobSeen::Present { ended: true, .. } => {
                let why = self
                    .o
                    .pod
                    .as_ref()
                    .map_or("its pod is gone", |p| match p.termination.trim() {
                        "" => "no reason known",
                        known => known,
                    })
                    .to_owned();
                self.end_attempt(
                    AttemptResult::Infrastructure,
                    None,
                    &format!("the Job ended before the agent started: {why}"),
                );
            }
            JobSeen::Present { created, .. } => self.starting(created),
        }
    }

    pub(super) fn create_job(&mut self, agent: &Agent) {
        if let Some(faults) = self.parameter_faults(agent) {
            return self.end_attempt(AttemptResult::InvalidParameters, None, &faults);
        }
        match build::job(&self.o.step_run, &self.status, agent, self.step, &self.o.surroundings) {
            Ok(job) => self.plan.effects.push(Effect::CreateJob(Box::new(job))),
            Err(fault) => return self.pend("AgentInvalid", &fault),
        }
        self.launched(Truth::Unknown, "Launched", "");
        self.wake_in(self.start_timeout());
    }

    pub(super) fn parameter_faults(&self, agent: &Agent) -> Option<String> {
        let wanted = agent.spec.parameters_schema.as_ref()?;
        let parameters = serde_json::from_str(&self.o.step_run.spec.parameters).ok()?;
        let faults = match schema::faults(wanted, &parameters) {
            Ok(faults) => faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            Err(fault) => vec![fault],
        };
        (!faults.is_empty())
            .then(|| format!("the parameters do not meet the Agent's parametersSchema: {}", faults.join("; ")))
    }

    pub(super) fn starting(&mut self, created: Option<Time>) {
        let deadline = after(&created.unwrap_or_else(|| self.o.now.clone()), self.start_timeout() + SKEW_SECONDS);
        let obstacle = self.o.pod.as_ref().and_then(|p| p.obstacle.clone());
        if self.o.now.0 >= deadline.0 {
            let slow = if self.o.pod.is_some() { "its pod is still being set up" } else { "it has no pod yet" };
            let why = obstacle.unwrap_or_else(|| slow.to_owned());
            return self.end_attempt(
                AttemptResult::Infrastructure,
                None,
                &format!("not started within {} s: {why}", self.start_timeout()),
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

    pub(super) fn start_timeout(&self) -> i64 {
        self.o.agent.as_ref().and_then(|a| a.spec.start_timeout_seconds).unwrap_or(START_TIMEOUT_SECONDS)
    }

    pub(super) fn timeout(&self) -> i64 {
        let agent = self.o.agent.as_ref().and_then(|a| a.spec.timeout_seconds);
        self.step.and_then(|s| s.timeout_seconds).or(agent).unwrap_or(TIMEOUT_SECONDS)
    }
}
