//! The other end, `lockstep evaluate`: answers until its input ends. Bounds itself first, and says that it did.

#![expect(clippy::disallowed_types, reason = "the process that evaluates")]

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use serde_json::{Map, Value};

use super::process::bounded_line;
use super::wire::{Answer, Asked, QUESTION_BYTES, READY};
use crate::api::limits::EXPRESSION_MEMORY_BYTES;
use crate::definition::expression::{Evaluate, InProcess};
use crate::definition::schema::Compiled;

/// The stack that evaluation has. It counts against the memory, but only what is touched is real.
const STACK_BYTES: usize = 64 << 20;
/// Schemas that are kept compiled, and what all of them may take.
const KEPT: usize = 64;
const KEPT_BYTES: usize = 16 << 20;
const ERROR_CHARS: usize = 4096;
/// A process that holds more than that after an answer is not kept: what one question needed is not for good.
const RESIDENT_BYTES: usize = 96 << 20;
/// Nor one whose address space, which is bounded, has grown by so much: the next question would be refused for what others left.
const GROWTH_BYTES: usize = 32 << 20;
/// The smallest there are: with larger ones it is kept a little longer.
const PAGE_BYTES: usize = 4096;

pub fn serve() -> io::Result<()> {
    bound()?;
    // A panic is an answer; its text on a pipe that nobody reads before the end would fill it.
    std::panic::set_hook(Box::new(|_| {}));
    let answering = thread::Builder::new().stack_size(STACK_BYTES).spawn(answer_all)?;
    answering.join().map_err(|_| io::Error::other("it panicked"))?
}

fn bound() -> io::Result<()> {
    // What this program opens is closed by exec, what it was given itself is not.
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|file| *file > 2)
        .collect();
    for file in open {
        // One of them was the folder, which is closed already.
        let _ = nix::unistd::close(file);
    }
    setrlimit(Resource::RLIMIT_AS, EXPRESSION_MEMORY_BYTES, EXPRESSION_MEMORY_BYTES)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // Where the kernel must choose whom to end, it is this one and not whoever asks.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

/// Ends the process when a question has taken its processor time.
struct Clock(Timer);

impl Clock {
    fn new() -> io::Result<Self> {
        let ends = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGXCPU, si_value: 0 });
        Ok(Self(Timer::new(ClockId::CLOCK_PROCESS_CPUTIME_ID, ends)?))
    }

    /// None at all: it does not end.
    fn set(&mut self, milliseconds: u64) -> io::Result<()> {
        let left = Expiration::OneShot(Duration::from_millis(milliseconds).into());
        Ok(self.0.set(left, TimerSetTimeFlags::empty())?)
    }
}

fn answer_all() -> io::Result<()> {
    let (mut from, mut to) = (io::stdin().lock(), io::stdout().lock());
    let mut clock = Clock::new()?;
    let mut schemas = SchemaCache::default();
    warm_up(&mut schemas);
    let fresh = memory();
    to.write_all(READY.as_bytes())?;
    to.flush()?;
    // The line holds the time and its own end besides the question.
    while let Some(line) = bounded_line(&mut from, QUESTION_BYTES + 32)? {
        let (time, question) = line.split_once(' ').ok_or_else(|| io::Error::other("no time"))?;
        clock.set(time.parse().map_err(io::Error::other)?)?;
        // What was kept is in order whatever a question does: it is changed by whole entries.
        let answer = catch_unwind(AssertUnwindSafe(|| match serde_json::from_str(question) {
            Ok(asked) => schemas.answer(&asked),
            // Whoever asks wrote it as JSON, so only its depth can be wrong.
            Err(wrong) => Answer::Error(format!("what it reads is nested too deep: {wrong}")),
        }));
        let answer =
            answer.unwrap_or_else(|_| Answer::Error("cannot be evaluated: it made the evaluator panic".to_owned()));
        let mut line = serde_json::to_vec(&answer)?;
        clock.set(0)?;
        line.push(b'\n');
        to.write_all(&line)?;
        to.flush()?;
        // Whoever asks next starts another one, and has the whole of its memory.
        let now = memory();
        if now.resident > RESIDENT_BYTES || now.mapped > fresh.mapped + GROWTH_BYTES {
            break;
        }
    }
    Ok(())
}

/// The memory of this process in bytes; 0 where it cannot be read.
struct ProcessMemory {
    /// The address space, which counts against `RLIMIT_AS`, used or not.
    mapped: usize,
    /// The resident set: what the process takes of the node's memory.
    resident: usize,
}

