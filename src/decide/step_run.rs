//! One StepRun: launch an attempt, learn how it ended, hold the gate, ask a person. The fence (`status.attempt`) moves
//! before anything is undone; the claim, never the Job, says whether an attempt started.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;

use super::build::{self, Surroundings};
use super::failure::{self, Next, Policy};
use super::gate::{self, Guard};
use super::{Effect, Plan, document, schema};
use crate::api::agent::Agent;
use crate::api::condition::{self, Truth, clip};
use crate::api::definition::Definition;
use crate::api::document::{Document, DocumentPhase, DocumentStatus};
use crate::api::limits::{
    ATTEMPTS_KEPT, LOG_TAIL_BYTES, MESSAGE_BYTES, SKEW_SECONDS, START_TIMEOUT_SECONDS,
    TIMEOUT_SECONDS,
};
use crate::api::name::{self, ACTION, COMMENT, DECIDED_BY};
use crate::api::step::Step;
use crate::api::step_run::{
    Attempt, AttemptCounts, AttemptResult, Claim, GateState, GateStatus, Guidance, Report,
    ReportClass, ResultRef, StepError, StepRun, StepRunStatus, WaitKind, WaitingFor,
};
use crate::api::workflow::Phase;

/// Seconds after which a pod that should be gone counts as gone.
const GONE_AFTER_SECONDS: i64 = 60;
/// How long to wait before asking again whether the policies stand.
const GUARD_AGAIN: Duration = Duration::from_secs(5);

/// All that the decision needs.
#[derive(Clone, Debug)]
pub struct Observed {
    pub step_run: Arc<StepRun>,
    /// The run failed or is going away: nothing new starts, waits close.
    pub closing: bool,
    pub definition: Option<Arc<Definition>>,
    pub agent: Option<Arc<Agent>>,
    pub job: JobSeen,
    /// The pod that claimed, else the newest pod of the current attempt.
    pub pod: Option<PodSeen>,
    /// Unfinished Jobs of this StepRun, name, UID and attempt.
    pub unfinished: Vec<(String, String, i32)>,
    /// The document that the report names, and others of its type.
    pub document: Option<Arc<Document>>,
    pub siblings: Vec<Arc<Document>>,
    pub guard: Guard,
    pub surroundings: Arc<Surroundings>,
    pub now: Time,
}

/// The Job of the current attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum JobSeen {
    Absent,
    /// Somebody else's, under our name.
    Foreign,
    Present {
        created: Option<Time>,
        deleting: bool,
        ended: bool,
        agent_generation: Option<i64>,
    },
}

/// What matters of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodSeen {
    pub uid: String,
    pub ended: bool,
    /// When it should be gone: deletion plus grace.
    pub gone_by: Option<Time>,
    pub termination: String,
    /// Why it does not run yet, in Kubernetes' words.
    pub obstacle: Option<String>,
}

/// What to do with this StepRun now.
pub fn step_run(o: &Observed) -> Plan<StepRunStatus> {
    let mut pass = Pass::new(o);
    if pass.status.completed_at.is_none() {
        pass.advance();
    }
    pass.clean_up();
    pass.finish()
}

struct Pass<'a> {
    o: &'a Observed,
    status: StepRunStatus,
    plan: Plan<StepRunStatus>,
    step: Option<&'a Step>,
    policy: Policy,
}

impl<'a> Pass<'a> {
    fn new(o: &'a Observed) -> Self {
        let step = o
            .definition
            .as_deref()
            .and_then(|d| d.step(&o.step_run.spec.path));
        let mut status = o.step_run.status.clone().unwrap_or_default();
        status.observed_generation = o.step_run.metadata.generation.unwrap_or_default();
        Self {
            o,
            status,
            plan: Plan::default(),
            step,
            policy: Policy::of(step, o.agent.as_deref()),
        }
    }

    fn advance(&mut self) {
        self.drop_stray_answer();
        if self.gate_is(GateState::Waiting) {
            return if self.o.closing {
                self.cancel();
            } else {
                self.review();
            };
        }
        if self.status.waiting_for.is_some() {
            return if self.o.closing {
                self.cancel();
            } else {
                self.answer();
            };
        }
        if self.status.result.is_some() {
            return self.open_gate();
        }
        match (self.report(), self.claim()) {
            (Some(report), _) => self.verdict(&report),
            (None, Some(claim)) => self.running(&claim),
            (None, None) if self.o.closing => self.cancel(),
            (None, None) => self.launch(),
        }
    }

