//! What a decision is: effects in order, at most one status, notices, and when to look again. Every effect names
//! everything, so that nothing is left to choose when it is carried out.

use std::time::Duration;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::build::NewJob;
use crate::api::document::{Document, DocumentStatus};
use crate::api::memory::Memory;
use crate::api::step_run::StepRun;
use crate::api::workflow::Workflow;

/// One act on the cluster. Carrying it out twice is the same as once.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    CreateRevision(Box<ControllerRevision>),
    CreateDocument(Box<Document>),
    CreateStepRun(Box<StepRun>),
    CreateJob(Box<NewJob>),
    CreateMemory(Box<Memory>),
    CreateNetworkPolicy(Box<NetworkPolicy>),
    /// A run of a Trigger's schedule; those that it replaces, by name and UID, are cancelled before.
    StartRun {
        run: Box<Workflow>,
        replaced: Vec<(String, String)>,
    },
    /// Writes down that it is used, with that UID only.
    UseMemory {
        name: String,
        uid: String,
        at: Time,
    },
    /// With that UID only; pods go with a Job.
    Delete {
        what: DeletableKind,
        name: String,
        uid: String,
    },
    /// Of the Document that was decided on; without `seen`, of the one that an effect before this one makes.
    SetDocumentStatus {
        name: String,
        seen: Option<ObjectVersion>,
        status: DocumentStatus,
    },
    /// Removes keys from the mailbox, at that resourceVersion.
    EmptyMailbox {
        step_run: String,
        resource_version: String,
        keys: Vec<&'static str>,
    },
}

/// An object at a version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectVersion {
    pub uid: String,
    pub resource_version: String,
}

/// Kinds of objects that a run leaves behind and that may be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletableKind {
    Job,
    StepRun,
    Document,
    Memory,
    Workflow,
    ControllerRevision,
}

/// Something people should hear of, once: an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub warning: bool,
    /// Told before the effects, which take away what it is about: whoever dies in between leaves nobody without a reason, and
    /// the next one may tell it again.
    pub comes_first: bool,
    pub reason: &'static str,
    pub note: String,
}

/// What a pass decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan<S> {
    pub effects: Vec<Effect>,
    /// The whole status as it shall be; written only when it differs.
    pub status: Option<S>,
    pub notices: Vec<Notice>,
    /// Look again after this, even if nothing happens.
    pub requeue: Option<Duration>,
}

impl<S> Default for Plan<S> {
    fn default() -> Self {
        Self { effects: Vec::new(), status: None, notices: Vec::new(), requeue: None }
    }
}

impl<S> Plan<S> {
    pub fn notice(&mut self, reason: &'static str, note: impl Into<String>) {
        self.notices.push(Notice { warning: false, comes_first: false, reason, note: note.into() });
    }

    pub fn warn(&mut self, reason: &'static str, note: impl Into<String>) {
        self.notices.push(Notice { warning: true, comes_first: false, reason, note: note.into() });
    }

    /// Why something is not taken that an effect of this plan takes away.
    pub fn refuse(&mut self, reason: &'static str, note: impl Into<String>) {
        self.notices.push(Notice { warning: true, comes_first: true, reason, note: note.into() });
    }

    /// The earliest of all asked for counts.
    pub fn look_again(&mut self, after: Duration) {
        self.requeue = Some(self.requeue.map_or(after, |soonest| soonest.min(after)));
    }
}
