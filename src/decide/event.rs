//! CloudEvents 1.0 as they come by HTTP, in one piece of JSON (structured) or with their attributes in headers
//! (binary), and the events of webhooks that know nothing of CloudEvents. Every fault is told with its field. What an
//! event holds is data.
//!
//! The official SDK is not used: it reads one fault at a time, does not name its field, knows no bounds and no batches,
//! and has no place for webhooks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::api::name;
use crate::definition::digits;

/// Bytes of an attribute.
const ID_BYTES: usize = 1024;
const SOURCE_BYTES: usize = 512;
const TYPE_BYTES: usize = 256;
const ATTRIBUTE_BYTES: usize = 2048;
/// Attributes of one event.
const ATTRIBUTES: usize = 64;

/// The type of an event whose sender does not say one.
pub const WEBHOOK: &str = "dev.lockstep.webhook";

/// A field, and what it must be.
pub type Fault = (String, String);

/// An event without faults.
#[derive(Clone, Debug, PartialEq)]
pub struct CloudEvent {
    pub id: String,
    pub source: String,
    pub event_type: String,
    /// All of it, as expressions read it: attributes and `data`.
    pub value: Value,
}

impl CloudEvent {
    /// Of the JSON of structured mode, or of one member of a batch.
    pub fn structured(value: Value) -> Result<Self, Vec<Fault>> {
        let Value::Object(mut members) = value else {
            return Err(vec![fault("", "must be a JSON object: a CloudEvent")]);
        };
        // As the format says, null is the same as absent.
        members.retain(|name, value| name == "data" || !value.is_null());
        let data = (members.shift_remove("data"), members.shift_remove("data_base64"));
        let mut faults = Vec::new();
        if data.0.is_some() && data.1.is_some() {
            faults.push(fault("data_base64", "must not stand beside data"));
        }
        if data.1.as_ref().is_some_and(|data| !data.is_string()) {
            faults.push(fault("data_base64", "must be a string"));
        }
        let mut attributes = checked(members, faults)?;
        for (name, data) in [("data", data.0), ("data_base64", data.1)] {
            if let Some(data) = data {
                attributes.insert(name.to_owned(), data);
            }
        }
        Ok(Self::of(attributes))
    }

    /// Of the attributes that stood in headers (without `ce-`), and a body.
    pub fn binary(
        attributes: impl Iterator<Item = (String, String)>,
        content_type: Option<&str>,
        body: &[u8],
    ) -> Result<Self, Vec<Fault>> {
        let mut members: Map<String, Value> =
            attributes.take(ATTRIBUTES + 1).map(|(name, text)| (name, Value::String(unescaped(&text)))).collect();
        let mut faults = Vec::new();
        if members.shift_remove("datacontenttype").is_some() {
            faults.push(fault("ce-datacontenttype", "is the header Content-Type in this mode"));
        }
        if let Some(content_type) = content_type {
            members.insert("datacontenttype".to_owned(), content_type.into());
        }
        let data = data(content_type, body).unwrap_or_else(|why| {
            faults.push(why);
            None
        });
        let mut attributes = checked(members, faults)?;
        attributes.extend(data);
        Ok(Self::of(attributes))
    }

    /// Of a webhook: an id where its sender gives one, else the digest of the body.
    pub fn webhook(
        (source, event_type, id): (String, String, Option<String>),
        content_type: Option<&str>,
        body: &[u8],
    ) -> Result<Self, Vec<Fault>> {
        let id = id.unwrap_or_else(|| name::digest_bytes(body));
        let attributes = [("specversion", "1.0".to_owned()), ("id", id), ("source", source), ("type", event_type)];
        let attributes = attributes.into_iter().map(|(name, text)| (name.to_owned(), text));
        Self::binary(attributes, content_type, body)
    }

    fn of(attributes: Map<String, Value>) -> Self {
        let text = |name: &str| attributes.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self { id: text("id"), source: text("source"), event_type: text("type"), value: Value::Object(attributes) }
    }

    /// The session of a run that says no other.
    pub fn session(&self) -> String {
        name::session(&self.id)
    }
}

fn fault(field: &str, message: impl Into<String>) -> Fault {
    (field.to_owned(), message.into())
}

fn checked(attributes: Map<String, Value>, mut faults: Vec<Fault>) -> Result<Map<String, Value>, Vec<Fault>> {
    for (name, most) in [("id", ID_BYTES), ("source", SOURCE_BYTES), ("type", TYPE_BYTES)] {
        match attributes.get(name) {
            None => faults.push(fault(name, "is required")),
            Some(Value::String(text)) if text.is_empty() || text.len() > most => {
                faults.push(fault(name, format!("must have 1 to {most} bytes, not {}", text.len())));
            }
            Some(Value::String(_)) => {}
            Some(_) => faults.push(fault(name, "must be a string")),
        }
    }
    match attributes.get("specversion").and_then(Value::as_str) {
        Some("1.0") => {}
        _ => faults.push(fault("specversion", "must be the string 1.0")),
    }
    if let Some(time) = attributes.get("time") {
        let is_time = |text: &str| text.parse::<k8s_openapi::jiff::Timestamp>().is_ok();
        if !time.as_str().is_some_and(is_time) {
            faults.push(fault("time", "must be a time such as 2026-11-21T10:00:00Z"));
        }
    }
    if attributes.len() > ATTRIBUTES {
        faults.push(fault("", format!("has more than {ATTRIBUTES} attributes")));
    }
    for (name, value) in attributes.iter().take(ATTRIBUTES) {
        let shown = crate::api::condition::clip(name, 80);
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) {
            faults.push(fault(&shown, "is no name of an attribute: small letters and digits"));
        }
        match value {
            Value::String(text) if text.len() > ATTRIBUTE_BYTES => {
                faults.push(fault(&shown, format!("has {} bytes, at most {ATTRIBUTE_BYTES} are allowed", text.len())));
            }
            Value::String(text) if text.chars().any(char::is_control) => {
                faults.push(fault(&shown, "must not have control characters"));
            }
            Value::Array(_) | Value::Object(_) => {
                faults.push(fault(&shown, "must be a string, a number or a boolean; what is larger belongs into data"));
            }
            _ => {}
        }
    }
    if faults.is_empty() { Ok(attributes) } else { Err(faults) }
}

