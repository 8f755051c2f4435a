//! The words of chat completions, as OpenAI has them and others follow: only what is used here, and read as loosely as the many
//! endpoints write it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is asked.
#[derive(Serialize)]
pub struct Request<'a> {
    pub model: &'a str,
    pub messages: &'a [Message],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "<[&Tool]>::is_empty")]
    pub tools: &'a [&'a Tool],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<&'a ResponseFormat>,
    pub stream: bool,
    pub stream_options: StreamOptions,
}

#[derive(Serialize)]
pub struct StreamOptions {
    pub include_usage: bool,
}

/// One of the conversation.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Message {
    System {
        content: String,
    },
    User {
        content: String,
    },
    Assistant {
        content: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<Call>,
    },
    Tool {
        tool_call_id: String,
        content: String,
    },
}

/// A tool that is offered.
#[derive(Serialize, Debug)]
pub struct Tool {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub function: Function,
}

#[derive(Serialize, Debug)]
pub struct Function {
    pub name: String,
    pub description: String,
    /// A JSON Schema.
    pub parameters: Value,
}

/// A tool that the model wants to be used.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Call {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub function: Called,
}

#[derive(Serialize, Clone, Debug, Default, PartialEq)]
pub struct Called {
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

/// How the reply is to be written.
#[derive(Serialize, Debug)]
pub struct ResponseFormat {
    #[serde(rename = "type")]
    kind: &'static str,
    json_schema: NamedSchema,
}

#[derive(Serialize, Debug)]
struct NamedSchema {
    name: &'static str,
    schema: Value,
}

impl ResponseFormat {
    /// Not strict: that takes a part of JSON Schema only, and what comes is checked in any case.
    pub fn of(schema: Value) -> Self {
        Self { kind: "json_schema", json_schema: NamedSchema { name: "output", schema } }
    }
}

/// A part of an answer, or the whole of one that does not come in parts.
#[derive(Deserialize, Debug, Default)]
pub struct Part {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    /// What went wrong behind the endpoint, after it had begun to answer.
    #[serde(default)]
    pub error: Option<Value>,
}

#[derive(Deserialize, Debug)]
struct Choice {
    #[serde(default, alias = "message")]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize, Debug, Default)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<CallPart>>,
}

#[derive(Deserialize, Debug)]
struct CallPart {
    #[serde(default)]
    index: Option<usize>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<FunctionPart>,
}

#[derive(Deserialize, Debug, Default)]
struct FunctionPart {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<String>,
}

#[derive(Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    #[serde(default)]
    pub prompt_tokens: i64,
    #[serde(default)]
    pub completion_tokens: i64,
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    pub text: String,
    pub refusal: String,
    pub calls: Vec<Call>,
    /// Why the model stopped; none where the answer has not come to its end.
    pub finish: Option<String>,
    pub usage: Option<Usage>,
    /// Which part of the stream each call is.
    places: Vec<usize>,
}

impl Reply {
    pub fn add(&mut self, part: Part) {
        // Several parts may tell it; each is the sum so far.
        self.usage = part.usage.or(self.usage);
        // There is one: more were not asked for.
        let Some(choice) = part.choices.into_iter().next() else { return };
        self.finish = choice.finish_reason.or(self.finish.take());
        let delta = choice.delta.unwrap_or_default();
        self.text.push_str(&delta.content.unwrap_or_default());
        self.refusal.push_str(&delta.refusal.unwrap_or_default());
        for (place, call) in delta.tool_calls.into_iter().flatten().enumerate() {
            self.call(call.index.unwrap_or(place), call);
        }
    }

    fn call(&mut self, place: usize, part: CallPart) {
        let last = self.places.iter().rposition(|known| *known == place);
        // Some endpoints give every call the same place, and tell them apart by their ids.
        let own = last.filter(|at| part.id.as_ref().is_none_or(|id| id.is_empty() || *id == self.calls[*at].id));
        let at = own.unwrap_or_else(|| {
            let id = part.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{}", self.calls.len()));
            self.calls.push(Call { id, kind: "function", function: Called::default() });
            self.places.push(place);
            self.calls.len() - 1
        });
        let function = part.function.unwrap_or_default();
        let called = &mut self.calls[at].function;
        called.name.push_str(&function.name.unwrap_or_default());
        called.arguments.push_str(&function.arguments.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply(parts: &[Value]) -> Reply {
        let mut reply = Reply::default();
        for part in parts {
            reply.add(serde_json::from_value(part.clone()).expect("a part"));
        }
        reply
    }

    fn calls(reply: &Reply) -> Vec<(&str, &str, &str)> {
        reply.calls.iter().map(|c| (c.id.as_str(), c.function.name.as_str(), c.function.arguments.as_str())).collect()
    }

    #[test]
    fn an_answer_is_put_together_from_its_parts() {
        let delta = |delta: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
        let made = reply(&[
            delta(json!({"role": "assistant", "content": ""})),
            delta(json!({"content": "{\"a\""})),
            delta(json!({"content": ":1}"})),
            json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}),
        ]);
        let usage = Some(Usage { prompt_tokens: 9, completion_tokens: 3 });
        assert_eq!((made.text.as_str(), made.finish.as_deref(), made.usage), ("{\"a\":1}", Some("stop"), usage));
        let whole = json!({"choices": [{"message": {"role": "assistant", "content": null, "refusal": "no"}, "finish_reason": "stop"}]});
        assert_eq!(reply(&[whole]).refusal, "no");
        assert_eq!(reply(&[delta(json!({"content": "begun"}))]).finish, None);
    }

    #[test]
    fn calls_are_told_apart_however_an_endpoint_numbers_them() {
        let part = |calls: Value| json!({"choices": [{"delta": {"tool_calls": calls}}]});
        let made = reply(&[
            part(json!([{"index": 0, "id": "a", "type": "function", "function": {"name": "one", "arguments": ""}}])),
            part(json!([{"index": 0, "function": {"arguments": "{\"x\""}}])),
            part(
                json!([{"index": 0, "function": {"arguments": ":1}"}}, {"index": 1, "id": "b", "function": {"name": "two", "arguments": "{}"}}]),
            ),
        ]);
        assert_eq!(calls(&made), [("a", "one", "{\"x\":1}"), ("b", "two", "{}")]);
        // All at one place; and without ids and places.
        let one = json!({"index": 0, "id": "a", "function": {"name": "one", "arguments": "{}"}});
        let two = json!({"index": 0, "id": "b", "function": {"name": "two", "arguments": "{}"}});
        assert_eq!(calls(&reply(&[part(json!([one])), part(json!([two]))])), [("a", "one", "{}"), ("b", "two", "{}")]);
        let bare = |name: &str| json!({"function": {"name": name, "arguments": "{}"}});
        let made = reply(&[part(json!([bare("one"), bare("two")]))]);
        assert_eq!(calls(&made), [("call_0", "one", "{}"), ("call_1", "two", "{}")]);
    }
}
