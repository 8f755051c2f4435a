//! What expressions see at a place of a run: only what they name is looked up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::document::{self, Viewpoint};
use super::expression::{Evaluate, Expression, Scope, expressions, underscored};
use crate::api::definition::Definition;
use crate::api::document::Document;
use crate::api::step::{Format, Step};
use crate::api::step_run::StepRun;
use crate::api::workflow::Phase;

/// The output of a step, not yet read.
#[derive(Clone, Debug)]
pub enum Output {
    Null,
    Of(Arc<StepRun>),
    List(Vec<Output>),
}

/// A place in a run: the steps done before it, the items around it.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// `group/`, or empty.
    pub prefix: String,
    pub keys: Vec<String>,
    /// `as` name, index and value of every item around, outermost first.
    pub items: Vec<(String, i32, Value)>,
    pub done: BTreeMap<String, Output>,
}

/// Where values come from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    pub definition: &'a Definition,
    pub documents: &'a [Arc<Document>],
    pub contents: &'a BTreeMap<String, Arc<str>>,
    pub evaluator: &'a Arc<dyn Evaluate>,
}

impl Sources<'_> {
    pub fn viewpoint(&self, frame: &Frame) -> Viewpoint {
        Viewpoint {
            workflow_uid: self.definition.workflow_uid.clone(),
            session: self.definition.session.clone(),
            project: self.definition.project.clone(),
            keys: frame.keys.clone(),
        }
    }

    /// The scope for these expressions; `pinned` names the documents that count, where they were chosen before.
    pub fn scope(&self, frame: &Frame, used: &[&Expression], pinned: &[String]) -> Scope {
        let d = self.definition;
        let parameters = Value::Object(d.parameters.clone());
        let workflow = json!({"name": d.workflow, "session": d.session, "project": d.project, "input": d.input, "parameters": parameters});
        let mut scope = Scope::new(self.evaluator)
            .with("workflow", workflow)
            .with("parameters", parameters)
            .with("steps", self.steps(frame, &named(used, "steps")))
            .with("documents", self.visible(frame, &named(used, "documents"), pinned));
        for (as_name, _, value) in &frame.items {
            scope = scope.with(as_name, value.clone());
        }
        if let (Some(key), Some((_, index, _))) = (frame.keys.last(), frame.items.last()) {
            scope = scope.with("item", json!({"key": key, "index": index}));
        }
        scope
    }

    fn steps(&self, frame: &Frame, wanted: &Wanted) -> Value {
        let mut found = Map::new();
        for (name, output) in &frame.done {
            for spelling in [name.clone(), underscored(name)] {
                if wanted.has(&spelling) {
                    found.insert(
                        spelling,
                        json!({"phase": Phase::Completed.to_string(), "output": self.output(output)}),
                    );
                }
            }
        }
        Value::Object(found)
    }

    /// Reads an output: inline, or from the document that carries it.
    pub fn output(&self, output: &Output) -> Value {
        match output {
            Output::Null => Value::Null,
            Output::List(items) => Value::Array(items.iter().map(|item| self.output(item)).collect()),
            Output::Of(step_run) => {
                let report = step_run
                    .status
                    .as_ref()
                    .and_then(|s| s.result.as_ref().and(s.agent.as_ref()))
                    .and_then(|a| a.report.as_ref());
                let inline = report.and_then(|r| r.output.as_deref());
                let carried = || {
                    report.and_then(|r| r.document_name.as_ref()).and_then(|n| self.contents.get(n)).map(AsRef::as_ref)
                };
                inline.or_else(carried).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
            }
        }
    }

    fn visible(&self, frame: &Frame, wanted: &Wanted, pinned: &[String]) -> Value {
        let from = self.viewpoint(frame);
        let types: BTreeSet<&str> = self.documents.iter().map(|d| d.spec.document_type.as_str()).collect();
        let mut found = Map::new();
        for kind in types {
            let spellings: Vec<String> =
                [kind.to_owned(), underscored(kind)].into_iter().filter(|s| wanted.has(s)).collect();
            if spellings.is_empty() {
                continue;
            }
            let by_pin = self
                .documents
                .iter()
                .find(|d| d.spec.document_type == kind && d.metadata.name.as_ref().is_some_and(|n| pinned.contains(n)));
            let Some(chosen) = by_pin.or_else(|| document::find(self.documents, kind, &from)) else {
                continue;
            };
            let Some(text) = chosen.metadata.name.as_ref().and_then(|n| self.contents.get(n)) else {
                continue;
            };
            let value = match chosen.spec.format {
                Format::Json | Format::Link => serde_json::from_str(text).unwrap_or_default(),
                Format::Markdown | Format::Text => Value::String(text.as_ref().to_owned()),
            };
            for spelling in spellings {
                found.insert(spelling, value.clone());
            }
        }
        Value::Object(found)
    }
}

/// Members that expressions name; everything, where one does not say.
struct Wanted(Option<BTreeSet<String>>);

impl Wanted {
    fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.contains(name))
    }
}

fn named(used: &[&Expression], variable: &str) -> Wanted {
    let mut all = BTreeSet::new();
    for expression in used {
        if expression.reads_whole(variable) {
            return Wanted(None);
        }
        all.extend(expression.members(variable));
    }
    Wanted(Some(all))
}

/// Every expression of a step that parses, parameters and forEach.
pub fn of_step(step: &Step) -> Vec<Expression> {
    let mut found = Vec::new();
    for (key, value) in step.parameters.iter().flatten() {
        expressions(value, key, &mut found);
    }
    let mut parsed: Vec<Expression> = found.into_iter().filter_map(|(_, e)| e.ok()).collect();
    if let Some(for_each) = &step.for_each {
        parsed.extend(Expression::parse(&for_each.items));
    }
    parsed
}

/// Whether the content of documents of a type is read by any expression of the definition.
pub fn reads_content(steps: &[Step], document_type: &str) -> bool {
    steps.iter().any(|step| {
        let used = of_step(step);
        let wanted = named(&used.iter().collect::<Vec<_>>(), "documents");
        wanted.has(document_type)
            || wanted.has(&underscored(document_type))
            || reads_content(&step.steps, document_type)
    })
}
