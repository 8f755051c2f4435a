//! The agent's calls as tools, the way a model sees them: a name, what it is for, what it takes. The arguments of a tool are the
//! body of the call that it stands for; what is different is said in `request` and `reply`, which are all there is to a tool.

#![expect(clippy::disallowed_macros, reason = "the schemas of the tools")]

use serde_json::{Map, Value, json};

/// One tool.
pub struct Tool {
    pub name: &'static str,
    /// The call of the local server, as its path below `LOCKSTEP_URL`.
    pub call: &'static str,
    pub description: &'static str,
    /// JSON Schema of the arguments.
    pub schema: Value,
    pub effect: Effect,
}

/// What a tool changes, as a hint to whoever asks before a tool is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Reads,
    /// The same call again changes nothing more.
    Sets,
    Adds,
    /// The attempt, and with it the model's work, is over.
    Ends,
}

/// A client that asks before it uses a tool waits as long as the attempt may take.
const PROMPT_SECONDS: u32 = 86_400;
/// Of the name of a tool in what people read.
const TOOL_CHARS: usize = 200;

/// All tools, in the order in which they are listed.
pub fn all() -> Vec<Tool> {
    [said(), remembered(), documents(), approved(), ended()].into_iter().flatten().collect()
}

fn said() -> Vec<Tool> {
    vec![
        Tool {
            name: "progress",
            call: "progress",
            description: "Tell people how far the work is. Call it whenever a part is done; it never waits.",
            schema: object(
                &["percent"],
                json!({
                    "percent": {"type": "integer", "minimum": 0, "maximum": 100},
                    "message": {"type": "string", "description": "What is being done, in a few words"},
                }),
            ),
            effect: Effect::Sets,
        },
        Tool {
            name: "journal",
            call: "journal",
            description: "Keep the journal of this attempt. `completed` says that the work is done and counts once the command ends with a valid output; `failed` ends the attempt at once. It never goes back.",
            schema: object(
                &["state"],
                json!({
                    "state": {"type": "string", "enum": ["busy", "completed", "failed"]},
                    "message": {"type": "string"},
                }),
            ),
            effect: Effect::Sets,
        },
        Tool {
            name: "usage",
            call: "usage",
            description: "Tell what models used since the last call; it is added up for this attempt.",
            schema: object(
                &[],
                json!({
                    "tokensIn": {"type": "integer", "minimum": 0, "description": "Tokens that the model read"},
                    "tokensOut": {"type": "integer", "minimum": 0, "description": "Tokens that the model wrote"},
                    "cost": {"type": "string", "pattern": "^[0-9]+(\\.[0-9]{1,9})?$", "description": "A decimal number, for example 0.0125"},
                    "model": {"type": "string", "description": "The name of the model"},
                }),
            ),
            effect: Effect::Adds,
        },
        Tool {
            name: "history",
            call: "history",
            description: "Read what was said before: faults of earlier attempts, comments and answers of people, what this agent did earlier in the session. The newest entries, or those before a cursor.",
            schema: object(
                &[],
                json!({
                    "before": {"type": "string", "description": "The `historyCursor` of context.json, or the `cursor` of the page before"},
                }),
            ),
            effect: Effect::Reads,
        },
    ]
}

fn remembered() -> Vec<Tool> {
    let key = json!({"type": "string", "description": "A letter, a digit or _, then letters, digits and . _ : - (128 at most)"});
    let revision = json!({"type": "integer", "minimum": 0, "description": "Only if the key has this revision; 0: only if there is no such key"});
    vec![
        Tool {
            name: "memory_get",
            call: "memory/get",
            description: "Read one value of this agent's memory, which it keeps over attempts and, in a named session, over runs.",
            schema: object(&["key"], json!({"key": key})),
            effect: Effect::Reads,
        },
        Tool {
            name: "memory_set",
            call: "memory/set",
            description: "Remember a JSON value (64 KiB at most) under a key. What was written is there for good, whatever becomes of this attempt.",
            schema: object(
                &["key", "value"],
                json!({"key": key, "value": {"description": "Any JSON value"}, "ifRevision": revision}),
            ),
            effect: Effect::Sets,
        },
        Tool {
            name: "memory_delete",
            call: "memory/delete",
            description: "Forget a key. One that is not there is no fault.",
            schema: object(&["key"], json!({"key": key, "ifRevision": revision})),
            effect: Effect::Sets,
        },
        Tool {
            name: "memory_list",
            call: "memory/list",
            description: "List the keys of this agent's memory, with revision and size.",
            schema: object(&[], json!({})),
            effect: Effect::Reads,
        },
    ]
}

