//! What `POST /run` asks for, read from its body: pure.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::fields::Fields;
use super::problem::Result;
use crate::api::limits::{PARAMETERS_BYTES, WORKFLOW_DOCUMENTS, WORKFLOW_DOCUMENTS_BYTES, WORKFLOW_INPUT_BYTES};
use crate::api::name::{CREATED_BY, LABEL_MADE_BY};
use crate::api::step::Format;
use crate::api::workflow::{InlineDocument, TemplateRef};
use crate::api::{Workflow, WorkflowSpec};
use crate::definition::free_value;

/// How long the answer is waited for, in seconds: unless told, and at most.
const WAIT: f64 = 5.0;
const LONGEST_WAIT: f64 = 60.0;

/// The body of `POST /run`.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct RunRequest {
    /// The name of the WorkflowTemplate to run. The default is `default`.
    #[schemars(
        length(min = 1, max = 52),
        regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"),
        default = "default_flow"
    )]
    pub flow: String,
    /// What the agents are asked for, at most 64 KiB of text.
    #[schemars(length(min = 1, max = 65_536))]
    pub input: String,
    /// The story: its runs share documents and what agents remember, and no other story sees them. It is the session of the run.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub story_id: String,
    /// Another word for `story_id`; if both are given they must be the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub session_id: Option<String>,
    /// The project of the run: runs of one project share its documents.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub project: Option<String>,
    /// The parameters of the run, which must meet the schema of the flow; at most 32 KiB as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Map<String, Value>>,
    /// Documents of this run, at most 32, one of each type, with 64 KiB of content in all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), default)]
    pub documents: Vec<InlineDocument>,
    /// How many seconds the result is waited for, 0 to 60; after that the answer is a stream or 202. The default is 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 60))]
    pub wait: Option<f64>,
}

fn default_flow() -> String {
    "default".to_owned()
}

impl RunRequest {
    pub fn read(body: &[u8]) -> Result<Self> {
        let mut fields = Fields::read_spec(body)?;
        let flow = fields.name("flow");
        let input = fields.required("input", WORKFLOW_INPUT_BYTES);
        if input.as_deref() == Some("") {
            fields.fault("input", "must not be empty");
        }
        let (story_id, session_id) = sessions(&mut fields);
        let project = fields.identifier("project");
        let parameters = parameters(&mut fields);
        let documents = documents(&mut fields);
        let wait = fields.number("wait", LONGEST_WAIT);
        fields.end()?;
        Ok(Self {
            flow: flow.unwrap_or_else(default_flow),
            input: input.unwrap_or_default(),
            story_id: story_id.unwrap_or_default(),
            session_id,
            project,
            parameters,
            documents,
            wait,
        })
    }

    pub fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.wait.unwrap_or(WAIT))
    }

    /// The run that it asks for, without its name.
    pub fn workflow(&self, user: &str) -> Workflow {
        let spec = WorkflowSpec {
            template_ref: Some(TemplateRef { name: self.flow.clone() }),
            input: Some(self.input.clone()),
            session: Some(self.story_id.clone()),
            project: self.project.clone(),
            parameters: self.parameters.clone().filter(|parameters| !parameters.is_empty()),
            documents: self.documents.clone(),
            ..WorkflowSpec::default()
        };
        let mut run = Workflow::new("", spec);
        run.metadata.labels = Some([(LABEL_MADE_BY.to_owned(), "api".to_owned())].into());
        // Admission lets nobody write another name than their own.
        run.metadata.annotations = Some([(CREATED_BY.to_owned(), user.to_owned())].into());
        run
    }

    /// In what a run is not the one that is asked for.
    pub fn difference(&self, run: &Workflow) -> Option<&'static str> {
        let wanted = self.workflow("").spec;
        let of = &run.spec;
        let differs = [
            ("flow", wanted.template_ref != of.template_ref),
            ("input", wanted.input != of.input),
            ("story_id", wanted.session != of.session),
            ("project", wanted.project != of.project),
            ("parameters", wanted.parameters != of.parameters.clone().filter(|parameters| !parameters.is_empty())),
            ("documents", wanted.documents != of.documents),
        ];
        differs.into_iter().find(|(_, differs)| *differs).map(|(field, _)| field)
    }
}

