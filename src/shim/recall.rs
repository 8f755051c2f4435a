//! The verb `memory`, which an agent calls: it talks to the shim over `LOCKSTEP_URL`.

#![expect(clippy::disallowed_macros, reason = "bodies of the agent's calls")]

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::calls::{TROUBLE, expect, post, print};
use super::{Stop, files, say};
use crate::definition::digits;

/// Exit codes of the verb beside 0.
const HELP: &str = "\
Values are JSON. Every key has a revision, the number of the write that gave its value; no number is given twice.
A key is a letter, a digit or _, then letters, digits and . _ : - (128 characters); a value has at most 64 KiB, all of them
together 256 KiB. What a call has written is there for good, whatever becomes of the attempt.

Exit codes:
  0  done
  1  there is no such key, or it has another revision than --if-revision says
  2  refused; the message names the field and its bound";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    call: Call,
}

#[derive(Subcommand)]
enum Call {
    /// Print the value of KEY
    Get {
        key: String,
        /// Print strings as JSON too, in quotes
        #[arg(long)]
        json: bool,
        /// Print {"value": ..., "revision": N}
        #[arg(long, conflicts_with = "json")]
        revision: bool,
    },
    /// Set KEY to VALUE, which is JSON; prints the revision that it has now
    Set {
        key: String,
        #[arg(required_unless_present = "file", allow_hyphen_values = true)]
        value: Option<String>,
        /// Take the value from this file
        #[arg(long, conflicts_with = "value")]
        file: Option<PathBuf>,
        /// Only if KEY has this revision; 0: only if there is no such key
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
        if_revision: Option<i64>,
    },
    /// Delete KEY; one that is not there is no fault
    Delete {
        key: String,
        /// Only if KEY has this revision
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
        if_revision: Option<i64>,
    },
    /// Print every key with its revision and the bytes of its value, one a line
    List,
}

/// How a value is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Raw,
    Json,
    WithRevision,
}

pub fn memory(args: &Args) -> Result<u8, Stop> {
    match &args.call {
        Call::Get { key, revision: true, .. } => get(key, Shown::WithRevision),
        Call::Get { key, json, .. } => get(key, if *json { Shown::Json } else { Shown::Raw }),
        Call::Set { key, value, file, if_revision } => {
            let value = typed(value.as_deref(), file.as_deref())?;
            let mut body = json!({"key": key, "value": value});
            condition(&mut body, *if_revision);
            let answer = ask("set", &body)?;
            let Some(answer) = answer else { return Ok(1) };
            print(&format!("{}\n", answer["revision"]))
        }
        Call::Delete { key, if_revision } => {
            let mut body = json!({"key": key});
            condition(&mut body, *if_revision);
            Ok(u8::from(ask("delete", &body)?.is_none()))
        }
        Call::List => {
            let answer = ask("list", &json!({}))?.unwrap_or_default();
            let entries = answer["entries"].as_array().cloned().unwrap_or_default();
            let line =
                |e: &Value| format!("{}\t{}\t{}\n", e["key"].as_str().unwrap_or_default(), e["revision"], e["bytes"]);
            print(&entries.iter().map(line).collect::<String>())
        }
    }
}

fn get(key: &str, shown: Shown) -> Result<u8, Stop> {
    let Some(answer) = ask("get", &json!({"key": key}))? else { return Ok(1) };
    match &answer["value"] {
        _ if shown == Shown::WithRevision => print(&format!("{answer}\n")),
        Value::String(text) if shown == Shown::Raw => print(&format!("{text}\n")),
        value => print(&format!("{value}\n")),
    }
}

/// A condition that is not named is not sent.
fn condition(body: &mut Value, if_revision: Option<i64>) {
    if let Some(revision) = if_revision {
        body["ifRevision"] = revision.into();
    }
}

/// The answer; nothing, and a line on stderr, where the key is not there or has another revision.
fn ask(call: &str, body: &Value) -> Result<Option<Value>, Stop> {
    let (status, answer) = post(&format!("memory/{call}"), body)?;
    let read = serde_json::from_str::<Value>(&answer).unwrap_or_default();
    match (status, read["error"].as_str()) {
        (404 | 409, Some(error)) => {
            say(error);
            Ok(None)
        }
        (200, _) => Ok(Some(read)),
        _ => expect(status, 200, &answer).map(|_| None),
    }
}

fn typed(value: Option<&str>, file: Option<&Path>) -> Result<Value, Stop> {
    let (name, text) = match (value, file) {
        (Some(text), _) => ("VALUE".to_owned(), text.to_owned()),
        (None, Some(file)) => {
            let fault = |error: std::io::Error| Stop::new(TROUBLE, format!("{}: {error}", file.display()));
            let read = files::read_output(file).map_err(fault)?;
            let read = read.ok_or_else(|| fault(std::io::ErrorKind::NotFound.into()))?;
            (file.display().to_string(), read.text)
        }
        (None, None) => (String::new(), String::new()),
    };
    digits::read(&text).map_err(|error| {
        Stop::new(TROUBLE, format!("{name}: is not JSON ({error}); a text stands in quotes: '\"text\"'"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_json_and_a_text_is_told_how_to_stand() {
        for (text, value) in [
            ("1", json!(1)),
            ("\"a\"", json!("a")),
            ("{\"a\": [null]}", json!({"a": [null]})),
            ("12345678901234567890123", json!("12345678901234567890123")),
        ] {
            assert_eq!(typed(Some(text), None).ok(), Some(value));
        }
        for text in ["hello", "", "{a: 1}", "1 2"] {
            let fault = typed(Some(text), None).expect_err("refused");
            assert!(fault.code == TROUBLE && fault.message.contains("VALUE: is not JSON"), "{}", fault.message);
        }
        let missing = typed(None, Some(Path::new("/nowhere/at/all"))).expect_err("refused");
        assert!(missing.message.starts_with("/nowhere/at/all: "), "{}", missing.message);
    }
}
