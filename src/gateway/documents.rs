//! `document get` and `document list`: published documents beyond the pinned ones. What can be seen follows from the StepRun
//! and the pinned definition; a call names a type and a scope, never whose. What was read is written down before it is given.

use std::cmp::Reverse;

use http::{HeaderValue, header};
use kube::Resource;
use kube::api::ListParams;
use serde::Deserialize;
use serde_json::Value;

use super::attempt::Asked;
use super::auth::Caller;
use super::cluster::{add, patch_status, test};
use super::refusal::{Refusal, Result};
use super::{Gateway, attempt, cluster, document};
use crate::api::document::Scope;
use crate::api::limits::DOCUMENTS_READ;
use crate::api::step_run::DocumentRead;
use crate::api::{Document, StepRun};
use crate::decide::claim as rules;
use crate::decide::content::{Content, Pin};
use crate::decide::document::{Viewpoint, selector, selector_of_items};
use crate::decide::history;
use crate::protocol::{AttemptRef, DocumentsAnswer, DocumentsRequest, FoundDocument, ListedDocuments, VisibleDocument};

/// Documents of one answer.
const LISTED: usize = 200;
/// Of one type in one scope one is published, and for a moment two.
const OF_ONE_TYPE: usize = 20;
/// Rows of one page of a list of the documents of items, and pages: more than a list has items, with two revisions of each.
const PAGE: u32 = 500;
const PAGES: usize = 20;
const TYPE_BYTES: usize = 63;
/// Decisions on a StepRun that others keep writing to.
const ROUNDS: usize = 5;
const SCOPES: [Scope; 5] = [Scope::Item, Scope::Workflow, Scope::Session, Scope::Project, Scope::Namespace];

pub async fn look_up(gateway: &Gateway, caller: &Caller, request: Asked<DocumentsRequest>) -> Result<DocumentsAnswer> {
    let who = &request.attempt;
    let (kind, scope, of_items) = match &request.body {
        DocumentsRequest::Get { document_type, scope, key } => {
            (Some(document_type.as_str()), scope.as_deref(), key.is_some())
        }
        DocumentsRequest::List { document_type, scope, items } => (document_type.as_deref(), scope.as_deref(), *items),
    };
    kind.map_or(Ok(()), validate_type)?;
    let scope = scope.map(scope_of).transpose()?;
    if of_items && scope.is_some_and(|scope| scope != Scope::Item) {
        return Err(Refusal::bad_request("scope: documents of items have the scope Item; leave it out"));
    }
    let step_run = attempt::read(gateway, who).await?;
    attempt::works(&step_run, who, caller)?;
    let from = viewpoint(gateway, who, &step_run).await?;
    let mut scopes = from.scopes();
    scopes.retain(|(own, _)| scope.is_none_or(|wanted| wanted == *own));
    if let DocumentsRequest::Get { key: Some(key), .. } = &request.body {
        scopes = vec![(Scope::Item, format!("{}{key}", from.around()))];
    }
    match request.body {
        DocumentsRequest::List { items: true, .. } => {
            let kind = kind.ok_or_else(|| Refusal::bad_request("type: is required for the documents of items"))?;
            of_all_items(gateway, who, &from, (&step_run.spec.workflow.name, kind)).await
        }
        DocumentsRequest::List { .. } => listed(gateway, who, &scopes, kind).await,
        DocumentsRequest::Get { .. } => {
            let Some(found) = newest(gateway, who, &scopes, kind).await? else { return Ok(DocumentsAnswer::Absent) };
            let pin = Pin { name: found.name.clone(), uid: None, digest: Some(found.digest.clone()) };
            let content = document::content(gateway, &who.namespace, &pin).await?;
            record(gateway, caller, who, (step_run, read(&content))).await?;
            Ok(DocumentsAnswer::Found(FoundDocument { document: found, content: content.text().to_owned() }))
        }
    }
}

/// A type becomes part of a selector.
fn validate_type(kind: &str) -> Result<()> {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good =
        kind.len() <= TYPE_BYTES && kind.starts_with(|c: char| c.is_ascii_lowercase()) && kind.chars().all(known);
    if good {
        return Ok(());
    }
    Err(Refusal::bad_request("type: must be a small letter, then small letters, digits and -, at most 63 characters"))
}

fn scope_of(text: &str) -> Result<Scope> {
    let found = SCOPES.into_iter().find(|scope| format!("{scope:?}").eq_ignore_ascii_case(text));
    found.ok_or_else(|| Refusal::bad_request("scope: must be Item, Workflow, Session, Project or Namespace"))
}

async fn viewpoint(gateway: &Gateway, who: &AttemptRef, step_run: &StepRun) -> Result<Viewpoint> {
    let definition = gateway.definitions.get(&gateway.client, &who.namespace, &step_run.spec).await?;
    Ok(Viewpoint {
        workflow_uid: definition.run.uid.clone(),
        session: definition.run.session.clone(),
        project: definition.run.project.clone(),
        keys: history::keys(step_run).into_iter().map(str::to_owned).collect(),
    })
}

