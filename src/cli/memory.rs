//! `memory`: what an agent remembers in a session, as people see and correct it.

#![expect(clippy::disallowed_macros, reason = "the merge patch of one key")]

use std::path::{Path, PathBuf};

use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::complete;
use super::connect::Connection;
use super::fault::{Code, Fault};
use super::line::RenderOptions;
use super::print::{self, Format, put};
use super::table::{Cell, table};
use super::text::inline;
use super::value::inexact;
use crate::api::name::{self, CLI};
use crate::api::{Memory, MemorySpec, Workflow};
use crate::decide::memory as rules;
use crate::definition::digits;

/// Changes of others that a write is decided anew after.
const ROUNDS: usize = 10;

/// See and correct what an agent remembers in a session
#[derive(clap::Args, Debug)]
#[command(after_help = "\
SESSION is the session of runs, or the name of a run whose session is meant: one without a session of its own has a private
one. Values are JSON. A running attempt hears of a change within 2 s; one that writes with --if-revision overwrites nobody.
You need the right to get, for set and rm to patch memories (ClusterRoles lockstep-view and lockstep-edit).

Exit codes: 0 done, 1 another revision than --if-revision says, 2 wrong usage, or beyond a bound, 4 no such memory or key,
5 the API server refused.

Examples:
  kubectl lockstep memory list planner spring-campaign
  kubectl lockstep memory get planner shop style
  kubectl lockstep memory set planner shop style '\"formal\"'
  kubectl lockstep memory set planner shop plan --file plan.json --if-revision 4
  kubectl lockstep memory rm planner shop style")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Print the value of KEY, or of all keys
    Get {
        #[command(flatten)]
        of: Of,
        key: Option<String>,
    },
    /// Set KEY to VALUE, which is JSON
    Set {
        #[command(flatten)]
        of: Of,
        key: String,
        #[arg(required_unless_present = "file", allow_hyphen_values = true)]
        value: Option<String>,
        /// Take the value from this file
        #[arg(long, short, conflicts_with = "value")]
        file: Option<PathBuf>,
        /// Only if KEY has this revision; 0: only if there is no such key
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
        if_revision: Option<i64>,
    },
    /// Delete KEY
    Rm {
        #[command(flatten)]
        of: Of,
        key: String,
        /// Only if KEY has this revision
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
        if_revision: Option<i64>,
    },
    /// List the keys with their revisions and sizes
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        of: Of,
    },
}

/// Whose memory.
#[derive(clap::Args, Debug)]
struct Of {
    /// The agent: the name of the Agent
    #[arg(add = complete::by(complete::agents))]
    agent: String,
    /// The session, or a run
    #[arg(add = complete::by(complete::sessions))]
    session: String,
}

/// What becomes of one key.
#[derive(Clone, Copy, Debug)]
struct Write<'a> {
    key: &'a str,
    /// JSON text; nothing deletes.
    value: Option<&'a str>,
    if_revision: Option<i64>,
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    match &args.verb {
        Verb::Get { of, key } => get(on, &find(on, of).await?, key.as_deref()),
        Verb::List { of } => list(on, &find(on, of).await?),
        Verb::Set { of, key, value, file, if_revision } => {
            let value = typed(value.as_deref(), file.as_deref())?;
            let write = Write { key, value: Some(&value), if_revision: *if_revision };
            write_it(on, find(on, of).await?, write).await
        }
        Verb::Rm { of, key, if_revision } => {
            let write = Write { key, value: None, if_revision: *if_revision };
            write_it(on, find(on, of).await?, write).await
        }
    }
}

async fn find(on: &Connection, of: &Of) -> Result<Memory, Fault> {
    if let Some(memory) = named(on, &of.agent, &of.session).await? {
        return Ok(memory);
    }
    let runs: Api<Workflow> = on.api();
    let run = on.call("read the run", runs.get_opt(&of.session)).await.unwrap_or_default();
    let session = run.and_then(|run| run.status?.session).map(|session| session.id);
    if let Some(session) = session.filter(|session| *session != of.session)
        && let Some(memory) = named(on, &of.agent, &session).await?
    {
        return Ok(memory);
    }
    Err(Fault::missing(format!(
        "no memory of the agent {} in the session {} in namespace {}; it is made before the first attempt of that agent in that session; see kubectl get memories, or choose another -n",
        inline(&of.agent, 80),
        inline(&of.session, 80),
        on.namespace
    )))
}