/// The member that the body becomes, by what it is said to be.
fn data(content_type: Option<&str>, body: &[u8]) -> Result<Option<(String, Value)>, Fault> {
    if body.is_empty() {
        return Ok(None);
    }
    if is_json(content_type.unwrap_or("application/json")) {
        let data = digits::read_bytes(body).map_err(|why| fault("data", format!("the body is not JSON: {why}")))?;
        return Ok(Some(("data".to_owned(), data)));
    }
    match std::str::from_utf8(body) {
        Ok(text) => Ok(Some(("data".to_owned(), text.into()))),
        Err(_) => Ok(Some(("data_base64".to_owned(), STANDARD.encode(body).into()))),
    }
}

/// Whether a media type is JSON: `application/json`, `text/json`, `*/*+json`.
pub fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind.ends_with("/json") || kind.ends_with("+json")
}

/// Headers hold what is not printable ASCII as `%XX`.
fn unescaped(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Vec<String> {
        CloudEvent::structured(value).err().into_iter().flatten().map(|(field, _)| field).collect()
    }

    #[test]
    fn every_attribute_that_is_wrong_is_named_at_once() {
        let good = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "time": "2026-11-21T10:00:00Z",
            "subject": "a", "traceparent": "00-x", "n": 3, "flag": true, "data": {"a": null}, "dataschema": null});
        let event = CloudEvent::structured(good.clone()).expect("it is good");
        assert_eq!((event.id.as_str(), event.source.as_str(), event.event_type.as_str()), ("1", "/s", "t"));
        assert_eq!((&event.value["data"], event.value.get("dataschema")), (&json!({"a": null}), None));
        let with = |field: &str, value: Value| {
            let mut event = good.clone();
            event[field] = value;
            event
        };
        for (event, expected) in [
            (json!({}), vec!["id", "source", "type", "specversion"]),
            (json!([]), vec![""]),
            (with("id", json!(7)), vec!["id"]),
            (with("id", json!("")), vec!["id"]),
            (with("id", json!("x".repeat(1025))), vec!["id"]),
            (with("id", json!("a\nb")), vec!["id"]),
            (with("specversion", json!("0.3")), vec!["specversion"]),
            (with("time", json!("yesterday")), vec!["time"]),
            (with("Bad", json!("x")), vec!["Bad"]),
            (with("nested", json!({"a": 1})), vec!["nested"]),
            (with("long", json!("x".repeat(2049))), vec!["long"]),
            (with("data_base64", json!("AA==")), vec!["data_base64"]),
            (with("source", Value::Null), vec!["source"]),
        ] {
            assert_eq!(fields(event.clone()), expected, "{}", crate::api::condition::clip(&event.to_string(), 200));
        }
        let mut many = good;
        for n in 0..80 {
            many[format!("x{n}")] = json!(n);
        }
        assert_eq!(fields(many), [""]);
    }

    #[test]
    fn headers_and_a_body_are_an_event() {
        let headers = |id: &str| {
            let all = [("specversion", "1.0"), ("id", id), ("source", "/s"), ("type", "t"), ("subject", "%C3%A4%zz")];
            all.map(|(name, text)| (name.to_owned(), text.to_owned())).into_iter()
        };
        let of =
            |kind: Option<&str>, body: &[u8]| CloudEvent::binary(headers("1"), kind, body).map(|event| event.value);
        let json = of(Some("application/json; charset=utf-8"), b"{\"a\": 1}").expect("JSON");
        assert_eq!((&json["data"], &json["subject"]), (&json!({"a": 1}), &json!("ä%zz")));
        assert_eq!(of(None, b"[1]").expect("JSON")["data"], json!([1]));
        assert_eq!(of(Some("text/plain"), b"hello").expect("a text")["data"], "hello");
        assert_eq!(of(Some("image/png"), &[0xff, 0xfe]).expect("bytes")["data_base64"], "//4=");
        assert_eq!(of(Some("image/png"), b"").expect("nothing").get("data"), None);
        assert!(of(Some("application/vnd.x+json"), b"{").is_err_and(|faults| faults[0].0 == "data"));
        assert!(CloudEvent::binary(headers(""), None, b"").is_err_and(|faults| faults[0].0 == "id"));
        let twice = [("datacontenttype".to_owned(), "x".to_owned())].into_iter().chain(headers("1"));
        assert!(CloudEvent::binary(twice, None, b"").is_err());
    }

    #[test]
    fn a_webhook_without_an_id_is_known_by_its_body() {
        let of = |id: Option<&str>, body: &[u8]| {
            let said = ("/hooks".to_owned(), WEBHOOK.to_owned(), id.map(str::to_owned));
            CloudEvent::webhook(said, Some("application/json"), body).expect("an event")
        };
        assert_eq!(of(None, b"{}").id, of(None, b"{}").id);
        assert_ne!(of(None, b"{}").id, of(None, b"{ }").id);
        assert_eq!((of(Some("7"), b"{}").id.as_str(), of(None, b"{}").session().len()), ("7", 34));
    }
}
