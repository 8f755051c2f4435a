//! What expressions see at a place of a run: only what they name is looked up.

#![expect(clippy::disallowed_macros, reason = "the variables that expressions see")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use serde_json::{Map, Value, json};

use super::content::{Content, Contents, Pin};
use super::document::{self, Documents, Viewpoint};
use super::outcome::{Ended, Item, Output};
use super::output::{self, StoredOutput};
use crate::api::document::Document;
use crate::api::limits::{COLLECTION_DOCUMENTS, DOCUMENT_BYTES, EXPRESSION_DOCUMENTS, EXPRESSION_DOCUMENTS_BYTES};
use crate::api::step::Format;
use crate::api::step_run::StepRun;
use crate::definition::expression::{self, Evaluate, Expression, Scope, underscored};
use crate::definition::program::Program;

/// Whether anything may begin at a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    #[default]
    Open,
    /// Its turn has come, and nothing new begins.
    Closed,
    /// Its turn has not come: only what was begun all the same is looked at.
    NotYet,
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
    pub start: Admission,
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
    /// Documents whose contents are wanted and not there, and as which they were met: what the first places want is got first.
    pub unread: RefCell<BTreeMap<Pin, usize>>,
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

    /// The scope for these expressions; `pinned` names the documents that count, where they were chosen before, be it that there
    /// was none.
    pub fn scope(&self, frame: &Frame, used: &[&Expression], pinned: Option<&[String]>) -> Result<Scope, Fault> {
        let run = &self.program.run;
        let variables: BTreeSet<String> = used.iter().flat_map(|e| e.variables()).collect();
        let mut reading = Reading::default();
        let mut scope = Scope::new(self.evaluator)
            .with("steps", self.steps(frame, used, &mut reading)?)
            .with("documents", self.visible(frame, &named(used, "documents"), pinned, &mut reading)?);
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

    fn steps(&self, frame: &Frame, used: &[&Expression], reading: &mut Reading) -> Result<Value, Fault> {
        let wanted = named(used, "steps");
        let mut found = Map::new();
        for (name, ended) in &frame.done {
            for spelling in [name.clone(), underscored(name)] {
                if wanted.has(&spelling) {
                    let output = self.output(&ended.output, reading)?;
                    let mut value = json!({"phase": ended.phase.to_string(), "output": output});
                    if let (Output::List(items), Value::Object(fields)) = (&ended.output, &mut value) {
                        fields.insert("items".to_owned(), self.items(items, reading)?);
                    }
                    found.insert(spelling, value);
                }
            }
        }
        Ok(Value::Object(found))
    }

    fn items(&self, items: &[Item], reading: &mut Reading) -> Result<Value, Fault> {
        let one = |(index, item): (usize, &Item)| {
            let output = self.output(&item.output, reading)?;
            Ok(json!({"key": item.key, "index": index, "phase": item.phase.to_string(), "output": output}))
        };
        items.iter().enumerate().map(one).collect::<Result<Vec<_>, Fault>>().map(Value::Array)
    }

    /// Reads an output: inline, or from the document that carries it.
    pub fn output(&self, output: &Output, reading: &mut Reading) -> Result<Value, Fault> {
        match output {
            Output::Null => Ok(Value::Null),
            Output::Value(value) => {
                reading.of(expression::size(value))?;
                Ok(value.as_ref().clone())
            }
            Output::List(items) => {
                let mut bytes = 0;
                let mut values = Vec::with_capacity(items.len());
                for item in items.iter() {
                    let value = self.output(&item.output, reading)?;
                    bytes += expression::size(&value) + 1;
                    if bytes > DOCUMENT_BYTES {
                        return Err(Fault::Wrong(too_large()));
                    }
                    values.push(value);
                }
                Ok(Value::Array(values))
            }
            Output::Of(step_run) => self.of_step_run(step_run, reading),
        }
    }

    fn of_step_run(&self, step_run: &StepRun, reading: &mut Reading) -> Result<Value, Fault> {
        match output::of(step_run) {
            StoredOutput::Nowhere => Ok(Value::Null),
            StoredOutput::Inline(text) => {
                reading.of(text.len())?;
                Ok(output::read(&text))
            }
            StoredOutput::Document(pin) => Ok(output::read(self.read(&pin, reading)?.text())),
        }
    }

    /// What a Document holds, if it is the one that is meant.
    pub fn content(&self, pin: &Pin) -> Result<&Content, Fault> {
        match self.contents.get(pin) {
            Some(Ok(content)) => Ok(content),
            Some(Err(changed)) => Err(Fault::Changed(changed.to_string())),
            None => {
                // Where there is no room for more, the place waits for the next pass, in which others want less.
                if !self.contents.is_closed() {
                    let mut unread = self.unread.borrow_mut();
                    let next = unread.len();
                    unread.entry(pin.clone()).or_insert(next);
                }
                Err(Fault::Unread)
            }
        }
    }

    /// What is lacking, in the order in which it was met.
    pub fn lacking(&self) -> Vec<Pin> {
        let mut met: Vec<(Pin, usize)> = self.unread.take().into_iter().collect();
        met.sort_by_key(|(_, at)| *at);
        met.into_iter().map(|(pin, _)| pin).collect()
    }

    /// The same for expressions, which may read only so much.
    fn read(&self, pin: &Pin, reading: &mut Reading) -> Result<&Content, Fault> {
        reading.more()?;
        let content = self.content(pin)?;
        reading.of(content.text().len())?;
        Ok(content)
    }

    fn visible(
        &self,
        frame: &Frame,
        wanted: &UsedMembers,
        pinned: Option<&[String]>,
        reading: &mut Reading,
    ) -> Result<Value, Fault> {
        let from = self.viewpoint(frame);
        let mut pins = Vec::new();
        for kind in document::types(self.documents) {
            if !wanted.has(kind) && !wanted.has(&underscored(kind)) {
                continue;
            }
            let newest = || document::find(self.documents, kind, &from);
            let chosen = match pinned {
                // Of so many not all were written down.
                Some(names) if names.len() >= COLLECTION_DOCUMENTS => {
                    document::named(self.documents, kind, names).or_else(newest)
                }
                // One that was published is shown as it was before, where this copy lags.
                Some(names) => document::named(self.documents, kind, names).filter(|d| was_published(d)),
                None => newest(),
            };
            pins.extend(chosen.map(|document| Pin::published(document)));
        }
        // What this copy of the documents does not show (yet) is asked for by its name; whether it is still the same, the digest
        // of the list tells.
        let unseen = pinned.into_iter().flatten().filter(|name| !pins.iter().any(|pin| pin.name == **name));
        let unseen: Vec<Pin> = unseen.map(|name| Pin { name: name.clone(), ..Pin::default() }).collect();
        pins.extend(unseen);
        // Before any is fetched.
        if pins.len() > EXPRESSION_DOCUMENTS {
            return Err(too_many());
        }
        let (mut found, mut unread) = (Map::new(), false);
        for pin in pins {
            let content = match self.read(&pin, reading) {
                // All that is wanted is asked for at once.
                Err(Fault::Unread) => {
                    unread = true;
                    continue;
                }
                other => other?,
            };
            let spec = &content.document().spec;
            let value = match spec.format {
                Format::Json | Format::Link => output::read(content.text()),
                Format::Markdown | Format::Text => Value::String(content.text().to_owned()),
            };
            let spellings = [spec.document_type.clone(), underscored(&spec.document_type)];
            for spelling in spellings.into_iter().filter(|spelling| wanted.has(spelling)) {
                found.insert(spelling, value.clone());
            }
        }
        if unread { Err(Fault::Unread) } else { Ok(Value::Object(found)) }
    }
}