async fn named(on: &Connection, agent: &str, session: &str) -> Result<Option<Memory>, Fault> {
    let api: Api<Memory> = on.api();
    let found = on.call("read the memory", api.get_opt(&name::memory(agent, session))).await?;
    Ok(found.filter(|memory| memory.spec.agent_id == agent && memory.spec.session == session))
}

fn no_key(key: &str) -> Fault {
    Fault::missing(format!("no key {} in this memory; see kubectl lockstep memory list", inline(key, 128)))
}

fn value_of(text: &str) -> Value {
    // What is no JSON was put there by hand: it is shown as the text that it is.
    digits::read(text).unwrap_or_else(|_| Value::from(text))
}

fn get(on: &Connection, memory: &Memory, key: Option<&str>) -> Result<Code, Fault> {
    let entries = &memory.spec.entries;
    let value = match key {
        Some(key) => value_of(&entries.get(key).ok_or_else(|| no_key(key))?.value),
        None => entries.iter().map(|(key, entry)| (key.clone(), value_of(&entry.value))).collect(),
    };
    let format = if on.output.is_text() { Format::Json } else { on.output };
    print::plain(format, &value)?;
    Ok(Code::Done)
}

fn list(on: &Connection, memory: &Memory) -> Result<Code, Fault> {
    if on.output.is_text() {
        put(&listing(&memory.spec, RenderOptions::for_stdout()))?;
    } else {
        print::object(on.output, "Memory", memory)?;
    }
    Ok(Code::Done)
}

fn listing(spec: &MemorySpec, options: RenderOptions) -> String {
    let rows: Vec<Vec<Cell>> = spec
        .entries
        .iter()
        .map(|(key, entry)| {
            let columns =
                [inline(key, 128), entry.revision.to_string(), entry.value.len().to_string(), inline(&entry.value, 60)];
            columns.map(Cell::from).into()
        })
        .collect();
    table(&["KEY", "REVISION", "BYTES", "VALUE"], &rows, options)
}

/// What is typed must be JSON, and no digit of it may get lost.
fn typed(value: Option<&str>, file: Option<&Path>) -> Result<String, Fault> {
    let text = match (value, file) {
        (Some(text), _) => text.to_owned(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|wrong| Fault::usage(format!("cannot read {}: {wrong}", file.display())))?,
        (None, None) => String::new(),
    };
    let read: Value = serde_json::from_str(&text)
        .map_err(|wrong| Fault::usage(format!("VALUE: is not JSON ({wrong}); a text stands in quotes: '\"text\"'")))?;
    // The number that stands in the memory is the one that agents read.
    match inexact(&text, &read) {
        Some(at) => {
            Err(Fault::usage(format!("VALUE: {} has more digits than are kept; put it in quotes", inline(&at, 80))))
        }
        None => Ok(read.to_string()),
    }
}

/// The merge patch that does it at this version; or why not.
fn decided(memory: &Memory, write: &Write<'_>) -> Result<(Value, i64), Fault> {
    let spec = &memory.spec;
    if let Some(fault) = rules::fault(write.key, write.value) {
        return Err(Fault::usage(fault));
    }
    let current = spec.entries.get(write.key).map_or(0, |entry| entry.revision);
    if write.value.is_none() && current == 0 {
        return Err(no_key(write.key));
    }
    if write.if_revision.is_some_and(|wanted| wanted != current) {
        let is = if current == 0 { "is not there".to_owned() } else { format!("has the revision {current}") };
        return Err(Fault::new(Code::Failed, format!("the key {} {is}; nothing was written", write.key)));
    }
    if let Some(fault) = write.value.and_then(|value| rules::too_much(spec, write.key, value)) {
        return Err(Fault::usage(fault));
    }
    let revision = rules::next_revision(spec);
    let entry = write.value.map(|value| json!({"value": value, "revision": revision}));
    let patch = json!({
        "metadata": {"uid": memory.metadata.uid, "resourceVersion": memory.metadata.resource_version},
        "spec": {"revision": revision, "entries": {write.key: entry}},
    });
    Ok((patch, revision))
}

