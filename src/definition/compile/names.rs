//! What may be named at a place: variables, steps that have ended before, documents; and who makes which document.

use std::collections::BTreeSet;

use super::Walk;
use crate::api::step::Step;
use crate::definition::expression::{Expression, Hyphen, underscored};

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

/// Types of documents that steps ask for.
pub(super) fn wanted(steps: &[Step]) -> BTreeSet<String> {
    let own = |step: &Step| step.documents.iter().map(|d| d.trim_end_matches("/*").to_owned()).collect::<Vec<_>>();
    steps.iter().flat_map(|step| own(step).into_iter().chain(wanted(&step.steps))).collect()
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
    /// Whether an expression names only what can be seen from its place.
    pub(super) fn names(&mut self, place: &str, expression: &Expression, seen: &Visible) {
        let used = expression.variables();
        let known = |word: &str| !used.contains(word) || seen.variables.contains(word);
        let mut meant = expression.hyphens();
        meant.retain(|hyphen| hyphen.words().any(|word| !known(word)) || self.is_name(hyphen, seen));
        for hyphen in &meant {
            self.fault(format!("{place}: {}", hyphen.remedy()));
        }
        let explained = |word: &str| meant.iter().any(|hyphen| hyphen.words().any(|w| w == word));
        for name in used.difference(&seen.variables).filter(|name| !explained(name)) {
            self.fault(format!("{place}: {name} is not known here; known are {}", joined(&seen.variables)));
        }
        let is_head = |owner: &str, name: &str| meant.iter().any(|h| h.owner == owner && h.head() == name);
        for owner in ["parameters", "workflow.parameters"] {
            for name in expression.members(owner).iter().filter(|name| !is_head(owner, name)) {
                self.parameter(place, expression, (owner, name));
            }
        }
        for whole in ["steps", "documents"] {
            let known = used.contains(whole) && seen.variables.contains(whole);
            if known && expression.members(whole).is_empty() {
                self.fault(format!("{place}: say which of the {whole} is meant, for example {whole}.NAME"));
            }
        }
        for name in expression.members("steps").into_iter().filter(|name| !is_head("steps", name)) {
            if !seen.steps.iter().any(|known| *known == name || underscored(known) == name) {
                self.fault(format!("{place}: there is no step {name} that ends before this one"));
            }
        }
    }

    /// Whether there is something of that name.
    fn is_name(&self, hyphen: &Hyphen, seen: &Visible) -> bool {
        let name = &hyphen.name;
        match hyphen.owner.as_str() {
            "steps" => seen.steps.contains(name),
            "documents" => self.documents.contains(name) || self.produced.iter().any(|p| p.document_type == *name),
            "parameters" | "workflow.parameters" => self.parameters.has(name),
            _ => false,
        }
    }

    fn parameter(&mut self, place: &str, expression: &Expression, (owner, name): (&str, &str)) {
        if let Some(why) = self.parameters.refusal(name) {
            self.fault(format!("{place}: {owner}.{name} {why}"));
        } else if let Some(why) = self.parameters.doubt(name).filter(|_| expression.needs(owner, name)) {
            self.warn(format!("{place}: {owner}.{name} {why}"));
        }
    }

    /// In a forEach, what documents hold is looked at again and again: only those count that this run alone makes.
    pub(super) fn pinned_documents(&mut self, place: &str, expression: &Expression) {
        let hyphens = expression.hyphens();
        let explained = |kind: &String| hyphens.iter().any(|h| h.owner == "documents" && h.head() == kind);
        for kind in expression.members("documents").into_iter().filter(|kind| !explained(kind)) {
            let made = |p: &Producer| (p.document_type == kind || underscored(&p.document_type) == kind) && p.private;
            if !self.produced.iter().any(made) {
                self.fault(format!(
                    "{place}: documents.{kind} may change while the items run, because no step of this run makes it for this run alone; read it in a step before the forEach, and pass it on by that step's output"
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
                self.fault(format!("{place}.produces.type: another step makes {kind} too; two steps may make one type only if one needs the other"));
            }
        }
    }
}

fn joined(names: &BTreeSet<String>) -> String {
    names.iter().cloned().collect::<Vec<_>>().join(", ")
}
