//! `docs/reference.md`: every field of every kind, from the CRDs alone, so that it says what `kubectl explain` says.

use serde_json::{Map, Value};

const HEAD: &str = "# Reference

All fields of all kinds of `lockstep.dev/v1alpha1`, with the texts of `kubectl explain` (`kubectl explain workflow.spec.steps.gate`).
`make crds` writes this page from the kinds; do not edit it. A field inside of another is required only where the outer one is
given; `[]` stands for each entry of a list, `KEY` for each key of a map. What belongs together is told in [workflows](workflows.md), [agents](agents.md) and
[gates](gates.md), what conditions and Events mean in [operations](operations.md#what-to-watch).
";
const TABLE: &str = "| field | type | required | default | meaning |\n| --- | --- | --- | --- | --- |\n";
/// Behind this a description says what holds where the field is left out.
const DEFAULT: &str = "The default is ";
const VALUES: &str = "\n\nPossible values:\n";

pub fn page(crds: &[Value]) -> String {
    let mut page = HEAD.to_owned();
    let mut steps: Vec<&Value> = Vec::new();
    for crd in crds {
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let kind = text(&crd["spec"]["names"]["kind"]);
        page += &format!("\n## {kind}\n\n{}\n\n{}\n", text(&schema["description"]), listing(crd));
        for part in ["spec", "status"] {
            let fields = &schema["properties"][part];
            if fields.is_null() {
                continue;
            }
            page += &format!("\n### {kind} {part}\n\n{}\n\n{TABLE}{}", text(&fields["description"]), rows(fields, ""));
        }
        steps.extend(schema.pointer("/properties/spec/properties/steps/items"));
    }
    let step = steps.first().copied().unwrap_or(&Value::Null);
    assert!(steps.iter().all(|other| *other == step), "the steps of a run and of a template differ");
    page += &format!("\n## Step\n\n{}\n\n{TABLE}{}", text(&step["description"]), rows(step, ""));
    page
}

/// How a kind is listed: its names, what selects, what is printed.
fn listing(crd: &Value) -> String {
    let names = &crd["spec"]["names"];
    let version = &crd["spec"]["versions"][0];
    let code = |words: Vec<String>| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    let paths = |of: &Value| entries(of).map(|s| text(&s["jsonPath"]).trim_start_matches('.').to_owned()).collect();
    let columns = |wide: bool| -> Vec<String> {
        let columns = entries(&version["additionalPrinterColumns"]);
        columns.filter(|c| c["priority"].as_i64().is_some_and(|p| p > 0) == wide).map(|c| text(&c["name"])).collect()
    };
    let short: Vec<String> = entries(&names["shortNames"]).map(text).collect();
    let selectable: Vec<String> = paths(&version["selectableFields"]);
    let mut lines = vec![format!("`kubectl get {}`", text(&names["plural"]))];
    if !short.is_empty() {
        lines.push(format!("short name {}", code(short)));
    }
    if !selectable.is_empty() {
        lines.push(format!("`--field-selector` takes {} (and `metadata.name`)", code(selectable)));
    }
    lines.push(format!("columns: {}", columns(false).join(", ")));
    lines.push(format!("with `-o wide`: {}", columns(true).join(", ")));
    lines.retain(|line| !line.ends_with(": "));
    lines.join("; ") + "."
}

fn rows(schema: &Value, prefix: &str) -> String {
    let required: Vec<String> = entries(&schema["required"]).map(text).collect();
    let mut rows = String::new();
    for (name, field) in schema["properties"].as_object().unwrap_or(&Map::new()) {
        let path = format!("{prefix}{name}");
        rows += &row(&path, field, if required.contains(name) { "yes" } else { "" });
        // A step has steps, and a condition is one everywhere: told once.
        if is_step(field) || name == "conditions" {
            continue;
        }
        rows += &self::rows(field, &format!("{path}."));
        rows += &self::rows(&field["items"], &format!("{path}[]."));
        rows += &self::rows(&field["additionalProperties"], &format!("{path}.KEY."));
    }
    rows
}

/// Whether a field is a list of steps of a definition.
fn is_step(field: &Value) -> bool {
    field.pointer("/items/properties/agentId").is_some()
}

fn row(path: &str, field: &Value, required: &str) -> String {
    let description = text(&field["description"]);
    let (told, values) = description.split_once(VALUES).unwrap_or((&description, ""));
    let (told, default) = without_default(told);
    let default = match &field["default"] {
        Value::Null => default,
        Value::String(word) if word.is_empty() => default,
        Value::String(word) => format!("`{word}`"),
        other => format!("`{other}`"),
    };
    let values = values.lines().map(|line| line.trim_start_matches(" - ")).collect::<Vec<_>>().join("<br>");
    let meaning = [told, values].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("<br>");
    let cells = [format!("`{path}`"), kind(field), required.to_owned(), default, meaning];
    format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|").replace('\n', " ")).join(" | "))
}

/// The description without the sentence that names the default, and what that names.
fn without_default(told: &str) -> (String, String) {
    let Some((before, behind)) = told.split_once(DEFAULT) else { return (told.to_owned(), String::new()) };
    let (default, behind) = behind.split_once(". ").unwrap_or((behind.trim_end_matches('.'), ""));
    (format!("{before}{behind}").trim_end().to_owned(), default.to_owned())
}

fn kind(field: &Value) -> String {
    let number = |key: &str| field[key].as_f64().map(|n| format!("{n}"));
    match field["type"].as_str() {
        _ if is_step(field) => format!("list of [steps](#step), at most {}", number("maxItems").unwrap_or_default()),
        Some("array") => {
            let of = if text(&field["items"]["description"]).starts_with("Condition ") {
                "conditions".to_owned()
            } else {
                format!("{}s", kind(&field["items"]).split(',').next().unwrap_or_default())
            };
            format!("list of {of}, at most {}", number("maxItems").unwrap_or_default())
        }
        Some("string") if field.get("enum").is_some() => "one of the values".to_owned(),
        Some("string") if field["format"] == "date-time" => "time".to_owned(),
        Some("string") => match number("maxLength") {
            Some(most) => format!("string, at most {most} characters"),
            None => "string".to_owned(),
        },
        Some("integer") => match (number("minimum"), number("maximum")) {
            (Some(least), Some(most)) => format!("integer, {least} to {most}"),
            _ => "integer".to_owned(),
        },
        Some("object") if field.get("x-kubernetes-preserve-unknown-fields").is_some() => {
            "object, any content".to_owned()
        }
        Some(other) => other.to_owned(),
        None if field.get("x-kubernetes-int-or-string").is_some() => "integer or percentage".to_owned(),
        None => "any JSON value".to_owned(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn entries(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