fn documents() -> Vec<Tool> {
    let scope = json!({"type": "string", "enum": ["Item", "Workflow", "Session", "Project", "Namespace"],
        "description": "Only documents of this scope"});
    let kind = json!({"type": "string", "pattern": "^[a-z][a-z0-9-]*(/.+)?$",
        "description": "The type of the document; TYPE/* means those of all items of a list that has ended, and TYPE/KEY that of one"});
    vec![
        Tool {
            name: "document_list",
            call: "document/list",
            description: "List the documents that can be read beyond those in LOCKSTEP_IN/documents: types, scopes, revisions.",
            schema: object(&[], json!({"type": kind, "scope": scope})),
            effect: Effect::Reads,
        },
        Tool {
            name: "document_get",
            call: "document/get",
            description: "Read a document by its type: of the narrowest scope that has one, there the newest revision. 20 different ones at most.",
            schema: object(&["type"], json!({"type": kind, "scope": scope})),
            effect: Effect::Reads,
        },
    ]
}

fn approved() -> Vec<Tool> {
    let gate =
        json!({"type": "string", "description": "One of the step's action gates; not needed where there is one"});
    vec![
        Tool {
            name: "request_approval",
            call: "request-approval",
            description: "Have people approve one action before you do it. Allowed: do exactly the `payload` of the answer, once, now. Denied: do not do it. Without `waitSeconds`, and at its end, this attempt ends, and another one hears of the decision by the same call: save your work before.",
            schema: object(
                &["action"],
                json!({
                    "action": {"type": "string", "description": "What is to be done, as people read it"},
                    "payload": {"description": "What it is about: a mail, a patch, a command; any JSON value"},
                    "gate": gate,
                    "waitSeconds": {"type": "integer", "minimum": 1, "description": "Wait so long in this attempt"},
                }),
            ),
            effect: Effect::Ends,
        },
        Tool {
            name: "permission_prompt",
            call: "request-approval",
            description: "For the runtime, not for the model: has people approve that a tool is used, and answers as --permission-prompt-tool of Claude Code expects.",
            schema: object(
                &["tool_name", "input"],
                json!({
                    "tool_name": {"type": "string"},
                    "input": {"type": "object"},
                    "tool_use_id": {"type": "string"},
                }),
            ),
            effect: Effect::Ends,
        },
    ]
}

