//! The conversation of one attempt: asked, called, checked and mended, until there is an output or an end.

#![expect(clippy::disallowed_methods, reason = "the pace of progress")]

use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::Log;
use super::calls::{Calls, Offered};
use super::chat::{Call, Called, Function, Message, Reply, Request, ResponseFormat, StreamOptions, Tool};
use super::endpoint::{Endpoint, Trouble};
use super::model_input::{ModelInput, ReplyFormat, ToolDocument, WRITE};

/// Between two words of what the model writes.
const PACE: Duration = Duration::from_secs(1);
/// Of the end of what it has written, for people.
const SHOWN: usize = 160;
const FULL: u32 = 100;
/// What a document of the format `link` has, its types and what they are; the gateway checks it (`gateway/judge.rs`).
const LINK: [(&str, &str, &str); 4] = [
    ("uri", "string", "Where it lies: a URI with a scheme, 2048 characters at most."),
    ("sha256", "string", "The SHA-256 of what lies there: 64 hexadecimal digits."),
    ("bytes", "integer", "How many bytes lie there."),
    ("mediaType", "string", "What it is, as application/gzip; it may be left out."),
];

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// With an output, which the report is judged by.
    Done,
    Failed {
        retryable: bool,
        why: String,
    },
}

pub struct Talk<'a> {
    input: &'a ModelInput,
    endpoint: &'a Endpoint,
    calls: &'a Calls,
    log: &'a Log,
    messages: Vec<Message>,
    offered: Vec<Offered>,
    format: Option<ResponseFormat>,
    /// Whether something lies there to be judged.
    is_delivered: bool,
}

impl<'a> Talk<'a> {
    pub fn new(input: &'a ModelInput, endpoint: &'a Endpoint, calls: &'a Calls, log: &'a Log) -> Result<Self, String> {
        let mut offered = calls.tools()?;
        offered.extend(input.tool_document().map(write_tool));
        Ok(Self {
            input,
            endpoint,
            calls,
            log,
            messages: vec![Message::System { content: input.system() }, Message::User { content: input.user() }],
            offered,
            format: input.output.schema.clone().map(ResponseFormat::of),
            is_delivered: false,
        })
    }

    pub fn hold(mut self) -> End {
        let most = self.input.prompt.max_turns;
        for turn in 1..=most {
            let reply = match self.reply(turn) {
                Ok(reply) => reply,
                Err(end) => return end,
            };
            self.count(turn, &reply);
            if let Some(why) = withheld(&reply) {
                return End::Failed { retryable: false, why };
            }
            if !reply.calls.is_empty() {
                self.use_tools(reply);
                continue;
            }
            let faults = match self.deliver(&reply) {
                Ok(faults) if faults.is_empty() => return End::Done,
                Ok(faults) => faults,
                Err(why) => return End::Failed { retryable: true, why },
            };
            self.log.say(&format!("turn {turn}: {}", faults.join("; ")));
            let document = self.input.tool_document().map_or_else(String::new, |tool| {
                format!(" What is wrong with {} is mended with the tool `{WRITE}`.", tool.file)
            });
            let faults = faults.join("\n");
            let content = format!("This is wrong with it:\n{faults}\nMend it, and give the whole again.{document}");
            self.messages.push(Message::Assistant { content: Some(reply.text), tool_calls: Vec::new() });
            self.messages.push(Message::User { content });
        }
        // What is wrong with it, the report says.
        if self.is_delivered {
            return End::Done;
        }
        End::Failed {
            retryable: true,
            why: format!("the model has given no output, and its turns are over (maxTurns: {most})"),
        }
    }

    /// What the model says next.
    fn reply(&mut self, turn: u32) -> Result<Reply, End> {
        let percent = (turn - 1) * FULL / self.input.prompt.max_turns;
        self.tell(percent, &self.at(turn));
        match self.ask(turn, percent) {
            // Not every endpoint takes a schema.
            Err(Trouble::Unfit(why)) if self.format.take().is_some() => {
                self.log.say(&format!("{why}; asked again with the schema in words"));
                if let Some(Message::User { content }) = self.messages.get_mut(1) {
                    content.push_str(&self.input.schema_in_words());
                }
                self.ask(turn, percent)
            }
            asked => asked,
        }
        .map_err(|trouble| match trouble {
            Trouble::Passing { why, .. } => End::Failed { retryable: true, why },
            Trouble::Lasting(why) | Trouble::Unfit(why) => End::Failed { retryable: false, why },
        })
    }

