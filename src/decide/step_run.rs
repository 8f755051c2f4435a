//! One StepRun: launch an attempt, learn how it ended, hold the gate, ask a person. The fence (`status.attempt`) moves
//! before anything is undone; the claim, never the Job, says whether an attempt started.

mod actions;
mod asking;
mod budgets;
mod ending;
mod gates;
mod hold;
mod lack;
mod launch;
mod live;
mod proof;
mod questions;
mod slot;
mod tools;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;

use super::budget::RunBudget;
use super::build::{self, Installation};
use super::content::{self, Changed, Content, DocumentLookup};
use super::failure::{self, Next};
use super::gate::{self, Guard};
use super::mail::Mail;
use super::trace::TraceContext;
use super::{DeletableKind, Effect, Plan, claim, document};
use crate::api::agent::Agent;
use crate::api::condition::{self, Truth, clip};
use crate::api::document::{DocumentPhase, DocumentStatus};
use crate::api::limits::{ATTEMPTS_KEPT, LOG_TAIL_BYTES, MESSAGE_BYTES, SKEW_SECONDS};
use crate::api::name::{self, ACTION, ANSWER, COMMENT, DECIDED_BY, DECISION, REVIEW};
use crate::api::step::OnFailure;
use crate::api::step_run::{
    Act, Action, Answer, Attempt, AttemptCounts, AttemptResult, Claim, Decision, DocumentRead, GateState, GateStatus,
    Guidance, JobRef, Report, ReportClass, ResultRef, Reuse, StepError, StepRun, StepRunAsk, StepRunGate,
    StepRunStatus, WaitKind, WaitingFor,
};
use crate::api::usage::Usage;
use crate::api::workflow::Phase;
use crate::definition::expression::Evaluate;
use crate::definition::policy::AttemptPolicy;
use crate::definition::program::{Gate, Program, Step};
pub use gates::{has_changed, is_published_late};
pub use hold::{Hold, hold};
pub use lack::{Input, Lack, decide};
pub use proof::POLICIES;
pub use slot::{Need, Slot, holds_slot, was_launched};

/// How long to wait before asking again whether the policies stand.
const GUARD_AGAIN: Duration = Duration::from_secs(5);
/// Why a decision or an answer is refused that is not dated within its wait.
const TOO_LATE: &str = "the deadline had passed";

/// All that the decision needs.
#[derive(Clone, Debug)]
pub struct Observed {
    pub step_run: Arc<StepRun>,
    /// What the run says of it as a whole.
    pub hold: Hold,
    pub definition: Option<Arc<Program>>,
    pub agent: Option<Arc<Agent>>,
    /// Why the Agent cannot be read, where that is so.
    pub agent_fault: Option<String>,
    pub job: JobSeen,
    /// What the API server said when it refused the Job of the current attempt.
    pub refusal: Option<String>,
    /// Whether the attempt may be launched, where that is limited; nothing before it was asked for (`Lack::Slot`).
    pub slot: Option<Slot>,
    /// The pod that claimed, else the newest pod of the current attempt.
    pub pod: Option<PodSeen>,
    /// Unfinished Jobs of this StepRun, name, UID and attempt.
    pub unfinished: Vec<(String, String, i32)>,
    /// Pods of all its attempts that have not ended.
    pub pods_alive: usize,
    /// The run, or the StepRun itself, is deleted in the foreground: the garbage collector takes the Jobs, each when its pods are gone.
    pub goes_last: bool,
    /// Attempts whose agent's container has ended while another one keeps the pod.
    pub lingering: Vec<i32>,
    /// What Kubernetes' Events say of why the attempt has no pod, or why its pod is not set up.
    pub event: Option<String>,
    /// The document that was made.
    pub document: DocumentLookup,
    /// The number under which it is published; nothing before it was asked for (`Lack::Revision`).
    pub revision: Option<i64>,
    /// The internal Document that carries a large output; asked for where a gate is over it.
    pub output: DocumentLookup,
    /// What a launch turns on; nothing before it was asked for (`Lack::Input`).
    pub input: Option<Input>,
    /// What is left of the run's budget, as its StepRuns say.
    pub budget: RunBudget,
    /// Whether the admission policies stand (`Lack::Policies`).
    pub guard: Guard,
    /// When what lies in the mailbox was written; nothing before it was asked for (`Lack::Mail`).
    pub mail: Mail,
    pub installation: Arc<Installation>,
    pub evaluator: Arc<dyn Evaluate>,
    pub now: Time,
}

