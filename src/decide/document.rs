//! Which document a step sees, and what number a new one gets.

use std::sync::Arc;

use crate::api::document::{Document, DocumentPhase, DocumentStatus, Scope};
use crate::api::name;
use crate::api::step_run::DocumentRef;

/// Where a lookup stands: the run, and the items around, outermost first.
#[derive(Clone, Debug, Default)]
pub struct Viewpoint {
    pub workflow_uid: String,
    pub session: String,
    pub project: Option<String>,
    pub keys: Vec<String>,
}

impl Viewpoint {
    /// How far away a document's scope is; none where it cannot be seen from here.
    fn distance(&self, document: &Document) -> Option<usize> {
        let spec = &document.spec;
        let own = || spec.scope_id.as_deref().unwrap_or_default();
        match spec.scope {
            // Innermost first; the items of siblings have other keys and are not met.
            Scope::Item => {
                (1..=self.keys.len()).rev().position(|n| name::scope_id(&self.workflow_uid, &self.keys[..n]) == own())
            }
            Scope::Workflow => (own() == self.workflow_uid).then_some(10),
            Scope::Session => (spec.session.as_deref() == Some(&self.session)).then_some(11),
            Scope::Project => (spec.project.is_some() && spec.project == self.project).then_some(12),
            Scope::Namespace => Some(13),
        }
    }
}

fn is_published(document: &Document) -> bool {
    document.status.as_ref().is_some_and(|s| s.phase == Some(DocumentPhase::Published))
}

fn revision(document: &Document) -> i64 {
    document.status.as_ref().and_then(|s| s.revision).unwrap_or_default()
}

/// The document of that type: the narrowest scope, in it the highest revision.
pub fn find<'a>(documents: &'a [Arc<Document>], document_type: &str, from: &Viewpoint) -> Option<&'a Arc<Document>> {
    documents
        .iter()
        .filter(|d| d.spec.document_type == document_type && is_published(d))
        .filter_map(|d| from.distance(d).map(|distance| (distance, std::cmp::Reverse(revision(d)), d)))
        .min_by(|a, b| (a.0, a.1, &a.2.metadata.name).cmp(&(b.0, b.1, &b.2.metadata.name)))
        .map(|(_, _, d)| d)
}

/// The documents of that type of all items of the run, by their keys: `type/*`.
pub fn fan_in<'a>(
    documents: &'a [Arc<Document>],
    document_type: &str,
    from: &Viewpoint,
) -> Vec<(String, &'a Arc<Document>)> {
    let prefix = format!("{}/", name::scope_id(&from.workflow_uid, &from.keys));
    let mut found: Vec<(String, &Arc<Document>)> = documents
        .iter()
        .filter(|d| d.spec.document_type == document_type && d.spec.scope == Scope::Item && is_published(d))
        .filter_map(|d| d.spec.scope_id.as_deref()?.strip_prefix(&prefix).map(|key| (key.to_owned(), d)))
        .collect();
    found.sort_by(|a, b| (&a.0, revision(b.1)).cmp(&(&b.0, revision(a.1))));
    found.dedup_by(|later, first| later.0 == first.0);
    found
}

/// A document as a StepRun pins it.
pub fn pinned(document: &Document, key: Option<String>) -> DocumentRef {
    DocumentRef {
        document_type: document.spec.document_type.clone(),
        scope_id: document.spec.scope_id.clone(),
        name: document.metadata.name.clone().unwrap_or_default(),
        digest: document.status.as_ref().and_then(|s| s.digest.clone()).unwrap_or_default(),
        key,
    }
}

/// The status that publishes a document: the next revision of its type in its scope.
pub fn published(document: &Document, siblings: &[Arc<Document>]) -> DocumentStatus {
    let last = siblings
        .iter()
        .filter(|d| d.metadata.uid != document.metadata.uid && shares_place(d, document))
        .map(|d| revision(d))
        .max()
        .unwrap_or_default();
    DocumentStatus {
        phase: Some(DocumentPhase::Published),
        revision: Some(last + 1),
        digest: Some(name::digest_bytes(document.spec.content.as_bytes())),
    }
}

fn shares_place(a: &Document, b: &Document) -> bool {
    let place = |d: &Document| {
        (
            d.spec.document_type.clone(),
            d.spec.scope,
            d.spec.scope_id.clone().filter(|_| d.spec.scope <= Scope::Workflow),
            session(d),
            project(d),
        )
    };
    place(a) == place(b)
}

fn session(d: &Document) -> Option<String> {
    d.spec.session.clone().filter(|_| d.spec.scope == Scope::Session)
}

fn project(d: &Document) -> Option<String> {
    d.spec.project.clone().filter(|_| d.spec.scope == Scope::Project)
}

/// What to do with a document that a person put: it is published at once. Those of steps are published by their gate.
pub fn put_by_person(document: &Document, siblings: &[Arc<Document>]) -> Option<DocumentStatus> {
    let untouched = document.status.as_ref().is_none_or(|s| s.phase.is_none());
    let of_a_run =
        document.spec.path.is_some() || document.spec.workflow.is_some() || document.spec.scope <= Scope::Workflow;
    (untouched && !of_a_run).then(|| published(document, siblings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::document::DocumentSpec;

    fn document(scope: Scope, id: &str, revision: i64) -> Arc<Document> {
        let mut d = Document::new(
            &format!("{scope:?}-{revision}").to_lowercase(),
            DocumentSpec { document_type: "t".into(), scope, ..DocumentSpec::default() },
        );
        match scope {
            Scope::Session => d.spec.session = Some(id.into()),
            Scope::Project => d.spec.project = Some(id.into()),
            _ => d.spec.scope_id = Some(id.into()),
        }
        d.status =
            Some(DocumentStatus { phase: Some(DocumentPhase::Published), revision: Some(revision), digest: None });
        Arc::new(d)
    }

    fn check(documents: &[Arc<Document>], expected: Option<&str>) {
        let from = Viewpoint {
            workflow_uid: "u".into(),
            session: "s".into(),
            project: Some("p".into()),
            keys: vec!["a".into(), "b".into()],
        };
        assert_eq!(find(documents, "t", &from).and_then(|d| d.metadata.name.clone()).as_deref(), expected);
    }

    #[test]
    fn the_narrowest_scope_wins_then_the_highest_revision() {
        let all = [
            document(Scope::Namespace, "", 9),
            document(Scope::Project, "p", 8),
            document(Scope::Session, "s", 7),
            document(Scope::Workflow, "u", 6),
            document(Scope::Item, "u/a", 5),
            document(Scope::Item, "u/a/b", 4),
        ];
        check(&all, Some("item-4"));
        check(&all[..5], Some("item-5"));
        check(&all[..4], Some("workflow-6"));
        check(&all[..3], Some("session-7"));
        check(&all[..2], Some("project-8"));
        check(&all[..1], Some("namespace-9"));
        check(
            &[document(Scope::Item, "u/a/c", 1), document(Scope::Workflow, "v", 1), document(Scope::Session, "x", 1)],
            None,
        );
        check(
            &[document(Scope::Workflow, "u", 1), document(Scope::Workflow, "u", 3), document(Scope::Workflow, "u", 2)],
            Some("workflow-3"),
        );
    }
}
