//! The CRD files are what the types say, small, and bounded in every list, string and map.
//! `UPDATE=1 cargo test --test crds` writes them anew.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test ends by panicking, and a table is as long as its cases"
)]

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lockstep::api::crd;
use serde_json::Value;

/// Who applies them: people with kubectl, and the chart.
const PLACES: [&str; 2] = ["crds", "charts/lockstep/files/crds"];
/// The API server's limit for a request is larger; clients that keep a copy in an annotation stop here.
const LARGEST: usize = 256 * 1024;

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
        let status =
            crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/status").cloned().unwrap_or_default();
        assert_eq!(status.get("default"), Some(&serde_json::json!({})), "{kind}");
        if kind != "Document" {
            assert_eq!(
                status.pointer("/properties/observedGeneration/default"),
                Some(&serde_json::json!(-1)),
                "{kind}"
            );
        }
        assert!(
            crd.pointer("/spec/versions/0/schema/openAPIV3Schema/required")
                .is_some_and(|r| r.to_string().contains("\"spec\"")),
            "{kind}: without a required spec, dropping it dodges the transition rule"
        );
    }
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
