//! What the API server would refuse by the structural schema of a kind: the very schema that the CRD carries, its
//! creation rules included. Unknown fields are faults, as they are for `kubectl apply`.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "on the author's own machine, and the rules are those of our CRDs"
)]

use serde_json::{Map, Value};

use crate::cli::text::near;
use crate::definition::expression::{Evaluate, Expression, InProcess, Scope};

/// The schema of a kind; none for a kind that is not ours.
pub fn of_kind(kind: &str) -> Option<Value> {
    let crds = crate::api::crd::all();
    let crd = crds.iter().find(|crd| crd.pointer("/spec/names/kind").and_then(Value::as_str) == Some(kind))?;
    crd.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned()
}

/// The kinds that there are.
pub fn kinds() -> Vec<String> {
    let kind = |crd: &Value| crd.pointer("/spec/names/kind").and_then(Value::as_str).map(str::to_owned);
    crate::api::crd::all().iter().filter_map(kind).collect()
}

/// All faults, each with its path; nulls are taken out of the value first, as the API server does.
pub fn faults(schema: &Value, value: &mut Value) -> Vec<String> {
    prune(schema, value);
    let mut faults = Vec::new();
    check(schema, value, "", &mut faults);
    faults
}

fn prune(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(members) => {
            let own = schema.get("properties").and_then(Value::as_object);
            let Some(own) = own else { return };
            members.retain(|key, member| !(member.is_null() && own.contains_key(key)));
            for (key, member) in members {
                if let Some(inner) = own.get(key) {
                    prune(inner, member);
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.get("items") {
                for item in items {
                    prune(inner, item);
                }
            }
        }
        _ => {}
    }
}

fn check(schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    let flag = |key: &str| schema.get(key).and_then(Value::as_bool).unwrap_or_default();
    let wanted = schema.get("type").and_then(Value::as_str);
    if flag("x-kubernetes-int-or-string") {
        if !(value.is_i64() || value.is_u64() || value.is_string()) {
            return faults.push(format!("{path}: must be a whole number or a text, not {}", word(value)));
        }
    } else if let Some(wanted) = wanted
        && !is_type(value, wanted)
    {
        return faults.push(format!("{path}: must be {}, not {}", article(wanted), word(value)));
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let names: Vec<String> = allowed.iter().map(shown).collect();
        faults.push(format!("{path}: {} is not one of {}", shown(value), names.join(", ")));
    }
    match value {
        Value::Object(members) => object(schema, members, path, faults),
        Value::Array(items) => list(schema, items, path, faults),
        Value::String(text) => string(schema, text, path, faults),
        Value::Number(number) => range(schema, number.as_f64().unwrap_or_default(), path, faults),
        _ => {}
    }
    rules(schema, value, path, faults);
}

fn object(schema: &Value, members: &Map<String, Value>, path: &str, faults: &mut Vec<String>) {
    let place = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let empty = Map::new();
    let own = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let others = schema.get("additionalProperties");
    let free = schema.get("x-kubernetes-preserve-unknown-fields").and_then(Value::as_bool).unwrap_or_default();
    for key in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !members.contains_key(key) {
            faults.push(format!("{}: is missing", place(key)));
        }
    }
    limit(schema, "maxProperties", members.len(), (path, "members"), faults);
    for (key, member) in members {
        match own.get(key).or(others) {
            Some(inner) => check(inner, member, &place(key), faults),
            None if free || (own.is_empty() && schema.get("properties").is_none()) => {}
            None => faults.push(format!("{}: {}", place(key), unknown(key, own))),
        }
    }
}

/// A name that is none here, with what may have been meant.
fn unknown(key: &str, own: &Map<String, Value>) -> String {
    let known: Vec<String> = own.keys().cloned().collect();
    let same = known.iter().find(|name| name.eq_ignore_ascii_case(key)).cloned();
    let close = same.map_or_else(|| near(key, &known), |name| vec![name]);
    match close.as_slice() {
        [] => format!("is no field here; there are {}", known.join(", ")),
        close => format!("is no field here; did you mean {}?", close.join(" or ")),
    }
}

fn list(schema: &Value, items: &[Value], path: &str, faults: &mut Vec<String>) {
    limit(schema, "maxItems", items.len(), (path, "entries"), faults);
    limit(schema, "minItems", items.len(), (path, "entries"), faults);
    if let Some(inner) = schema.get("items") {
        for (index, item) in items.iter().enumerate() {
            check(inner, item, &format!("{path}[{index}]"), faults);
        }
    }
    let keys: Vec<&str> = schema
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let [key] = keys.as_slice() else { return };
    for (index, item) in items.iter().enumerate() {
        let own = item.get(key);
        if own.is_some() && items[..index].iter().any(|before| before.get(key) == own) {
            let twice = own.map(shown).unwrap_or_default();
            faults.push(format!("{path}[{index}].{key}: {twice} stands twice in this list"));
        }
    }
}