    fn at(&self, turn: u32) -> String {
        format!("turn {turn} of {}: {}", self.input.prompt.max_turns, self.input.prompt.model)
    }

    fn ask(&self, turn: u32, percent: u32) -> Result<Reply, Trouble> {
        let prompt = &self.input.prompt;
        let tools: Vec<&Tool> = self.offered.iter().map(|offered| &offered.tool).collect();
        let request = Request {
            model: &prompt.model,
            messages: &self.messages,
            temperature: prompt.temperature,
            tools: &tools,
            response_format: self.format.as_ref(),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
        };
        let mut told = Instant::now();
        let mut tell = |text: &str| {
            if told.elapsed() >= PACE {
                told = Instant::now();
                // It may think, or write what a tool is to be called with.
                self.tell(percent, &Some(last(text)).filter(|text| !text.is_empty()).unwrap_or_else(|| self.at(turn)));
            }
        };
        self.endpoint.reply(&request, &mut tell, &|why| self.log.say(why))
    }

    /// Progress that is lost is followed by more.
    fn tell(&self, percent: u32, words: &str) {
        if let Err(why) = self.calls.progress(percent, words) {
            self.log.say(&why);
        }
    }

    fn count(&self, turn: u32, reply: &Reply) {
        let usage = reply.usage.unwrap_or_default();
        let tools: Vec<&str> = reply.calls.iter().map(|call| call.function.name.as_str()).collect();
        let tools = if tools.is_empty() { String::new() } else { format!("; calls {}", tools.join(", ")) };
        self.log
            .say(&format!("turn {turn}: {} tokens in, {} out{tools}", usage.prompt_tokens, usage.completion_tokens));
        if usage.prompt_tokens > 0 || usage.completion_tokens > 0 {
            let (tokens_in, tokens_out) = (usage.prompt_tokens.max(0), usage.completion_tokens.max(0));
            if let Err(why) = self.calls.usage(tokens_in, tokens_out, &self.input.prompt.model) {
                self.log.say(&why);
            }
        }
    }

    fn use_tools(&mut self, reply: Reply) {
        let given: Vec<(String, String)> = reply
            .calls
            .iter()
            .map(|call| (call.id.clone(), self.use_tool(call).unwrap_or_else(|fault| fault)))
            .collect();
        let content = Some(reply.text).filter(|text| !text.is_empty());
        self.messages.push(Message::Assistant { content, tool_calls: reply.calls });
        for (tool_call_id, content) in given {
            self.messages.push(Message::Tool { tool_call_id, content });
        }
    }

    /// What the tool gives; an error is for the model as well.
    fn use_tool(&self, call: &Call) -> Result<String, String> {
        let Called { name, arguments } = &call.function;
        let known = || self.offered.iter().map(|offered| offered.tool.function.name.as_str());
        let Some(offered) = self.offered.iter().find(|offered| offered.tool.function.name == *name) else {
            return Err(format!(
                "error: there is no tool {name}; there are {}",
                known().collect::<Vec<_>>().join(", ")
            ));
        };
        let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
        let arguments: Map<String, Value> = serde_json::from_str(arguments)
            .map_err(|error| format!("error: the arguments of {name} are no JSON object: {error}"))?;
        if name == WRITE {
            return self.write_tool_document(arguments).map_err(|why| format!("error: {why}"));
        }
        let gave = self.calls.tool(offered, &arguments).map_err(|why| format!("error: {why}"))?;
        if gave.is_end {
            self.log.say(&format!("{name} ends this attempt"));
            // The shim ends this process; nothing may begin meanwhile.
            loop {
                std::thread::park();
            }
        }
        Ok(gave.text)
    }

