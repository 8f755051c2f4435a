//! `lockstep document`: documents beyond those that lie in `LOCKSTEP_IN` from the start. The verb talks to the shim; the shim
//! asks the gateway, which knows what the step can see.

#![expect(clippy::disallowed_methods, reason = "the pause between two tries")]
#![expect(clippy::disallowed_macros, reason = "bodies of the agent's calls, and answers to them")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::calls::{TROUBLE, expect, post, print};
use super::gateway::{CallError, Gateway};
use super::{Stop, files, say};
use crate::api::limits::DOCUMENTS_READ;
use crate::api::step::Format;
use crate::protocol::{DOCUMENTS, DocumentsAnswer, DocumentsRequest, FileNames, file_name};

/// How long an outage of the gateway is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the verb can do, and how it ends.
const HELP: &str = "\
Only published documents are found that the step can see: those of its own items, of its run, of its session and project, and of
the namespace. The narrowest scope that has the type wins, in it the newest revision. TYPE/KEY is the document of the item with
that key of a list that ended before this step, TYPE/* those of all its items. An attempt may read 20 documents so; which ones, and
their digests, stand in the StepRun.

Exit codes: 0 done, 1 there is no such document, 2 wrong usage, or it cannot be read (the reason is on stderr).

Examples:
  lockstep document list --scope session
  lockstep document get glossary --file glossary.md
  lockstep document list --type 'story/*'
  lockstep document get 'story/*' --dir stories";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    call: Call,
}

#[derive(Subcommand)]
enum Call {
    /// Print the document of a type
    Get {
        /// The type of the document, for example `brief`; `story/E1` of an item, `story/*` of all items
        #[arg(value_name = "TYPE")]
        document_type: String,
        #[command(flatten)]
        within: Within,
        /// Write it to FILE instead
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Write those of all items into this folder, a file each, named by its item's key
        #[arg(long, value_name = "DIR", conflicts_with = "file")]
        dir: Option<PathBuf>,
        /// Print {"document": ..., "content": "..."}, or {"documents": [...]} of these
        #[arg(long, conflicts_with_all = ["file", "dir"])]
        json: bool,
    },
    /// Print the documents that can be read, one a line: type, scope, revision, format, digest, name
    List {
        /// Only documents of this type; `story/*` are those of all items, and their keys stand behind the names
        #[arg(long = "type", value_name = "TYPE")]
        document_type: Option<String>,
        #[command(flatten)]
        within: Within,
        /// Print {"documents": [...], "more": false}
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct Within {
    /// Only documents of this scope
    #[arg(long, value_parser = ["item", "workflow", "session", "project", "namespace"], ignore_case = true)]
    scope: Option<String>,
}

/// The verb.
pub fn document(args: &Args) -> Result<u8, Stop> {
    match &args.call {
        Call::Get { document_type, within, file, dir, json } => {
            let of_all = document_type.ends_with("/*");
            if of_all != dir.is_some() && !(of_all && *json) {
                return Err(Stop::new(
                    TROUBLE,
                    "--dir DIR, or --json, goes with TYPE/*, and with nothing else".to_owned(),
                ));
            }
            let Some(answer) = ask("get", &body(Some(document_type), within))? else { return Ok(1) };
            if *json {
                return print(&format!("{answer}\n"));
            }
            if let Some(dir) = dir {
                return laid_out(dir, &answer);
            }
            let content = answer["content"].as_str().unwrap_or_default();
            match file {
                None => print(content),
                Some(file) => written(file, content),
            }
        }
        Call::List { document_type, within, json } => {
            let answer = ask("list", &body(document_type.as_deref(), within))?.unwrap_or_default();
            if *json {
                return print(&format!("{answer}\n"));
            }
            let documents = answer["documents"].as_array().cloned().unwrap_or_default();
            print(&documents.iter().map(line).collect::<String>())?;
            if answer["more"] == true {
                say("there are more documents than one answer holds: name a --type or a --scope");
            }
            Ok(0)
        }
    }
}

/// What is not named is not sent.
fn body(document_type: Option<&str>, within: &Within) -> Value {
    let mut body = json!({});
    for (field, value) in [("type", document_type), ("scope", within.scope.as_deref())] {
        if let Some(value) = value {
            body[field] = value.into();
        }
    }
    body
}

fn line(document: &Value) -> String {
    let text = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
    let revision = document["revision"].to_string();
    let cells = [text("type"), text("scope"), revision, text("format"), text("digest"), text("name")];
    let key = document["key"].as_str().map(|key| format!("\t{}", key.replace(['\t', '\n'], " ")));
    cells.join("\t") + &key.unwrap_or_default() + "\n"
}

/// A file for each, and its path on stdout.
fn laid_out(dir: &Path, answer: &Value) -> Result<u8, Stop> {
    let trouble = |error: &std::io::Error| Stop::new(TROUBLE, format!("{}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(|error| trouble(&error))?;
    let mut names = FileNames::default();
    for found in answer["documents"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let document = &found["document"];
        let format: Format = serde_json::from_value(document["format"].clone()).unwrap_or_default();
        let file = dir.join(format!("{}.{}", names.unique(file_name(&text(&document["key"]))), format.extension()));
        written(&file, &text(&found["content"]))?;
        print(&format!("{}\n", file.display()))?;
    }
    Ok(0)
}

fn written(file: &Path, content: &str) -> Result<u8, Stop> {
    files::replace(file, content.as_bytes())
        .map(|()| 0)
        .map_err(|error| Stop::new(TROUBLE, format!("{}: {error}", file.display())))
}

/// The answer; nothing, and a line on stderr, where there is no such document.
fn ask(call: &str, body: &Value) -> Result<Option<Value>, Stop> {
    let (status, answer) = post(&format!("document/{call}"), body)?;
    let read = serde_json::from_str::<Value>(&answer).unwrap_or_default();
    match (status, read["error"].as_str()) {
        (404, Some(error)) => {
            say(error);
            Ok(None)
        }
        (200, _) => Ok(Some(read)),
        _ => expect(status, 200, &answer).map(|_| None),
    }
}

/// What follows `TYPE/`.
enum Part {
    Whole,
    AllItems,
    Item(String),
}

/// Takes `TYPE/KEY` and `TYPE/*` apart.
fn part_of(asked: &mut serde_json::Map<String, Value>) -> Part {
    let Some((kind, rest)) = asked.get("type").and_then(Value::as_str).and_then(|kind| kind.split_once('/')) else {
        return Part::Whole;
    };
    let part = if rest == "*" { Part::AllItems } else { Part::Item(rest.to_owned()) };
    let kind = kind.to_owned();
    asked.insert("type".to_owned(), kind.into());
    part
}

/// Those of all items, each read by its key.
fn of_all_items(gateway: &Gateway, asked: &serde_json::Map<String, Value>) -> Result<(u16, Value), CallError> {
    let (status, listed) = send(gateway, asked.clone(), "list", &[("items", true.into())])?;
    let documents = listed["documents"].as_array().cloned().unwrap_or_default();
    if status != 200 || documents.is_empty() {
        let none = json!({"error": "there is no published document of this type of an item that the step can see"});
        return Ok(if status == 200 { (404, none) } else { (status, listed) });
    }
    if documents.len() > DOCUMENTS_READ {
        let why = format!(
            "the items have more than {DOCUMENTS_READ} documents of this type, and an attempt reads so many; name the step's `documents`, or read some by TYPE/KEY"
        );
        return Ok((400, json!({"error": why})));
    }
    let mut read = Vec::new();
    for document in documents {
        let (status, mut found) = send(gateway, asked.clone(), "get", &[("key", document["key"].clone())])?;
        if status != 200 {
            return Ok((status, found));
        }
        found["document"]["key"] = document["key"].clone();
        read.push(found);
    }
    Ok((200, json!({"documents": read})))
}

/// Answers one call of the agent: status and JSON, and the refusal where the gateway refused.
pub fn call(gateway: &Gateway, call: &str, body: &[u8]) -> Result<(u16, Value), CallError> {
    let fault = |error: &str| Ok((400, json!({"error": error})));
    let mut asked = match serde_json::from_slice(if body.is_empty() { b"{}" } else { body }) {
        Ok(Value::Object(asked)) => asked,
        Ok(_) => return fault("the body must be a JSON object"),
        Err(error) => return fault(&error.to_string()),
    };
    if !matches!(call, "get" | "list") {
        return Ok((404, json!({"error": "no such call"})));
    }
    if let Some(field) = ["key", "items"].into_iter().find(|field| asked.contains_key(*field)) {
        return fault(&format!("{field}: is no field; write type as TYPE/KEY or TYPE/*"));
    }
    match (part_of(&mut asked), call) {
        (Part::Whole, _) => send(gateway, asked, call, &[]),
        (Part::AllItems, "list") => send(gateway, asked, call, &[("items", true.into())]),
        (Part::AllItems, _) => of_all_items(gateway, &asked),
        (Part::Item(key), "get") => send(gateway, asked, call, &[("key", key.into())]),
        (Part::Item(_), _) => fault("type: a list has no TYPE/KEY; write TYPE/*"),
    }
}

fn send(
    gateway: &Gateway,
    mut asked: serde_json::Map<String, Value>,
    call: &str,
    more: &[(&str, Value)],
) -> Result<(u16, Value), CallError> {
    let fault = |error: &str| Ok((400, json!({"error": error})));
    asked.insert("kind".to_owned(), call.into());
    asked.extend(more.iter().map(|(field, value)| ((*field).to_owned(), value.clone())));
    let request: DocumentsRequest = match serde_json::from_value(Value::Object(asked)) {
        Ok(request) => request,
        Err(error) => return fault(&error.to_string()),
    };
    let answer = gateway.call(DOCUMENTS, &request, PATIENCE, |delay| {
        std::thread::sleep(delay);
        true
    })?;
    match serde_json::from_slice(&answer) {
        Ok(DocumentsAnswer::Found(found)) => Ok((200, json!(found))),
        Ok(DocumentsAnswer::Listed(listed)) => Ok((200, json!(listed))),
        Ok(DocumentsAnswer::Absent) => {
            Ok((404, json!({"error": "there is no published document of this type that the step can see"})))
        }
        Err(error) => Err(CallError::Unreachable(error.to_string())),
    }
}
