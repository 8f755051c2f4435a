//! JSON Schema (2020-12) of users: refused where it could hurt, then used to judge outputs and parameters.
//! Nothing is ever fetched, and what a schema may cost is bounded before it is compiled.

use serde_json::{Map, Value};

use crate::api::condition::clip;
use crate::api::limits::SCHEMA_BYTES;
use crate::protocol::Fault;

/// Schemas within schemas.
const DEPTH: usize = 32;
/// Levels of JSON, `enum` values and the like included.
const JSON_DEPTH: usize = 96;
const SUBSCHEMAS: usize = 200;
/// Chains of `anyOf` with two equal references double at each level: what they come to is counted, written out.
const EXPANDED: usize = 1000;
const REGEX_BYTES: usize = 1 << 20;
const FAULTS: usize = 20;
const FAULT_BYTES: usize = 256;

/// Whether the schema is valid and within limits; the error names the place.
pub fn check(schema: &Map<String, Value>) -> Result<(), String> {
    compile(schema).map(drop)
}

/// What is wrong with the instance, at most 20 faults; an error where the schema itself is unusable.
pub fn faults(schema: &Map<String, Value>, instance: &Value) -> Result<Vec<Fault>, String> {
    let validator = compile(schema)?;
    if validator.is_valid(instance) {
        return Ok(Vec::new());
    }
    Ok(validator
        .iter_errors(instance)
        .take(FAULTS)
        .map(|error| Fault {
            pointer: clip(error.instance_path().as_str(), FAULT_BYTES),
            // Masked: faults land in statuses, which more people read than the output.
            message: clip(&error.masked().to_string(), FAULT_BYTES),
        })
        .collect())
}

fn compile(schema: &Map<String, Value>) -> Result<jsonschema::Validator, String> {
    let schema = Value::Object(schema.clone());
    bounded(&schema)?;
    jsonschema::options()
        .offline()
        .with_draft(jsonschema::Draft::Draft202012)
        .should_validate_formats(true)
        .with_pattern_options(jsonschema::PatternOptions::regex().size_limit(REGEX_BYTES))
        .build(&schema)
        .map_err(|error| {
            let place = place(error.instance_path().as_str());
            format!("{place}: {}", clip(&error.to_string(), FAULT_BYTES))
        })
}

fn bounded(schema: &Value) -> Result<(), String> {
    if json_depth(schema, JSON_DEPTH).is_none() {
        return Err(format!("/: deeper than {JSON_DEPTH} levels of JSON"));
    }
    let bytes = serde_json::to_vec(schema).map_or(usize::MAX, |text| text.len());
    if bytes > SCHEMA_BYTES {
        return Err(format!("/: {bytes} bytes, the limit is {SCHEMA_BYTES}"));
    }
    let mut written = Walk::new(schema, false);
    written.visit(schema, "", 0)?;
    Walk::new(schema, true).visit(schema, "", 0)
}

/// `None` where the value is deeper than that.
fn json_depth(value: &Value, left: usize) -> Option<()> {
    let left = left.checked_sub(1)?;
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| json_depth(item, left)),
        Value::Object(members) => members.values().try_for_each(|member| json_depth(member, left)),
        _ => Some(()),
    }
}

/// Goes over a schema as it is written, or as it is when every reference stands written out.
struct Walk<'a> {
    root: &'a Value,
    expand: bool,
    seen: usize,
    references: usize,
    /// The references that are being followed.
    trail: Vec<&'a str>,
}

