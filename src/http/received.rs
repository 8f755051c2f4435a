//! The events of a request: CloudEvents 1.0 in structured, binary and batch mode, and the webhooks that send to one
//! Trigger. Pure.

use http::{HeaderMap, header};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::problem::{FieldFault, Problem, Result};
use crate::decide::event::{CloudEvent, Fault, WEBHOOK};
use crate::definition::digits;

/// Events of one batch.
const BATCH: usize = 100;
/// Attributes that come as headers.
const PREFIX: &str = "ce-";

/// A CloudEvent in structured mode. Further attributes stand beside these, and are strings, numbers or booleans.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CloudEvent")]
pub struct Event {
    /// Always 1.0.
    #[schemars(length(min = 3, max = 3))]
    specversion: String,
    /// What tells the event from others of its source, at most 1024 bytes. It is the session of the run, unless the
    /// Trigger says another.
    #[schemars(length(min = 1, max = 1024))]
    id: String,
    /// Where it comes from, as a reference of a URI, at most 512 bytes.
    #[schemars(length(min = 1, max = 512))]
    source: String,
    /// What happened, at most 256 bytes.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 256))]
    happened: String,
    /// When it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    /// What it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    /// Any JSON value.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

/// How the kind of a webhook's event is told: by which header, what stands before it, and which header has its id.
const WEBHOOKS: [(&str, &str, &str); 3] = [
    ("x-github-event", "com.github.", "x-github-delivery"),
    ("x-gitlab-event", "com.gitlab.", "x-gitlab-event-uuid"),
    ("x-gitea-event", "com.gitea.", "x-gitea-delivery"),
];
/// Headers with the id of a webhook of anybody else.
const IDS: [&str; 2] = ["webhook-id", "idempotency-key"];

/// For whom a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For<'a> {
    /// Whoever wants its events, which are CloudEvents.
    Anybody,
    /// One Trigger, by its path, with a token of Kubernetes or its secret.
    Trigger(&'a str),
    /// The same, with a signature, which covers the body and no header.
    Signed(&'a str),
}

/// All events, or all that is wrong with them.
pub fn events(headers: &HeaderMap, body: &[u8], whom: For<'_>) -> Result<Vec<CloudEvent>> {
    let content_type = text(headers, header::CONTENT_TYPE.as_str());
    let kind = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if let Some(format) = kind.strip_prefix("application/cloudevents") {
        return match format {
            "+json" => structured(json(body)?, "").map(|event| vec![event]),
            "-batch+json" => batch(json(body)?),
            _ => Err(Problem::field(
                "Content-Type",
                "is a format of CloudEvents that is not known here; send application/cloudevents+json or application/cloudevents-batch+json",
            )),
        };
    }
    let is_binary = headers.keys().any(|name| name.as_str().starts_with(PREFIX));
    match whom {
        For::Signed(_) if is_binary => Err(Problem::field(
            "Content-Type",
            "must be application/cloudevents+json: a signature covers the body and no header, so attributes cannot stand there",
        )),
        For::Anybody if !is_binary => Err(Problem::bad_request(
            "this is no CloudEvent: send it as application/cloudevents+json, or with its attributes in ce- headers; a webhook of another sort is sent to the url of one Trigger, /namespaces/NAMESPACE/events/TRIGGER",
        )),
        _ if is_binary => {
            let attributes = headers.iter().filter_map(|(name, value)| {
                Some((
                    name.as_str().strip_prefix(PREFIX)?.to_owned(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                ))
            });
            told(CloudEvent::binary(attributes, content_type, body), PREFIX).map(|event| vec![event])
        }
        For::Trigger(source) | For::Signed(source) => {
            told(CloudEvent::webhook(webhook(headers, body, source), content_type, body), "").map(|event| vec![event])
        }
        For::Anybody => Err(Problem::bad_request("this is no CloudEvent")),
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty())
}

fn json(body: &[u8]) -> Result<Value> {
    digits::read_bytes(body).map_err(|why| Problem::field("", format!("the body is not JSON: {why}")))
}

fn structured(value: Value, within: &str) -> Result<CloudEvent> {
    told(CloudEvent::structured(value), within)
}

/// One event that is wrong is a batch that is: its sender sends it again, and what was started is known then.
fn batch(value: Value) -> Result<Vec<CloudEvent>> {
    let Value::Array(all) = value else { return Err(Problem::field("", "must be a JSON list of CloudEvents")) };
    if all.is_empty() || all.len() > BATCH {
        return Err(Problem::field("", format!("has {} events, 1 to {BATCH} are allowed", all.len())));
    }
    let (mut events, mut faults) = (Vec::new(), Vec::new());
    for (index, one) in all.into_iter().enumerate() {
        match structured(one, &format!("[{index}].")) {
            Ok(event) => events.push(event),
            Err(problem) => faults.extend(problem.refusal.errors),
        }
    }
    faults.truncate(64);
    if faults.is_empty() { Ok(events) } else { Err(Problem::fields(faults)) }
}

fn told(event: std::result::Result<CloudEvent, Vec<Fault>>, within: &str) -> Result<CloudEvent> {
    event.map_err(|faults| {
        let named = |(field, message): Fault| FieldFault { field: format!("{within}{field}"), message };
        Problem::fields(faults.into_iter().take(64).map(named).collect())
    })
}

/// Source, type and id of a webhook that knows nothing of CloudEvents.
fn webhook(headers: &HeaderMap, body: &[u8], source: &str) -> (String, String, Option<String>) {
    for (kind, prefix, id) in WEBHOOKS {
        if let Some(kind) = text(headers, kind) {
            let kind = kind.trim_end_matches(" Hook").to_ascii_lowercase().replace(' ', "_");
            return (source.to_owned(), format!("{prefix}{kind}"), text(headers, id).map(str::to_owned));
        }
    }
    if headers.contains_key("x-slack-signature")
        && let Ok(said) = serde_json::from_slice::<Value>(body)
    {
        let kind = said.pointer("/event/type").or_else(|| said.get("type")).and_then(Value::as_str).unwrap_or("event");
        let id = said.get("event_id").and_then(Value::as_str).map(str::to_owned);
        return (source.to_owned(), format!("com.slack.{kind}"), id);
    }
    let id = IDS.iter().find_map(|name| text(headers, name)).map(str::to_owned);
    (source.to_owned(), WEBHOOK.to_owned(), id)
}

/// What Slack asks once, to see that somebody is there.
pub fn challenge(event: &CloudEvent) -> Option<String> {
    let data = event.value.get("data").filter(|_| event.event_type == "com.slack.url_verification")?;
    let text = data.get("challenge").and_then(Value::as_str)?;
    Some(crate::api::condition::clip(text, 512))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().expect("a header")))
            .collect()
    }

