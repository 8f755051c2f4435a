//! Which document a step sees, and what number a new one gets.

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use super::content::Content;
use super::plan::{Effect, ObjectVersion};
use crate::api::condition;
use crate::api::document::{Document, DocumentPhase, DocumentSpec, DocumentStatus, Scope};
use crate::api::name;
use crate::api::step::{Produces, WiderScope};
use crate::api::step_run::DocumentRef;
use crate::api::workflow::Workflow;

/// Where a lookup stands: the run, and the items around, outermost first.
#[derive(Clone, Debug, Default)]
pub struct Viewpoint {
    pub workflow_uid: String,
    pub session: String,
    pub project: Option<String>,
    pub keys: Vec<String>,
}

impl Viewpoint {
    /// The scopes that can be seen from here, and of what in them, the narrowest first. The items of siblings have other keys
    /// and are not met.
    pub fn scopes(&self) -> Vec<(Scope, String)> {
        let items =
            (1..=self.keys.len()).rev().map(|n| (Scope::Item, name::scope_id(&self.workflow_uid, &self.keys[..n])));
        let wider = [
            Some((Scope::Workflow, self.workflow_uid.clone())),
            Some((Scope::Session, self.session.clone())),
            self.project.as_ref().map(|project| (Scope::Project, project.clone())),
            Some((Scope::Namespace, String::new())),
        ];
        items.chain(wider.into_iter().flatten()).collect()
    }

    /// How the scopes of the items below begin; the rest is their keys.
    pub fn around(&self) -> String {
        format!("{}/", name::scope_id(&self.workflow_uid, &self.keys))
    }

    /// Where documents of a type lie that can be seen from here, the narrowest scope first.
    fn places(&self, document_type: &str) -> Vec<String> {
        self.scopes().iter().map(|(scope, id)| place(document_type, *scope, id)).collect()
    }
}

/// From where the steps of a run look; with the keys of an item (`KEY/KEY`, from the outermost inwards) those of that item.
pub fn viewpoint(run: &Workflow, keys: &str) -> Viewpoint {
    let latched = run.status.as_ref().and_then(|status| status.session.as_ref()).map(|session| session.id.clone());
    Viewpoint {
        workflow_uid: run.metadata.uid.clone().unwrap_or_default(),
        session: latched.or_else(|| run.spec.session.clone()).unwrap_or_default(),
        project: run.spec.project.clone(),
        keys: keys.split('/').filter(|key| !key.is_empty()).map(str::to_owned).collect(),
    }
}

/// All documents of a namespace, in the order of `key`: those of one type and scope lie side by side.
pub type Documents = RedBlackTreeMapSync<String, Arc<Document>>;

fn place(document_type: &str, scope: Scope, id: &str) -> String {
    format!("{document_type}\0{scope:?}/{id}\0")
}

/// Where a document lies: its type, its scope, and whose that is. What lies in one place is numbered.
pub fn place_of(document: &Document) -> String {
    let spec = &document.spec;
    let id = match spec.scope {
        Scope::Item | Scope::Workflow => spec.scope_id.as_deref(),
        Scope::Session => spec.session.as_deref(),
        Scope::Project => spec.project.as_deref(),
        Scope::Namespace => None,
    };
    place(&spec.document_type, spec.scope, id.unwrap_or_default())
}

/// How the API server is asked for the published documents of one scope.
pub fn selector((scope, id): &(Scope, String), document_type: Option<&str>) -> String {
    let whose = match scope {
        Scope::Item | Scope::Workflow => Some("spec.scopeId"),
        Scope::Session => Some("spec.session"),
        Scope::Project => Some("spec.project"),
        Scope::Namespace => None,
    };
    let wanted = [
        Some(("status.phase", "Published".to_owned())),
        Some(("spec.scope", format!("{scope:?}"))),
        whose.map(|field| (field, id.clone())),
        document_type.map(|kind| ("spec.type", kind.to_owned())),
    ];
    terms(wanted.into_iter().flatten())
}

/// The same for those of a type of all items of a run, which is named; whose they are say their `spec.scopeId`.
pub fn selector_of_items(workflow: &str, document_type: &str) -> String {
    let wanted = [
        ("status.phase", "Published"),
        ("spec.scope", "Item"),
        ("spec.workflow", workflow),
        ("spec.type", document_type),
    ];
    terms(wanted.into_iter().map(|(field, value)| (field, value.to_owned())))
}