    fn report(&self) -> Option<Report> {
        self.status
            .agent
            .as_ref()?
            .report
            .clone()
            .filter(|r| r.attempt == self.status.attempt)
    }

    fn claim(&self) -> Option<Claim> {
        self.status
            .agent
            .as_ref()?
            .claim
            .clone()
            .filter(|c| c.attempt == self.status.attempt)
    }

    fn gate_is(&self, state: GateState) -> bool {
        self.status
            .gate
            .as_ref()
            .is_some_and(|g| g.state == state && g.round == self.status.round)
    }

    // ---- launching

    fn launch(&mut self) {
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
            return self.pend(
                "AgentInvalid",
                &format!(
                    "Agent {} is not ready: {faults}",
                    self.o.step_run.spec.agent_id
                ),
            );
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
            JobSeen::Present { deleting: true, .. } => self.end_attempt(
                AttemptResult::Infrastructure,
                None,
                "the Job was deleted before the agent started",
            ),
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

    fn create_job(&mut self, agent: &Agent) {
        if let Some(faults) = self.parameter_faults(agent) {
            return self.end_attempt(AttemptResult::InvalidParameters, None, &faults);
        }
        match build::job(
            &self.o.step_run,
            &self.status,
            agent,
            self.step,
            &self.o.surroundings,
        ) {
            Ok(job) => self.plan.effects.push(Effect::CreateJob(Box::new(job))),
            Err(fault) => return self.pend("AgentInvalid", &fault),
        }
        self.launched(Truth::Unknown, "Launched", "");
        self.wake_in(self.start_timeout());
    }

    fn parameter_faults(&self, agent: &Agent) -> Option<String> {
        let wanted = agent.spec.parameters_schema.as_ref()?;
        let parameters = serde_json::from_str(&self.o.step_run.spec.parameters).ok()?;
        let faults = match schema::faults(wanted, &parameters) {
            Ok(faults) => faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            Err(fault) => vec![fault],
        };
        (!faults.is_empty()).then(|| {
            format!(
                "the parameters do not meet the Agent's parametersSchema: {}",
                faults.join("; ")
            )
        })
    }

    fn starting(&mut self, created: Option<Time>) {
        let deadline = after(
            &created.unwrap_or_else(|| self.o.now.clone()),
            self.start_timeout() + SKEW_SECONDS,
        );
        let obstacle = self.o.pod.as_ref().and_then(|p| p.obstacle.clone());
        if self.o.now.0 >= deadline.0 {
            let why = obstacle.unwrap_or_else(|| "no reason known".to_owned());
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
    fn launched(&mut self, started: Truth, reason: &str, message: &str) {
        self.status.phase = Some(Phase::Running);
        self.status
            .started_at
            .get_or_insert_with(|| self.o.now.clone());
        self.condition("Started", started, reason, message);
    }

    fn start_timeout(&self) -> i64 {
        self.o
            .agent
            .as_ref()
            .and_then(|a| a.spec.start_timeout_seconds)
            .unwrap_or(START_TIMEOUT_SECONDS)
    }

    fn timeout(&self) -> i64 {
        let agent = self.o.agent.as_ref().and_then(|a| a.spec.timeout_seconds);
        self.step
            .and_then(|s| s.timeout_seconds)
            .or(agent)
            .unwrap_or(TIMEOUT_SECONDS)
    }

    // ---- running and its end

    fn running(&mut self, claim: &Claim) {
        // `status.agent.claim` says it already; the condition is mended only where it named an obstacle.
        match condition::get(&self.status.conditions, "Started").map(|c| c.status.as_str()) {
            Some("False") => self.launched(
                Truth::True,
                "Claimed",
                &format!("by pod {}", claim.pod_name),
            ),
            _ => self.launched(Truth::Unknown, "Launched", ""),
        }
        // The shim ends the agent itself; this is for a shim that cannot.
        let deadline = after(&claim.at, self.timeout() + 60 + SKEW_SECONDS);
        let ended = match &self.o.pod {
            None => true,
            Some(pod) => {
                pod.ended
                    || pod
                        .gone_by
                        .as_ref()
                        .is_some_and(|by| self.o.now.0 >= after(by, GONE_AFTER_SECONDS).0)
            }
        };
        if ended {
            let termination = self
                .o
                .pod
                .as_ref()
                .map(|p| p.termination.clone())
                .unwrap_or_default();
            let result = failure::lost(true, &termination);
            return self.end_attempt(
                result,
                None,
                &format!("pod {} ended without a report", claim.pod_name),
            );
        }
        if self.o.now.0 >= deadline.0 {
            return self.end_attempt(
                AttemptResult::Timeout,
                None,
                &format!("no report within {} s", self.timeout()),
            );
        }
        if let Some(by) = self.o.pod.as_ref().and_then(|p| p.gone_by.clone()) {
            self.wake_at(&after(&by, GONE_AFTER_SECONDS));
        }
        self.wake_at(&deadline);
    }

    fn verdict(&mut self, report: &Report) {
        self.status
            .started_at
            .get_or_insert_with(|| self.o.now.clone());
        if report.class != ReportClass::Succeeded {
            let result = failure::verdict(report, self.o.agent.as_deref());
            let message = report.message.clone().unwrap_or_else(|| {
                format!(
                    "the agent exited with {}",
                    report.exit_code.unwrap_or_default()
                )
            });
            return self.end_attempt(result, Some(report), &message);
        }
        self.record(AttemptResult::Succeeded, Some(report), None);
        self.status.error = None;
        self.status.result = Some(ResultRef {
            attempt: report.attempt,
            digest: report.digest.clone(),
            document_name: report.document_name.clone(),
        });
        condition::clear(&mut self.status.conditions, "Started");
        self.open_gate();
    }

    fn end_attempt(&mut self, result: AttemptResult, report: Option<&Report>, message: &str) {
        self.record(result, report, Some(message));
        let error = StepError {
            class: result,
            message: clip(message, MESSAGE_BYTES),
            attempt: self.status.attempt,
            exit_code: report.and_then(|r| r.exit_code),
            log_tail: report
                .and_then(|r| r.log_tail.as_deref())
                .map(|t| clip(t, LOG_TAIL_BYTES)),
        };
        self.plan.warn(
            "AttemptFailed",
            format!(
                "attempt {}: {result}: {}",
                self.status.attempt,
                clip(message, 400)
            ),
        );
        self.status.error = Some(error);
        condition::clear(&mut self.status.conditions, "Started");
        let (counts, next) = failure::next(result, self.status.counts, self.policy);
        self.status.counts = counts;
        match next {
            // No attempt follows and nobody is asked any more.
            _ if self.o.closing => self.conclude(Phase::Failed),
            Next::Again => {
                let failures = if result == AttemptResult::Infrastructure {
                    counts.infrastructure
                } else {
                    counts.retryable
                };
                let wait = failure::backoff(
                    self.policy,
                    failures,
                    &format!("{}/{}", self.uid(), self.status.attempt),
                );
                self.next_attempt(Some(Time(
                    self.o.now.0 + SignedDuration::try_from(wait).unwrap_or_default(),
                )));
            }
            Next::Ask(kind) => self.ask(kind, message),
            Next::Fail => self.conclude(Phase::Failed),
        }
    }

    /// Moves the fence; whatever still runs of the old attempt is refused from now on, and deleted in `clean_up`.
    fn next_attempt(&mut self, not_before: Option<Time>) {
        self.status.attempt += 1;
        self.status.phase = Some(Phase::Running);
        if let Some(at) = &not_before {
            self.wake_at(at);
        }
        self.status.not_before = not_before;
        if self.plan.requeue.is_none() {
            self.plan.look_again(Duration::ZERO);
        }
    }

    fn record(&mut self, result: AttemptResult, report: Option<&Report>, message: Option<&str>) {
        let agent_generation = match &self.o.job {
            JobSeen::Present {
                agent_generation, ..
            } => *agent_generation,
            _ => None,
        };
        self.status.attempts.push(Attempt {
            number: self.status.attempt,
            round: self.status.round,
            result,
            exit_code: report.and_then(|r| r.exit_code),
            agent_generation,
            started_at: self.claim().map(|c| c.at),
            completed_at: report.map_or_else(|| self.o.now.clone(), |r| r.at.clone()),
            message: message.map(|m| clip(m, MESSAGE_BYTES)),
        });
        let surplus = self.status.attempts.len().saturating_sub(ATTEMPTS_KEPT);
        self.status.attempts.drain(..surplus);
    }

    // ---- gate

    fn open_gate(&mut self) {
        let Some(result) = self.status.result.clone() else {
            return;
        };
        let Some(wanted) = &self.o.step_run.spec.gate else {
            return self.accept();
        };
        // Accepted in an earlier pass, but the document could not be seen yet: nobody is asked again.
        if self.gate_is(GateState::Accepted) && gate::can_proceed(self.status.gate.as_ref()) {
            return self.accept();
        }
        if self.o.closing {
            return self.cancel();
        }
        match &self.o.guard {
            Guard::Proven(stamp) => {
                let output_digest =
                    gate::review_digest(&self.o.step_run, self.status.round, &result.digest);
                self.status.gate = Some(GateStatus {
                    state: GateState::Waiting,
                    round: self.status.round,
                    output_digest,
                    opened_at: self.o.now.clone(),
                    policy: stamp.clone(),
                    decisions: self
                        .status
                        .gate
                        .take()
                        .map(|g| g.decisions)
                        .unwrap_or_default(),
                });
                self.status.phase = Some(Phase::WaitingForAcceptance);
                condition::clear(&mut self.status.conditions, "GatePolicyInstalled");
                self.plan.notice(
                    "GateOpened",
                    format!("gate {} waits for a decision", wanted.name),
                );
            }
            Guard::Missing(why) => {
                self.status.phase = Some(Phase::Running);
                self.condition(
                    "GatePolicyInstalled",
                    Truth::False,
                    "PolicyMissing",
                    &format!("the gate stays shut: {why}; reinstall the chart"),
                );
                self.plan.look_again(GUARD_AGAIN);
            }
            Guard::NotAsked => self.plan.look_again(GUARD_AGAIN),
        }
    }

    fn review(&mut self) {
        let Some(open) = self.status.gate.clone() else {
            return;
        };
        match gate::letter(&self.o.step_run) {
            None => {}
            Some(Err(why)) => self.refuse_letter(&why),
            Some(Ok(letter)) => match gate::admissible(&open, &letter, &self.o.guard) {
                Err(why) => {
                    self.refuse_letter(&why);
                    if let Guard::Proven(stamp) = &self.o.guard {
                        self.status.gate = Some(GateStatus {
                            policy: stamp.clone(),
                            opened_at: self.o.now.clone(),
                            ..open
                        });
                    } else {
                        self.plan.look_again(GUARD_AGAIN);
                    }
                }
                Ok(()) => self.decide(&open, &letter),
            },
        }
    }

    fn decide(&mut self, open: &GateStatus, letter: &gate::Letter) {
        let produced = self
            .step
            .and_then(|s| s.produces.as_ref())
            .map_or(self.o.step_run.spec.path.as_str(), |p| {
                p.document_type.as_str()
            });
        let scope_id = self
            .o
            .step_run
            .spec
            .scope_chain
            .last()
            .map(|s| s.scope_id.as_str())
            .unwrap_or_default();
        let decided = gate::decided(open, letter, (produced, scope_id), &self.o.now);
        let accepted = gate::can_proceed(Some(&decided));
        self.status.gate = Some(decided);
        let by = &letter.by;
        if accepted {
            self.plan
                .notice("GateAccepted", format!("accepted by {by}"));
            return self.accept();
        }
        let words = letter
            .comment
            .as_deref()
            .map(|c| format!(": {c}"))
            .unwrap_or_default();
        self.plan.warn("GateRejected", format!("rejected by {by}"));
        self.set_document(DocumentPhase::Rejected);
        self.status.error = Some(StepError {
            class: AttemptResult::Rejected,
            message: clip(&format!("rejected by {by}{words}"), MESSAGE_BYTES),
            attempt: self.status.attempt,
            exit_code: None,
            log_tail: None,
        });
        self.conclude(Phase::Failed);
    }

    fn refuse_letter(&mut self, why: &str) {
        self.plan.warn(
            "DecisionRefused",
            format!("the decision was not recorded: {why}; decide again"),
        );
        self.empty_mailbox(vec![name::DECISION, COMMENT, name::REVIEW, DECIDED_BY]);
    }

    fn accept(&mut self) {
        if !self.set_document(DocumentPhase::Published) {
            self.status.phase = Some(Phase::Running);
            self.plan.look_again(Duration::from_secs(1));
            return;
        }
        self.conclude(Phase::Completed);
    }

    /// Whether the document, if there is one, is on its way; false while it cannot be seen yet.
    fn set_document(&mut self, phase: DocumentPhase) -> bool {
        let Some(wanted) = self
            .status
            .result
            .as_ref()
            .and_then(|r| r.document_name.clone())
        else {
            return true;
        };
        let Some(found) = &self.o.document else {
            return false;
        };
        let status = match phase {
            DocumentPhase::Published => document::published(found, &self.o.siblings),
            other => DocumentStatus {
                phase: Some(other),
                ..document::published(found, &[])
            },
        };
        if found.status.as_ref().is_none_or(|s| s.phase != Some(phase)) {
            self.plan.effects.push(Effect::SetDocumentStatus {
                name: wanted,
                status,
            });
        }
        true
    }

    // ---- people

    fn ask(&mut self, kind: WaitKind, why: &str) {
        let step_run = &self.o.step_run;
        let options: Vec<String> = if step_run.spec.gate.is_some() {
            vec!["retry".into(), "fail".into()]
        } else {
            vec!["retry".into(), "skip".into(), "fail".into()]
        };
        let (namespace, own) = (
            step_run.metadata.namespace.as_deref().unwrap_or_default(),
            step_run.metadata.name.as_deref().unwrap_or_default(),
        );
        let question = match kind {
            WaitKind::RetriesSpent if self.status.counts.retryable == 1 => {
                format!("the only attempt failed: {why}")
            }
            WaitKind::RetriesSpent => format!(
                "all {} attempts failed, the last with: {why}",
                self.status.counts.retryable
            ),
            WaitKind::OutcomeUnknown => format!(
                "attempt {} may or may not have had its effects ({why}); may it run again?",
                self.status.attempt
            ),
            WaitKind::InfrastructureSpent => format!(
                "the cluster lost {} attempts, the last with: {why}",
                self.status.counts.infrastructure
            ),
        };
        let commands = vec![
            format!(
                "kubectl -n {namespace} annotate steprun {own} {ACTION}=retry {COMMENT}='WHAT TO DO BETTER' {DECIDED_BY}=\"$(kubectl auth whoami -o jsonpath='{{.status.userInfo.username}}')\""
            ),
            format!("kubectl lockstep -n {namespace} answer {own} retry -m 'WHAT TO DO BETTER'"),
        ];
        let id = format!("{}-{}", self.status.attempt, self.status.counts.answers);
        self.plan.warn("WaitingForInput", clip(&question, 400));
        self.status.waiting_for = Some(WaitingFor {
            id,
            kind,
            question: clip(&question, MESSAGE_BYTES),
            options,
            since: self.o.now.clone(),
            commands,
        });
        self.status.phase = Some(Phase::WaitingForInput);
    }

    fn answer(&mut self) {
        let annotations = self
            .o
            .step_run
            .metadata
            .annotations
            .clone()
            .unwrap_or_default();
        let Some(action) = annotations.get(ACTION) else {
            return;
        };
        let by = annotations.get(DECIDED_BY).filter(|by| !by.is_empty());
        let (Some(by), Guard::Proven(_)) = (by, &self.o.guard) else {
            self.plan.warn(
                "AnswerRefused",
                "the answer was not recorded: who gave it is not proven; answer again",
            );
            self.plan.look_again(GUARD_AGAIN);
            return self.empty_mailbox(vec![ACTION, COMMENT, DECIDED_BY]);
        };
        let allowed = self
            .status
            .waiting_for
            .as_ref()
            .is_some_and(|w| w.options.contains(action));
        if !allowed {
            self.plan.warn(
                "AnswerRefused",
                format!("{} is no answer to this question", clip(action, 40)),
            );
            return self.empty_mailbox(vec![ACTION, COMMENT, DECIDED_BY]);
        }
        // Latched in this pass, taken out of the mailbox in the next: a crash in between loses nothing.
        if let Some(text) = annotations.get(COMMENT) {
            self.status.guidance.push(Guidance {
                attempt: self.status.attempt,
                by: clip(by, 512),
                text: clip(text, 4096),
            });
            let surplus = self.status.guidance.len().saturating_sub(ATTEMPTS_KEPT);
            self.status.guidance.drain(..surplus);
        }
        self.plan.notice("Answered", format!("{action} by {by}"));
        self.status.waiting_for = None;
        let answers = self.status.counts.answers + 1;
        match action.as_str() {
            "retry" => {
                self.status.counts = AttemptCounts {
                    answers,
                    ..AttemptCounts::default()
                };
                self.next_attempt(None);
            }
            "skip" => {
                self.status.counts.answers = answers;
                self.status.error = None;
                self.conclude(Phase::Completed);
            }
            _ => self.conclude(Phase::Failed),
        }
    }

    /// An answer that nobody waits for must not meet the next question.
    fn drop_stray_answer(&mut self) {
        let there = self
            .o
            .step_run
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|a| a.contains_key(ACTION));
        if there && self.status.waiting_for.is_none() {
            self.empty_mailbox(vec![ACTION, COMMENT, DECIDED_BY]);
        }
    }

    fn empty_mailbox(&mut self, keys: Vec<&'static str>) {
        let meta = &self.o.step_run.metadata;
        self.plan.effects.push(Effect::EmptyMailbox {
            step_run: meta.name.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            keys,
        });
    }

    // ---- ends

    fn cancel(&mut self) {
        if let Some(gate) = &mut self.status.gate
            && gate.state == GateState::Waiting
        {
            gate.state = GateState::Closed;
        }
        self.status.waiting_for = None;
        self.conclude(Phase::Cancelled);
    }

    fn conclude(&mut self, phase: Phase) {
        condition::clear(&mut self.status.conditions, "Started");
        self.status.phase = Some(phase);
        self.status.completed_at = Some(self.o.now.clone());
    }

    fn pend(&mut self, reason: &str, message: &str) {
        self.status.phase = Some(Phase::Pending);
        self.condition("Started", Truth::False, reason, message);
    }

    /// Jobs of attempts behind the fence, and of a StepRun that needs none.
    fn clean_up(&mut self) {
        let idle = self.status.completed_at.is_some() || self.status.waiting_for.is_some();
        let before = self.o.step_run.status.as_ref();
        // The fence must be stored first: what is deleted here was behind it before this pass.
        let fence = before.map_or(1, |s| s.attempt);
        let was_idle = before.is_some_and(|s| s.completed_at.is_some() || s.waiting_for.is_some());
        let reported = before
            .and_then(|s| s.agent.as_ref())
            .and_then(|a| a.report.as_ref())
            .map(|r| r.attempt);
        for (job, uid, attempt) in &self.o.unfinished {
            // A pod that has reported ends by itself within a moment, its logs kept.
            let stays = reported == Some(*attempt) || (*attempt >= fence && !(was_idle && idle));
            if !stays {
                self.plan.effects.push(Effect::DeleteJob {
                    name: job.clone(),
                    uid: uid.clone(),
                });
            }
        }
    }

    fn condition(&mut self, kind: &str, truth: Truth, reason: &str, message: &str) {
        let generation = self.status.observed_generation;
        condition::set(
            &mut self.status.conditions,
            kind,
            truth,
            reason,
            message,
            (&self.o.now, generation),
        );
    }

    fn uid(&self) -> &str {
        self.o.step_run.metadata.uid.as_deref().unwrap_or_default()
    }

    fn wake_at(&mut self, at: &Time) {
        let wait = at.0.duration_since(self.o.now.0);
        self.plan.look_again(
            Duration::try_from(wait).unwrap_or(Duration::ZERO) + Duration::from_millis(1),
        );
    }

    fn wake_in(&mut self, seconds: i64) {
        self.plan.look_again(Duration::from_secs(
            u64::try_from(seconds).unwrap_or_default(),
        ));
    }

    fn finish(mut self) -> Plan<StepRunStatus> {
        if self.o.step_run.status.as_ref() != Some(&self.status) {
            self.plan.status = Some(self.status);
        }
        self.plan
    }
}

fn after(at: &Time, seconds: i64) -> Time {
    Time(
        at.0.saturating_add(SignedDuration::from_secs(seconds))
            .unwrap_or(at.0),
    )
}
