//! The admission policies as the product meets them: their objects, whose specs the operator compares, what they refuse to
//! operator and gateway, and whose tokens are good. What they refuse to people is in `people`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::authentication::v1::UserInfo;
use lockstep::api::name::CANARY;
use lockstep::apiserver::access::{Access, Attributes, Operation};
use lockstep::apiserver::{Key, Kind, Part, Registry, Writer};
use lockstep::cluster::guard::FILES;
use serde_json::Value;

use super::server::NAMESPACE;

pub const OPERATOR: &str = "system:serviceaccount:lockstep-system:lockstep-operator";
pub const GATEWAY: &str = "system:serviceaccount:lockstep-system:lockstep-gateway";

/// Those that the operator looks for.
static OBJECTS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    FILES.iter().flat_map(|file| serde_saphyr::from_multiple::<Value>(file).expect("the chart's YAML")).collect()
});

/// Whether the policies stand, as the server knows it.
#[derive(Clone, Default)]
pub struct Standing(pub Arc<AtomicBool>);

impl Access for Standing {
    fn admit(&self, write: &Attributes<'_>) -> Result<(), String> {
        if !self.0.load(Ordering::Relaxed) || write.kind != Kind::StepRun || write.operation != Operation::Update {
            return Ok(());
        }
        let (Some(old), Some(new)) = (write.old, write.new) else { return Ok(()) };
        let probes = match write.part {
            Part::Main => !new["metadata"]["annotations"][CANARY].is_null(),
            Part::Status => !new["status"]["canary"].is_null(),
        };
        let policy = if write.part == Part::Main { "lockstep-gate" } else { "lockstep-status" };
        if probes {
            return Err(format!("{policy}/v1: canary ok"));
        }
        let status = &old.value["status"];
        let is_frozen = !status["completedAt"].is_null() || status["gate"]["state"] == "Waiting";
        if write.user == GATEWAY && write.part == Part::Status && is_frozen {
            return Err("lockstep-status/v1: the step has ended or is under review".to_owned());
        }
        Ok(())
    }

    /// A token names its pod, the pod's UID and its audience.
    fn authenticate(&self, token: &str, audiences: &[String]) -> Option<(UserInfo, Vec<String>)> {
        let mut parts = token.splitn(3, '|');
        let (pod, uid, audience) = (parts.next()?, parts.next()?, parts.next()?);
        let extra = |key: &str, value: &str| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        let user = UserInfo {
            username: Some(format!("system:serviceaccount:{NAMESPACE}:default")),
            extra: Some([extra("pod-name", pod), extra("pod-uid", uid)].into()),
            ..UserInfo::default()
        };
        audiences.iter().any(|a| a == audience).then(|| (user, vec![audience.to_owned()]))
    }
}

/// Makes the policies' objects, or takes them away.
pub fn place(registry: &mut Registry, standing: bool) {
    let by = Writer { user: "admin", is_dry_run: false };
    for object in OBJECTS.iter() {
        let is = |kind: &Kind| object["kind"] == kind.name();
        let Some(kind) = Kind::ALL.into_iter().find(is) else { continue };
        let key = Key::new(kind, "", object["metadata"]["name"].as_str().unwrap_or_default());
        if standing {
            let _ = registry.create(&key, object.clone(), by);
        } else {
            let _ =
                registry.delete(&key, &k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions::default(), by);
        }
    }
}
