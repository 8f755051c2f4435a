//! Document: an immutable, typed, scoped document. The gateway makes those of agents, people put their own.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::told;
use super::step::Format;

/// The type of internal documents that carry what is too large for a status; no step may ask for it.
pub const OUTPUT_TYPE: &str = "lockstep-output";

/// What the document is, who can see it, and its content. It never changes: to replace a document, create another one of the
/// same type and scope, and the newest revision is found.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "Document",
    namespaced,
    status = "DocumentStatus",
    shortname = "ldoc",
    category = "lockstep",
    doc = "A Document is a text with a type, which steps read and make. The documents of agents are made by Lockstep; those of scope Session, Project and Namespace may also be created by people, and are published at once.",
    derive = "PartialEq",
    selectable = ".spec.type",
    selectable = ".spec.scope",
    selectable = ".spec.scopeId",
    selectable = ".spec.session",
    selectable = ".spec.project",
    selectable = ".spec.workflow",
    selectable = ".status.phase",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Scope", type_ = "string", json_path = ".spec.scope"),
    printcolumn(name = "Workflow", type_ = "string", json_path = ".spec.workflow"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Format", type_ = "string", json_path = ".spec.format", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest", priority = 1),
    printcolumn(name = "Scope ID", type_ = "string", json_path = ".spec.scopeId", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a document is immutable; create another one of the same type, the newest revision counts"))]
#[x_kube(validation = Rule::new("self.scope == 'Session' ? has(self.session) : self.scope == 'Project' ? has(self.project) : true").message("scope Session needs the field session, scope Project the field project"))]
pub struct DocumentSpec {
    /// The type of the document, by which steps ask for it: a small letter, then small letters, digits and `-`, at most 63
    /// characters. Types that begin with `lockstep-` are Lockstep's own.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub document_type: String,
    /// How far the document can be seen. A step that asks for a type finds the document of the narrowest scope that it is in.
    pub scope: Scope,
    /// Which run or which item the document belongs to: the UID of the Workflow, followed by the keys of the items around the
    /// step that made it, each after a `/`. It is set by Lockstep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub scope_id: Option<String>,
    /// The session whose runs see the document; required with scope Session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub session: Option<String>,
    /// The project whose runs see the document; required with scope Project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub project: Option<String>,
    /// The name of the Workflow in which the document was made. It is set by Lockstep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub workflow: Option<String>,
    /// The path (`group/step`) of the step that made the document. It is set by Lockstep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub path: Option<String>,
    /// The number of the attempt that made the document. It is set by Lockstep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub attempt: Option<i32>,
    /// How the content is to be read.
    #[serde(default)]
    pub format: Format,
    /// The document itself, at most 512 KiB of text. What is larger is stored elsewhere and referred to by a document of the
    /// format `link`.
    #[schemars(length(max = 524_288))]
    pub content: String,
}

/// How far a document can be seen.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[schemars(transform = told)]
pub enum Scope {
    /// The steps of one item of a forEach, in one run.
    Item,
    /// All steps of one run.
    Workflow,
    /// All runs of one session.
    Session,
    /// All runs of one project.
    Project,
    /// All runs in the namespace.
    #[default]
    Namespace,
}

/// Whether steps find the document, and which revision it is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DocumentStatus {
    /// The `metadata.generation` that this status is about; -1 before Lockstep has looked at the document, and while it waits for the
    /// end, or the gate, of the step that made it. Absent where an older version published it.
    // Latched with the phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Whether steps find the document; absent while it waits for the end, or the gate, of the step that made it.
    // Latched, forwards only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<DocumentPhase>,
    /// The number of the document among those of its type and scope, from 1; of several published ones the highest is found.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// The SHA-256 digest of the content, as `sha256:` and 64 hexadecimal digits.
    // Latched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub digest: Option<String>,
}

/// Whether steps find a document.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[schemars(transform = told)]
pub enum DocumentPhase {
    /// The same as absent: it waits for the step that made it, and no step finds it.
    Draft,
    /// Steps find it.
    Published,
    /// A newer revision is found in its place; what has read it already keeps it.
    Superseded,
    /// Its gate rejected it, and no step finds it.
    Rejected,
}
