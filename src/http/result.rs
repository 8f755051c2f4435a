//! The output of a run, wherever it is stored; and the answer that carries it.

use kube::{Api, ResourceExt};
use serde_json::Value;

use super::caller::{Caller, read};
use super::problem::{Problem, Result};
use super::view::{self, Answer, Begun};
use crate::api::workflow::{Phase, RunOutput};
use crate::api::{Document, Workflow};
use crate::decide::content::{Content, Loaded, Pin};
use crate::decide::output;

/// The output, read with the caller's token where it is large.
pub async fn output_of(caller: &Caller, namespace: &str, stored: Option<&RunOutput>) -> Result<Value> {
    let Some(stored) = stored else { return Ok(Value::Null) };
    if let Some(text) = &stored.value {
        return Ok(output::read(text));
    }
    let Some(name) = &stored.document_name else { return Ok(Value::Null) };
    let pin = Pin { name: name.clone(), uid: None, digest: Some(stored.digest.clone()) };
    let api: Api<Document> = Api::namespaced(caller.client.clone(), namespace);
    let found = read(&api, name).await?;
    let loaded = found.map(|document| Loaded::new(std::sync::Arc::new(document)));
    let content = Content::of(&pin, loaded.as_ref())
        .map_err(|changed| Problem::new(http::StatusCode::GONE, changed.to_string()))?;
    Ok(output::read(content.text()))
}

/// The path of a run, with something behind it.
pub fn url(run: &Workflow, rest: &str) -> String {
    format!("/namespaces/{}/runs/{}{rest}", run.namespace().unwrap_or_default(), run.name_any())
}

/// What is answered of a run, without a result.
pub fn answer(run: &Workflow, begun: Begun) -> Answer {
    let status = run.status.as_ref();
    let phase = status.and_then(|status| status.phase).unwrap_or_default();
    Answer {
        result: Value::Null,
        pending_docs: (phase == Phase::WaitingForDocuments)
            .then(|| status.map(|status| status.pending_documents.clone()).unwrap_or_default()),
        run: run.name_any(),
        namespace: run.namespace().unwrap_or_default(),
        session_id: view::session_of(run),
        phase,
        created_at: run.metadata.creation_timestamp.clone(),
        joined: begun == Begun::Before,
        waiting: Vec::new(),
        events: url(run, "/events"),
        result_url: None,
    }
}
