//! Contents of Documents, and that they are the ones that were meant. A name is worth nothing by itself: who deletes a
//! Document can make another one under its name. A `Content` can only be had of what was pinned.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::claim;
use crate::api::document::Document;
use crate::api::limits::PASS_DOCUMENTS_BYTES;
use crate::api::name;
use crate::api::step_run::{
    Attempt, AttemptResult, Binding, DocumentRef, Report, ResultRef, Reuse, StepRun, StepRunStatus,
};

/// Which Document is meant. Only objects that older versions wrote leave UID and digest out.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin {
    pub name: String,
    pub uid: Option<String>,
    pub digest: Option<String>,
}

impl Pin {
    pub fn new(name: &str, binding: Option<&Binding>) -> Self {
        Self {
            name: name.to_owned(),
            uid: binding.and_then(|b| b.uid.clone()),
            digest: binding.map(|b| b.digest.clone()),
        }
    }

    /// A Document that was published, as it is known.
    pub fn published(document: &Document) -> Self {
        Self {
            name: document.metadata.name.clone().unwrap_or_default(),
            uid: document.metadata.uid.clone(),
            // Without a digest it was never published, and its content is nobody's word.
            digest: Some(document.status.as_ref().and_then(|s| s.digest.clone()).unwrap_or_default()),
        }
    }

    /// Whether what a cache knows of a Document, its content left out, says that it is the one: a spec never changes.
    pub fn is_met_by(&self, document: &Document) -> bool {
        let digest = document.status.as_ref().and_then(|s| s.digest.as_ref());
        let same_uid = self.uid.is_none() || self.uid == document.metadata.uid;
        same_uid && self.digest.as_ref().is_none_or(|wanted| digest == Some(wanted))
    }
}

impl From<&DocumentRef> for Pin {
    fn from(pinned: &DocumentRef) -> Self {
        Self { name: pinned.name.clone(), uid: pinned.uid.clone(), digest: Some(pinned.digest.clone()) }
    }
}

/// A Document as the API server gave it, with the digest of what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    document: Arc<Document>,
    digest: String,
}

impl Loaded {
    pub fn new(document: Arc<Document>) -> Self {
        let digest = name::digest_bytes(document.spec.content.as_bytes());
        Self { document, digest }
    }

    pub fn document(&self) -> &Arc<Document> {
        &self.document
    }

    pub fn bytes(&self) -> usize {
        self.document.spec.content.len()
    }
}

/// What a read of a Document from the API server gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum DocumentLookup {
    /// It was not read, since nothing depends on it.
    #[default]
    NotAsked,
    Gone,
    There(Loaded),
}

impl DocumentLookup {
    pub fn of(document: Option<Arc<Document>>) -> Self {
        document.map_or(Self::Gone, |d| Self::There(Loaded::new(d)))
    }

    pub fn loaded(&self) -> Option<&Loaded> {
        match self {
            Self::There(loaded) => Some(loaded),
            Self::NotAsked | Self::Gone => None,
        }
    }
}

/// A Document that is the one that was meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Content(Loaded);

impl Content {
    /// The only way to one.
    pub fn of(pin: &Pin, found: Option<&Loaded>) -> Result<Self, Changed> {
        let changed = |what: Difference| Changed { name: pin.name.clone(), what };
        let found = found.ok_or_else(|| changed(Difference::Gone { uid: pin.uid.clone() }))?;
        let uid = &found.document.metadata.uid;
        if let Some(wanted) = pin.uid.as_ref().filter(|wanted| Some(*wanted) != uid.as_ref()) {
            let found = uid.clone().unwrap_or_default();
            return Err(changed(Difference::Uid { wanted: wanted.clone(), found }));
        }
        if let Some(wanted) = pin.digest.as_ref().filter(|wanted| **wanted != found.digest) {
            return Err(changed(Difference::Digest { wanted: wanted.clone(), found: found.digest.clone() }));
        }
        Ok(Self(found.clone()))
    }

    pub fn document(&self) -> &Arc<Document> {
        &self.0.document
    }

    pub fn text(&self) -> &str {
        &self.0.document.spec.content
    }

    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    pub fn binding(&self) -> Binding {
        Binding { uid: self.0.document.metadata.uid.clone(), digest: self.0.digest.clone() }
    }
}