/// The Job of the current attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum JobSeen {
    /// After the launch only if the API server says so: then it is an end, not a cache that is behind.
    Absent,
    /// Somebody else's, under our name: who holds it, in words.
    Foreign(String),
    Present {
        uid: String,
        created: Option<Time>,
        deleting: bool,
        ended: bool,
        agent_generation: Option<i64>,
        ran: SourceAgent,
    },
}

/// The Agent that a Job was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceAgent {
    pub uid: Option<String>,
    /// As `definition::agent::work_digest` gives it.
    pub digest: Option<String>,
    /// The digest of what the attempt is held to, see `terms`.
    pub terms: Option<String>,
}

/// What matters of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodSeen {
    pub uid: String,
    pub ended: bool,
    /// When it should be gone: deletion plus grace.
    pub gone_by: Option<Time>,
    /// The cluster takes it away: a deletion, an eviction, a preemption, a node that goes.
    pub disrupted: bool,
    pub termination: String,
    /// Its agent's container was killed because of this: "out of memory, limit 64Mi".
    pub out_of_memory: Option<String>,
    /// `sha256:...` of the image that the agent's container runs.
    pub image_digest: Option<String>,
    /// Why it does not run yet, in Kubernetes' words.
    pub obstacle: Option<String>,
    /// Waiting does not help: what the obstacle names is malformed.
    pub never_starts: bool,
}

/// When a pod counts as gone that should be gone by then: deletion plus grace. Who still sees it looks at a node that nobody
/// reaches.
pub fn gone_at(gone_by: &Time) -> Time {
    after(gone_by, 60)
}

/// What to do with this StepRun now.
pub fn step_run(o: &Observed) -> Plan<StepRunStatus> {
    advanced(o).finish()
}

fn advanced(o: &Observed) -> Pass<'_> {
    let mut pass = Pass::new(o);
    if pass.status.completed_at.is_none() {
        pass.advance();
    } else {
        pass.publish_accepted();
    }
    pass.clean_up();
    pass
}

struct Pass<'a> {
    o: &'a Observed,
    status: StepRunStatus,
    plan: Plan<StepRunStatus>,
    step: Option<&'a Step>,
    policy: AttemptPolicy,
    /// The decision turned on the admission policies, and nobody had looked whether they stand.
    lacks_policies: bool,
    /// It turned on when the mailbox was written to, and nobody had asked the API server.
    lacks_mail: bool,
    /// The document is published, and has no number.
    lacks_revision: bool,
}

impl<'a> Pass<'a> {
    fn new(o: &'a Observed) -> Self {
        let step = o.definition.as_deref().and_then(|d| d.step(&o.step_run.spec.path));
        let mut status = o.step_run.status.clone().unwrap_or_default();
        status.observed_generation = o.step_run.metadata.generation.unwrap_or_default();
        Self {
            o,
            status,
            plan: Plan::default(),
            step,
            policy: AttemptPolicy::of(step, o.agent.as_deref()),
            lacks_policies: false,
            lacks_mail: false,
            lacks_revision: false,
        }
    }

    fn advance(&mut self) {
        self.latch_job();
        self.latch_uses();
        self.drop_stray_mail();
        let closing = self.closing();
        if self.gate_is(GateState::Waiting) {
            if closing {
                self.cancel();
            } else if self.holds() {
                self.review();
            }
            return;
        }
        if self.status.waiting_for.is_some() && !claim::agent_waits(&self.status) {
            if closing {
                return self.cancel();
            }
            self.review_requests();
            return self.answer();
        }
        if self.status.result.is_some() {
            return self.open_gate();
        }
        if !self.has_agent() {
            return if closing { self.cancel() } else { self.without_agent() };
        }
        match (self.report(), self.claim()) {
            (Some(report), _) => self.verdict(&report),
            (None, _) if self.o.hold == Hold::Stopping => self.stop(),
            (None, Some(claim)) => self.running(&claim),
            (None, None) if closing => self.cancel(),
            (None, None) if hold::was_stopped(&self.status) => self.stay_stopped(),
            // What would be made goes with it.
            (None, None) if self.o.step_run.metadata.deletion_timestamp.is_some() => {}
            (None, None) => self.launch(),
        }
    }