fn memory() -> ProcessMemory {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut bytes = pages.split(' ').map(|pages| pages.parse().unwrap_or(0_usize) * PAGE_BYTES);
    ProcessMemory { mapped: bytes.next().unwrap_or_default(), resident: bytes.next().unwrap_or_default() }
}

/// What is built once is built before anybody waits for it.
fn warm_up(schemas: &mut SchemaCache) {
    let _ = InProcess.evaluate("1", &Map::new());
    schemas.answer(&Asked::Faults { schema: Map::new(), instance: Value::Null });
}

/// Compiled schemas by their text, faulty ones included; the one that was used last stands at the end.
#[derive(Default)]
struct SchemaCache {
    kept: Vec<(String, Result<Compiled, String>)>,
}

impl SchemaCache {
    fn answer(&mut self, asked: &Asked) -> Answer {
        let error = |fault: &str| Answer::Error(fault.chars().take(ERROR_CHARS).collect());
        match asked {
            Asked::Evaluate { source, variables } => match InProcess.evaluate(source, variables) {
                Ok(value) => Answer::Value(value),
                Err(fault) => error(&fault),
            },
            Asked::Check { schema } => match self.compiled(schema) {
                Ok(_) => Answer::Fine,
                Err(fault) => error(fault),
            },
            Asked::Faults { schema, instance } => match self.compiled(schema) {
                Ok(compiled) => Answer::Faults(compiled.faults(instance)),
                Err(fault) => error(fault),
            },
        }
    }

    fn compiled(&mut self, schema: &Map<String, Value>) -> Result<&Compiled, &str> {
        let text = serde_json::to_string(schema).unwrap_or_default();
        let entry = match self.kept.iter().position(|(known, _)| *known == text) {
            Some(at) => self.kept.remove(at),
            None => (text, Compiled::of(schema)),
        };
        self.kept.push(entry);
        while self.kept.len() > KEPT || (self.kept.len() > 1 && self.bytes() > KEPT_BYTES) {
            drop(self.kept.remove(0));
        }
        match self.kept.last() {
            Some((_, Ok(compiled))) => Ok(compiled),
            Some((_, Err(fault))) => Err(fault),
            None => Err("is not kept"),
        }
    }

    fn bytes(&self) -> usize {
        self.kept.iter().map(|(text, compiled)| text.len() + compiled.as_ref().map_or(0, Compiled::bytes)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn schemas_are_kept_within_bounds_and_the_last_ones_stay() {
        let mut schemas = SchemaCache::default();
        for n in 0..KEPT + 10 {
            let asked = Asked::Check { schema: schema(&json!({"title": n.to_string()})) };
            assert_eq!(schemas.answer(&asked), Answer::Fine);
        }
        assert_eq!(schemas.kept.len(), KEPT);
        assert_eq!(schemas.kept[0].0, json!({"title": "10"}).to_string());
        // One that is used goes to the end.
        schemas.answer(&Asked::Check { schema: schema(&json!({"title": "10"})) });
        assert_eq!(schemas.kept[0].0, json!({"title": "11"}).to_string());
        // Large ones push the others out.
        let large = |n: usize| json!({"title": n.to_string(), "description": "x".repeat(30_000)});
        for n in 0..KEPT {
            schemas.answer(&Asked::Check { schema: schema(&large(n)) });
        }
        assert!(
            schemas.bytes() <= KEPT_BYTES && schemas.kept.len() > 4,
            "{} of {}",
            schemas.bytes(),
            schemas.kept.len()
        );
    }

    #[test]
    fn a_schema_that_cannot_be_used_is_an_error_of_every_question_about_it() {
        let mut schemas = SchemaCache::default();
        let broken = schema(&json!({"type": "strin"}));
        for asked in [Asked::Check { schema: broken.clone() }, Asked::Faults { schema: broken, instance: json!(1) }] {
            assert!(matches!(schemas.answer(&asked), Answer::Error(fault) if fault.contains("/type")));
        }
        let integer = schema(&json!({"type": "integer"}));
        for (instance, faults) in [(json!(1), 0), (json!("x"), 1)] {
            let answer = schemas.answer(&Asked::Faults { schema: integer.clone(), instance });
            assert!(matches!(&answer, Answer::Faults(found) if found.len() == faults), "{answer:?}");
        }
    }
}