/// As often as others write in between.
async fn write_it(on: &Connection, mut memory: Memory, write: Write<'_>) -> Result<Code, Fault> {
    let api: Api<Memory> = on.api();
    let (name, what) = (memory.name_any(), "write to the memory");
    for _ in 0..ROUNDS {
        let (patch, revision) = decided(&memory, &write)?;
        let params = PatchParams { field_manager: Some(CLI.to_owned()), ..PatchParams::default() };
        match on.within(what, api.patch(&name, &params, &Patch::Merge(patch))).await? {
            Ok(_) if on.output.is_text() => {
                let done = if write.value.is_some() { "set" } else { "deleted" };
                put(&format!("{} is {done}, revision {revision}\n", write.key))?;
                return Ok(Code::Done);
            }
            Ok(changed) => {
                print::object(on.output, "Memory", &changed)?;
                return Ok(Code::Done);
            }
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                memory = on.read_known("read the memory", &name).await?;
            }
            Err(wrong) => return Err(Fault::call(what, &wrong)),
        }
    }
    Err(Fault::new(Code::Api, "cannot write to the memory: others keep writing to it; try again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::memory::MemoryEntry;

    fn memory() -> Memory {
        let mut memory = Memory::new("m", MemorySpec::default());
        memory.spec.revision = 7;
        let entry = MemoryEntry { value: "\"formal\"".to_owned(), revision: 4 };
        memory.spec.entries.insert("style".to_owned(), entry);
        memory.metadata.resource_version = Some("12".to_owned());
        memory.metadata.uid = Some("u".to_owned());
        memory
    }

    #[test]
    fn a_write_is_a_patch_of_one_key_at_a_version() {
        for (key, value, if_revision, entry) in [
            ("style", Some("1"), None, json!({"value": "1", "revision": 8})),
            ("style", Some("1"), Some(4), json!({"value": "1", "revision": 8})),
            ("new", Some("{}"), Some(0), json!({"value": "{}", "revision": 8})),
            ("style", None, Some(4), Value::Null),
        ] {
            let (patch, revision) = decided(&memory(), &Write { key, value, if_revision }).expect("a patch");
            assert_eq!(revision, 8);
            let expected = json!({"metadata": {"uid": "u", "resourceVersion": "12"},
                "spec": {"revision": 8, "entries": {key: entry}}});
            assert_eq!(patch, expected);
        }
    }

    #[test]
    fn a_write_that_may_not_be_says_why() {
        let big = format!("\"{}\"", "x".repeat(70_000));
        for (key, value, if_revision, code, words) in [
            ("style", Some("1"), Some(3), Code::Failed, "has the revision 4"),
            ("new", Some("1"), Some(3), Code::Failed, "is not there"),
            ("new", None, None, Code::NotFound, "no key new"),
            ("a/b", Some("1"), None, Code::Usage, "key: must be"),
            ("style", Some(big.as_str()), None, Code::Usage, "at most 65536"),
        ] {
            let fault = decided(&memory(), &Write { key, value, if_revision }).expect_err("refused");
            assert!(fault.code == code && fault.text.contains(words), "{fault:?}");
        }
        for (text, words) in [("hello", "is not JSON"), ("123456789012345678901", "more digits")] {
            let fault = typed(Some(text), None).expect_err("refused");
            assert!(fault.code == Code::Usage && fault.text.contains(words), "{fault:?}");
        }
        assert_eq!(typed(Some(" {\"a\": 1} "), None).ok().as_deref(), Some("{\"a\":1}"));
    }

    #[test]
    fn keys_are_listed_and_cannot_harm_a_terminal() {
        let mut memory = memory();
        memory.spec.entries.insert("z".to_owned(), MemoryEntry { value: "\"\u{1b}[2J\"".to_owned(), revision: 7 });
        let text = listing(&memory.spec, RenderOptions::default());
        assert!(text.contains("KEY") && text.contains("style") && !text.contains('\u{1b}'), "{text}");
    }
}