    /// The document that is not the reply; it is checked with that.
    fn write_tool_document(&self, mut arguments: Map<String, Value>) -> Result<String, String> {
        match (self.input.tool_document(), arguments.remove("content")) {
            (Some(ToolDocument { file, is_link: false }), Some(Value::String(content))) => {
                self.write(file, &content)?;
            }
            (Some(ToolDocument { file, is_link: true }), None) => {
                self.write(file, &Value::Object(arguments).to_string())?;
            }
            (Some(ToolDocument { is_link: true, .. }), Some(_)) => {
                return Err(format!(
                    "{WRITE} takes no `content` here, but `uri`, `sha256` and `bytes` of what lies there"
                ));
            }
            _ => return Err(format!("{WRITE} needs `content`, a text")),
        }
        Ok("written".to_owned())
    }

    fn write(&self, file: &str, content: &str) -> Result<(), String> {
        std::fs::write(self.input.folder.join(file), content).map_err(|error| format!("{file}: {error}"))
    }

    /// Leaves what the model has made where it belongs; what is wrong with it.
    fn deliver(&mut self, reply: &Reply) -> Result<Vec<String>, String> {
        if reply.finish.as_deref() == Some("length") {
            return Ok(vec!["the reply was cut off at its limit of tokens; be shorter".to_owned()]);
        }
        let text = reply.text.trim();
        if text.is_empty() {
            return Ok(vec!["the reply is empty".to_owned()]);
        }
        self.is_delivered = true;
        match self.input.reply_format() {
            ReplyFormat::Json => self.calls.result(unfenced(text)),
            ReplyFormat::Text => self.calls.result(&Value::from(text).to_string()),
            ReplyFormat::Document(file) => {
                self.write(&file, &format!("{text}\n"))?;
                self.calls.result("")
            }
        }
    }
}

fn write_tool(document: ToolDocument<'_>) -> Offered {
    let (properties, required, what) = if document.is_link {
        let link = LINK.map(|(name, kind, words)| (name, Value::from_iter([("type", kind), ("description", words)])));
        let what =
            "It says where something lies that is too large for a document, and the digest by which it is known. ";
        (link.to_vec(), vec!["uri", "sha256", "bytes"], what)
    } else {
        (vec![("content", Value::from_iter([("type", "string")]))], vec!["content"], "")
    };
    let parameters = Map::from_iter([
        ("type".to_owned(), "object".into()),
        ("required".to_owned(), Value::from_iter(required)),
        ("additionalProperties".to_owned(), false.into()),
        ("properties".to_owned(), Value::from_iter(properties)),
    ]);
    let function = Function {
        name: WRITE.to_owned(),
        description: format!(
            "Write the document {}, which this step makes beside its output. {what}The last call counts.",
            document.file
        ),
        parameters: Value::Object(parameters),
    };
    Offered { tool: Tool { kind: "function", function }, ends: false }
}

/// A reply that is none, and why.
fn withheld(reply: &Reply) -> Option<String> {
    if !reply.refusal.trim().is_empty() {
        return Some(format!("the model refused: {}", last(&reply.refusal)));
    }
    let is_filtered = reply.finish.as_deref() == Some("content_filter");
    is_filtered.then(|| "the model refused: the endpoint's filter withheld its reply".to_owned())
}

/// JSON that stands in a fence of Markdown, as models like to write it.
fn unfenced(text: &str) -> &str {
    let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let inner = inner.and_then(|inner| inner.split_once('\n')).filter(|(word, _)| matches!(word.trim(), "" | "json"));
    inner.map_or(text, |(_, inner)| inner.trim())
}

/// The end of a text, on one line.
fn last(text: &str) -> String {
    let from = text.char_indices().rev().nth(SHOWN - 1).map_or(0, |(at, _)| at);
    text[from..].split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_found_in_its_fence() {
        for (text, expected) in [
            ("{\"a\": 1}", "{\"a\": 1}"),
            ("```json\n{\"a\": 1}\n```", "{\"a\": 1}"),
            ("```\n[1]\n```", "[1]"),
            ("```python\nx\n```", "```python\nx\n```"),
            ("``````", "``````"),
            ("Here: ```json\n1\n```", "Here: ```json\n1\n```"),
        ] {
            assert_eq!(unfenced(text), expected, "{text}");
        }
    }

    #[test]
    fn the_end_of_a_text_is_shown_on_one_line() {
        assert_eq!(last("one\n  two"), "one two");
        assert_eq!(last(&"ä".repeat(1_000)).chars().count(), SHOWN);
    }
}
