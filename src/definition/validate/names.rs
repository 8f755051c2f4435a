//! What may be named at a place: variables, steps that have ended before, documents; and who makes which document.

use std::collections::BTreeSet;

use super::Walk;
use crate::api::step::Step;
use crate::definition::expression::{Expression, underscored};

/// What expressions may name at a place.
#[derive(Clone)]
pub(super) struct Visible {
    pub variables: BTreeSet<String>,
    pub steps: Vec<String>,
    /// How many forEach are around.
    pub depth: usize,
}

impl Default for Visible {
    fn default() -> Self {
        let variables = ["workflow", "parameters", "steps", "documents"].map(str::to_owned).into();
        Self { variables, steps: Vec::new(), depth: 0 }
    }
}

/// Who makes a document: the step and the groups around it, by name.
pub(super) struct Producer {
    pub document_type: String,
    pub chain: Vec<String>,
    /// Seen by this run alone.
    pub private: bool,
}

/// The same, where it is written, and the steps that have ended before.
pub(super) struct Maker {
    pub document_type: String,
    pub place: String,
    pub chain: Vec<String>,
    pub seen: Vec<String>,
}

pub(super) fn producers(steps: &[Step], around: &mut Vec<String>, found: &mut Vec<Producer>) {
    for step in steps {
        around.push(step.name.clone());
        if let Some(produces) = &step.produces {
            let document_type = produces.document_type.clone();
            found.push(Producer { document_type, chain: around.clone(), private: produces.scope.is_none() });
        }
        producers(&step.steps, around, found);
        around.pop();
    }
}

impl Walk<'_> {
    pub(super) fn expression(&mut self, place: &str, parsed: Result<Expression, String>, seen: &Visible) {
        let expression = match parsed {
            Ok(expression) => expression,
            Err(fault) => return self.fault(format!("{place}: {fault}")),
        };
        let used = expression.variables();
        for name in used.difference(&seen.variables) {
            self.fault(format!("{place}: {name} is not known here; known are {}", joined(&seen.variables)));
        }
        for whole in ["steps", "documents"] {
            let known = used.contains(whole) && seen.variables.contains(whole);
            if known && expression.members(whole).is_empty() {
                self.fault(format!("{place}: say which of the {whole} is meant, for example {whole}.NAME"));
            }
        }
        for name in expression.members("steps") {
            if !seen.steps.iter().any(|known| *known == name || underscored(known) == name) {
                self.fault(format!("{place}: steps.{name} is no step before this one"));
            }
        }
    }

    /// In a forEach, what documents hold is looked at again and again: only those count that this run alone makes.
    pub(super) fn pinned_documents(&mut self, place: &str, text: &str) {
        let Ok(expression) = Expression::parse(text) else { return };
        for kind in expression.members("documents") {
            let made = |p: &Producer| (p.document_type == kind || underscored(&p.document_type) == kind) && p.private;
            if !self.produced.iter().any(made) {
                self.fault(format!(
                    "{place}: documents.{kind} may change between two looks, because no step of this run makes it for this run alone; inside a forEach read it outside and pass it by parameters or a step's output"
                ));
            }
        }
    }

    /// Two steps may make the same type only one after the other.
    pub(super) fn one_after_the_other(&mut self) {
        let makers = std::mem::take(&mut self.makers);
        for (index, later) in makers.iter().enumerate() {
            let before = |a: &Maker, b: &Maker| a.chain.iter().any(|name| b.seen.contains(name));
            let clash = |earlier: &&Maker| {
                earlier.document_type == later.document_type && !before(earlier, later) && !before(later, earlier)
            };
            if makers[..index].iter().any(|earlier| clash(&earlier)) {
                let (place, kind) = (&later.place, &later.document_type);
                self.fault(format!("{place}.produces.type: {kind} is made by another step already; two steps may make one type only if one needs the other"));
            }
        }
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    names.iter().cloned().collect::<Vec<_>>().join(", ")
}