/// What the expressions of one place have read of outputs and Documents.
#[derive(Debug, Default)]
pub struct Reading {
    documents: usize,
    bytes: usize,
}

impl Reading {
    fn more(&mut self) -> Result<(), Fault> {
        self.documents += 1;
        if self.documents > EXPRESSION_DOCUMENTS { Err(too_many()) } else { Ok(()) }
    }

    fn of(&mut self, bytes: usize) -> Result<(), Fault> {
        self.bytes += bytes;
        if self.bytes > EXPRESSION_DOCUMENTS_BYTES {
            return Err(Fault::Wrong(format!(
                "the expressions read documents and outputs of more than {EXPRESSION_DOCUMENTS_BYTES} bytes together; name the ones that are needed (documents.TYPE, steps.NAME), or pass the documents to the agent"
            )));
        }
        Ok(())
    }
}

fn too_many() -> Fault {
    Fault::Wrong(format!(
        "the expressions read more than {EXPRESSION_DOCUMENTS} documents together; name the ones that are needed (documents.TYPE)"
    ))
}

fn was_published(document: &Document) -> bool {
    document.status.as_ref().is_some_and(|status| status.digest.is_some())
}

/// The members of a variable that expressions use; none stands for all of them, where an expression does not say which.
pub struct UsedMembers(Option<BTreeSet<String>>);

impl UsedMembers {
    pub fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.contains(name))
    }
}

/// What of a variable they read.
pub fn named(used: &[&Expression], variable: &str) -> UsedMembers {
    let mut all = BTreeSet::new();
    for expression in used {
        if expression.reads_whole(variable) {
            return UsedMembers(None);
        }
        all.extend(expression.members(variable));
    }
    UsedMembers(Some(all))
}

pub fn too_large() -> String {
    format!(
        "the list of all items' outputs is more than {DOCUMENT_BYTES} bytes long; forEach.collect says what of each is kept"
    )
}
