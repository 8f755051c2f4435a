//! The members of a JSON body, taken out one by one: every fault is told with the name of its field, all of them at once.

use serde_json::{Map, Value};

use super::problem::{FieldFault, Problem, Result};
use crate::definition::digits;

/// The form of a session, a story and a project.
pub const IDENTIFIER: &str = "must be a letter or digit, then letters, digits, '.', '_' or '-', at most 63 characters";
const FAULTS: usize = 64;

/// A body in which faults gather.
pub struct Fields {
    left: Map<String, Value>,
    /// Before the names of these fields.
    within: String,
    faults: Vec<FieldFault>,
}

impl Fields {
    /// Of the bytes of a body; integers beyond 64 bits are texts of their digits.
    pub fn read(body: &[u8]) -> Result<Self> {
        Self::of(digits::read_bytes(body))
    }

    /// The same for what becomes part of a spec: there such integers are refused, and must be left to be found.
    pub fn read_spec(body: &[u8]) -> Result<Self> {
        Self::of(serde_json::from_slice(body))
    }

    fn of(read: serde_json::Result<Value>) -> Result<Self> {
        match read {
            Ok(Value::Object(left)) => Ok(Self { left, within: String::new(), faults: Vec::new() }),
            Ok(_) => Err(Problem::field("", "the body must be a JSON object")),
            Err(why) => Err(Problem::field("", format!("the body is not JSON: {why}"))),
        }
    }

    /// The same where an empty body means an empty object.
    pub fn read_optional(body: &[u8]) -> Result<Self> {
        if body.is_empty() { Self::read(b"{}") } else { Self::read(body) }
    }

    fn inner(left: Map<String, Value>, within: String) -> Self {
        Self { left, within, faults: Vec::new() }
    }

    pub fn fault(&mut self, field: &str, message: impl Into<String>) {
        if self.faults.len() < FAULTS {
            self.faults.push(FieldFault { field: format!("{}{field}", self.within), message: message.into() });
        }
    }

    /// A member that is there and is not null.
    pub fn value(&mut self, field: &str) -> Option<Value> {
        self.left.shift_remove(field).filter(|value| !value.is_null())
    }

    /// Puts a member back that was taken.
    pub fn put(&mut self, field: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.left.insert(field.to_owned(), value);
        }
    }

    /// A text of at most so many bytes.
    pub fn text(&mut self, field: &str, most: usize) -> Option<String> {
        match self.value(field)? {
            Value::String(text) if text.len() <= most => Some(text),
            Value::String(text) => {
                self.fault(field, format!("has {} bytes, at most {most} are allowed", text.len()));
                None
            }
            other => {
                self.fault(field, format!("must be a string, not {}", kind(&other)));
                None
            }
        }
    }

    /// A text that must be there.
    pub fn required(&mut self, field: &str, most: usize) -> Option<String> {
        if self.left.get(field).is_none_or(Value::is_null) {
            self.fault(field, "is required");
            return None;
        }
        self.text(field, most)
    }

    /// A session, a story or a project.
    pub fn identifier(&mut self, field: &str) -> Option<String> {
        let text = self.text(field, 4096)?;
        if is_identifier(&text) {
            return Some(text);
        }
        self.fault(field, IDENTIFIER);
        None
    }

    /// The name of an object.
    pub fn name(&mut self, field: &str) -> Option<String> {
        let text = self.text(field, 4096)?;
        if is_name(&text) {
            return Some(text);
        }
        self.fault(field, "must be small letters, digits, '-' and '.', the first and the last a letter or digit, at most 52 characters");
        None
    }

    pub fn flag(&mut self, field: &str) -> Option<bool> {
        match self.value(field)? {
            Value::Bool(flag) => Some(flag),
            other => {
                self.fault(field, format!("must be true or false, not {}", kind(&other)));
                None
            }
        }
    }

    pub fn number(&mut self, field: &str, most: f64) -> Option<f64> {
        let value = self.value(field)?;
        let number = value.as_f64().filter(|number| (0.0..=most).contains(number));
        if number.is_none() {
            self.fault(field, format!("must be a number from 0 to {most}"));
        }
        number
    }

    pub fn object(&mut self, field: &str) -> Option<Map<String, Value>> {
        match self.value(field)? {
            Value::Object(object) => Some(object),
            other => {
                self.fault(field, format!("must be an object, not {}", kind(&other)));
                None
            }
        }
    }

    /// A list of at most so many objects, each taken apart.
    pub fn objects<T>(&mut self, field: &str, most: usize, mut each: impl FnMut(&mut Fields) -> Option<T>) -> Vec<T> {
        let list = match self.value(field) {
            None => return Vec::new(),
            Some(Value::Array(list)) if list.len() <= most => list,
            Some(Value::Array(list)) => {
                self.fault(field, format!("has {} entries, at most {most} are allowed", list.len()));
                return Vec::new();
            }
            Some(other) => {
                self.fault(field, format!("must be a list, not {}", kind(&other)));
                return Vec::new();
            }
        };
        let mut taken = Vec::new();
        for (index, one) in list.into_iter().enumerate() {
            let place = format!("{}{field}[{index}]", self.within);
            let Value::Object(one) = one else {
                self.fault(&format!("{field}[{index}]"), format!("must be an object, not {}", kind(&one)));
                continue;
            };
            let mut inner = Self::inner(one, format!("{place}."));
            let found = each(&mut inner);
            inner.unknown();
            self.faults.append(&mut inner.faults);
            taken.extend(found);
        }
        self.faults.truncate(FAULTS);
        taken
    }

    fn unknown(&mut self) {
        let left: Vec<String> = self.left.keys().take(FAULTS).cloned().collect();
        for field in left {
            self.fault(&clipped(&field), "is not a field of this request");
        }
    }

    /// All faults, if there are any; what was not taken is one, too.
    pub fn end(mut self) -> Result<()> {
        self.unknown();
        if self.faults.is_empty() { Ok(()) } else { Err(Problem::fields(self.faults)) }
    }
}

fn clipped(text: &str) -> String {
    crate::api::condition::clip(text, 80)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// `^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`
pub fn is_identifier(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    text.len() <= 63 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(legal)
}

/// The name of a namespace.
pub fn is_namespace(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(legal) && !text.starts_with('-') && !text.ends_with('-')
}

/// The name of a Workflow or a WorkflowTemplate.
pub fn is_name(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    let outer = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=52).contains(&text.len()) && text.chars().all(legal) && text.starts_with(outer) && text.ends_with(outer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn no_digit_of_a_body_is_lost() {
        let body = br#"{"answer": 12345678901234567890123, "entries": {"order": [12345678901234567890123, 7]}}"#;
        let mut fields = Fields::read(body).unwrap_or_else(|_| panic!("it is good"));
        assert_eq!(fields.value("answer"), Some(json!("12345678901234567890123")));
        assert_eq!(json!(fields.object("entries")), json!({"order": ["12345678901234567890123", 7]}));
        // In a spec they are refused by their place, so they are left to be found.
        let mut fields = Fields::read_spec(body).unwrap_or_else(|_| panic!("it is good"));
        assert!(fields.value("answer").is_some_and(|value| value.is_number()));
    }
}
