//! What the two ends say to each other, a line each way: milliseconds of processor time and a question, then an answer.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::Fault;

/// No question is longer, escapes included: an output of 512 KiB, whose numbers may be written out at greater length,
/// and the schema that it is held against.
pub const QUESTION_BYTES: usize = 4 << 20;
/// No answer is longer, escapes included.
pub const ANSWER_BYTES: usize = 1 << 20;
/// What the other end says once its own bounds stand.
pub const READY: &str = "ready\n";

/// As it is asked.
#[derive(Serialize, Clone, Copy, Debug)]
#[serde(rename_all = "camelCase")]
pub enum Question<'a> {
    Evaluate { source: &'a str, variables: &'a Map<String, Value> },
    Check { schema: &'a Map<String, Value> },
    Faults { schema: &'a Map<String, Value>, instance: &'a Value },
}

/// As it arrives.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub enum Asked {
    Evaluate { source: String, variables: Map<String, Value> },
    Check { schema: Map<String, Value> },
    Faults { schema: Map<String, Value>, instance: Value },
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    Value(Value),
    Fine,
    Faults(Vec<Fault>),
    /// What is wrong with the expression or the schema, in words.
    Error(String),
}

/// A question as a line, with the processor time that it has.
pub fn line(milliseconds: u64, question: &[u8]) -> Vec<u8> {
    let mut line = format!("{milliseconds} ").into_bytes();
    line.extend_from_slice(question);
    line.push(b'\n');
    line
}
