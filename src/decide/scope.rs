//! What expressions see at a place of a run: only what they name is looked up.

#![expect(clippy::disallowed_macros, reason = "the variables that expressions see")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use serde_json::{Map, Value, json};

use super::content::{Content, Contents, Pin};
use super::document::{self, Documents, Viewpoint};
use super::outcome::{Ended, Item, Output};
use super::output::{self, StoredOutput};
use crate::api::limits::DOCUMENT_BYTES;
use crate::api::step::Format;
use crate::api::step_run::StepRun;
use crate::definition::expression::{self, Evaluate, Expression, Scope, underscored};
use crate::definition::program::Program;

/// Whether anything may begin at a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    #[default]
    May,
    /// Its turn has come, and nothing new begins.
    Not,
    /// Its turn has not come: only what was begun all the same is looked at.
    Behind,
}

/// An item of a forEach around a place.
#[derive(Clone, Debug)]
pub struct Entity {
    pub as_name: String,
    pub index: i32,
    pub value: Arc<Value>,
}

/// A place in a run: the steps that have ended before it, the items around it.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    pub keys: Vec<String>,
    /// Outermost first.
    pub items: Vec<Entity>,
    pub done: RedBlackTreeMapSync<String, Ended>,
    pub start: Start,
    /// Something before it ran in this run.
    pub fresh: bool,
    /// Nothing is remembered of what was begun here.
    pub cold: bool,
}

impl Frame {
    /// `path/key/key`.
    pub fn place(&self, path: &str) -> String {
        self.keys.iter().fold(path.to_owned(), |place, key| format!("{place}/{key}"))
    }
}

/// Why an expression gives nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Contents of documents are to be fetched first.
    Unread,
    /// A Document is not the one that was meant.
    Changed(String),
    Wrong(String),
}

/// Where values come from.
pub struct Sources<'a> {
    pub program: &'a Program,
    pub documents: &'a Documents,
    pub contents: &'a Contents,
    /// Documents whose contents are wanted and not there.
    pub unread: RefCell<BTreeSet<Pin>>,
    pub evaluator: &'a Arc<dyn Evaluate>,
}

impl Sources<'_> {
    pub fn viewpoint(&self, frame: &Frame) -> Viewpoint {
        Viewpoint {
            workflow_uid: self.program.run.uid.clone(),
            session: self.program.run.session.clone(),
            project: self.program.run.project.clone(),
            keys: frame.keys.clone(),
        }
    }

    /// The scope for these expressions; `pinned` names the documents that count, where they were chosen before.
    pub fn scope(&self, frame: &Frame, used: &[&Expression], pinned: &[String]) -> Result<Scope, Fault> {
        let run = &self.program.run;
        let variables: BTreeSet<String> = used.iter().flat_map(|e| e.variables()).collect();
        let mut scope = Scope::new(self.evaluator)
            .with("steps", self.steps(frame, used)?)
            .with("documents", self.visible(frame, &named(used, "documents"), pinned)?);
        // A run's parameters can be large: nobody gets them who does not ask.
        if variables.contains("parameters") {
            scope = scope.with("parameters", Value::Object(run.parameters.clone()));
        }
        if variables.contains("workflow") {
            scope = scope.with("workflow", run.variable());
        }
        for entity in frame.items.iter().filter(|entity| variables.contains(&entity.as_name)) {
            scope = scope.with(&entity.as_name, entity.value.as_ref().clone());
        }
        if let (Some(key), Some(entity)) = (frame.keys.last(), frame.items.last()) {
            scope = scope.with("item", json!({"key": key, "index": entity.index}));
        }
        Ok(scope)
    }

    fn steps(&self, frame: &Frame, used: &[&Expression]) -> Result<Value, Fault> {
        let wanted = named(used, "steps");
        let mut found = Map::new();
        for (name, ended) in &frame.done {
            for spelling in [name.clone(), underscored(name)] {
                if wanted.has(&spelling) {
                    let mut value = json!({"phase": ended.phase.to_string(), "output": self.output(&ended.output)?});
                    if let (Output::List(items), Value::Object(fields)) = (&ended.output, &mut value) {
                        fields.insert("items".to_owned(), self.items(items)?);
                    }
                    found.insert(spelling, value);
                }
            }
        }
        Ok(Value::Object(found))
    }

    fn items(&self, items: &[Item]) -> Result<Value, Fault> {
        let one = |item: &Item| {
            Ok(json!({"key": item.key, "phase": item.phase.to_string(), "output": self.output(&item.output)?}))
        };
        items.iter().map(one).collect::<Result<Vec<_>, Fault>>().map(Value::Array)
    }

    /// Reads an output: inline, or from the document that carries it.
    pub fn output(&self, output: &Output) -> Result<Value, Fault> {
        match output {
            Output::Null => Ok(Value::Null),
            Output::Value(value) => Ok(value.as_ref().clone()),
            Output::List(items) => {
                let mut bytes = 0;
                let mut values = Vec::with_capacity(items.len());
                for item in items.iter() {
                    let value = self.output(&item.output)?;
                    bytes += expression::size(&value) + 1;
                    if bytes > DOCUMENT_BYTES {
                        return Err(Fault::Wrong(too_large()));
                    }
                    values.push(value);
                }
                Ok(Value::Array(values))
            }
            Output::Of(step_run) => self.of_step_run(step_run),
        }
    }

    fn of_step_run(&self, step_run: &StepRun) -> Result<Value, Fault> {
        match output::of(step_run) {
            StoredOutput::Nowhere => Ok(Value::Null),
            StoredOutput::Inline(text) => Ok(output::read(&text)),
            StoredOutput::Document(pin) => Ok(output::read(self.content(&pin)?.text())),
        }
    }

    /// What a Document holds, if it is the one that is meant.
    pub fn content(&self, pin: &Pin) -> Result<&Content, Fault> {
        match self.contents.get(pin) {
            Some(Ok(content)) => Ok(content),
            Some(Err(changed)) => Err(Fault::Changed(changed.to_string())),
            None => {
                self.unread.borrow_mut().insert(pin.clone());
                Err(Fault::Unread)
            }
        }
    }

    fn visible(&self, frame: &Frame, wanted: &Wanted, pinned: &[String]) -> Result<Value, Fault> {
        let from = self.viewpoint(frame);
        let (mut found, mut unread) = (Map::new(), false);
        for kind in document::types(self.documents) {
            let spellings: Vec<String> =
                [kind.to_owned(), underscored(kind)].into_iter().filter(|s| wanted.has(s)).collect();
            if spellings.is_empty() {
                continue;
            }
            let by_pin = document::named(self.documents, kind, pinned);
            let Some(chosen) = by_pin.or_else(|| document::find(self.documents, kind, &from)) else {
                continue;
            };
            let content = match self.content(&Pin::published(chosen)) {
                // All that is wanted is asked for at once.
                Err(Fault::Unread) => {
                    unread = true;
                    continue;
                }
                other => other?,
            };
            let value = match content.document().spec.format {
                Format::Json | Format::Link => serde_json::from_str(content.text()).unwrap_or_default(),
                Format::Markdown | Format::Text => Value::String(content.text().to_owned()),
            };
            for spelling in spellings {
                found.insert(spelling, value.clone());
            }
        }
        if unread { Err(Fault::Unread) } else { Ok(Value::Object(found)) }
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

pub fn too_large() -> String {
    format!(
        "the list of all items' outputs is more than {DOCUMENT_BYTES} bytes long; forEach.collect says what of each is kept"
    )
}