fn terms(wanted: impl Iterator<Item = (&'static str, String)>) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
    let terms: Vec<String> = wanted.map(|(field, value)| format!("{field}={}", escaped(&value))).collect();
    terms.join(",")
}

/// Under what a document stands in `Documents`.
pub fn key(document: &Document) -> String {
    format!("{}{}", place_of(document), document.metadata.name.as_deref().unwrap_or_default())
}

/// Under what the document stands that a step makes here.
pub fn key_of(name: &str, produces: &Produces, from: &Viewpoint) -> String {
    let (kind, items) = (&produces.document_type, &from.keys);
    let place = match produces.scope {
        Some(WiderScope::Session) => place(kind, Scope::Session, &from.session),
        Some(WiderScope::Project) => place(kind, Scope::Project, from.project.as_deref().unwrap_or_default()),
        None if items.is_empty() => place(kind, Scope::Workflow, &from.workflow_uid),
        None => place(kind, Scope::Item, &name::scope_id(&from.workflow_uid, items)),
    };
    format!("{place}{name}")
}

/// Those whose keys begin so.
fn under<'a, 'b>(documents: &'a Documents, prefix: &'b str) -> impl Iterator<Item = &'a Arc<Document>> + use<'a, 'b> {
    documents.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, d)| d)
}

/// The StepRun that made a document, by name.
pub fn maker(document: &Document) -> Option<String> {
    let spec = &document.spec;
    let mut scope = spec.scope_id.as_deref()?.split('/').map(str::to_owned);
    let uid = scope.next()?;
    Some(name::step_run(spec.workflow.as_deref()?, &uid, spec.path.as_deref()?, &scope.collect::<Vec<_>>()))
}

pub fn is_published(document: &Document) -> bool {
    document.status.as_ref().is_some_and(|s| s.phase == Some(DocumentPhase::Published))
}

/// Whether it was published or rejected at some time.
pub fn has_standing(document: &Document) -> bool {
    document.status.as_ref().and_then(|s| s.phase).is_some_and(|p| p != DocumentPhase::Draft)
}

fn revision(document: &Document) -> i64 {
    document.status.as_ref().and_then(|s| s.revision).unwrap_or_default()
}

/// In this order the newest document of a place is the last. Two operators may have given the same number at once; then all who
/// look for a document take the same one, and `standing` leaves it alone.
pub fn rank(document: &Document) -> (i64, std::cmp::Reverse<Option<&String>>) {
    (revision(document), std::cmp::Reverse(document.metadata.name.as_ref()))
}

/// The document of that type: the narrowest scope, in it the highest revision.
pub fn find<'a>(documents: &'a Documents, document_type: &str, from: &Viewpoint) -> Option<&'a Arc<Document>> {
    from.places(document_type)
        .iter()
        .find_map(|place| under(documents, place).filter(|d| is_published(d)).max_by_key(|d| rank(d)))
}

/// The documents of that type of all items of the run: `type/*`, each with the keys of its item, in no order.
pub fn fan_in<'a>(documents: &'a Documents, document_type: &str, from: &Viewpoint) -> Vec<(String, &'a Arc<Document>)> {
    let around = from.around();
    let prefix = place(document_type, Scope::Item, &around);
    let prefix = prefix.trim_end_matches('\0');
    let mut found: Vec<(String, &Arc<Document>)> = under(documents, prefix)
        .filter(|d| is_published(d))
        .filter_map(|d| d.spec.scope_id.as_deref()?.strip_prefix(&around).map(|key| (key.to_owned(), d)))
        .collect();
    found.sort_by(|a, b| (&a.0, rank(b.1)).cmp(&(&b.0, rank(a.1))));
    found.dedup_by(|later, first| later.0 == first.0);
    found
}

/// The types that there are.
pub fn types(documents: &Documents) -> Vec<&str> {
    let mut found = Vec::new();
    let mut next = documents.iter().next();
    while let Some((_, document)) = next {
        let kind = document.spec.document_type.as_str();
        found.push(kind);
        // Past all keys of this type: they go on with \0.
        next = documents.range(format!("{kind}\u{1}")..).next();
    }
    found
}

/// The one of a type that these names have in them.
pub fn named<'a>(documents: &'a Documents, document_type: &str, names: &[String]) -> Option<&'a Arc<Document>> {
    if names.is_empty() {
        return None;
    }
    let prefix = format!("{document_type}\0");
    let mut there = under(documents, &prefix);
    there.find(|d| d.metadata.name.as_ref().is_some_and(|n| names.contains(n)))
}

/// All of the type and the place of a document, itself included.
pub fn siblings(documents: &Documents, document: &Document) -> Vec<Arc<Document>> {
    under(documents, &place_of(document)).cloned().collect()
}

