//! Values for CEL and back, and who evaluates: `InProcess` is pure and unguarded, for what a person does on their own
//! machine; operator and gateway ask processes of their own, where neither time nor memory can hurt them.

#![expect(clippy::disallowed_types, reason = "where it is defined")]

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::parser::Parser;
use cel::{Context, Env, extensions};
use serde_json::{Map, Number, Value};

use super::{names, numbers, words};
use crate::api::limits::EXPRESSION_DATA_BYTES;
use crate::definition::schema;
use crate::protocol::Fault;

/// The language: the standard one, with optional values and the extensions for texts, lists, numbers and base64.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(true);
    let all = [extensions::strings, extensions::lists, extensions::math, extensions::encoders, numbers::extension];
    for extension in all {
        // It fails only where a name stands twice; the tables of the tests call every one.
        let _ = env.add_extension(extension);
    }
    Arc::new(env)
});

/// Evaluates what the authors of workflows wrote: expressions, and JSON Schemas.
pub trait Evaluate: Send + Sync + std::fmt::Debug {
    /// An error is a fault of the expression, in words.
    fn evaluate(&self, source: &str, variables: &Map<String, Value>) -> Result<Value, String>;

    /// Whether a schema can be used; the error names the place.
    fn check(&self, schema: &Map<String, Value>) -> Result<(), String>;

    /// What is wrong with the instance; an error where the schema itself cannot be used.
    fn faults(&self, schema: &Map<String, Value>, instance: &Value) -> Result<Vec<Fault>, String>;

    /// Set once an answer is missing for a reason that no author can mend: what was decided with it is void.
    fn unanswered(&self) -> Option<Unanswered> {
        None
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// It is being worked out: whoever asks again later finds it.
    Waits,
    /// The node, or somebody on it.
    Broken(String),
}

/// On the caller's own stack, without a bound of time or memory: only for what the caller wrote, or trusts.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Evaluate for InProcess {
    fn evaluate(&self, source: &str, variables: &Map<String, Value>) -> Result<Value, String> {
        let mut tree = parser().parse(source).map_err(|e| e.to_string())?;
        numbers::replace(&mut tree);
        names::respell(&mut tree, variables);
        let mut context = Context::with_env(Arc::clone(&ENV));
        for (name, value) in variables {
            context.add_variable_from_value(name.clone(), to_cel(value));
        }
        let value = cel::Value::resolve(&tree, &context).map_err(|e| words::of(&e))?;
        let bytes = weight(&value);
        if bytes > EXPRESSION_DATA_BYTES {
            return Err(format!(
                "gives {bytes} bytes, at most {EXPRESSION_DATA_BYTES} are allowed; pick what is needed of each item, or write a plain path (a.b.c) that gives the whole"
            ));
        }
        from_cel(&value)
    }

    fn check(&self, schema: &Map<String, Value>) -> Result<(), String> {
        schema::Compiled::of(schema).map(drop)
    }

    fn faults(&self, schema: &Map<String, Value>, instance: &Value) -> Result<Vec<Fault>, String> {
        Ok(schema::Compiled::of(schema)?.faults(instance))
    }
}

pub fn parser() -> Parser {
    ENV.parser()
}

/// JSON text length, near enough, without writing it.
pub fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| size(item) + 1).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(key, item)| key.len() + size(item) + 4).sum::<usize>() + 2,
    }
}

/// As `size`, before the conversion.
fn weight(value: &cel::Value) -> usize {
    match value {
        cel::Value::String(text) => text.len() + 2,
        cel::Value::Bytes(bytes) => bytes.len() / 3 * 4 + 2,
        cel::Value::List(items) => items.iter().map(|item| weight(item) + 1).sum::<usize>() + 2,
        cel::Value::Map(map) => {
            map.map.iter().map(|(key, item)| key.to_string().len() + weight(item) + 4).sum::<usize>() + 2
        }
        _ => 8,
    }
}

/// Integers become `int`: the crate's own conversion makes them unsigned, and then `n - 4` fails.
fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(b) => cel::Value::Bool(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), _, _) => cel::Value::Int(i),
            (None, Some(u), _) => cel::Value::UInt(u),
            (None, None, f) => cel::Value::Float(f.unwrap_or_default()),
        },
        Value::String(s) => cel::Value::String(Arc::new(s.clone())),
        Value::Array(items) => cel::Value::List(Arc::new(items.iter().map(to_cel).collect())),
        Value::Object(map) => {
            let map: HashMap<cel::objects::Key, cel::Value> =
                map.iter().map(|(key, item)| (cel::objects::Key::from(key.as_str()), to_cel(item))).collect();
            cel::Value::Map(cel::objects::Map { map: Arc::new(map) })
        }
    }
}

/// Keys come out sorted: the map's own order is another one each time, and digests are made of what comes out.
fn from_cel(value: &cel::Value) -> Result<Value, String> {
    Ok(match value {
        cel::Value::List(items) => Value::Array(items.iter().map(from_cel).collect::<Result<_, _>>()?),
        cel::Value::Map(map) => {
            let mut entries: Vec<(String, Value)> = Vec::with_capacity(map.map.len());
            for (key, item) in map.map.iter() {
                entries.push((key.to_string(), from_cel(item)?));
            }
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(entries.into_iter().collect())
        }
        cel::Value::Float(f) => {
            Value::Number(Number::from_f64(*f).ok_or_else(|| format!("gives {f}, which JSON cannot hold"))?)
        }
        cel::Value::Opaque(_) => {
            return Err("gives a value that may be absent; end it with .orValue(...)".to_owned());
        }
        plain => plain.json().map_err(|_| "gives a value that JSON cannot hold".to_owned())?,
    })
}
