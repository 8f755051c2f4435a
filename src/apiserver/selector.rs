//! Which objects a list or a watch is about: label selectors, and field selectors of name and namespace, and of what an Event
//! tells.

use std::collections::{BTreeMap, BTreeSet};

use kube::core::{Expression, Selector, SelectorExt};
use serde_json::Value;

use super::object::Object;
use super::status::{Result, bad_request};

const NAME: &str = "/metadata/name";
const NAMESPACE: &str = "/metadata/namespace";
/// Labels of fields; the last ones are those of Events in the group `events.k8s.io`, and of our kinds. The real server refuses
/// those of another kind.
const FIELDS: [(&str, &str); 12] = [
    ("metadata.name", NAME),
    ("metadata.namespace", NAMESPACE),
    ("regarding.kind", "/regarding/kind"),
    ("reason", "/reason"),
    ("status.phase", "/status/phase"),
    ("spec.type", "/spec/type"),
    ("spec.scope", "/spec/scope"),
    ("spec.scopeId", "/spec/scopeId"),
    ("spec.session", "/spec/session"),
    ("spec.project", "/spec/project"),
    ("spec.workflow", "/spec/workflow"),
    ("spec.workflow.name", "/spec/workflow/name"),
];

/// Objects of one namespace or of all, with these labels and fields.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Empty: all namespaces.
    pub namespace: String,
    pub labels: Selector,
    pub fields: Vec<Field>,
}

/// A field that must have, or must not have, a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// As a JSON pointer.
    pointer: &'static str,
    value: String,
    is_wanted: bool,
}

impl Selection {
    pub fn takes(&self, object: &Object) -> bool {
        if !self.namespace.is_empty() && self.namespace != object.key.namespace {
            return false;
        }
        let (key, value) = (&object.key, &object.value);
        let found = |f: &Field| match f.pointer {
            NAME => key.name.clone(),
            NAMESPACE => key.namespace.clone(),
            pointer => value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned(),
        };
        let fits = |f: &Field| (f.value == found(f)) == f.is_wanted;
        self.fields.iter().all(fits) && (self.labels.selects_all() || self.labels.matches(&labels(object)))
    }
}

fn labels(object: &Object) -> BTreeMap<String, String> {
    let all = object.meta("labels").as_object().into_iter().flatten();
    all.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// Reads `labelSelector`.
pub fn labels_of(text: &str) -> Result<Selector> {
    split(text).into_iter().map(expression).collect()
}

/// Reads `fieldSelector`.
pub fn fields_of(text: &str) -> Result<Vec<Field>> {
    split(text).into_iter().map(field).collect()
}

fn field(text: &str) -> Result<Field> {
    let (name, value, is_wanted) = compared(text).ok_or_else(|| unreadable(text))?;
    let known = FIELDS.iter().find(|(label, _)| *label == name);
    let (_, pointer) = known.ok_or_else(|| bad_request(&format!("field label not supported: {name}")))?;
    Ok(Field { pointer, value: unescaped(value), is_wanted })
}

/// In values of fields a backslash stands before `,`, `=` and itself.
fn unescaped(value: &str) -> String {
    let mut chars = value.chars();
    let mut plain = String::new();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    plain
}

fn expression(text: &str) -> Result<Expression> {
    if let Some((key, value, is_wanted)) = compared(text) {
        let (key, value) = (key.to_owned(), value.to_owned());
        return Ok(if is_wanted { Expression::Equal(key, value) } else { Expression::NotEqual(key, value) });
    }
    if let Some((head, list)) = text.split_once('(') {
        let list = list.strip_suffix(')').ok_or_else(|| unreadable(text))?;
        let values: BTreeSet<String> = list.split(',').map(|value| value.trim().to_owned()).collect();
        let (key, word) = head.trim().rsplit_once(char::is_whitespace).ok_or_else(|| unreadable(text))?;
        let key = key.trim().to_owned();
        return match word {
            "in" => Ok(Expression::In(key, values)),
            "notin" => Ok(Expression::NotIn(key, values)),
            _ => Err(unreadable(text)),
        };
    }
    match text.strip_prefix('!') {
        Some(key) => Ok(Expression::DoesNotExist(key.trim().to_owned())),
        None if text.contains(char::is_whitespace) => Err(unreadable(text)),
        None => Ok(Expression::Exists(text.to_owned())),
    }
}

/// `a=b`, `a==b` or `a!=b`: what is compared with what, and whether they must be the same.
fn compared(text: &str) -> Option<(&str, &str, bool)> {
    let (left, right) = text.split_once('=')?;
    let (left, is_wanted) = left.strip_suffix('!').map_or((left, true), |left| (left, false));
    Some((left.trim(), right.trim_start_matches('=').trim(), is_wanted))
}

/// The requirements: commas in parentheses separate values.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0_u32, 0, Vec::new());
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        let was_escaped = is_escaped;
        is_escaped = c == '\\' && !was_escaped;
        match c {
            _ if was_escaped => {}
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn unreadable(text: &str) -> super::status::Refusal {
    bad_request(&format!("unable to parse requirement: {text:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::kind::Kind;
    use crate::apiserver::object::Key;

    #[test]
    fn selectors_are_read_as_kubectl_writes_them() {
        let object = Object::new(
            Key::new(Kind::Pod, "team", "p"),
            json!({"metadata": {"labels": {"app": "x", "tier": "front"}}}),
        );
        for (labels, fields, takes) in [
            ("", "", true),
            ("app", "metadata.name=p", true),
            ("app=x,tier!=back", "metadata.namespace==team", true),
            ("app==y", "", false),
            ("!app", "", false),
            ("app in (x, y),tier notin (back)", "", true),
            ("app in (y)", "", false),
            ("other notin (y)", "", true),
            ("", "metadata.name!=p", false),
        ] {
            let labels_of = labels_of(labels).expect("a selector");
            let selection =
                Selection { namespace: String::new(), labels: labels_of, fields: fields_of(fields).expect("fields") };
            assert_eq!(selection.takes(&object), takes, "{labels} {fields}");
        }
        let elsewhere = Selection { namespace: "other".to_owned(), ..Selection::default() };
        assert!(!elsewhere.takes(&object));
        let event = Object::new(
            Key::new(Kind::Event, "team", "e"),
            json!({"reason": "FailedCreate", "regarding": {"kind": "Job"}}),
        );
        let fields = |text: &str| Selection { fields: fields_of(text).expect("fields"), ..Selection::default() };
        assert!(fields("regarding.kind=Job,reason=FailedCreate").takes(&event));
        assert!(!fields("regarding.kind=Pod,reason=FailedCreate").takes(&event));
        assert!(!fields("regarding.kind=Job,reason=Completed").takes(&event));
        assert!(labels_of("a b").is_err() && labels_of("a in (b").is_err() && fields_of("spec.x=1").is_err());
    }
}
