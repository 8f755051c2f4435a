//! Documents: those that a run sees, and new ones.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use kube::{Api, ResourceExt};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::call::Call;
use super::caller::{Right, read, read_known};
use super::fields::Fields;
use super::problem::{Problem, Result};
use super::run_request::{document_type, format};
use super::started::{post, within_name};
use super::{Http, runs};
use crate::api::document::Scope;
use crate::api::limits::DOCUMENT_BYTES;
use crate::api::step::Format;
use crate::api::{Document, DocumentSpec, Workflow};
use crate::decide::content::{Content, Loaded, Pin};
use crate::decide::document;

/// Copies of one content that are told apart, after others came in between.
const COPIES: u32 = 32;
const PAGE: usize = 500;

/// The documents that a run sees.
#[derive(Serialize, JsonSchema)]
pub struct List {
    /// One of each type, at most 500.
    #[schemars(length(max = 500))]
    pub documents: Vec<Listed>,
}

/// A document, without what it holds.
#[derive(Serialize, JsonSchema, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    #[serde(rename = "type")]
    pub document_type: String,
    /// The name of the Document.
    pub name: String,
    pub scope: Scope,
    pub format: Format,
    /// The SHA-256 digest of the content, once it is published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Its number among those of its type and scope, once it is published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    pub created_at: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
    /// Whether the request made it; false where it was there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<bool>,
}

/// The body of `POST /documents`.
#[derive(Serialize, JsonSchema)]
pub struct Put {
    /// The type of the document, by which steps ask for it.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub document_type: String,
    /// The document itself, at most 512 KiB of text.
    #[schemars(length(max = 524_288))]
    pub content: String,
    /// How the content is to be read. The default is markdown.
    pub format: Option<Format>,
    /// The story whose runs see the document.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub story_id: Option<String>,
    /// The project whose runs see the document. Without `story_id` and `project` all runs of the namespace see it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub project: Option<String>,
}

fn listed(document: &Document, created: Option<bool>) -> Listed {
    let status = document.status.clone().unwrap_or_default();
    Listed {
        document_type: document.spec.document_type.clone(),
        name: document.name_any(),
        scope: document.spec.scope,
        format: document.spec.format,
        digest: status.digest,
        revision: status.revision,
        created_at: document.metadata.creation_timestamp.clone(),
        created,
    }
}

/// Whether documents of all these types are there for a run, published or about to be.
pub fn are_there(http: &Http, run: &Workflow, types: &[String]) -> bool {
    let table = http.watches.world.documents.table(&run.namespace().unwrap_or_default());
    let from = document::viewpoint(run, "");
    let is_new = |document: &Document| {
        let spec = &document.spec;
        let is_seen = match spec.scope {
            Scope::Session => spec.session.as_deref() == Some(&from.session),
            Scope::Project => spec.project.is_some() && spec.project == from.project,
            Scope::Namespace => true,
            Scope::Item | Scope::Workflow => false,
        };
        is_seen && document.status.as_ref().is_none_or(|status| status.phase.is_none())
    };
    let is_there = |kind: &String| {
        document::find(&table, kind, &from).is_some()
            || table.values().any(|document| document.spec.document_type == *kind && is_new(document))
    };
    !types.is_empty() && types.iter().all(is_there)
}

async fn must_read(http: &Arc<Http>, call: &Call, verb: &str, name: &str) -> Result<()> {
    let right = Right { verb, resource: "documents", namespace: &call.namespace, name };
    http.callers.must(&call.caller, right).await
}

/// `GET /runs/{run}/documents`
pub async fn list(http: Arc<Http>, call: Call) -> Result<Response> {
    let run = runs::find(&http, &call).await?;
    must_read(&http, &call, "list", "").await?;
    let table = http.watches.world.documents.table(&call.namespace);
    let from = document::viewpoint(&run, call.query("key").unwrap_or_default());
    let own = document::types(&table).into_iter().filter(|kind| !kind.starts_with("lockstep-"));
    let found = own.filter_map(|kind| document::find(&table, kind, &from)).take(PAGE);
    let documents = found.map(|document| listed(document, None)).collect();
    Ok(axum::Json(List { documents }).into_response())
}

