//! Expressions: CEL and nothing else. `filter` refuses from the text alone what could cost too much, `walk` says what an
//! expression reads and resolves plain paths, `evaluate` does the rest: `numbers` is where ints and doubles meet, `names` where hyphens do,
//! `words` what is said of a fault. `${ }` in strings of `parameters` is the same language (`template`).
//!
//! Parsing and the filter run wherever a decision is made: a text of 1 KiB at most, nested 32 deep at most, gives a tree
//! of 200 nodes at most, and is read in a time that grows with the text alone. A plain path is followed there too: its
//! cost is that of copying what it names, and what a text or the parameters of a step copy together has a bound (`room`).
//! Everything else an expression does is asked of an `Evaluate`.

mod evaluate;
mod filter;
mod names;
mod numbers;
mod room;
mod template;
mod vocabulary;
mod walk;
mod words;

use std::collections::BTreeSet;
use std::sync::Arc;

use cel::parser::ParseErrors;
use serde_json::{Map, Value};

#[expect(clippy::disallowed_types, reason = "where it is defined")]
pub use evaluate::InProcess;
pub use evaluate::{Evaluate, Unanswered};
pub use names::Hyphen;
pub use room::Room;
pub use template::{Template, TextTemplate};

use crate::api::limits::{EXPRESSION_BYTES, EXPRESSION_DATA_BYTES, EXPRESSION_PATH_BYTES};
use evaluate::parser;
pub use evaluate::size;
use walk::{Path, Reads};

/// Brackets, calls and conditionals inside each other. With it no text that is short enough can exhaust a stack of 2 MB.
const NESTING: u16 = 32;

/// A parsed expression. Whoever evaluates gets the text: of the tree only what it reads is kept, and the path that it may be.
#[derive(Clone, Debug)]
pub struct Expression {
    source: String,
    path: Option<Path>,
    reads: Reads,
}

/// The text says all.
impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// The variables that an expression sees, by name, and who evaluates it.
#[derive(Clone, Debug)]
pub struct Scope {
    variables: Vec<(String, Value)>,
    evaluator: Arc<dyn Evaluate>,
}

impl Scope {
    /// For what a person checks on their own machine.
    pub fn in_process() -> Self {
        Self::new(&(Arc::new(InProcess) as Arc<dyn Evaluate>))
    }

    pub fn new(evaluator: &Arc<dyn Evaluate>) -> Self {
        Self { variables: Vec::new(), evaluator: Arc::clone(evaluator) }
    }

    /// Adds a variable; a later one of the same name hides an earlier one.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.variables.retain(|(old, _)| old != name);
        self.variables.push((name.to_owned(), value));
        self
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

impl Expression {
    /// Parses CEL; `${ }` around the whole is accepted.
    pub fn parse(source: &str) -> Result<Self, String> {
        let text = bare(source);
        if text.len() > EXPRESSION_BYTES {
            return Err(format!(
                "is {} bytes long, at most {EXPRESSION_BYTES} are allowed; let a step before compute a part of it",
                text.len()
            ));
        }
        let tree = parser().max_recursion_depth(NESTING).parse(text);
        let tree = tree.map_err(|errors| {
            let meant = names::hyphens(text).into_iter().next().map(|hyphen| format!("; {}", hyphen.remedy()));
            unreadable(&errors) + &meant.unwrap_or_default()
        })?;
        filter::check(&tree, text)?;
        Ok(Self { source: text.to_owned(), path: Path::of(&tree), reads: walk::reads(&tree) })
    }

    /// Names of the variables it reads.
    pub fn variables(&self) -> BTreeSet<String> {
        self.reads.variables.clone()
    }

    /// The members of a variable that it reads by a literal name: `documents.brief`, `documents["brief"]`.
    pub fn members(&self, variable: &str) -> BTreeSet<String> {
        let of_it = self.reads.members.iter().filter(|(owner, _)| owner == variable);
        of_it.map(|(_, member)| member.clone()).collect()
    }

    /// Whether it is nothing but this member of this variable.
    pub fn is_path(&self, variable: &str, member: &str) -> bool {
        self.path.as_ref().is_some_and(|path| path.is(variable, member))
    }

    /// Whether it fails where the variable has no such member.
    pub fn needs(&self, variable: &str, member: &str) -> bool {
        self.reads.needed.iter().any(|(owner, needed)| owner == variable && needed == member)
    }

    /// What it may have meant as the hyphen of a name, and reads as a minus.
    pub fn hyphens(&self) -> Vec<Hyphen> {
        names::hyphens(&self.source)
    }