/// Both words mean the same thing; one of them must be there.
fn sessions(fields: &mut Fields) -> (Option<String>, Option<String>) {
    let (story_id, session_id) = (fields.value("story_id"), fields.value("session_id"));
    if story_id.is_none() && session_id.is_none() {
        fields.fault("story_id", "is required");
        return (None, None);
    }
    if let (Some(one), Some(other)) = (&story_id, &session_id)
        && one != other
    {
        fields.fault("session_id", "is another word for story_id: leave it out, or give it the same value");
    }
    let mut checked = |field: &str, value: Option<Value>| {
        fields.put(field, value);
        fields.identifier(field)
    };
    let (story_id, session_id) = (checked("story_id", story_id), checked("session_id", session_id));
    (story_id.or_else(|| session_id.clone()), session_id)
}

fn parameters(fields: &mut Fields) -> Option<Map<String, Value>> {
    let found = fields.object("parameters")?;
    let value = Value::Object(found);
    let bytes = value.to_string().len();
    if bytes > PARAMETERS_BYTES {
        fields.fault("parameters", format!("has {bytes} bytes as JSON, at most {PARAMETERS_BYTES} are allowed"));
    }
    for fault in free_value::faults(&value, "parameters").into_iter().take(8) {
        let (place, why) = fault.split_once(": ").unwrap_or(("parameters", &fault));
        fields.fault(place, why);
    }
    let Value::Object(found) = value else { return None };
    Some(found)
}

fn documents(fields: &mut Fields) -> Vec<InlineDocument> {
    let mut seen: Vec<String> = Vec::new();
    let found = fields.objects("documents", WORKFLOW_DOCUMENTS, |one| {
        let document_type = document_type(one, "type");
        if let Some(document_type) = &document_type {
            if seen.contains(document_type) {
                one.fault("type", "stands twice; a run has one document of each type");
            }
            seen.push(document_type.clone());
        }
        let format = format(one, "format");
        let content = one.required("content", WORKFLOW_DOCUMENTS_BYTES);
        if let (Some(Format::Json), Some(content)) = (format, &content)
            && let Err(why) = serde_json::from_str::<Value>(content)
        {
            one.fault("content", format!("is not JSON: {why}"));
        }
        Some(InlineDocument { document_type: document_type?, format: format?, content: content? })
    });
    let bytes: usize = found.iter().map(|one| one.content.len()).sum();
    if bytes > WORKFLOW_DOCUMENTS_BYTES {
        fields.fault(
            "documents",
            format!("have {bytes} bytes in all, at most {WORKFLOW_DOCUMENTS_BYTES} are allowed; put large ones by POST /documents"),
        );
    }
    found
}

/// `^[a-z][a-z0-9-]*$`, at most 63 characters, and none of Lockstep's own.
pub fn document_type(fields: &mut Fields, field: &str) -> Option<String> {
    let text = fields.required(field, 4096)?;
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !(text.len() <= 63 && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(legal)) {
        fields.fault(field, "must be a small letter, then small letters, digits and '-', at most 63 characters");
        return None;
    }
    if text.starts_with("lockstep-") {
        fields.fault(field, "types that begin with lockstep- are Lockstep's own; choose another");
        return None;
    }
    Some(text)
}