    /// Its Job, where the pass that made it did not get to write it down.
    fn latch_job(&mut self) {
        let attempt = self.status.attempt;
        if let JobSeen::Present { uid, ran, .. } = &self.o.job
            && self.status.job.as_ref().is_none_or(|job| job.attempt != attempt)
        {
            let name = build::job_name(&self.o.step_run, &self.status, attempt);
            self.status.job = Some(JobRef { attempt, name, uid: uid.clone(), terms: ran.terms.clone() });
        }
    }

    /// Nothing runs: the result of another run, a question to a person, an approval alone.
    fn without_agent(&mut self) {
        let spec = &self.o.step_run.spec;
        match (&spec.reuse, &spec.ask) {
            (Some(reuse), _) => self.take_over(reuse),
            (None, Some(ask)) => self.put_question(ask),
            (None, None) => self.open_gate(),
        }
    }

    /// Whether an agent makes the output.
    fn has_agent(&self) -> bool {
        gate::has_agent(&self.o.step_run)
    }

    fn report(&self) -> Option<Report> {
        claim::current_report(&self.status).cloned()
    }

    fn claim(&self) -> Option<Claim> {
        claim::current_claim(&self.status).cloned()
    }

    fn gate_is(&self, state: GateState) -> bool {
        self.status.gate.as_ref().is_some_and(|g| g.state == state && g.round == self.status.round)
    }

    fn conclude(&mut self, phase: Phase) {
        self.close_requests();
        self.status.launched_at = None;
        condition::clear(&mut self.status.conditions, "Started");
        condition::clear(&mut self.status.conditions, POLICIES);
        self.status.phase = Some(phase);
        self.status.completed_at = Some(self.o.now.clone());
    }

    /// The document that was made, if it is what was reported.
    fn content(&self) -> Result<Option<Content>, Changed> {
        let pin = self.status.result.as_ref().and_then(content::document_of);
        pin.map(|pin| Content::of(&pin, self.o.document.loaded())).transpose()
    }

    /// Whether what lies there is what was reported; if it is not, nothing goes on.
    fn holds(&mut self) -> bool {
        let Some(mut result) = self.status.result.clone() else { return true };
        let apart = content::output_of(&result).filter(|_| self.o.step_run.spec.gate.is_some());
        let unasked = |found: &DocumentLookup| *found == DocumentLookup::NotAsked;
        if result.document_name.is_some() && unasked(&self.o.document) || apart.is_some() && unasked(&self.o.output) {
            self.plan.look_again(Duration::from_secs(1));
            return false;
        }
        let output = apart.map(|pin| Content::of(&pin, self.o.output.loaded())).transpose();
        match self.content().and_then(|document| output.map(|output| (document, output))) {
            Ok((document, _)) => {
                // Reported to an older version: what is there now is bound from now on. A copy has its UID now.
                let bound = result.document_binding.as_ref().is_some_and(|b| b.uid.is_some());
                if let Some(document) = document.filter(|_| !bound) {
                    result.document_binding = Some(document.binding());
                    self.status.result = Some(result);
                }
                true
            }
            Err(changed) => {
                self.fail_changed(&changed);
                false
            }
        }
    }

    fn fail_changed(&mut self, changed: &Changed) {
        if let Some(gate) = self.status.gate.as_mut().filter(|g| g.state == GateState::Waiting) {
            gate.state = GateState::Closed;
        }
        self.fail(AttemptResult::DocumentChanged, &changed.to_string());
    }

    /// By which its failures are found in a trace.
    fn trace_id(&self) -> String {
        TraceContext::of_step(&self.o.step_run).id()
    }

    /// Ends the step without another attempt, whatever ran before.
    fn fail(&mut self, class: AttemptResult, message: &str) {
        self.plan.warn("StepFailed", format!("{class}: {}", clip(message, 400)));
        self.status.error = Some(StepError {
            class,
            message: clip(message, MESSAGE_BYTES),
            attempt: self.status.attempt,
            exit_code: None,
            log_tail: None,
            trace_id: Some(self.trace_id()),
        });
        self.conclude(Phase::Failed);
    }

