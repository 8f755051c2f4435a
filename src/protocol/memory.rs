//! What shim and gateway say to each other of an agent's memory.

use serde::{Deserialize, Serialize};

/// Path of the gateway's agent API.
pub const PATH: &str = "/v1/memory";

/// `POST /v1/memory`; the answer is a `MemoryAnswer`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemoryRequest {
    pub operation: Operation,
    /// The highest resourceVersion that the shim has heard of: no older copy may answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<u64>,
}

/// What is asked.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Operation {
    Get { key: String },
    List {},
    Set { key: String, value: String, if_revision: Option<i64>, sequence: i64 },
    Delete { key: String, if_revision: Option<i64>, sequence: i64 },
}

/// What came of it, and which copy of the memory says so.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct MemoryAnswer {
    pub resource_version: Option<u64>,
    pub outcome: Outcome,
}

/// What came of an operation. A conflict is one: it is no refusal, and the attempt goes on.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Outcome {
    /// `value` is JSON text.
    Found {
        value: String,
        revision: i64,
    },
    /// There is no such key.
    Absent,
    Listed {
        entries: Vec<Listed>,
        bytes: usize,
    },
    /// It is written; `revision` is absent after a delete.
    Done {
        revision: Option<i64>,
    },
    /// The key's revision is another than the one that was named; 0 where there is no such key.
    Conflict {
        revision: i64,
    },
}

/// One key of a list.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub revision: i64,
    /// Of its value.
    pub bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_read_back_and_nothing_else_is() {
        for operation in [
            Operation::Get { key: "k".to_owned() },
            Operation::List {},
            Operation::Set { key: "k".to_owned(), value: "1".to_owned(), if_revision: Some(2), sequence: 3 },
            Operation::Delete { key: "k".to_owned(), if_revision: None, sequence: 4 },
        ] {
            let request = MemoryRequest { operation: operation.clone(), at_least: Some(7) };
            let text = serde_json::to_string(&request).expect("it serializes");
            let read: MemoryRequest = serde_json::from_str(&text).expect("it is read");
            assert_eq!((read.operation, read.at_least), (operation, Some(7)), "{text}");
        }
        for text in [
            r#"{"operation":{"kind":"get"}}"#,
            r#"{"operation":{"kind":"grow","key":"k"}}"#,
            r#"{"operation":{"kind":"get","key":"k","agentId":"other"}}"#,
            r#"{"operation":{"kind":"list"},"session":"other"}"#,
            r#"{"operation":{"kind":"set","key":"k","value":"1"}}"#,
        ] {
            assert!(serde_json::from_str::<MemoryRequest>(text).is_err(), "{text}");
        }
    }
}