/// The default is that of the kind.
pub fn format(fields: &mut Fields, field: &str) -> Option<Format> {
    let Some(value) = fields.value(field) else { return Some(Format::default()) };
    let known = serde_json::from_value(value).ok();
    if known.is_none() {
        fields.fault(field, "must be one of markdown, json, text and link");
    }
    known
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "bodies are built in place")]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(body: Value) -> Vec<String> {
        match RunRequest::read(body.to_string().as_bytes()) {
            Ok(_) => Vec::new(),
            Err(problem) => problem.refusal.errors.into_iter().map(|one| one.field).collect(),
        }
    }

    #[test]
    fn a_body_is_read_with_its_defaults() {
        let wanted = RunRequest::read(br#"{"input": "a shop", "story_id": "s-1"}"#).expect("it is good");
        assert_eq!(
            (wanted.flow.as_str(), wanted.story_id.as_str(), wanted.patience()),
            ("default", "s-1", Duration::from_secs(5))
        );
        let run = wanted.workflow("ann");
        assert_eq!(run.spec.session.as_deref(), Some("s-1"));
        assert_eq!(run.metadata.annotations.as_ref().and_then(|a| a.get(CREATED_BY)).map(String::as_str), Some("ann"));
        let whole = json!({"flow": "big", "input": "x", "session_id": "S_1.a", "project": "p", "parameters": {"n": 1}, "wait": 0.5,
            "documents": [{"type": "brief", "content": "# B"}, {"type": "data", "format": "json", "content": "{}"}]});
        let wanted = RunRequest::read(whole.to_string().as_bytes()).expect("it is good");
        assert_eq!(
            (wanted.story_id.as_str(), wanted.documents.len(), wanted.patience()),
            ("S_1.a", 2, Duration::from_millis(500))
        );
        assert!(wanted.difference(&wanted.workflow("bob")).is_none());
    }

    #[test]
    fn every_field_that_is_wrong_is_named_at_once() {
        let good = json!({"input": "x", "story_id": "s"});
        let with = |field: &str, value: Value| {
            let mut body = good.clone();
            body[field] = value;
            body
        };
        let document = |more: Value| with("documents", json!([{"type": "brief", "content": "x"}, more]));
        for (body, expected) in [
            (json!({}), vec!["input", "story_id"]),
            (json!([]), vec![""]),
            (json!({"input": 5, "story_id": ""}), vec!["input", "story_id"]),
            (with("input", json!("")), vec!["input"]),
            (with("input", json!("x".repeat(65_537))), vec!["input"]),
            (with("story_id", json!("-s")), vec!["story_id"]),
            (with("story_id", json!("s/../t")), vec!["story_id"]),
            (with("story_id", json!("s\n")), vec!["story_id"]),
            (with("story_id", json!("sé")), vec!["story_id"]),
            (with("story_id", json!("x".repeat(64))), vec!["story_id"]),
            (with("story_id", json!("x".repeat(63))), vec![]),
            (with("session_id", json!("t")), vec!["session_id"]),
            (with("session_id", json!("s")), vec![]),
            (with("flow", json!("A flow")), vec!["flow"]),
            (with("flow", json!("x".repeat(53))), vec!["flow"]),
            (with("parameters", json!([1])), vec!["parameters"]),
            (with("parameters", json!({"a": "x".repeat(33_000)})), vec!["parameters"]),
            (with("parameters", (0..65).fold(json!(1), |inner, _| json!({"a": inner}))), vec!["parameters"]),
            (with("wait", json!(61)), vec!["wait"]),
            (with("wait", json!(-1)), vec!["wait"]),
            (with("wait", json!("5")), vec!["wait"]),
            (with("strory", json!(1)), vec!["strory"]),
            (with("documents", json!({})), vec!["documents"]),
            (document(json!(1)), vec!["documents[1]"]),
            (document(json!({"type": "brief", "content": "y"})), vec!["documents[1].type"]),
            (
                document(json!({"type": "Brief", "contents": "y"})),
                vec!["documents[1].type", "documents[1].content", "documents[1].contents"],
            ),
            (document(json!({"type": "lockstep-output", "content": "y"})), vec!["documents[1].type"]),
            (document(json!({"type": "a", "content": "y", "format": "pdf"})), vec!["documents[1].format"]),
            (document(json!({"type": "a", "content": "{", "format": "json"})), vec!["documents[1].content"]),
            (document(json!({"type": "a", "content": "x".repeat(65_536)})), vec!["documents"]),
        ] {
            assert_eq!(faults(body.clone()), expected, "{}", crate::api::condition::clip(&body.to_string(), 200));
        }
        let rounded = r#"{"input": "x", "story_id": "s", "parameters": {"id": 12345678901234567890123}}"#;
        let problem = RunRequest::read(rounded.as_bytes()).expect_err("digits would be lost");
        assert_eq!(problem.refusal.errors[0].field, "parameters.id");
        assert!(RunRequest::read(b"{").is_err() && RunRequest::read("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn what_differs_is_named() {
        let of = |body: Value| RunRequest::read(body.to_string().as_bytes()).expect("it is good");
        let base = json!({"input": "x", "story_id": "s"});
        let run = of(base.clone()).workflow("ann");
        for (field, value) in [
            ("flow", json!("other")),
            ("input", json!("y")),
            ("story_id", json!("t")),
            ("project", json!("p")),
            ("parameters", json!({"a": 1})),
            ("documents", json!([{"type": "a", "content": "x"}])),
        ] {
            let mut body = base.clone();
            body[field] = value;
            assert_eq!(of(body).difference(&run), Some(field));
        }
        assert_eq!(of(base).difference(&run), None);
    }
}
