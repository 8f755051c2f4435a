//! What adds up at one path, as the status shows it.

use super::{BTreeMap, Counts, Outcome, Phase, Step, StepStatus, Tally};

impl Counts {
    pub(super) fn item(&mut self, outcome: &Outcome) {
        self.started += i32::from(!matches!(outcome, Outcome::Ahead));
        self.done += i32::from(matches!(outcome, Outcome::Done(_)));
        self.failed += i32::from(matches!(outcome, Outcome::Failed));
    }
}

impl Tally {
    pub(super) fn status(self, path: &str) -> StepStatus {
        let complete = self.wanted == Some(self.complete);
        let phase = if complete && self.counts.failed == 0 {
            Phase::Completed
        } else if self.counts.failed > 0 {
            Phase::Failed
        } else if self.running > 0 {
            Phase::Running
        } else if self.inputs > 0 {
            Phase::WaitingForInput
        } else if self.gates > 0 {
            Phase::WaitingForAcceptance
        } else if self.documents > 0 {
            Phase::WaitingForDocuments
        } else if self.cancelled {
            Phase::Cancelled
        } else if self.counts.done > 0 {
            Phase::Running
        } else {
            Phase::Pending
        };
        let plural = self.plural || self.step_run.is_none() && self.counts.started > 1;
        StepStatus {
            path: path.to_owned(),
            phase,
            started_at: self.started_at,
            completed_at: self.completed_at.filter(|_| phase.is_terminal()),
            step_run: self.step_run,
            when: None,
            collection_digest: self.collection_digest,
            collection_documents: self.collection_documents,
            counts: plural.then_some(Counts { started: self.counts.started + self.lost, ..self.counts }),
        }
    }
}

/// Of the phases inside a group, the one that is the group's.
const PRECEDENCE: [Phase; 6] = [
    Phase::Failed,
    Phase::Running,
    Phase::WaitingForInput,
    Phase::WaitingForAcceptance,
    Phase::WaitingForDocuments,
    Phase::Cancelled,
];

/// A group that is not complete stands where its steps stand.
pub(super) fn roll_up(steps: &mut [StepStatus]) {
    for index in 0..steps.len() {
        let prefix = format!("{}/", steps[index].path);
        let inside = steps.iter().filter(|s| s.path.starts_with(&prefix));
        let moved = PRECEDENCE.into_iter().find(|phase| inside.clone().any(|s| s.phase == *phase));
        let begun = inside.clone().any(|s| s.phase == Phase::Completed).then_some(Phase::Running);
        let started = inside.clone().filter_map(|s| s.started_at.clone()).min_by_key(|t| t.0);
        let completed = inside.filter_map(|s| s.completed_at.clone()).max_by_key(|t| t.0);
        let own = &mut steps[index];
        if own.phase == Phase::Pending {
            own.phase = moved.or(begun).unwrap_or(Phase::Pending);
        }
        if own.started_at.is_none() {
            own.started_at = started;
        }
        if own.phase.is_terminal() && own.completed_at.is_none() {
            own.completed_at = completed;
        }
    }
}

pub(super) fn file_order(mut steps: Vec<StepStatus>, definition: &[Step]) -> Vec<StepStatus> {
    pub(super) fn visit(list: &[Step], prefix: &str, rank: &mut BTreeMap<String, usize>) {
        for step in list {
            let path = format!("{prefix}{}", step.name);
            rank.insert(path.clone(), rank.len());
            visit(&step.steps, &format!("{path}/"), rank);
        }
    }
    let mut rank = BTreeMap::new();
    visit(definition, "", &mut rank);
    steps.sort_by_key(|s| rank.get(&s.path).copied());
    steps
}
