//! Document: an immutable, typed, scoped document. The gateway makes those of agents, people put their own.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::step::Format;

/// The type of internal documents that carry what is too large for a status; no step may ask for it.
pub const OUTPUT_TYPE: &str = "lockstep-output";

#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "Document",
    namespaced,
    status = "DocumentStatus",
    shortname = "ldoc",
    category = "lockstep",
    doc = "A document that steps read or make.",
    derive = "PartialEq",
    selectable = ".spec.type",
    selectable = ".spec.workflow",
    selectable = ".status.phase",
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Scope", type_ = "string", json_path = ".spec.scope"),
    printcolumn(name = "Workflow", type_ = "string", json_path = ".spec.workflow"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Format", type_ = "string", json_path = ".spec.format", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a document is immutable; create another one of the same type, the newest revision counts"))]
#[x_kube(validation = Rule::new("self.scope == 'Session' ? has(self.session) : self.scope == 'Project' ? has(self.project) : true").message("scope Session needs the field session, scope Project the field project"))]
pub struct DocumentSpec {
    /// What kind of document it is; steps ask for it by this name.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z][a-z0-9-]*$"))]
    pub document_type: String,
    /// Who can see it.
    pub scope: Scope,
    /// Identity within the scope: the run's UID, or the run's UID and the keys of the item. Set by Lockstep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub scope_id: Option<String>,
    /// The session that sees it (scope Session).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub session: Option<String>,
    /// The project that sees it (scope Project).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub project: Option<String>,
    /// The run that made it. Set by Lockstep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub workflow: Option<String>,
    /// The step that made it. Set by Lockstep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub path: Option<String>,
    /// The attempt that made it. Set by Lockstep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub attempt: Option<i32>,
    #[serde(default)]
    pub format: Format,
    /// At most 512 KiB.
    #[schemars(length(max = 524_288))]
    pub content: String,
}

/// How far a document can be seen.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Item,
    Workflow,
    Session,
    Project,
    #[default]
    Namespace,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DocumentStatus {
    /// Latched forwards: Draft until its gate accepts (lookups do not see it), Published, Superseded by a newer
    /// revision, Rejected by its gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<DocumentPhase>,
    /// Latched: counts up within type and scope; the highest one is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Latched: `sha256:...` of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub digest: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentPhase {
    Draft,
    Published,
    Superseded,
    Rejected,
}
