//! The CRD files and the reference page are what the types say: explained to users, small, and bounded in every list, string
//! and map.
//! `UPDATE=1 cargo test --test crds` writes them anew.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test ends by panicking, and a table is as long as its cases"
)]

#[path = "crds/examples.rs"]
mod examples;
#[path = "crds/reference.rs"]
mod reference;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use lockstep::api::crd;
use serde_json::Value;

/// Who applies them: people with kubectl, and the chart.
const PLACES: [&str; 2] = ["crds", "charts/lockstep/files/crds"];
/// The API server's limit for a request is larger; clients that keep a copy in an annotation stop at 256 KiB.
const LARGEST: usize = 200 * 1024;
/// What only those know who wrote the product; users are told otherwise.
const OURS: [&str; 9] =
    ["latched", "derived", "fence", "mailbox", "unless told", "pinned", "write-once", "commit point", "verdict"];

#[test]
fn crds_match_the_types() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let update = std::env::var_os("UPDATE").is_some();
    for (plural, text) in crd::files()? {
        ensure!(text.len() < LARGEST, "{plural} has {} bytes", text.len());
        for place in PLACES {
            let path = root.join(place).join(format!("{plural}.yaml"));
            if update {
                fs::create_dir_all(root.join(place))?;
                fs::write(&path, &text)?;
            }
            let stored = fs::read_to_string(&path)
                .with_context(|| format!("{}: run UPDATE=1 cargo test --test crds", path.display()))?;
            ensure!(
                stored == text,
                "{} is not what the types say: run UPDATE=1 cargo test --test crds",
                path.display()
            );
        }
    }
    for place in PLACES {
        let files = fs::read_dir(root.join(place))?.count();
        ensure!(files == crd::all().len(), "{place} holds {files} files");
    }
    Ok(())
}

#[test]
fn the_reference_is_what_the_kinds_say() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let page = reference::page(&crd::all());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page)?;
    }
    ensure!(fs::read_to_string(&path)? == page, "docs/reference.md is not what the kinds say: run make crds");
    Ok(())
}

/// The contract with agents, and the example of it that people read.
#[test]
fn the_schema_of_the_context_is_what_the_types_say() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let (path, schema) = (docs.join("context.schema.json"), lockstep::protocol::context::schema());
    let text = serde_json::to_string_pretty(&schema)? + "\n";
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &text)?;
    }
    ensure!(fs::read_to_string(&path)? == text, "docs/context.schema.json is not what the types say: run make crds");
    let page = fs::read_to_string(docs.join("agents.md"))?;
    let behind = page.split_once("(context.schema.json").context("agents.md does not name the schema")?.1;
    let example = behind.split("```").nth(1).context("agents.md shows no context.json")?;
    let example: Value = serde_json::from_str(example)?;
    let validator = jsonschema::validator_for(&schema).map_err(|fault| anyhow::anyhow!("{fault}"))?;
    let faults: Vec<String> =
        validator.iter_errors(&example).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    ensure!(faults.is_empty(), "the example in docs/agents.md: {}", faults.join("; "));
    Ok(())
}

/// What a reader copies from README.md or docs/ has no fault.
#[test]
fn the_examples_of_the_pages_pass_lint() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md")];
    for page in fs::read_dir(root.join("docs"))? {
        pages.push(page?.path());
    }
    let mut count = 0;
    for page in pages {
        for (line, object) in examples::objects(&fs::read_to_string(&page)?) {
            let told = lint(&object)?;
            let words = String::from_utf8_lossy(&told.stdout) + String::from_utf8_lossy(&told.stderr);
            ensure!(told.status.success(), "{}:{line}: {words}", page.display());
            count += 1;
        }
    }
    ensure!(count > 5, "{count} examples were found");
    let wrong =
        examples::objects("```yaml\n- name: a\n  agentId: x\n  nosuch: 1\n```\n```yaml\ngate: {nosuch: 1}\n```\n");
    ensure!(wrong.len() == 2, "{wrong:?}");
    for (line, object) in wrong {
        ensure!(!lint(&object)?.status.success(), "line {line} passes");
    }
    Ok(())
}