    /// Whether it reads a variable as a whole somewhere, so that any member may count: `size(documents)`.
    pub fn reads_whole(&self, variable: &str) -> bool {
        self.reads.whole.contains(variable)
    }

    /// Evaluates; plain paths may read more than other expressions.
    pub fn evaluate(&self, scope: &Scope) -> Result<Value, String> {
        if let Some(path) = &self.path {
            return Self::followed(path, scope).cloned();
        }
        let known = || self.reads.variables.iter().filter_map(|name| Some((name, scope.get(name)?)));
        let bytes: usize = known().map(|(name, value)| self.narrowed(name, value).size()).sum();
        if bytes > EXPRESSION_DATA_BYTES {
            return Err(format!(
                "reads {bytes} bytes, at most {EXPRESSION_DATA_BYTES} are allowed; a plain path (a.b.c) may read {EXPRESSION_PATH_BYTES}, or let the step before give less"
            ));
        }
        let variables = known().map(|(name, value)| (name.clone(), self.narrowed(name, value).copied())).collect();
        scope.evaluator.evaluate(&self.source, &variables)
    }

    /// As `evaluate`, where what several give together has a bound: one that is nothing but a path is measured before it is
    /// copied.
    fn evaluate_within(&self, scope: &Scope, room: &mut Room) -> Result<Value, String> {
        if let Some(path) = &self.path {
            let value = Self::followed(path, scope)?;
            room.take(value)?;
            return Ok(value.clone());
        }
        let value = self.evaluate(scope)?;
        room.take(&value)?;
        Ok(value)
    }

    fn followed<'v>(path: &'v Path, scope: &'v Scope) -> Result<&'v Value, String> {
        let value = path.resolve(scope)?;
        let bytes = size(value);
        if bytes > EXPRESSION_PATH_BYTES {
            return Err(format!(
                "gives {bytes} bytes, at most {EXPRESSION_PATH_BYTES} are allowed; let the step before give less"
            ));
        }
        Ok(value)
    }

    /// Only the members that are named count against the limit, where all uses name one.
    fn narrowed<'v>(&self, name: &str, value: &'v Value) -> Narrowed<'v> {
        match value {
            Value::Object(map) if !self.reads_whole(name) => {
                let named = self.members(name);
                let is_meant =
                    |key: &String| named.contains(key) || name == "parameters" && named.contains(&underscored(key));
                Narrowed::Members(map.iter().filter(|(key, _)| is_meant(key)).collect())
            }
            other => Narrowed::Whole(other),
        }
    }
}

/// What an expression gets of a variable, not copied yet.
enum Narrowed<'v> {
    Whole(&'v Value),
    Members(Vec<(&'v String, &'v Value)>),
}

impl Narrowed<'_> {
    fn size(&self) -> usize {
        match self {
            Self::Whole(value) => size(value),
            Self::Members(members) => members.iter().map(|(key, value)| key.len() + size(value) + 4).sum::<usize>() + 2,
        }
    }

    fn copied(&self) -> Value {
        match self {
            Self::Whole(value) => (*value).clone(),
            Self::Members(members) => {
                Value::Object(members.iter().map(|(key, value)| ((*key).clone(), (*value).clone())).collect())
            }
        }
    }
}

/// The parser's first complaint, in one line.
fn unreadable(errors: &ParseErrors) -> String {
    let too_deep = errors.errors.iter().find(|e| e.msg.contains("Recursion limit"));
    if let Some(error) = too_deep {
        return format!(
            "nests more than {NESTING} brackets deep at line {} column {}; let a step before compute a part of it",
            error.pos.0, error.pos.1
        );
    }
    errors.errors.first().map_or_else(
        || "is not valid CEL".to_owned(),
        |e| {
            let words: String = e.msg.lines().next().unwrap_or_default().chars().take(200).collect();
            format!("is not valid CEL at line {} column {}: {words}", e.pos.0, e.pos.1)
        },
    )
}

/// The CEL inside `${ }`, or the text itself.
fn bare(source: &str) -> &str {
    let text = source.trim();
    text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).map_or(text, str::trim)
}

/// What a person calls the type of a JSON value.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The member that a name means: the very one, else the only one that has hyphens where the name has underscores.
pub fn meant<'m>(members: &'m Map<String, Value>, name: &str) -> Option<&'m str> {
    if let Some((exact, _)) = members.get_key_value(name) {
        return Some(exact);
    }
    let mut alike = members.keys().filter(|key| underscored(key) == name);
    alike.next().filter(|_| alike.next().is_none()).map(String::as_str)
}

/// `epic-backlog` as expressions may spell it.
pub fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests;
