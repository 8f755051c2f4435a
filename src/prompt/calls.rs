//! The way to the shim: the calls that every agent has, and the tools of its MCP server, which are the model's. The server keeps
//! nothing between two requests, so each is one POST.

use rmcp::model::{CallToolResult, ListToolsResult};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chat::{Function, Tool};

/// The protocol of MCP whose requests stand for themselves.
const VERSION: &str = "2025-06-18";
/// What is not the model's: the runtime counts, checks and ends by itself, and `permission_prompt` is for runtimes with tools of
/// their own.
const NOT_OFFERED: [&str; 4] = ["journal", "usage", "result", "permission_prompt"];

pub struct Calls {
    agent: ureq::Agent,
    url: String,
}

/// A tool as it is offered, and whether it may end the attempt.
pub struct Offered {
    pub tool: Tool,
    pub ends: bool,
}

/// What a tool has given.
pub struct Gave {
    pub text: String,
    /// The attempt is over: the shim ends this process.
    pub is_end: bool,
}

#[derive(Serialize)]
struct Asked<'a, P> {
    jsonrpc: &'static str,
    id: u32,
    method: &'a str,
    params: P,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answered<R> {
    Result { result: R },
    Error { error: Wrong },
}

#[derive(Deserialize)]
struct Wrong {
    message: String,
}

#[derive(Serialize)]
struct NoParams {}

#[derive(Serialize)]
struct Use<'a> {
    name: &'a str,
    arguments: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct Progress<'a> {
    percent: u32,
    message: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Used<'a> {
    tokens_in: i64,
    tokens_out: i64,
    model: &'a str,
}

/// That the attempt failed.
#[derive(Serialize)]
pub struct Failed<'a> {
    pub retryable: bool,
    pub message: &'a str,
}

#[derive(Deserialize, Default)]
struct Checked {
    #[serde(default)]
    faults: Vec<crate::protocol::Fault>,
}

impl Calls {
    pub fn new(url: String) -> Self {
        // As long as the attempt: people may be waited for.
        let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false);
        Self { agent: config.build().new_agent(), url }
    }

    fn post(&self, call: &str, body: &[u8]) -> Result<(u16, String), String> {
        let post = self.agent.post(format!("{}/{call}", self.url)).header("content-type", "application/json");
        let post = post.header("accept", "application/json, text/event-stream").header("mcp-protocol-version", VERSION);
        let lost = |error: ureq::Error| format!("{call}: the shim cannot be reached: {error}");
        let mut answer = post.send(body).map_err(lost)?;
        let text = answer.body_mut().with_config().limit(u64::MAX).read_to_string().map_err(lost)?;
        Ok((answer.status().as_u16(), text))
    }

    fn say(&self, call: &str, body: &impl Serialize) -> Result<(), String> {
        let (status, answer) = self.post(call, &serde_json::to_vec(body).unwrap_or_default())?;
        if (200..300).contains(&status) { Ok(()) } else { Err(format!("{call}: {status} {answer}")) }
    }

    fn ask<R: DeserializeOwned>(&self, method: &str, params: impl Serialize) -> Result<R, String> {
        let asked = Asked { jsonrpc: "2.0", id: 1, method, params };
        let (status, answer) = self.post("mcp", &serde_json::to_vec(&asked).unwrap_or_default())?;
        match serde_json::from_str(&answer) {
            Ok(Answered::Result { result }) => Ok(result),
            Ok(Answered::Error { error }) => Err(error.message),
            Err(error) => Err(format!("{method}: {status} {error}")),
        }
    }

    pub fn progress(&self, percent: u32, message: &str) -> Result<(), String> {
        self.say("progress", &Progress { percent, message })
    }

    pub fn usage(&self, tokens_in: i64, tokens_out: i64, model: &str) -> Result<(), String> {
        self.say("usage", &Used { tokens_in, tokens_out, model })
    }

    pub fn fail(&self, failed: &Failed<'_>) -> Result<(), String> {
        self.say("fail", failed)
    }

    /// Writes the output, if it is not empty, and has all that was made checked: what is wrong with it. Where nobody can say, the
    /// report is judged.
    pub fn result(&self, output: &str) -> Result<Vec<String>, String> {
        match self.post("result", output.as_bytes())? {
            (200 | 503, _) => Ok(Vec::new()),
            (422, answer) => {
                let checked: Checked = serde_json::from_str(&answer).unwrap_or_default();
                Ok(checked.faults.iter().map(ToString::to_string).collect())
            }
            (413, _) => Ok(vec!["the output is too large".to_owned()]),
            (status, answer) => Err(format!("result: {status} {answer}")),
        }
    }

    /// What a model may call.
    pub fn tools(&self) -> Result<Vec<Offered>, String> {
        let listed: ListToolsResult = self.ask("tools/list", NoParams {})?;
        let offered = listed.tools.into_iter().filter(|tool| !NOT_OFFERED.contains(&tool.name.as_ref()));
        let offered = offered.map(|tool| Offered {
            ends: tool.annotations.as_ref().and_then(|hints| hints.destructive_hint) == Some(true),
            tool: Tool {
                kind: "function",
                function: Function {
                    name: tool.name.into_owned(),
                    description: tool.description.unwrap_or_default().into_owned(),
                    parameters: Value::Object(tool.input_schema.as_ref().clone()),
                },
            },
        });
        Ok(offered.collect())
    }

    pub fn tool(&self, offered: &Offered, arguments: &Map<String, Value>) -> Result<Gave, String> {
        let given: CallToolResult = self.ask("tools/call", Use { name: &offered.tool.function.name, arguments })?;
        let is_error = given.is_error == Some(true);
        // Only the end of an attempt has a word of its own.
        let is_end = offered.ends
            && !is_error
            && given.structured_content.as_ref().is_some_and(|answer| answer["message"].is_string());
        let text = match given.structured_content {
            Some(answer) => answer.to_string(),
            None => given.content.iter().filter_map(|block| Some(block.as_text()?.text.as_str())).collect(),
        };
        Ok(Gave { text, is_end })
    }
}