/// What was fetched for one decision, by what was meant: only so much at once. What was decided on the rest is remembered
/// (`settled`), so that a decision over more than there is room for comes to an end by parts; where it does not, it is made
/// on what is held, and what lacks the rest waits for the next pass.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    held: BTreeMap<Pin, Result<Content, Changed>>,
    bytes: usize,
    /// How many were lacking when the room was emptied last.
    lacking: Option<usize>,
    closed: bool,
}

impl Contents {
    pub fn get(&self, pin: &Pin) -> Option<&Result<Content, Changed>> {
        self.held.get(pin)
    }

    pub fn insert(&mut self, pin: Pin, content: Result<Content, Changed>) {
        self.bytes += content.as_ref().map_or(0, |content| content.text().len());
        self.held.insert(pin, content);
    }

    /// Whether nothing more is fetched.
    pub fn is_full(&self) -> bool {
        self.closed || self.bytes >= PASS_DOCUMENTS_BYTES
    }

    /// Whether that much does not suffice for what is lacking.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Makes room for so many that are lacking; not if the last time was of no use.
    pub fn make_room(&mut self, lacking: usize) {
        if !self.is_full() {
            return;
        }
        if self.lacking.is_some_and(|before| lacking >= before) {
            self.closed = true;
            return;
        }
        *self = Self { lacking: Some(lacking), ..Self::default() };
    }
}

/// A Document is not the one that was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    name: String,
    what: Difference,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Difference {
    Gone { uid: Option<String> },
    Uid { wanted: String, found: String },
    Digest { wanted: String, found: String },
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, what } = self;
        match what {
            Difference::Gone { uid } => {
                let uid = uid.as_deref().unwrap_or("not known");
                write!(f, "Document {name} (UID {uid}) was deleted, and the run cannot go on without it")
            }
            Difference::Uid { wanted, found } => write!(
                f,
                "Document {name} was deleted, and another one was created under its name: UID {wanted} was expected, {found} was found"
            ),
            Difference::Digest { wanted, found } if wanted.is_empty() => {
                write!(f, "Document {name} was never published; its content has the digest {found}")
            }
            Difference::Digest { wanted, found } => {
                write!(f, "Document {name} was changed: its content has the digest {found}, and {wanted} was expected")
            }
        }
    }
}

// ---- what a StepRun made

/// The document of a result.
pub fn document_of(result: &ResultRef) -> Option<Pin> {
    result.document_name.as_deref().map(|name| Pin::new(name, result.document_binding.as_ref()))
}

/// The internal Document that carries the output of a result.
pub fn output_of(result: &ResultRef) -> Option<Pin> {
    result.output_document.as_deref().map(|name| Pin::new(name, result.output_binding.as_ref()))
}

/// What a good report makes of an attempt.
pub fn reported(report: &Report) -> ResultRef {
    ResultRef {
        attempt: report.attempt,
        digest: report.digest.clone(),
        document_name: report.document_name.clone(),
        document_binding: report.document_binding.clone(),
        output_document: report.output_document.clone(),
        output_binding: report.output_binding.clone(),
    }
}

/// What is taken over from another run.
pub fn reused(reuse: &Reuse, attempt: i32) -> ResultRef {
    ResultRef {
        attempt,
        digest: reuse.digest.clone(),
        document_name: reuse.document_name.clone(),
        document_binding: reuse.document_binding.clone(),
        output_document: reuse.output_document.clone(),
        output_binding: reuse.output_binding.clone(),
    }
}

/// What a StepRun has made or taken over, or is about to: the verdict, else what it will be over.
pub fn made(step_run: &StepRun) -> Option<ResultRef> {
    let status = step_run.status.as_ref();
    let report = || status.and_then(claim::current_report).map(reported);
    committed(step_run, status).or_else(report)
}

/// The same, without what a report alone says.
fn committed(step_run: &StepRun, status: Option<&StepRunStatus>) -> Option<ResultRef> {
    let verdict = status.and_then(|s| s.result.clone());
    let attempt = status.map_or(1, |s| s.attempt);
    verdict.or_else(|| step_run.spec.reuse.as_ref().map(|r| reused(r, attempt)))
}