fn lint(object: &str) -> Result<Output> {
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_kubectl-lockstep"))
        .args(["lint", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    plugin.stdin.take().context("no stdin")?.write_all(object.as_bytes())?;
    Ok(plugin.wait_with_output()?)
}

/// `kubectl explain` is where most people look first.
#[test]
fn every_field_is_explained_in_whole_sentences() {
    let mut faults = Vec::new();
    for crd in crd::all() {
        let kind = text(&crd, "/spec/names/kind");
        for version in list(&crd, "/spec/versions") {
            if let Some(schema) = version.pointer("/schema/openAPIV3Schema") {
                explained(schema, &kind, &mut faults);
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_explains_nothing_is_refused() {
    for (description, fault) in [
        ("", "no description"),
        ("the name.", "not a whole sentence"),
        ("The name", "not a whole sentence"),
        ("`x` is the name.", "not a whole sentence"),
        ("Latched: the name.", "a word of ours: latched"),
        ("The name; none unless told.", "a word of ours: unless told"),
    ] {
        let mut faults = Vec::new();
        explained(&serde_json::json!({"type": "string", "description": description}), "K.f", &mut faults);
        assert!(faults.iter().any(|f| f.contains(fault)), "{description:?}: {faults:?}");
    }
    let value = |told: &str| format!("What it is.\n\nPossible values:\n - `a`: {told}");
    for (told, faulty) in [(value("It is."), false), (value("it is"), true), ("What it is.".to_owned(), true)] {
        let mut faults = Vec::new();
        explained(&serde_json::json!({"type": "string", "enum": ["a"], "description": told}), "K.f", &mut faults);
        assert_eq!(!faults.is_empty(), faulty, "{told:?}: {faults:?}");
    }
}

/// Kubernetes' own types explain themselves. The entries of a list may do without: the list is explained.
fn explained(schema: &Value, path: &str, faults: &mut Vec<String>) {
    if path.ends_with(".status.conditions[]") {
        return;
    }
    let description = text(schema, "/description");
    let whole = |told: &str| told.starts_with(char::is_uppercase) && told.ends_with('.');
    if description.is_empty() && !path.ends_with("[]") {
        faults.push(format!("{path}: no description"));
    }
    let paragraphs: Vec<&str> = description.split("\n\n").collect();
    let (values, told): (Vec<&str>, Vec<&str>) =
        paragraphs.into_iter().partition(|paragraph| paragraph.starts_with("Possible values:"));
    if told.iter().any(|paragraph| !paragraph.is_empty() && !whole(paragraph)) {
        faults.push(format!("{path}: not a whole sentence: {description}"));
    }
    for value in list(schema, "/enum") {
        let marked = format!(" - `{}`: ", value.as_str().unwrap_or_default());
        let meaning = values.iter().flat_map(|v| v.lines()).find_map(|line| line.strip_prefix(&marked));
        if !meaning.is_some_and(whole) {
            faults.push(format!("{path}: {value} is not explained in a whole sentence"));
        }
    }
    let small = description.to_lowercase();
    faults.extend(OURS.iter().filter(|w| small.contains(**w)).map(|w| format!("{path}: a word of ours: {w}")));
    for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        explained(inner, &format!("{path}.{name}"), faults);
    }
    for (key, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(inner) = schema.get(key).filter(|inner| inner.is_object()) {
            explained(inner, &format!("{path}{mark}"), faults);
        }
    }
}

#[test]
fn every_list_string_and_map_is_bounded() {
    let mut faults = Vec::new();
    for crd in crd::all() {
        let kind = text(&crd, "/spec/names/kind");
        for version in list(&crd, "/spec/versions") {
            if let Some(schema) = version.pointer("/schema/openAPIV3Schema") {
                walk(schema, &kind, &mut faults);
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_field_may_be_null_and_every_status_reads_as_unseen_first() {
    for crd in crd::all() {
        let kind = text(&crd, "/spec/names/kind");
        let written = crd.to_string();
        assert!(!written.contains("\"nullable\""), "{kind}");
        assert!(
            crd.pointer("/spec/versions/0/schema/openAPIV3Schema/required")
                .is_some_and(|r| r.to_string().contains("\"spec\"")),
            "{kind}: without a required spec, dropping it dodges the transition rule"
        );
        // What is remembered is nothing that anybody looks at and reports on.
        if kind == "Memory" {
            assert!(!written.contains("\"status\""), "{kind}");
            continue;
        }
        let status =
            crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/status").cloned().unwrap_or_default();
        // A null in it could not be written by a merge patch, which takes away what is null.
        assert!(!status.to_string().contains("x-kubernetes-preserve-unknown-fields"), "{kind}: any value, and so null");
        // Documents that an older version published say nothing of it.
        let observed = serde_json::json!({"observedGeneration": -1});
        let unseen = if kind == "Document" { observed } else { serde_json::json!({}) };
        assert_eq!(status.get("default"), Some(&unseen), "{kind}");
        if kind != "Document" {
            assert_eq!(
                status.pointer("/properties/observedGeneration/default"),
                Some(&serde_json::json!(-1)),
                "{kind}"
            );
        }
    }
}

/// What an author writes beyond the range of a number is refused when it is applied: nothing else could say it.
#[test]
fn every_number_of_an_author_has_its_range() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for crd in crd::all() {
        let kind = text(&crd, "/spec/names/kind");
        let spec = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
        if matches!(kind.as_str(), "Workflow" | "WorkflowTemplate" | "Agent" | "Trigger") {
            seen += numbers(spec.unwrap_or(&Value::Null), &kind, &mut faults);
        }
    }
    assert!(faults.is_empty() && seen > 50, "{seen}: {}", faults.join("\n"));
}

/// How many there are.
fn numbers(schema: &Value, path: &str, faults: &mut Vec<String>) -> usize {
    let has = |key: &str| schema.get(key).is_some();
    let is_number = matches!(schema.get("type").and_then(Value::as_str), Some("integer" | "number"))
        || has("x-kubernetes-int-or-string");
    if is_number && !(has("minimum") && has("maximum")) {
        faults.push(format!("{path}: a number without minimum and maximum"));
    }
    let inner = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let mut seen: usize = inner.map(|(name, inner)| numbers(inner, &format!("{path}.{name}"), faults)).sum();
    for key in ["items", "additionalProperties"] {
        seen += schema.get(key).map_or(0, |inner| numbers(inner, &format!("{path}[]"), faults));
    }
    seen + usize::from(is_number)
}

/// Kubernetes' own types are exempt: `Condition` (the API machinery gives its strings their bounds) and `Time`
/// (`format: date-time` is one).
fn walk(schema: &Value, path: &str, faults: &mut Vec<String>) {
    if path.ends_with(".status.conditions[]") {
        return;
    }
    let has = |key: &str| schema.get(key).is_some();
    let free = has("x-kubernetes-preserve-unknown-fields");
    match schema.get("type").and_then(Value::as_str) {
        Some("array") if !has("maxItems") => {
            faults.push(format!("{path}: a list without maxItems"));
        }
        Some("string") if !(has("maxLength") || has("enum") || has("format")) => {
            faults.push(format!("{path}: a string without maxLength, enum or format"));
        }
        Some("object") if has("additionalProperties") && !has("maxProperties") => {
            faults.push(format!("{path}: a map without maxProperties"));
        }
        Some("object") if !has("properties") && !has("additionalProperties") && !free => {
            faults.push(format!("{path}: an object of which everything is pruned"));
        }
        // A number or a percentage: bounded where its text is.
        None if has("x-kubernetes-int-or-string") && has("maxLength") => {}
        None if !free => faults.push(format!("{path}: a value without a type")),
        _ => {}
    }
    if let Some(Value::Object(properties)) = schema.get("properties") {
        for (name, inner) in properties {
            walk(inner, &format!("{path}.{name}"), faults);
        }
    }
    if let Some(inner) = schema.get("items") {
        walk(inner, &format!("{path}[]"), faults);
    }
    if let Some(inner) = schema.get("additionalProperties") {
        walk(inner, &format!("{path}{{}}"), faults);
    }
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn list(value: &Value, pointer: &str) -> Vec<Value> {
    value.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// The API server prunes what a field was called before. One object that cannot be read keeps the operator's cache of all of
/// its kind from filling.
#[test]
fn what_older_versions_wrote_is_read() {
    let spec = serde_json::json!({"workflow": {"name": "w", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
        "path": "a", "parameters": "{}", "inputDigest": "", "scopeChain": [{"scope": "workflow"}]});
    let decision = serde_json::json!({"documentType": "a", "accepted": true, "decidedBy": "ann", "digest": "o", "round": 1,
        "decidedAt": "1970-01-01T00:00:00Z"});
    let gate = serde_json::json!({"state": "Accepted", "round": 1, "outputDigest": "o", "policy": "p",
        "openedAt": "1970-01-01T00:00:00Z", "decisions": [decision]});
    let object = serde_json::json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun", "metadata": {"name": "s"},
        "spec": spec, "status": {"gate": gate}});
    let read = serde_json::from_value::<lockstep::api::StepRun>(object);
    assert!(read.is_ok_and(|s| s.spec.scope_chain[0].scope_id.is_empty()));
}
