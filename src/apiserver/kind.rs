//! The kinds that are served: where their paths lie, and which of the API server's rules hold for them.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::Value;

use super::defaults::Defaults;
use crate::api::crd;

/// A served kind. The order is that of `ALL`; an object's dependants usually come after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Agent,
    WorkflowTemplate,
    Workflow,
    StepRun,
    Document,
    Memory,
    Trigger,
    ControllerRevision,
    Job,
    Pod,
    ConfigMap,
    Secret,
    Service,
    NetworkPolicy,
    Namespace,
    Lease,
    Event,
    ValidatingAdmissionPolicy,
    ValidatingAdmissionPolicyBinding,
    MutatingAdmissionPolicy,
    MutatingAdmissionPolicyBinding,
}

/// Which part of an object a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Main,
    Status,
}

/// API group, version and plural name, as they stand in paths; the core group is empty.
struct Names {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
}

const fn names(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Names {
    Names { group, version, kind, plural }
}

const ADMISSION: &str = "admissionregistration.k8s.io";

impl Kind {
    pub const ALL: [Self; 21] = [
        Self::Agent,
        Self::WorkflowTemplate,
        Self::Workflow,
        Self::StepRun,
        Self::Document,
        Self::Memory,
        Self::Trigger,
        Self::ControllerRevision,
        Self::Job,
        Self::Pod,
        Self::ConfigMap,
        Self::Secret,
        Self::Service,
        Self::NetworkPolicy,
        Self::Namespace,
        Self::Lease,
        Self::Event,
        Self::ValidatingAdmissionPolicy,
        Self::ValidatingAdmissionPolicyBinding,
        Self::MutatingAdmissionPolicy,
        Self::MutatingAdmissionPolicyBinding,
    ];

    fn names(self) -> Names {
        match self {
            Self::Agent => names("lockstep.dev", "v1alpha1", "Agent", "agents"),
            Self::WorkflowTemplate => names("lockstep.dev", "v1alpha1", "WorkflowTemplate", "workflowtemplates"),
            Self::Workflow => names("lockstep.dev", "v1alpha1", "Workflow", "workflows"),
            Self::StepRun => names("lockstep.dev", "v1alpha1", "StepRun", "stepruns"),
            Self::Document => names("lockstep.dev", "v1alpha1", "Document", "documents"),
            Self::Memory => names("lockstep.dev", "v1alpha1", "Memory", "memories"),
            Self::Trigger => names("lockstep.dev", "v1alpha1", "Trigger", "triggers"),
            Self::ControllerRevision => names("apps", "v1", "ControllerRevision", "controllerrevisions"),
            Self::Job => names("batch", "v1", "Job", "jobs"),
            Self::Pod => names("", "v1", "Pod", "pods"),
            Self::ConfigMap => names("", "v1", "ConfigMap", "configmaps"),
            Self::Secret => names("", "v1", "Secret", "secrets"),
            Self::Service => names("", "v1", "Service", "services"),
            Self::NetworkPolicy => names("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
            Self::Namespace => names("", "v1", "Namespace", "namespaces"),
            Self::Lease => names("coordination.k8s.io", "v1", "Lease", "leases"),
            Self::Event => names("events.k8s.io", "v1", "Event", "events"),
            Self::ValidatingAdmissionPolicy => {
                names(ADMISSION, "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies")
            }
            Self::ValidatingAdmissionPolicyBinding => {
                names(ADMISSION, "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
            }
            Self::MutatingAdmissionPolicy => {
                names(ADMISSION, "v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies")
            }
            Self::MutatingAdmissionPolicyBinding => {
                names(ADMISSION, "v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings")
            }
        }
    }

    /// The kind that is served under this group, version and plural name.
    pub fn find(group: &str, version: &str, plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| {
            let names = kind.names();
            (names.group, names.version, names.plural) == (group, version, plural)
        })
    }

    pub fn group(self) -> &'static str {
        self.names().group
    }

    pub fn plural(self) -> &'static str {
        self.names().plural
    }

    /// As in the field `kind`.
    pub fn name(self) -> &'static str {
        self.names().kind
    }

    /// As in the field `apiVersion`.
    pub fn api_version(self) -> String {
        let names = self.names();
        if names.group.is_empty() { names.version.to_owned() } else { format!("{}/{}", names.group, names.version) }
    }

    /// The path of the kind's objects: of one namespace, or of all where `namespace` is empty.
    pub fn path(self, namespace: &str) -> String {
        let root = if self.group().is_empty() { "api" } else { "apis" };
        let (version, plural) = (self.api_version(), self.plural());
        if namespace.is_empty() {
            format!("/{root}/{version}/{plural}")
        } else {
            format!("/{root}/{version}/namespaces/{namespace}/{plural}")
        }
    }

    pub fn is_namespaced(self) -> bool {
        self < Self::Namespace || matches!(self, Self::Lease | Self::Event)
    }

    /// Whether a CustomResourceDefinition of Lockstep's defines it.
    pub fn is_custom(self) -> bool {
        self <= Self::Trigger
    }

    /// Whether its status is written apart, through the subresource `status`.
    pub fn has_status(self) -> bool {
        self <= Self::Document || matches!(self, Self::Trigger | Self::Job | Self::Pod)
    }

    /// Whether changes of its spec are counted in `metadata.generation`.
    pub fn has_generation(self) -> bool {
        self.is_custom() || self.has_status() || self == Self::NetworkPolicy || self > Self::Event
    }

    /// What the schema of a custom kind states, in its CustomResourceDefinition.
    pub fn defaults(self) -> Option<&'static Defaults> {
        static ALL: OnceLock<BTreeMap<String, Defaults>> = OnceLock::new();
        let all = ALL.get_or_init(|| {
            let of = |crd: &Value| {
                let name = crd.pointer("/spec/names/kind")?.as_str()?.to_owned();
                Some((name, Defaults::of(crd.pointer("/spec/versions/0/schema/openAPIV3Schema")?)))
            };
            crd::all().iter().filter_map(of).collect()
        });
        all.get(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_path() {
        for kind in Kind::ALL {
            let names = kind.names();
            assert_eq!(Kind::find(names.group, names.version, names.plural), Some(kind));
            assert_eq!(kind.defaults().is_some(), kind.is_custom(), "{kind:?}");
        }
        assert_eq!(Kind::Workflow.path("team"), "/apis/lockstep.dev/v1alpha1/namespaces/team/workflows");
        assert_eq!(Kind::Pod.path(""), "/api/v1/pods");
    }
}