fn string(schema: &Value, text: &str, path: &str, faults: &mut Vec<String>) {
    limit(schema, "maxLength", text.chars().count(), (path, "characters"), faults);
    limit(schema, "minLength", text.chars().count(), (path, "characters"), faults);
    if let Some(pattern) = schema.get("pattern") {
        let rule = Map::from_iter([("pattern".to_owned(), pattern.clone())]);
        let fits = InProcess.faults(&rule, &Value::String(text.to_owned())).is_ok_and(|found| found.is_empty());
        if !fits {
            let shown = crate::cli::text::inline(text, 80);
            faults.push(format!("{path}: {shown:?} does not match {}", pattern.as_str().unwrap_or_default()));
        }
    }
}

fn limit(schema: &Value, key: &str, size: usize, (path, unit): (&str, &str), faults: &mut Vec<String>) {
    let Some(bound) = schema.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()) else { return };
    if key.starts_with("max") && size > bound {
        faults.push(format!("{path}: has {size} {unit}, at most {bound} are allowed"));
    } else if key.starts_with("min") && size < bound {
        faults.push(format!("{path}: has {size} {unit}, at least {bound} must be there"));
    }
}

fn range(schema: &Value, number: f64, path: &str, faults: &mut Vec<String>) {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    if let Some(least) = bound("minimum").filter(|least| number < *least) {
        faults.push(format!("{path}: {number} is less than {least}"));
    }
    if let Some(most) = bound("maximum").filter(|most| number > *most) {
        faults.push(format!("{path}: {number} is more than {most}"));
    }
}

/// The CRD's own CEL, as far as it speaks of creation.
fn rules(schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    for entry in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("rule").contains("oldSelf") {
            continue;
        }
        let scope = Scope::in_process().with("self", shallow(value, 2));
        let verdict = Expression::parse(text("rule")).and_then(|rule| rule.evaluate(&scope));
        if verdict == Ok(Value::Bool(false)) {
            // The rules of the whole object are about its name, and say so.
            faults.push(match text("message").split_once("metadata.name ") {
                Some(("", rest)) if path.is_empty() => format!("metadata.name: {rest}"),
                _ => format!("{path}: {}", text("message")),
            });
        }
    }
}

/// Rules ask what is there and how long a name is; what is deeper costs only time.
fn shallow(value: &Value, depth: usize) -> Value {
    match value {
        Value::Object(members) if depth > 0 => {
            Value::Object(members.iter().map(|(key, member)| (key.clone(), shallow(member, depth - 1))).collect())
        }
        Value::Object(_) => Value::Object(Map::new()),
        Value::Array(_) => Value::Array(Vec::new()),
        Value::String(text) => Value::String(text.chars().take(256).collect()),
        other => other.clone(),
    }
}

fn is_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        _ => true,
    }
}

fn article(wanted: &str) -> String {
    match wanted {
        "object" => "a mapping".to_owned(),
        "array" => "a list".to_owned(),
        "string" => "a text".to_owned(),
        "boolean" => "true or false".to_owned(),
        "integer" => "a whole number".to_owned(),
        other => format!("a {other}"),
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        scalar => shown(scalar),
    }
}

fn shown(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    crate::cli::text::inline(&text, 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rule of creation in every CRD is one that we can evaluate: none passes because it is not understood.
    #[test]
    fn every_rule_of_creation_is_understood() {
        fn visit(schema: &Value, found: &mut usize) {
            match schema {
                Value::Object(members) => {
                    for entry in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten()
                    {
                        let rule = entry.get("rule").and_then(Value::as_str).unwrap_or_default();
                        if !rule.contains("oldSelf") {
                            *found += 1;
                            let value = serde_json::json!({"metadata": {"name": "x"}, "scope": "Item"});
                            let verdict = Expression::parse(rule)
                                .and_then(|rule| rule.evaluate(&Scope::in_process().with("self", value)));
                            assert!(matches!(verdict, Ok(Value::Bool(_))), "{rule}: {verdict:?}");
                        }
                    }
                    members.values().for_each(|member| visit(member, found));
                }
                Value::Array(items) => items.iter().for_each(|item| visit(item, found)),
                _ => {}
            }
        }
        let mut found = 0;
        for crd in crate::api::crd::all() {
            visit(&crd, &mut found);
        }
        assert!(found > 5, "{found}");
    }
}