    fn pend(&mut self, reason: &str, message: &str) {
        self.status.phase = Some(Phase::Pending);
        self.condition("Started", Truth::False, reason, message);
    }

    /// The gate as the pinned definition has it: what is no business of admission.
    fn gate_terms(&self) -> Option<&'a Gate> {
        self.step.and_then(Step::gate)
    }

    /// Jobs of attempts behind the fence, and of a StepRun that needs none.
    fn clean_up(&mut self) {
        // Deleted by us, a Job would be gone before its pods, and so would be the run, which is to wait for them.
        if self.o.goes_last {
            return;
        }
        let awaits_budget = |s: &StepRunStatus| {
            let waits = s.waiting_for.as_ref().is_some_and(|wait| wait.kind == WaitKind::BudgetSpent);
            waits && s.attempts.iter().all(|a| a.number != s.attempt)
        };
        let is_idle =
            |s: &StepRunStatus| s.completed_at.is_some() || (s.waiting_for.is_some() && !claim::agent_waits(s));
        let idle = is_idle(&self.status);
        let before = self.o.step_run.status.as_ref();
        // The fence must be stored first: what is deleted here was behind it before this pass.
        let fence = before.map_or(1, |s| s.attempt);
        let was_idle = before.is_some_and(is_idle);
        let reported = before.and_then(|s| s.agent.as_ref()).and_then(|a| a.report.as_ref()).map(|r| r.attempt);
        for (job, uid, attempt) in &self.o.unfinished {
            // A pod that has reported ends by itself within a moment, its logs kept, whoever has claimed since.
            let recorded = before.iter().flat_map(|s| &s.attempts).find(|a| a.number == *attempt);
            let has_reported = reported == Some(*attempt)
                || recorded.is_some_and(|a| a.exit_code.is_some() || a.result == AttemptResult::Asked);
            // A wait ends with the next attempt, that for a budget with the one at the fence: such a Job shows that this copy of
            // the StepRun is old.
            let next = *attempt > fence || (*attempt == fence && before.is_some_and(awaits_budget));
            let ahead = next && before.is_none_or(|s| s.completed_at.is_none());
            let stays = has_reported || ahead || (*attempt >= fence && !(was_idle && idle));
            // Its end is stored: what else runs in its pod has nothing to wait for.
            let lingers = recorded.is_some() && self.o.lingering.contains(attempt);
            if !stays || lingers {
                self.plan.effects.push(Effect::Delete {
                    what: DeletableKind::Job,
                    name: job.clone(),
                    uid: uid.clone(),
                });
            }
        }
    }

    fn condition(&mut self, kind: &str, truth: Truth, reason: &str, message: &str) {
        let generation = self.status.observed_generation;
        condition::set(&mut self.status.conditions, kind, truth, reason, message, (&self.o.now, generation));
    }

    fn uid(&self) -> &str {
        self.o.step_run.metadata.uid.as_deref().unwrap_or_default()
    }

    /// What a command needs that decides or answers, where the API server does not write who does.
    fn signature(&self) -> String {
        if self.o.installation.stamps_names {
            return String::new();
        }
        format!(" {DECIDED_BY}=\"$(kubectl auth whoami -o jsonpath='{{.status.userInfo.username}}')\"")
    }

    fn wake_at(&mut self, at: &Time) {
        let wait = at.0.duration_since(self.o.now.0);
        self.plan.look_again(Duration::try_from(wait).unwrap_or(Duration::ZERO) + Duration::from_millis(1));
    }

    fn wake_in(&mut self, seconds: i64) {
        self.plan.look_again(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()));
    }

    fn finish(mut self) -> Plan<StepRunStatus> {
        if let Some(gate) = self.status.gate.as_mut().filter(|g| g.state != GateState::Waiting) {
            gate.commands.clear();
        }
        self.tell_tools();
        if self.o.step_run.status.as_ref() != Some(&self.status) {
            self.plan.status = Some(self.status);
        }
        self.plan
    }
}

fn after(at: &Time, seconds: i64) -> Time {
    Time(at.0.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(at.0))
}

#[cfg(test)]
mod tests;