/// `GET /runs/{run}/documents/{type}`: what it holds, as it was published.
pub async fn one(http: Arc<Http>, call: Call) -> Result<Response> {
    let run = runs::find(&http, &call).await?;
    let (kind, keys) = (call.part("type"), call.query("key").unwrap_or_default());
    let table = http.watches.world.documents.table(&call.namespace);
    let found =
        document::find(&table, kind, &document::viewpoint(&run, keys)).filter(|_| !kind.starts_with("lockstep-"));
    let name = found.map(|document| document.name_any()).unwrap_or_default();
    must_read(&http, &call, "get", &name).await?;
    let Some(found) = found else {
        let run = run.name_any();
        return Err(
            Problem::not_found(format!("the run {run} sees no document of the type {kind:?} (yet)")).about(&run)
        );
    };
    let pin = Pin::published(found);
    let etag = format!("\"{}\"", pin.digest.clone().unwrap_or_default());
    let tag = HeaderValue::from_str(&etag).map_err(|_| Problem::unavailable("the document has no digest"))?;
    let known = call.header("if-none-match").unwrap_or_default();
    if known.split(',').any(|known| known.trim().trim_start_matches("W/") == etag || known.trim() == "*") {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let api: Api<Document> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    let loaded = read(&api, &name).await?.map(|document| Loaded::new(Arc::new(document)));
    let content =
        Content::of(&pin, loaded.as_ref()).map_err(|changed| Problem::new(StatusCode::GONE, changed.to_string()))?;
    let kind = match content.document().spec.format {
        Format::Json => "application/json",
        Format::Markdown => "text/markdown; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::ETAG, tag),
        // What is shown is an agent's: no browser may take it for a page of ours.
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'")),
    ];
    Ok((headers, content.text().to_owned()).into_response())
}

/// `POST /documents`
pub async fn put(http: Arc<Http>, call: Call) -> Result<Response> {
    let spec = wanted(&call.body)?;
    must_read(&http, &call, "create", "").await?;
    let api: Api<Document> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    for copy in 0..COPIES {
        let name = document::put_name(&spec, copy);
        if let Some(made) = within_name(api.create(&post(), &Document::new(&name, spec.clone()))).await? {
            return Ok((StatusCode::CREATED, axum::Json(listed(&made, Some(true)))).into_response());
        }
        let there = read_known(&api, &name).await?;
        if document::is_newest_of(&there, &spec) {
            return Ok(axum::Json(listed(&there, Some(false))).into_response());
        }
        // Another one came in between: the same content is put once more, as the newest.
    }
    Err(Problem::conflict("this document was put too often, with others in between; change it, or delete older ones"))
}

fn wanted(body: &[u8]) -> Result<DocumentSpec> {
    let mut fields = Fields::read(body)?;
    let document_type = document_type(&mut fields, "type");
    let format = format(&mut fields, "format");
    let content = fields.required("content", DOCUMENT_BYTES);
    if let (Some(Format::Json), Some(content)) = (format, &content)
        && let Err(why) = serde_json::from_str::<Value>(content)
    {
        fields.fault("content", format!("is not JSON: {why}"));
    }
    let (session, project) = (fields.identifier("story_id"), fields.identifier("project"));
    if session.is_some() && project.is_some() {
        fields.fault("project", "a document is of a story or of a project; leave one of them out");
    }
    fields.end()?;
    let scope = match (&session, &project) {
        (Some(_), _) => Scope::Session,
        (None, Some(_)) => Scope::Project,
        (None, None) => Scope::Namespace,
    };
    Ok(DocumentSpec {
        document_type: document_type.unwrap_or_default(),
        scope,
        session,
        project,
        format: format.unwrap_or_default(),
        content: content.unwrap_or_default(),
        ..DocumentSpec::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_of_a_story_a_project_or_the_namespace() {
        for (body, scope) in [
            (r#"{"type": "brief", "content": "x", "story_id": "s"}"#, Some(Scope::Session)),
            (r#"{"type": "brief", "content": "x", "project": "p"}"#, Some(Scope::Project)),
            (r#"{"type": "brief", "content": "x"}"#, Some(Scope::Namespace)),
            (r#"{"type": "brief", "content": "x", "story_id": "s", "project": "p"}"#, None),
            (r#"{"type": "brief", "content": "x", "scope": "Workflow"}"#, None),
            (r#"{"type": "brief", "content": "x", "story_id": "_own-1"}"#, None),
            (r#"{"type": "brief", "content": "{", "format": "json"}"#, None),
            (r#"{"type": "lockstep-output", "content": "x"}"#, None),
            (r#"{"content": "x"}"#, None),
        ] {
            assert_eq!(wanted(body.as_bytes()).ok().map(|spec| spec.scope), scope, "{body}");
        }
    }
}