async fn listed(
    gateway: &Gateway,
    who: &AttemptRef,
    scopes: &[(Scope, String)],
    kind: Option<&str>,
) -> Result<DocumentsAnswer> {
    let mut all = ListedDocuments::default();
    for scope in scopes {
        let room = LISTED - all.documents.len();
        if room == 0 {
            all.more = true;
            break;
        }
        let (mut found, more) = rows(gateway, who, &selector(scope, kind), room).await?;
        found.sort_by(|a, b| (&a.document_type, Reverse(a.revision)).cmp(&(&b.document_type, Reverse(b.revision))));
        all.documents.append(&mut found);
        all.more |= more;
    }
    Ok(DocumentsAnswer::Listed(all))
}

/// As the operator finds what a step reads that asks for `TYPE/*`: of each item the newest revision, by key.
async fn of_all_items(
    gateway: &Gateway,
    who: &AttemptRef,
    from: &Viewpoint,
    (run, kind): (&str, &str),
) -> Result<DocumentsAnswer> {
    let around = from.around();
    let mut wanted = ListParams::default().fields(&selector_of_items(run, kind)).limit(PAGE);
    let mut documents = Vec::new();
    for _ in 0..PAGES {
        let table = asked(gateway, who, &wanted).await?;
        documents.extend(table.documents_of_items(&around));
        match table.metadata.next.filter(|token| !token.is_empty()) {
            Some(next) => wanted.continue_token = Some(next),
            None => break,
        }
    }
    documents.sort_by(|a, b| (&a.key, Reverse(a.revision), &a.name).cmp(&(&b.key, Reverse(b.revision), &b.name)));
    documents.dedup_by(|later, first| later.key == first.key);
    let more = documents.len() > LISTED;
    documents.truncate(LISTED);
    Ok(DocumentsAnswer::Listed(ListedDocuments { documents, more }))
}

/// As the operator finds what a step reads: the narrowest scope, in it the highest revision.
async fn newest(
    gateway: &Gateway,
    who: &AttemptRef,
    scopes: &[(Scope, String)],
    kind: Option<&str>,
) -> Result<Option<VisibleDocument>> {
    for scope in scopes {
        let (found, _) = rows(gateway, who, &selector(scope, kind), OF_ONE_TYPE).await?;
        let newest = found.into_iter().max_by_key(|d| (d.revision, Reverse(d.name.clone())));
        if newest.is_some() {
            return Ok(newest);
        }
    }
    Ok(None)
}

// ---- lists, as tables: what the columns say, without contents of up to 512 KiB each

#[derive(Deserialize, Debug, Clone)]
#[serde(rename_all = "camelCase")]
struct Table {
    #[serde(default)]
    metadata: TableMeta,
    column_definitions: Vec<Column>,
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Deserialize, Debug, Clone, Default)]
struct TableMeta {
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize, Debug, Clone)]
struct Column {
    name: String,
}

#[derive(Deserialize, Debug, Clone)]
struct Row {
    cells: Vec<Value>,
}

impl Table {
    /// Rows that lack a column, as those of an older CustomResourceDefinition, are left out.
    fn documents(&self) -> Vec<VisibleDocument> {
        self.rows.iter().filter_map(|row| self.document(row)).collect()
    }

    fn document(&self, row: &Row) -> Option<VisibleDocument> {
        Some(VisibleDocument {
            name: self.text(row, "Name")?,
            document_type: self.text(row, "Type")?,
            scope: self.text(row, "Scope")?,
            revision: self.cell(row, "Revision").and_then(Value::as_i64)?,
            format: self.text(row, "Format")?,
            digest: self.text(row, "Digest")?,
            key: None,
        })
    }

    /// Those whose scope begins so; the rest of it is the key.
    fn documents_of_items(&self, around: &str) -> Vec<VisibleDocument> {
        let of_item = |row: &Row| {
            let key = self.text(row, "Scope ID")?.strip_prefix(around)?.to_owned();
            Some(VisibleDocument { key: Some(key), ..self.document(row)? })
        };
        self.rows.iter().filter_map(of_item).collect()
    }

    fn cell<'a>(&self, row: &'a Row, column: &str) -> Option<&'a Value> {
        row.cells.get(self.column_definitions.iter().position(|known| known.name == column)?)
    }

    fn text(&self, row: &Row, column: &str) -> Option<String> {
        self.cell(row, column).and_then(Value::as_str).map(str::to_owned)
    }
}

/// The published documents that a selector takes, and whether there are more than that.
async fn rows(gateway: &Gateway, who: &AttemptRef, fields: &str, limit: usize) -> Result<(Vec<VisibleDocument>, bool)> {
    let wanted = ListParams::default().fields(fields).limit(u32::try_from(limit).unwrap_or(u32::MAX));
    let table = asked(gateway, who, &wanted).await?;
    Ok((table.documents(), table.metadata.next.is_some_and(|token| !token.is_empty())))
}

