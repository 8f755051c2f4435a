//! While an attempt runs, and how it ends: the claim, the report, the fate of its pod, the next attempt.

use super::{
    ATTEMPTS_KEPT, Attempt, AttemptResult, Claim, DocumentRead, Duration, JobSeen, LOG_TAIL_BYTES, MESSAGE_BYTES, Next,
    Pass, Phase, Report, ReportClass, SKEW_SECONDS, SignedDuration, SourceAgent, StepError, Time, Truth, Usage, after,
    clip, condition, content, failure, gone_at,
};
use crate::decide::egress;

impl Pass<'_> {
    pub(super) fn running(&mut self, claim: &Claim) {
        // `status.agent.claim` says it already; the condition is mended only where it named an obstacle.
        match condition::get(&self.status.conditions, "Started").map(|c| c.status.as_str()) {
            Some("False") => self.launched(Truth::True, "Claimed", &format!("by pod {}", claim.pod_name)),
            _ => self.launched(Truth::Unknown, "Launched", ""),
        }
        // The shim ends the agent itself; this is for a shim that cannot.
        let deadline = after(&claim.at, self.policy.timeout + 60 + SKEW_SECONDS);
        let ended = match &self.o.pod {
            None => true,
            Some(pod) => pod.ended || pod.gone_by.as_ref().is_some_and(|by| self.o.now.0 >= gone_at(by).0),
        };
        if ended {
            return self.ended_without_report(claim);
        }
        if self.o.now.0 >= deadline.0 {
            return self.end_attempt(
                AttemptResult::Timeout,
                None,
                &format!("no report within {} s{}", self.policy.timeout, egress::told(self.o.agent.as_deref())),
            );
        }
        if let Some(by) = self.o.pod.as_ref().and_then(|p| p.gone_by.clone()) {
            self.wake_at(&gone_at(&by));
        }
        self.wake_at(&deadline);
        self.hear_agent();
    }

    fn ended_without_report(&mut self, claim: &Claim) {
        let pod = self.o.pod.clone().unwrap_or_default();
        if let Some(why) = pod.out_of_memory {
            return self.end_attempt(AttemptResult::Retryable, None, &why);
        }
        // A pod that is gone was taken away, too.
        let disrupted = pod.disrupted || self.o.pod.is_none();
        let (result, why) = if disrupted {
            let result = failure::taken_away(&pod.termination, self.policy);
            (result, "was deleted or evicted before it reported")
        } else {
            (failure::lost(&pod.termination), "ended without a report")
        };
        self.end_attempt(result, None, &format!("pod {} {why}", claim.pod_name));
    }

    pub(super) fn verdict(&mut self, report: &Report) {
        self.status.started_at.get_or_insert_with(|| self.o.now.clone());
        if report.class == ReportClass::Asked {
            return self.asked(report);
        }
        if report.class != ReportClass::Succeeded {
            let result = failure::verdict(report, self.o.agent.as_deref());
            let mut message = report.message.clone().unwrap_or_else(|| match (report.class, report.exit_code) {
                (ReportClass::Timeout, _) => format!("ended by the shim after {} s", self.policy.timeout),
                (_, Some(code)) if result == AttemptResult::Infrastructure => {
                    format!("the cluster took the pod away, and the agent exited with {code}")
                }
                (_, Some(code)) => format!("the agent exited with {code}"),
                (class, None) => format!("the agent ended without an exit code: {class:?}"),
            });
            if report.class == ReportClass::Timeout {
                message += egress::told(self.o.agent.as_deref());
            }
            return self.end_attempt(result, Some(report), &message);
        }
        self.record(AttemptResult::Succeeded, Some(report), None);
        self.status.error = None;
        self.status.result = Some(content::reported(report));
        condition::clear(&mut self.status.conditions, "Started");
        self.open_gate();
    }

    pub(super) fn end_attempt(&mut self, result: AttemptResult, report: Option<&Report>, message: &str) {
        self.record(result, report, Some(message));
        let error = StepError {
            class: result,
            message: clip(message, MESSAGE_BYTES),
            attempt: self.status.attempt,
            exit_code: report.and_then(|r| r.exit_code),
            log_tail: report.and_then(|r| r.log_tail.as_deref()).map(|t| clip(t, LOG_TAIL_BYTES)),
            trace_id: Some(self.trace_id()),
        };
        self.plan.warn("AttemptFailed", format!("attempt {}: {result}: {}", self.status.attempt, clip(message, 400)));
        self.status.error = Some(error);
        condition::clear(&mut self.status.conditions, "Started");
        let (counts, next) = if self.never_starts() {
            failure::next_of_never_started(self.status.counts, self.policy)
        } else {
            failure::next(result, self.status.counts, self.policy)
        };
        self.status.counts = counts;
        match next {
            // No attempt follows and nobody is asked any more.
            _ if self.closing() => self.conclude(Phase::Failed),
            Next::Again => {
                let failures =
                    if result == AttemptResult::Infrastructure { counts.infrastructure } else { counts.retryable };
                let wait = failure::backoff(self.policy, failures, &format!("{}/{}", self.uid(), self.status.attempt));
                self.next_attempt(Some(Time(self.o.now.0 + SignedDuration::try_from(wait).unwrap_or_default())));
            }
            Next::Ask(kind) => self.ask(kind, message),
            Next::Fail => self.conclude(Phase::Failed),
        }
    }

    /// Moves the fence; whatever still runs of the old attempt is refused from now on, and deleted in `clean_up`.
    pub(super) fn next_attempt(&mut self, not_before: Option<Time>) {
        self.status.attempt += 1;
        self.status.launched_at = None;
        self.status.phase = Some(Phase::Running);
        if let Some(at) = &not_before {
            self.wake_at(at);
        }
        self.status.not_before = not_before;
        if self.plan.requeue.is_none() {
            self.plan.look_again(Duration::ZERO);
        }
    }

    /// What the attempt used, as far as it is known; what is left of an earlier one does not count twice.
    fn used(&self) -> Option<Usage> {
        self.claim()?;
        self.status.agent.as_ref()?.usage.clone()
    }

    /// What the attempt read beyond its input.
    fn documents_read(&self) -> Vec<DocumentRead> {
        let agent = self.status.agent.as_ref().filter(|_| self.claim().is_some());
        agent.map(|agent| agent.documents_read.clone()).unwrap_or_default()
    }

    pub(super) fn record(&mut self, result: AttemptResult, report: Option<&Report>, message: Option<&str>) {
        if result != AttemptResult::Asked {
            self.withdraw_questions();
        }
        let (agent_generation, ran) = match &self.o.job {
            JobSeen::Present { agent_generation, ran, .. } => (*agent_generation, ran.clone()),
            _ => (None, SourceAgent::default()),
        };
        let usage = self.used();
        if let Some(usage) = &usage {
            self.status.usage.get_or_insert_default().add(usage);
        }
        self.status.attempts.push(Attempt {
            number: self.status.attempt,
            round: self.status.round,
            result,
            exit_code: report.and_then(|r| r.exit_code),
            agent_generation,
            job_uid: self.status.job.as_ref().filter(|job| job.attempt == self.status.attempt).map(|j| j.uid.clone()),
            agent_uid: ran.uid,
            agent_digest: ran.digest,
            image_digest: self.o.pod.as_ref().and_then(|pod| pod.image_digest.clone()),
            document_binding: report.and_then(|r| r.document_binding.clone()),
            usage,
            documents_read: self.documents_read(),
            started_at: self.claim().map(|c| c.at),
            completed_at: report.map_or_else(|| self.o.now.clone(), |r| r.at.clone()),
            message: message.map(|m| clip(m, MESSAGE_BYTES)),
        });
        let surplus = self.status.attempts.len().saturating_sub(ATTEMPTS_KEPT);
        self.status.attempts.drain(..surplus);
    }
}