/// A document as a StepRun pins it; as the member of a fan-in with the key and the index of its item.
pub fn pinned(document: &Document, item: Option<(String, Option<i32>)>) -> DocumentRef {
    let (key, index) = item.unzip();
    DocumentRef {
        document_type: document.spec.document_type.clone(),
        scope_id: document.spec.scope_id.clone(),
        name: document.metadata.name.clone().unwrap_or_default(),
        digest: document.status.as_ref().and_then(|s| s.digest.clone()).unwrap_or_default(),
        uid: document.metadata.uid.clone().filter(|_| key.is_none()),
        key,
        index: index.flatten(),
    }
}

/// The status that publishes a document of a step: what was reported, and nothing else.
pub fn published(content: &Content, revision: i64) -> DocumentStatus {
    put(content.document(), content.digest().to_owned(), revision)
}

/// The status that publishes a document that is put in this pass, or was put by a person: whatever it holds.
pub fn initial_status(document: &Document, revision: i64) -> DocumentStatus {
    put(document, name::digest_bytes(document.spec.content.as_bytes()), revision)
}

/// The name of a document that a person puts, by whom it is seen and what it holds; `copy` tells those apart that say the same
/// once more.
pub fn put_name(spec: &DocumentSpec, copy: u32) -> String {
    let place = spec.session.as_deref().or(spec.project.as_deref()).unwrap_or_default();
    let place = format!("{:?}/{place}/{:?}", spec.scope, spec.format);
    name::put_document(&spec.document_type, &place, &spec.content, copy)
}

/// Whether what lies under that name is the document, and no newer one has replaced it.
pub fn is_newest_of(there: &Document, spec: &DocumentSpec) -> bool {
    let superseded = there.status.as_ref().is_some_and(|status| status.phase == Some(DocumentPhase::Superseded));
    there.spec == *spec && !superseded
}

/// The number of a copy, in its run's own place: at least that which the original had, so that those of one pass, which do not
/// see each other yet, keep the order that they had.
pub fn copied_revision(original: &Document, copy: &Document, siblings: &[Arc<Document>]) -> i64 {
    next_revision(copy, siblings).max(revision(original))
}

/// The number after the last one in its place, as far as these show it.
pub fn next_revision(document: &Document, siblings: &[Arc<Document>]) -> i64 {
    let others = siblings.iter().filter(|d| d.metadata.uid != document.metadata.uid && shares_place(d, document));
    others.map(|d| revision(d)).max().unwrap_or_default() + 1
}

fn put(document: &Document, digest: String, revision: i64) -> DocumentStatus {
    DocumentStatus {
        observed_generation: generation(document),
        phase: Some(DocumentPhase::Published),
        revision: Some(revision),
        digest: Some(digest),
    }
}

/// A document never changes: one that is put in this pass has the first.
fn generation(document: &Document) -> Option<i64> {
    document.metadata.generation.or(Some(1))
}

/// Writes a status to the very object that was decided on.
pub fn set_status(document: &Document, status: DocumentStatus) -> Effect {
    let meta = &document.metadata;
    Effect::SetDocumentStatus {
        name: meta.name.clone().unwrap_or_default(),
        seen: Some(ObjectVersion {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
        }),
        status,
    }
}

/// Makes a document and publishes it, both in one pass.
pub fn create(document: Document, status: DocumentStatus) -> [Effect; 2] {
    let name = document.metadata.name.clone().unwrap_or_default();
    [Effect::CreateDocument(Box::new(document)), Effect::SetDocumentStatus { name, seen: None, status }]
}

fn shares_place(a: &Document, b: &Document) -> bool {
    place_of(a) == place_of(b)
}

/// Whether a person put it, and it is to be published now; those of steps are by their gate.
pub fn is_new(document: &Document) -> bool {
    let spec = &document.spec;
    let of_a_run = spec.path.is_some() || spec.workflow.is_some() || spec.scope <= Scope::Workflow;
    !of_a_run && document.status.as_ref().is_none_or(|status| status.phase.is_none())
}