    fn read(
        all: &[(&'static str, &str)],
        body: &Value,
        whom: For<'_>,
    ) -> std::result::Result<Vec<CloudEvent>, Vec<String>> {
        events(&headers(all), body.to_string().as_bytes(), whom)
            .map_err(|problem| problem.refusal.errors.into_iter().map(|one| one.field).collect())
    }

    fn event(id: &str) -> Value {
        json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "data": {"a": 1}})
    }

    const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json; charset=UTF-8");
    const BATCHED: (&str, &str) = ("content-type", "application/cloudevents-batch+json");

    #[test]
    fn no_digit_of_what_an_event_carries_is_lost() {
        let data = r#"{"order": 12345678901234567890123}"#;
        let whole = format!(r#"{{"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {data}}}"#);
        let plain = ("content-type", "application/json");
        let binary = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t"), plain];
        for (mode, all, body, whom) in [
            ("structured", &[STRUCTURED][..], whole.clone(), For::Anybody),
            ("batch", &[BATCHED], format!("[{whole}]"), For::Anybody),
            ("binary", &binary, data.to_owned(), For::Anybody),
            ("webhook", &[plain], data.to_owned(), For::Trigger("/s")),
        ] {
            let read = events(&headers(all), body.as_bytes(), whom).unwrap_or_else(|_| panic!("{mode} is good"));
            assert_eq!(read[0].value["data"], json!({"order": "12345678901234567890123"}), "{mode}");
        }
    }

    #[test]
    fn the_three_modes_say_the_same() {
        let one = read(&[STRUCTURED], &event("1"), For::Anybody).expect("structured");
        let all = read(&[BATCHED], &json!([event("1"), event("2")]), For::Anybody).expect("a batch");
        assert_eq!((one.len(), all.len(), &all[0]), (1, 2, &one[0]));
        let binary = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
            ("content-type", "application/json"),
        ];
        let binary = read(&binary, &json!({"a": 1}), For::Anybody).expect("binary");
        assert_eq!((&binary[0].id, &binary[0].value["data"]), (&one[0].id, &one[0].value["data"]));
    }