fn ended() -> Vec<Tool> {
    let question = object(
        &["question"],
        json!({
            "question": {"type": "string", "description": "As people read it"},
            "choices": {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": "The texts that may be answered"},
            "schema": {"type": "object", "description": "JSON Schema of the answer, in place of choices"},
            "key": {"type": "string", "description": "By what the answer is found again in the next attempt; without it, by the text"},
        }),
    );
    vec![
        Tool {
            name: "result",
            call: "result",
            description: "Check the output now, against the schemas that it must meet. Every fault comes with a JSON pointer: repair and call again. Without `result`, the file result.json is checked; with it, it is written there first.",
            schema: object(&[], json!({"result": {"description": "The output, any JSON value but null"}})),
            effect: Effect::Sets,
        },
        Tool {
            name: "ask",
            call: "ask",
            description: "Ask people. What was answered already is given at once. Without `waitSeconds`, and at its end, this attempt ends, and another one starts when they have answered, which gets the answers by the same call: save your work before.",
            schema: object(
                &["questions"],
                json!({
                    "questions": {"type": "array", "items": question, "minItems": 1, "maxItems": 20},
                    "waitSeconds": {"type": "integer", "minimum": 1, "description": "Wait so long in this attempt"},
                }),
            ),
            effect: Effect::Ends,
        },
        Tool {
            name: "fail",
            call: "fail",
            description: "Give this attempt up; it ends at once.",
            schema: object(
                &["retryable", "message"],
                json!({
                    "retryable": {"type": "boolean", "description": "Whether another attempt may do better"},
                    "message": {"type": "string", "description": "Why, for people and for the next attempt"},
                }),
            ),
            effect: Effect::Ends,
        },
    ]
}

fn object(required: &[&str], properties: Value) -> Value {
    let mut schema = json!({"type": "object", "required": required, "additionalProperties": false});
    schema["properties"] = properties;
    schema
}

/// What is asked of the local server: the body of the call, null where it has none.
pub fn request(tool: &Tool, mut arguments: Map<String, Value>) -> Value {
    match tool.name {
        "result" => arguments.remove("result").unwrap_or_default(),
        "permission_prompt" => {
            let name = arguments.remove("tool_name").unwrap_or_default();
            let words: String = name.as_str().unwrap_or_default().chars().take(TOOL_CHARS).collect();
            let payload = json!({"tool": name, "input": arguments.remove("input").unwrap_or_default()});
            json!({"action": format!("Use the tool {words}"), "payload": payload, "waitSeconds": PROMPT_SECONDS})
        }
        _ => Value::Object(arguments),
    }
}

/// What the model is told, and whether that is a fault: the call's own JSON, with a word where the attempt is over.
pub fn reply(tool: &Tool, status: u16, mut answer: Value) -> (Value, bool) {
    if tool.name == "permission_prompt" {
        return (permission(status, &answer), false);
    }
    let good = (200..300).contains(&status);
    if let (Effect::Ends, 202, Some(answer)) = (tool.effect, status, answer.as_object_mut()) {
        answer.insert("message".to_owned(), "this attempt ends now: do nothing more".into());
    }
    (answer, !good)
}

/// Allowed with what people have decided on, or denied with who and why.
fn permission(status: u16, answer: &Value) -> Value {
    if (status, &answer["decision"]) == (200, &json!("allowed")) {
        return json!({"behavior": "allow", "updatedInput": answer["payload"]["input"]});
    }
    let by = |decided: &Value| {
        let (by, comment) = (decided["by"].as_str()?, decided["comment"].as_str());
        (decided["accepted"] == false).then(|| comment.map_or_else(|| by.to_owned(), |why| format!("{by}: {why}")))
    };
    let denied: Vec<String> = answer["decisions"].as_array().into_iter().flatten().filter_map(by).collect();
    let message = match status {
        200 => format!("denied by {}", denied.join("; ")),
        202 => "nobody has decided yet; this attempt ends now, and another one hears of it: do nothing more".to_owned(),
        _ => format!("it cannot be approved: {}", answer["error"].as_str().unwrap_or("no reason was given")),
    };
    json!({"behavior": "deny", "message": message})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_tool_is_told_apart_and_says_what_it_takes() {
        let all = all();
        let names: BTreeSet<&str> = all.iter().map(|tool| tool.name).collect();
        assert_eq!(names.len(), all.len(), "{names:?}");
        for tool in &all {
            jsonschema::meta::validate(&tool.schema).unwrap_or_else(|fault| panic!("{}: {fault}", tool.name));
            // The rules of clients: letters, digits, _ and -, 64 at most.
            assert!(
                tool.name.len() <= 64 && tool.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{}",
                tool.name
            );
            assert_eq!(tool.schema["type"], "object", "{}", tool.name);
            let required = tool.schema["required"].as_array().into_iter().flatten();
            for field in required {
                assert!(tool.schema["properties"][field.as_str().unwrap_or_default()].is_object(), "{}", tool.name);
            }
        }
    }

    #[test]
    fn arguments_are_the_body_of_the_call() {
        let all = all();
        let tool = |name: &str| all.iter().find(|tool| tool.name == name).expect("a tool");
        let arguments = |value: Value| value.as_object().cloned().expect("an object");
        for (name, given, call, body) in [
            ("progress", json!({"percent": 5}), "progress", json!({"percent": 5})),
            ("memory_set", json!({"key": "a", "value": [1]}), "memory/set", json!({"key": "a", "value": [1]})),
            ("result", json!({"result": {"risks": 2}}), "result", json!({"risks": 2})),
            ("result", json!({}), "result", Value::Null),
            (
                "ask",
                json!({"questions": [{"question": "How much?"}], "waitSeconds": 300}),
                "ask",
                json!({"questions": [{"question": "How much?"}], "waitSeconds": 300}),
            ),
        ] {
            let tool = tool(name);
            assert!(jsonschema::is_valid(&tool.schema, &given), "{name}: {given}");
            assert_eq!((tool.call, request(tool, arguments(given))), (call, body), "{name}");
        }
        let prompt = json!({"tool_name": "Bash", "input": {"command": "ls"}, "tool_use_id": "t"});
        let asked = request(tool("permission_prompt"), arguments(prompt));
        assert_eq!(
            (&asked["action"], &asked["payload"]["input"]),
            (&json!("Use the tool Bash"), &json!({"command": "ls"}))
        );
        for (status, answer, told) in [
            (
                200,
                json!({"decision": "allowed", "payload": {"tool": "Bash", "input": {"command": "ls"}}}),
                json!({"behavior": "allow", "updatedInput": {"command": "ls"}}),
            ),
            (
                200,
                json!({"decision": "denied", "decisions": [{"accepted": false, "by": "ann", "comment": "not on Friday"}]}),
                json!({"behavior": "deny", "message": "denied by ann: not on Friday"}),
            ),
            (
                422,
                json!({"error": "no such gate"}),
                json!({"behavior": "deny", "message": "it cannot be approved: no such gate"}),
            ),
        ] {
            assert_eq!(reply(tool("permission_prompt"), status, answer), (told, false));
        }
        let (ends, _) = reply(tool("permission_prompt"), 202, json!({"decision": "waiting"}));
        assert_eq!(ends["behavior"], "deny", "{ends}");
        let faults = json!({"faults": [{"pointer": "/a", "message": "is required"}]});
        assert_eq!(reply(tool("result"), 422, faults.clone()), (faults, true));
        let (told, is_fault) = reply(tool("ask"), 202, json!({"answers": {}, "open": ["budget"]}));
        assert!(!is_fault && told["open"] == json!(["budget"]) && told["message"].is_string(), "{told}");
        assert_eq!(reply(tool("memory_set"), 200, json!({"revision": 2})), (json!({"revision": 2}), false));
    }
}