/// What to do with a document for itself: one that a person put is published at once, under the number that it gets; one that a
/// newer revision has replaced is superseded.
pub fn standing(document: &Document, siblings: &[Arc<Document>], number: Option<i64>) -> Option<DocumentStatus> {
    let status = document.status.clone().unwrap_or_default();
    let newer = |d: &Arc<Document>| shares_place(d, document) && is_published(d) && rank(d) > rank(document);
    match status.phase {
        None => number.filter(|_| is_new(document)).map(|number| initial_status(document, number)),
        Some(DocumentPhase::Published) if siblings.iter().any(newer) => {
            Some(DocumentStatus { phase: Some(DocumentPhase::Superseded), ..status })
        }
        // Published by an older version while the CRD was new already.
        Some(phase) if phase != DocumentPhase::Draft && status.observed_generation == Some(condition::unseen()) => {
            Some(DocumentStatus { observed_generation: generation(document), ..status })
        }
        _ => None,
    }
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
        d.status = Some(DocumentStatus {
            phase: Some(DocumentPhase::Published),
            revision: Some(revision),
            ..DocumentStatus::default()
        });
        Arc::new(d)
    }

    fn check(documents: &[Arc<Document>], expected: Option<&str>) {
        let documents: Documents = documents.iter().map(|d| (key(d), Arc::clone(d))).collect();
        let from = Viewpoint {
            workflow_uid: "u".into(),
            session: "s".into(),
            project: Some("p".into()),
            keys: vec!["a".into(), "b".into()],
        };
        assert_eq!(find(&documents, "t", &from).and_then(|d| d.metadata.name.clone()).as_deref(), expected);
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

    #[test]
    fn the_server_is_asked_for_what_can_be_seen_and_nothing_else() {
        let mut from = Viewpoint {
            workflow_uid: "u".into(),
            session: "s".into(),
            project: None,
            keys: vec!["a".into(), "b".into()],
        };
        let asked = |from: &Viewpoint| from.scopes().iter().map(|s| selector(s, Some("plan"))).collect::<Vec<_>>();
        let of = |whose: &str| format!("status.phase=Published,spec.scope={whose},spec.type=plan");
        let mut expected = vec![
            of("Item,spec.scopeId=u/a/b"),
            of("Item,spec.scopeId=u/a"),
            of("Workflow,spec.scopeId=u"),
            of("Session,spec.session=s"),
            of("Namespace"),
        ];
        assert_eq!(asked(&from), expected);
        // A name cannot add a term of its own.
        from.project = Some("p,spec.scope=Item\\".into());
        expected.insert(4, of("Project,spec.project=p\\,spec.scope\\=Item\\\\"));
        assert_eq!(asked(&from), expected);
        assert_eq!(selector(&(Scope::Namespace, String::new()), None), "status.phase=Published,spec.scope=Namespace");
    }

    #[test]
    fn what_is_published_is_known_by_the_digest_of_its_content() {
        let mut next = document(Scope::Session, "s", 0).as_ref().clone();
        next.spec.content = "a plan".into();
        next.metadata.uid = Some("next".into());
        let others =
            [document(Scope::Session, "s", 3), document(Scope::Session, "other", 8), document(Scope::Project, "s", 9)];
        let status = initial_status(&next, next_revision(&next, &others));
        assert_eq!(status.phase, Some(DocumentPhase::Published));
        assert_eq!((status.revision, status.digest), (Some(4), Some(name::digest_bytes(b"a plan"))));
    }

    /// Two operators at once: what they numbered alike.
    #[test]
    fn of_two_with_one_number_one_is_newer_for_everybody() {
        let named = |name: &str| {
            let mut twin = document(Scope::Session, "s", 3).as_ref().clone();
            (twin.metadata.name, twin.metadata.uid) = (Some(name.into()), Some(format!("uid-of-{name}")));
            Arc::new(twin)
        };
        let twins = [named("a"), named("b"), document(Scope::Session, "other", 9)];
        let superseded = |d: &Arc<Document>| standing(d, &twins, None).and_then(|s| s.phase);
        assert_eq!(twins.each_ref().map(superseded), [None, Some(DocumentPhase::Superseded), None]);
        check(&twins, Some("a"));
    }

    /// kstatus reads it: in progress until it has a phase, and never again.
    #[test]
    fn what_has_a_phase_was_observed() {
        let status = |phase: Option<DocumentPhase>, observed: Option<i64>| DocumentStatus {
            phase,
            observed_generation: observed,
            ..DocumentStatus::default()
        };
        for (what, before, observed) in [
            ("new", status(None, Some(-1)), Some(Some(1))),
            ("published by an older version", status(Some(DocumentPhase::Published), None), None),
            ("the same, under the new CRD", status(Some(DocumentPhase::Published), Some(-1)), Some(Some(1))),
            ("published", status(Some(DocumentPhase::Published), Some(1)), None),
        ] {
            let mut put = Document::clone(&document(Scope::Namespace, "", 1));
            put.metadata.generation = Some(1);
            put.status = Some(before);
            let after = standing(&put, &[], Some(1));
            assert_eq!(after.map(|s| s.observed_generation), observed, "{what}");
        }
    }
}
