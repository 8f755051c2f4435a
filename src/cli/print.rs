//! What is printed: texts for people, and `-o json|yaml|name` for programs.

#![expect(clippy::disallowed_macros, reason = "lists as kubectl prints them")]

use std::fmt::Write;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::{Value, json};

use super::fault::{Code, Fault};
use super::text::is_unsafe;

#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
    Name,
    /// What lint found, for code scanning
    Sarif,
}

impl Format {
    /// Whether people read it, not programs.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// Whether standard output is for what the program makes, and what it says goes to standard error.
static ASIDE: AtomicBool = AtomicBool::new(false);

/// From now on `put` speaks aside, and `put_result` alone writes to standard output.
pub fn speak_aside() {
    ASIDE.store(true, Ordering::Relaxed);
}

/// Writes to standard output; a reader that went away (`| head`) ends the program without noise.
pub fn put(text: &str) -> Result<(), Fault> {
    if ASIDE.load(Ordering::Relaxed) {
        eprint!("{text}");
        return Ok(());
    }
    put_result(text)
}

/// The same, for what the program is called for.
pub fn put_result(text: &str) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|wrong| match wrong.kind() {
        std::io::ErrorKind::BrokenPipe => Fault::new(Code::Done, ""),
        _ => Fault::new(Code::Api, format!("cannot write the output: {wrong}")),
    })
}

/// One object for a program. Kinds are put in, because lists leave them out.
pub fn object(format: Format, kind: &str, object: &impl Serialize) -> Result<(), Fault> {
    put(&object_text(format, kind, object)?)
}

pub fn object_text(format: Format, kind: &str, object: &impl Serialize) -> Result<String, Fault> {
    value_as(format, &typed(kind, object)?)
}

/// A list of objects for a program.
pub fn list(format: Format, kind: &str, objects: &[impl Serialize]) -> Result<(), Fault> {
    put(&list_text(format, kind, objects)?)
}

pub fn list_text(format: Format, kind: &str, objects: &[impl Serialize]) -> Result<String, Fault> {
    let items = objects.iter().map(|object| typed(kind, object)).collect::<Result<Vec<_>, _>>()?;
    if format == Format::Name {
        return items.iter().map(|item| value_as(format, item)).collect();
    }
    value_as(format, &json!({"apiVersion": "v1", "kind": "List", "items": items}))
}

/// A value that is no object of the cluster.
pub fn plain(format: Format, value: &Value) -> Result<(), Fault> {
    put(&plain_text(format, value)?)
}

pub fn plain_text(format: Format, value: &Value) -> Result<String, Fault> {
    let format = if format == Format::Name { Format::Json } else { format };
    value_as(format, value)
}

fn value_as(format: Format, value: &Value) -> Result<String, Fault> {
    match format {
        Format::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(|w| unprintable(&w))?;
            // JSON is YAML too, and has escapes for what must not reach a terminal.
            if text.chars().any(|c| c != '\n' && is_unsafe(c)) {
                return json_text(value);
            }
            Ok(text)
        }
        Format::Name => {
            let text = |pointer| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            Ok(format!("{}.lockstep.dev/{}\n", text("/kind").to_ascii_lowercase(), text("/metadata/name")))
        }
        _ => json_text(value),
    }
}

/// The same value, with escapes for what a terminal would obey: such characters stand in strings only.
fn json_text(value: &Value) -> Result<String, Fault> {
    let text = serde_json::to_string_pretty(value).map_err(|w| unprintable(&w))?;
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if c != '\n' && is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").map_err(|w| unprintable(&w))?;
            }
        } else {
            out.push(c);
        }
    }
    out.push('\n');
    Ok(out)
}

fn typed(kind: &str, object: &impl Serialize) -> Result<Value, Fault> {
    let mut value = serde_json::to_value(object).map_err(|w| unprintable(&w))?;
    if let Some(map) = value.as_object_mut() {
        map.insert("apiVersion".to_owned(), json!("lockstep.dev/v1alpha1"));
        map.insert("kind".to_owned(), json!(kind));
        if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
            metadata.remove("managedFields");
        }
    }
    Ok(value)
}

fn unprintable(wrong: &impl std::fmt::Display) -> Fault {
    Fault::new(Code::Api, format!("cannot print the object: {wrong}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_value_and_hides_nothing() {
        let value = json!({"a": "x\u{202e}y\u{9b}\u{e0041}\n", "b": "世"});
        let text = json_text(&value).unwrap_or_default();
        assert!(text.contains("x\\u202ey\\u009b\\udb40\\udc41\\n"), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(value));
    }
}