/// What an attempt is to read: the pinned documents, and the one that was rejected last, where it makes such.
pub fn inputs(step_run: &StepRun, produces: Option<&str>) -> Vec<Pin> {
    let meta = &step_run.metadata;
    let identity = (meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
    let again = produces.zip(step_run.status.as_ref()).and_then(|(kind, status)| rejected(identity, status, kind));
    step_run.spec.documents.iter().map(Pin::from).chain(again).collect()
}

/// The document that was rejected last, of a StepRun of that name and UID: that of the newest attempt of an earlier
/// round that succeeded.
pub fn rejected((name, uid): (&str, &str), status: &StepRunStatus, document_type: &str) -> Option<Pin> {
    let newest = |a: &&Attempt| a.result == AttemptResult::Succeeded && a.round < status.round;
    let reviewed = status.attempts.iter().rfind(newest)?;
    let name = name::document(name, uid, reviewed.number, document_type);
    Some(Pin::new(&name, reviewed.document_binding.as_ref()))
}

/// The Document that an output is read from, where it does not stand in the StepRun itself.
pub fn carrier(step_run: &StepRun, status: &StepRunStatus) -> Option<Pin> {
    let result = committed(step_run, Some(status))?;
    // Older versions kept its name in the report alone.
    let apart = || claim::report_of(status, result.attempt)?.output_document.as_deref();
    output_of(&result).or_else(|| apart().map(|name| Pin::new(name, None))).or_else(|| document_of(&result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::document::DocumentSpec;

    fn loaded(uid: &str, content: &str) -> Loaded {
        let mut document = Document::new("plan", DocumentSpec { content: content.into(), ..DocumentSpec::default() });
        document.metadata.uid = Some(uid.into());
        Loaded::new(Arc::new(document))
    }

    #[test]
    fn a_decision_holds_only_so_much_and_says_when_that_does_not_suffice() {
        let half = "x".repeat(PASS_DOCUMENTS_BYTES / 2);
        let pin = |n: usize| Pin { name: format!("d{n}"), ..Pin::default() };
        // How much of what is lacking is settled by what is held: all, or nothing.
        for (settles, ends_closed) in [(true, false), (false, true)] {
            let (mut contents, mut wanted, mut most) = (Contents::default(), (0..9).collect::<Vec<_>>(), 0);
            for _ in 0..20 {
                let lacking: Vec<usize> = wanted.iter().copied().filter(|n| contents.get(&pin(*n)).is_none()).collect();
                if lacking.is_empty() || contents.is_closed() {
                    break;
                }
                contents.make_room(lacking.len());
                for n in lacking {
                    if !contents.is_full() {
                        contents.insert(pin(n), Content::of(&pin(n), Some(&loaded("u", &half))));
                    }
                }
                most = most.max(contents.held.len());
                wanted.retain(|n| !settles || contents.get(&pin(*n)).is_none());
            }
            assert_eq!((contents.is_closed(), wanted.is_empty(), most), (ends_closed, settles, 2));
        }
        let mut roomy = Contents::default();
        roomy.insert(pin(1), Content::of(&pin(1), Some(&loaded("u", "small"))));
        roomy.make_room(5);
        assert!(roomy.get(&pin(1)).is_some() && !roomy.is_full(), "what fits stays");
    }

    #[test]
    fn content_is_had_only_of_what_was_pinned() {
        let digest = name::digest_bytes(b"text");
        let pin = |uid: Option<&str>, digest: Option<&str>| Pin {
            name: "plan".into(),
            uid: uid.map(str::to_owned),
            digest: digest.map(str::to_owned),
        };
        for (what, pin, found, wrong) in [
            ("it", pin(Some("a"), Some(&digest)), Some(loaded("a", "text")), None),
            ("a copy, named before it was made", pin(None, Some(&digest)), Some(loaded("a", "text")), None),
            ("of an older version", pin(None, None), Some(loaded("a", "text")), None),
            ("made again", pin(Some("a"), Some(&digest)), Some(loaded("b", "text")), Some("UID a was expected, b")),
            ("other bytes", pin(Some("a"), Some(&digest)), Some(loaded("a", "other")), Some("was changed")),
            ("never published", pin(Some("a"), Some("")), Some(loaded("a", "text")), Some("never published")),
            ("gone", pin(Some("a"), Some(&digest)), None, Some("(UID a) was deleted")),
            ("gone, of an older version", pin(None, None), None, Some("was deleted")),
        ] {
            match (Content::of(&pin, found.as_ref()), wrong) {
                (Ok(content), None) => {
                    assert_eq!((content.text(), content.digest()), ("text", digest.as_str()), "{what}");
                }
                (Err(changed), Some(wrong)) => {
                    let said = changed.to_string();
                    assert!(said.contains(wrong) && said.contains("Document plan"), "{what}: {said}");
                }
                (found, _) => assert!(wrong.is_none() && found.is_ok(), "{what}: {found:?}"),
            }
        }
    }
}
