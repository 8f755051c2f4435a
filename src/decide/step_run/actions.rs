//! Approvals of single actions: the agent requests one, people decide it as they do at the end of a step, and the agent is told.
//! Each names what it is about by its digest, so several may wait at once.

use super::{
    DECIDED_BY, DECISION, GUARD_AGAIN, GateState, GateStatus, Guard, POLICIES, Pass, Phase, REVIEW, clip, condition,
    gate,
};
use crate::api::step_run::{ApprovalRequest, RequestedApproval, StepRunGate};
use crate::decide::approval;
use crate::decide::mail::Arrival;

impl Pass<'_> {
    /// What the agent of this attempt has used, for good: the next claim takes away what the gateway wrote. So it is latched before
    /// the fence moves.
    pub(super) fn latch_uses(&mut self) {
        let said = self.status.agent.as_ref().map(|agent| agent.used_approvals.clone()).unwrap_or_default();
        for used in said {
            let requests = &mut self.status.approval_requests;
            if let Some(own) = requests.iter_mut().find(|own| own.gate.output_digest == used.digest) {
                own.used.get_or_insert(used);
            }
        }
    }

    /// What it has requested, put to people under the policies that stand now.
    pub(super) fn take_requests(&mut self) {
        let untaken = approval::untaken(&self.o.step_run);
        if untaken.is_empty() {
            return;
        }
        match self.policies() {
            Guard::Proven(stamp) => {
                condition::clear(&mut self.status.conditions, POLICIES);
                for (requested, digest) in untaken {
                    self.open_request(requested, digest, stamp.clone());
                }
            }
            Guard::Missing(why) => self.policies_missing(&format!("nobody can approve an action: {why}")),
            Guard::NotAsked => {}
        }
    }

    fn open_request(&mut self, requested: RequestedApproval, digest: String, policy: String) {
        // The gateway writes none that the step does not declare.
        if self.action_gate(&requested.gate_name).is_none() {
            return;
        }
        let what = clip(&requested.action, 400);
        self.plan.notice("ApprovalRequested", format!("gate {} waits for a decision: {what}", requested.gate_name));
        let gate = GateStatus {
            state: GateState::Waiting,
            round: 1,
            commands: self.accepting(&digest),
            output_digest: digest,
            opened_at: self.o.now.clone(),
            deadline: None,
            policy,
            decisions: Vec::new(),
        };
        self.status.approval_requests.push(ApprovalRequest {
            gate_name: requested.gate_name,
            action: requested.action,
            payload: requested.payload,
            repeats: requested.repeats,
            attempt: requested.attempt,
            requested_at: requested.at,
            agent_waits_until: Some(requested.until),
            gate,
            used: None,
        });
    }

    fn action_gate(&self, name: &str) -> Option<StepRunGate> {
        self.o.step_run.spec.action_gates.iter().find(|gate| gate.name == name).cloned()
    }

    /// The decision that lies in the mailbox, if it is about one of the requests that wait.
    pub(super) fn review_requests(&mut self) {
        let Some(index) = self.reviewed_request() else { return };
        let open = self.status.approval_requests[index].gate.clone();
        let Some(wanted) = self.action_gate(&self.status.approval_requests[index].gate_name) else { return };
        match gate::submission(&self.o.step_run) {
            None => {}
            Some(Err(why)) => self.refuse_submission(&why),
            Some(Ok(submission)) if gate::has_decided(&open, &submission.by) => self.clear_decision(),
            Some(Ok(submission)) => match gate::admissible(&open, &wanted, &submission, self.policies()) {
                Err(why) => {
                    self.refuse_submission(&why);
                    match self.policies() {
                        Guard::Proven(stamp) if *stamp != open.policy => {
                            let stamp = stamp.clone();
                            self.status.approval_requests[index].gate.policy = stamp;
                        }
                        Guard::Proven(_) => {}
                        _ => self.plan.look_again(GUARD_AGAIN),
                    }
                }
                Ok(()) => self.decide_request(index, &wanted, &submission),
            },
        }
    }

    fn decide_request(&mut self, index: usize, wanted: &StepRunGate, submission: &gate::Submission) {
        let scope_id = self.o.step_run.spec.scope_chain.last().map(|s| s.scope_id.clone()).unwrap_or_default();
        let opened_at = self.status.approval_requests[index].gate.opened_at.clone();
        // It waits for as long as its step does.
        let Arrival::InTime(at) = self.arrival(&opened_at, None) else { return };
        let request = &mut self.status.approval_requests[index];
        let about = gate::About { produced: &wanted.name, scope_id: &scope_id, at: &at };
        request.gate = gate::decided(&request.gate, wanted.approvals, submission, &about);
        if request.gate.state != GateState::Waiting {
            request.gate.commands.clear();
            request.agent_waits_until = None;
        }
        let what = clip(&request.action, 200);
        let (by, so_far) = (submission.by.as_str(), request.gate.decisions.len());
        match request.gate.state {
            GateState::Accepted => self.plan.notice("ActionApproved", format!("approved by {by}: {what}")),
            GateState::Rejected => self.plan.notice("ActionRejected", format!("rejected by {by}: {what}")),
            _ => self
                .plan
                .notice("ActionDecision", format!("approved by {by}, {so_far} of {}: {what}", wanted.approvals)),
        }
    }

    /// The request that the decision in the mailbox names.
    fn reviewed_request(&self) -> Option<usize> {
        let annotations = self.o.step_run.metadata.annotations.as_ref()?;
        let review = annotations.get(REVIEW).filter(|_| annotations.contains_key(DECISION))?;
        let waits = |own: &ApprovalRequest| own.gate.state == GateState::Waiting && own.gate.output_digest == *review;
        self.status.approval_requests.iter().position(waits)
    }

    /// Whether what lies in the mailbox decides a request that waits.
    pub(super) fn decides_request(&self) -> bool {
        self.reviewed_request().is_some()
    }

    /// Whether what lies in the mailbox decides a request that was withdrawn before it was read.
    pub(super) fn decides_withdrawn_request(&self) -> bool {
        let Some(annotations) = self.o.step_run.metadata.annotations.as_ref() else { return false };
        let (review, by) = (annotations.get(REVIEW), annotations.get(DECIDED_BY));
        let unread = |own: &ApprovalRequest| own.gate.decisions.iter().all(|d| Some(&d.decided_by) != by);
        let meant =
            |own: &ApprovalRequest| own.gate.state == GateState::Closed && Some(&own.gate.output_digest) == review;
        annotations.contains_key(DECISION) && self.status.approval_requests.iter().any(|own| meant(own) && unread(own))
    }

    /// Whether all that the agent has requested was put to people.
    pub(super) fn has_taken_requests(&self) -> bool {
        let known = |digest: &String| self.status.approval_requests.iter().any(|own| own.gate.output_digest == *digest);
        approval::untaken(&self.o.step_run).iter().all(|(_, digest)| known(digest))
    }

    pub(super) fn has_waiting_requests(&self) -> bool {
        approval::waiting(&self.status).next().is_some()
    }

    /// Nobody needs to decide them any more.
    pub(super) fn close_requests(&mut self) {
        for own in self.status.approval_requests.iter_mut().filter(|own| own.gate.state == GateState::Waiting) {
            own.gate.state = GateState::Closed;
            own.gate.commands.clear();
            own.agent_waits_until = None;
        }
    }

    /// The attempt has ended to let people decide: nobody waits in a pod any more.
    pub(super) fn requests_outlive_attempt(&mut self) {
        self.status.approval_requests.iter_mut().for_each(|own| own.agent_waits_until = None);
    }

    /// What people are to decide before another attempt starts.
    pub(super) fn wait_for_approvals(&mut self) {
        self.status.phase = Some(Phase::WaitingForAcceptance);
    }
}