async fn asked(gateway: &Gateway, who: &AttemptRef, wanted: &ListParams) -> Result<Table> {
    let path = Document::url_path(&(), Some(&who.namespace));
    let unreadable = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "the list of documents cannot be asked for");
        Refusal::unavailable("documents cannot be listed now")
    };
    let request = kube::core::Request::new(path).list(wanted).map_err(|error| unreadable(&error))?;
    let (mut head, body) = request.into_parts();
    head.uri = format!("{}&includeObject=None", head.uri).parse().map_err(|error| unreadable(&error))?;
    head.headers.insert(header::ACCEPT, HeaderValue::from_static("application/json;as=Table;v=v1;g=meta.k8s.io"));
    let found = cluster::call(|| {
        let asked = http::Request::from_parts(head.clone(), body.clone());
        gateway.client.request::<Table>(asked)
    });
    match found.await {
        Ok(table) => Ok(table),
        Err(failure) if failure.is_forbidden() => {
            tracing::warn!("the gateway may not list Documents, so `document` is refused; upgrade the chart");
            Err(Refusal::bad_request(
                "documents: the gateway of this installation may not list them; upgrade the chart",
            ))
        }
        Err(failure) => Err(failure.into()),
    }
}

// ---- what was read

fn read(content: &Content) -> DocumentRead {
    let document = content.document();
    DocumentRead {
        document_type: document.spec.document_type.clone(),
        scope: document.spec.scope,
        name: document.metadata.name.clone().unwrap_or_default(),
        uid: document.metadata.uid.clone().unwrap_or_default(),
        digest: content.digest().to_owned(),
    }
}

/// Writes it down, once, under the same conditions as all that the claim's holder writes.
async fn record(
    gateway: &Gateway,
    caller: &Caller,
    who: &AttemptRef,
    (mut step_run, read): (StepRun, DocumentRead),
) -> Result<()> {
    for _ in 0..ROUNDS {
        let known = attempt::status(&step_run).agent.unwrap_or_default().documents_read;
        if known.contains(&read) {
            return Ok(());
        }
        if known.len() >= DOCUMENTS_READ {
            let why =
                format!("documents: an attempt reads {DOCUMENTS_READ} beyond those that its step requires, at most");
            return Err(Refusal::bad_request(why));
        }
        let before = if known.is_empty() { Value::Null } else { serde_json::to_value(&known).unwrap_or_default() };
        let mut operations =
            attempt::tests(rules::report_preconditions(&who.uid, who.attempt, &attempt::id_digest(who)));
        operations.push(test("/status/agent/documentsRead", before));
        let all: Vec<&DocumentRead> = known.iter().chain([&read]).collect();
        operations.push(add("/status/agent/documentsRead", &all));
        match patch_status(&attempt::api(gateway, who), &who.step_run, &operations).await {
            Ok(()) => {
                tracing::info!(
                    namespace = who.namespace,
                    stepRun = who.step_run,
                    attempt = who.attempt,
                    document = read.name,
                    digest = read.digest,
                    "an agent reads a document"
                );
                return Ok(());
            }
            Err(failure) if failure.is_outrun() => gateway.metrics.conflicts.inc(),
            Err(failure) => return Err(failure.into()),
        };
        step_run = attempt::read(gateway, who).await?;
        attempt::works(&step_run, who, caller)?;
    }
    Err(Refusal::unavailable("the StepRun is being written to"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_and_scopes_are_names_and_nothing_else() {
        for kind in ["brief", "a", "epic-backlog2"] {
            assert!(validate_type(kind).is_ok(), "{kind}");
        }
        let long = "a".repeat(64);
        for kind in ["", "Brief", "brief,spec.scope=Item", "brief/*", "2b", "-b", "br\u{e9}f", "a b", &long] {
            assert!(validate_type(kind).is_err_and(|refusal| refusal.message.starts_with("type: ")), "{kind}");
        }
        for (text, scope) in [("Session", Scope::Session), ("session", Scope::Session), ("ITEM", Scope::Item)] {
            assert_eq!(scope_of(text), Ok(scope));
        }
        assert!(scope_of("Cluster").is_err_and(|refusal| refusal.message.contains("Project or Namespace")));
    }

    #[test]
    fn a_table_is_read_by_the_names_of_its_columns() {
        let table = |columns: &[&str], cells: Value| -> Table {
            let columns: Vec<Value> = columns.iter().map(|name| json!({"name": name})).collect();
            serde_json::from_value(
                json!({"metadata": {"continue": ""}, "columnDefinitions": columns, "rows": [{"cells": cells}]}),
            )
            .expect("a table")
        };
        let columns = ["Name", "Scope", "Type", "Age", "Digest", "Revision", "Format"];
        let cells = json!(["plan-1", "Session", "plan", "5m", "sha256:1", 3, "markdown"]);
        let expected = VisibleDocument {
            document_type: "plan".to_owned(),
            scope: "Session".to_owned(),
            name: "plan-1".to_owned(),
            revision: 3,
            format: "markdown".to_owned(),
            digest: "sha256:1".to_owned(),
            key: None,
        };
        assert_eq!(table(&columns, cells.clone()).documents(), [expected]);
        assert_eq!(table(&columns[..6], cells).documents(), [], "of an older definition");
        let drafts = json!(["plan-1", "Session", "plan", "5m", null, null, "markdown"]);
        assert_eq!(table(&columns, drafts).documents(), []);
    }
}