    #[test]
    fn what_is_no_event_is_told_by_field() {
        let many: Vec<Value> = (0..101).map(|n| event(&n.to_string())).collect();
        for (with, body, whom, expected) in [
            (&[STRUCTURED][..], json!({"id": "1"}), For::Anybody, vec!["source", "type", "specversion"]),
            (&[STRUCTURED], json!([event("1")]), For::Anybody, vec![""]),
            (&[BATCHED], event("1"), For::Anybody, vec![""]),
            (&[BATCHED], json!([]), For::Anybody, vec![""]),
            (&[BATCHED], json!(many), For::Anybody, vec![""]),
            (&[BATCHED], json!([event("1"), event("")]), For::Anybody, vec!["[1].id"]),
            (&[("content-type", "application/cloudevents+avro")], json!({}), For::Anybody, vec!["Content-Type"]),
            (&[("ce-id", "1"), ("ce-type", "t")], json!({}), For::Anybody, vec!["ce-source", "ce-specversion"]),
            (&[("ce-id", "1")], json!({}), For::Signed("/x"), vec!["Content-Type"]),
            (&[("content-type", "application/json")], json!({}), For::Anybody, vec![]),
        ] {
            let mut expected = expected;
            let mut told = read(with, &body, whom).expect_err("a fault");
            told.sort();
            expected.sort_unstable();
            assert_eq!(told, expected, "{with:?}");
        }
        assert!(events(&headers(&[STRUCTURED]), b"{", For::Anybody).is_err());
        let deep = "[".repeat(100_000);
        assert!(events(&headers(&[STRUCTURED]), deep.as_bytes(), For::Anybody).is_err());
    }

    #[test]
    fn webhooks_become_events() {
        let of = |with: &[(&'static str, &str)], body: &Value| {
            let event = read(with, body, For::Signed("/namespaces/team/events/t")).expect("an event").remove(0);
            assert_eq!(event.source, "/namespaces/team/events/t");
            (event.event_type, event.id)
        };
        let github =
            [("x-github-event", "pull_request"), ("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")];
        let (kind, id) = of(&github, &json!({"action": "opened"}));
        assert_eq!((kind.as_str(), id.as_str()), ("com.github.pull_request", "72d3162e-cc78-11e3-81ab-4c9367dc0958"));
        let gitlab = [("x-gitlab-event", "Merge Request Hook"), ("x-gitlab-event-uuid", "13792a34")];
        assert_eq!(of(&gitlab, &json!({})), ("com.gitlab.merge_request".to_owned(), "13792a34".to_owned()));
        let slack = [("x-slack-signature", "v0=1")];
        let said = json!({"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention"}});
        assert_eq!(of(&slack, &said), ("com.slack.app_mention".to_owned(), "Ev1".to_owned()));
        let (kind, id) = of(&[], &json!({"alerts": []}));
        assert!(kind == WEBHOOK && id.starts_with("sha256:"), "{kind} {id}");
        assert_eq!(of(&[("idempotency-key", "k")], &json!({})).1, "k");
        let asks = json!({"type": "url_verification", "challenge": "abc"});
        let event = read(&slack, &asks, For::Signed("/x")).expect("an event").remove(0);
        assert_eq!(challenge(&event).as_deref(), Some("abc"));
        let other = read(&[], &asks, For::Trigger("/x")).expect("an event").remove(0);
        assert_eq!(challenge(&other), None);
    }
}
