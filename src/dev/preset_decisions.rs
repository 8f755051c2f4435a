//! Decisions and answers that were given on the command line: which of them is for a wait. Each is used once.

use crate::api::StepRun;
use crate::cli::dev::DecisionFlags;
use crate::cli::fault::Fault;
use crate::cli::target::{label, waits_at_gate, waits_at_own_gate};

/// A decision or an answer that ends a wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresetDecision {
    Accept,
    Reject(String),
    Answer(String),
}

/// The decisions and answers that are not used yet.
#[derive(Clone, Debug, Default)]
pub struct PresetDecisions {
    approve_all: bool,
    approve: Vec<String>,
    reject: Vec<(String, String)>,
    answers: Vec<(String, String)>,
    /// In the trial of one Agent, by round: why its output is rejected. Later rounds are accepted.
    comments: Option<Vec<String>>,
}

impl PresetDecisions {
    /// Reads the flags; one that is not `STEP=WORDS` is a fault.
    pub fn read(flags: &DecisionFlags, comments: &[String]) -> Result<Self, Fault> {
        let pairs = |flag: &str, all: &[String]| {
            let pair = |text: &String| {
                let known = text.split_once('=').filter(|(step, words)| !step.is_empty() && !words.trim().is_empty());
                known
                    .map(|(step, words)| (step.to_owned(), words.to_owned()))
                    .ok_or_else(|| Fault::usage(format!("{flag} {text:?} is not understood; write it as STEP=WORDS")))
            };
            all.iter().map(pair).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            approve_all: flags.approve_all,
            approve: flags.approve.clone(),
            reject: pairs("--reject", &flags.reject)?,
            answers: pairs("--answer", &flags.answers)?,
            comments: (!comments.is_empty()).then(|| comments.to_vec()),
        })
    }

    /// Takes out the decision that is for this wait: a step that waits again needs another one.
    pub fn take(&mut self, step: &StepRun) -> Option<PresetDecision> {
        if !waits_at_gate(step) {
            return taken(&mut self.answers, step).map(PresetDecision::Answer);
        }
        if let Some(comments) = self.comments.as_ref().filter(|_| waits_at_own_gate(step)) {
            let round = step.status.as_ref().and_then(|s| s.gate.as_ref()).map_or(1, |gate| gate.round);
            let why = usize::try_from(round - 1).ok().and_then(|at| comments.get(at));
            return Some(why.map_or(PresetDecision::Accept, |why| PresetDecision::Reject(why.clone())));
        }
        if let Some(why) = taken(&mut self.reject, step) {
            return Some(PresetDecision::Reject(why));
        }
        let is_named = self.approve.iter().any(|name| names(name, step));
        (self.approve_all || is_named).then_some(PresetDecision::Accept)
    }

    /// The flags that no wait was found for, as they were written.
    pub fn unused(&self) -> Vec<String> {
        let pair = |flag: &str, (step, words): &(String, String)| format!("{flag} {step}={words}");
        let rejections = self.reject.iter().map(|one| pair("--reject", one));
        rejections.chain(self.answers.iter().map(|one| pair("--answer", one))).collect()
    }
}

fn taken(from: &mut Vec<(String, String)>, step: &StepRun) -> Option<String> {
    let at = from.iter().position(|(name, _)| names(name, step))?;
    Some(from.remove(at).1)
}

/// A step by its path, alone or with the key of an item; and the items of a step by the step's.
fn names(name: &str, step: &StepRun) -> bool {
    let name = name.trim_end_matches('/');
    name == label(step) || name == step.spec.path || step.spec.path.rsplit('/').next() == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn step(path: &str, key: Option<&str>, status: &Value) -> StepRun {
        serde_json::from_value(
            json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun", "metadata": {"name": "s"},
            "spec": {"workflow": {"name": "w", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
                "path": path, "agentId": "a", "parameters": "{}", "inputDigest": "d", "gate": {"name": "g"},
                "item": key.map(|key| json!({"key": key, "index": 0, "value": null}))},
            "status": status}),
        )
        .expect("a step")
    }

    fn at_gate(path: &str, key: Option<&str>, round: i32) -> StepRun {
        let gate = json!({"state": "Waiting", "round": round, "outputDigest": "d", "openedAt": "2026-01-01T00:00:00Z", "policy": "p"});
        step(path, key, &json!({"phase": "WaitingForAcceptance", "gate": gate}))
    }

    fn asking(path: &str) -> StepRun {
        let wait =
            json!({"id": "1", "kind": "Question", "question": "?", "options": [], "since": "2026-01-01T00:00:00Z"});
        step(path, None, &json!({"phase": "WaitingForInput", "waitingFor": wait}))
    }

    #[test]
    fn each_word_is_for_one_wait() {
        let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let flags = DecisionFlags {
            approve_all: false,
            approve: texts(&["plan", "design/E1"]),
            reject: texts(&["plan=too long"]),
            answers: texts(&["ask=a=b", "ask=2", "other=3"]),
        };
        let mut presets = PresetDecisions::read(&flags, &[]).expect("read");
        assert_eq!(presets.take(&at_gate("plan", None, 1)), Some(PresetDecision::Reject("too long".to_owned())));
        assert_eq!(presets.take(&at_gate("plan", None, 2)), Some(PresetDecision::Accept));
        assert_eq!(presets.take(&at_gate("group/plan", None, 1)), Some(PresetDecision::Accept));
        assert_eq!(presets.take(&at_gate("design", Some("E1"), 1)), Some(PresetDecision::Accept));
        assert_eq!(presets.take(&at_gate("design", Some("E2"), 1)), None);
        assert_eq!(presets.take(&asking("ask")), Some(PresetDecision::Answer("a=b".to_owned())));
        assert_eq!(presets.take(&asking("ask")), Some(PresetDecision::Answer("2".to_owned())));
        assert_eq!(presets.take(&asking("ask")), None);
        assert_eq!(presets.unused(), ["--answer other=3"]);
    }

    #[test]
    fn comments_are_rounds_and_then_it_is_accepted() {
        let mut presets = PresetDecisions::read(&DecisionFlags::default(), &["shorter".to_owned()]).expect("read");
        assert_eq!(presets.take(&at_gate("plan", None, 1)), Some(PresetDecision::Reject("shorter".to_owned())));
        assert_eq!(presets.take(&at_gate("plan", None, 2)), Some(PresetDecision::Accept));
        for wrong in ["x", "=y", "x= "] {
            let flags = DecisionFlags { answers: vec![wrong.to_owned()], ..DecisionFlags::default() };
            assert!(PresetDecisions::read(&flags, &[]).is_err(), "{wrong:?}");
        }
    }
}