const ONE: [&str; 12] = [
    "additionalItems",
    "additionalProperties",
    "items",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
const LIST: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const MAP: [&str; 6] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// Of no use without references to elsewhere, and able to turn a reference to another place.
const REFUSED: [&str; 5] = ["$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary"];

impl<'a> Walk<'a> {
    fn new(root: &'a Value, expand: bool) -> Self {
        Self { root, expand, seen: 0, references: 0, trail: Vec::new() }
    }

    fn visit(&mut self, schema: &'a Value, at: &str, depth: usize) -> Result<(), String> {
        let Some(object) = schema.as_object() else {
            return Ok(());
        };
        if depth > DEPTH && !self.expand {
            return Err(format!("{}: schemas nest deeper than {DEPTH}", place(at)));
        }
        self.seen += 1;
        if self.seen > SUBSCHEMAS && !self.expand {
            return Err(format!("{}: more than {SUBSCHEMAS} subschemas", place(at)));
        }
        if let Some(keyword) = REFUSED.iter().find(|keyword| object.contains_key(**keyword)) {
            return Err(format!("{at}/{keyword}: not supported"));
        }
        if object.contains_key("$id") && !at.is_empty() {
            return Err(format!("{at}/$id: only the whole schema may have one"));
        }
        for (key, member) in object {
            let at = format!("{at}/{}", escape(key));
            match member {
                Value::Object(_) if ONE.contains(&key.as_str()) => {
                    self.visit(member, &at, depth + 1)?;
                }
                Value::Array(items) if LIST.contains(&key.as_str()) => {
                    for (index, item) in items.iter().enumerate() {
                        self.visit(item, &format!("{at}/{index}"), depth + 1)?;
                    }
                }
                // Definitions cost nothing until something refers to them.
                Value::Object(_) if self.expand && matches!(key.as_str(), "$defs" | "definitions") => {}
                Value::Object(members) if MAP.contains(&key.as_str()) => {
                    for (name, item) in members {
                        self.visit(item, &format!("{at}/{}", escape(name)), depth + 1)?;
                    }
                }
                Value::String(reference) if key == "$ref" => self.follow(reference, &at, depth)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn follow(&mut self, reference: &'a str, at: &str, depth: usize) -> Result<(), String> {
        let pointer = reference
            .strip_prefix('#')
            .filter(|pointer| pointer.starts_with("/$defs/") || pointer.starts_with("/definitions/"))
            .ok_or_else(|| format!("{at}: a reference must start with #/$defs/; nothing is fetched"))?;
        if pointer.contains('%') {
            return Err(format!("{at}: a reference must not be percent-encoded"));
        }
        let target = self
            .root
            .pointer(pointer)
            .ok_or_else(|| format!("{at}: {} does not exist", clip(reference, FAULT_BYTES)))?;
        if !self.expand {
            return Ok(());
        }
        if self.trail.contains(&reference) {
            return Err(format!("{at}: recursive references are not supported"));
        }
        self.references += 1;
        if self.references > EXPANDED {
            return Err(format!("{at}: with every reference written out, more than {EXPANDED} of them"));
        }
        self.trail.push(reference);
        self.visit(target, pointer, depth + 1)?;
        self.trail.pop();
        Ok(())
    }
}

fn escape(token: &str) -> String {
    clip(&token.replace('~', "~0").replace('/', "~1"), FAULT_BYTES)
}

fn place(pointer: &str) -> &str {
    if pointer.is_empty() { "/" } else { pointer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            other => panic!("{other} is no object"),
        }
    }

    fn doubling(levels: usize) -> Value {
        let mut defs = Map::new();
        for level in 0..levels {
            let next = json!({"$ref": format!("#/$defs/l{}", level + 1)});
            defs.insert(format!("l{level}"), json!({"anyOf": [next, next]}));
        }
        defs.insert(format!("l{levels}"), json!({"type": "string"}));
        json!({"$defs": defs, "$ref": "#/$defs/l0"})
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!({"type": "string"}), |inner, _| json!({"not": inner}))
    }

    #[test]
    fn schemas_that_could_hurt_are_refused_with_their_place() {
        let many: Map<_, _> = (0..250).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect();
        for (schema, part) in [
            (json!({"$ref": "http://example.com/s"}), "/$ref: a reference must start with"),
            (json!({"$ref": "file:///etc/passwd"}), "/$ref: a reference"),
            (json!({"properties": {"a": {"$ref": "other.json#/x"}}}), "/properties/a/$ref: "),
            (json!({"properties": {"a": {"$ref": "#"}}}), "/properties/a/$ref: "),
            (json!({"$ref": "#/$defs/nothing"}), "does not exist"),
            (json!({"$dynamicRef": "#x"}), "/$dynamicRef"),
            (json!({"properties": {"a": {"$id": "http://x/"}}}), "/properties/a/$id"),
            (nested(40), "nest deeper"),
            (nested(500), "levels of JSON"),
            (json!({"properties": many}), "more than 200"),
            (json!({"description": "x".repeat(40_000)}), "the limit is 32768"),
            (doubling(15), "written out"),
            (json!({"$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}), "recursive"),
            (json!({"type": "strin"}), "/type: "),
            (json!({"properties": {"a": {"pattern": "("}}}), "/properties/a/pattern"),
            (json!({"pattern": "(?=a)b"}), "/pattern"),
            (json!({"pattern": "(a{1000}){1000}"}), "/pattern"),
        ] {
            let error = check(&object(schema.clone())).expect_err(&schema.to_string());
            assert!(error.contains(part), "{error} lacks {part}");
            assert!(faults(&object(schema), &json!(1)).is_err());
        }
    }

    #[test]
    fn ordinary_schemas_pass() {
        for schema in [
            json!({}),
            json!({"type": "object", "properties": {"$ref": {"type": "string"}}}),
            json!({"$id": "https://example.com/s", "$defs": {"a": {"type": "string"}}, "items": {"$ref": "#/$defs/a"}}),
            json!({"enum": [{"$ref": "http://example.com"}]}),
            doubling(8),
            nested(20),
        ] {
            assert_eq!(check(&object(schema)), Ok(()));
        }
    }

    #[test]
    fn evil_patterns_take_linear_time() {
        let schema = object(json!({"type": "string", "pattern": "^(a+)+$"}));
        let begun = std::time::Instant::now();
        let found = faults(&schema, &json!(format!("{}!", "a".repeat(100_000)))).expect("compiles");
        assert_eq!(found.len(), 1);
        assert!(begun.elapsed().as_secs() < 5);
    }

    #[test]
    fn faults_are_pointed_at_bounded_and_masked() {
        let schema = object(json!({"type": "object", "required": ["risks"], "properties": {
            "risks": {"type": "integer"}, "list": {"items": {"type": "integer"}}, "mail": {"format": "email"}}}));
        let one = faults(&schema, &json!({"risks": "secret-value"})).expect("compiles");
        assert_eq!(one[0].pointer, "/risks");
        assert!(!one[0].message.contains("secret-value"), "{}", one[0].message);
        let missing = faults(&schema, &json!({})).expect("compiles");
        assert_eq!(missing[0].pointer, "");
        assert!(missing[0].message.contains("risks"));
        let many = faults(&schema, &json!({"risks": 1, "list": vec!["x"; 100]})).expect("compiles");
        assert_eq!(many.len(), 20);
        assert_eq!(faults(&schema, &json!({"risks": 1, "mail": "x"})).expect("compiles").len(), 1);
        assert_eq!(faults(&schema, &json!({"risks": 1})), Ok(Vec::new()));
    }
}
