//! Whose tokens are good, and which writes are refused. In a cluster the API server's own keys and the admission policies say
//! that; here a token is good as long as its pod runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::chance;
use super::installation::{GATEWAY, NAMESPACE};
use crate::api::StepRun;
use crate::apiserver::access::{Access, Attributes, Operation};
use crate::apiserver::{Kind, Part};
use crate::decide::mail;

#[derive(Clone, Debug)]
struct Holder {
    pod: String,
    uid: String,
    audience: String,
}

/// The tokens that are good now. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Arc<Mutex<BTreeMap<String, Holder>>>);

impl Tokens {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Holder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new one for a pod.
    pub fn issue(&self, pod: &str, uid: &str, audience: &str) -> String {
        let token = chance::hex();
        let holder = Holder { pod: pod.to_owned(), uid: uid.to_owned(), audience: audience.to_owned() };
        self.all().insert(token.clone(), holder);
        token
    }

    /// That pod has ended.
    pub fn revoke(&self, uid: &str) {
        self.all().retain(|_, holder| holder.uid != uid);
    }
}

fn comes_late(write: &Attributes<'_>) -> bool {
    let (Some(old), Some(new)) = (write.old, write.new) else { return false };
    let after = ObjectMeta::deserialize(&new["metadata"]);
    old.typed::<StepRun>().zip(after.ok()).is_some_and(|(before, after)| mail::comes_late(&before, &after))
}

impl Access for Tokens {
    /// What the gateway would be refused by the policy of statuses, it is refused here; and people what is too late by the policy of
    /// gates.
    fn admit(&self, write: &Attributes<'_>) -> Result<(), String> {
        let is_status = write.kind == Kind::StepRun && write.part == Part::Status;
        let old = write.old.filter(|_| is_status && write.user == GATEWAY && write.operation == Operation::Update);
        let status = old.map(|old| &old.value["status"]);
        let is_frozen = |s: &serde_json::Value| !s["completedAt"].is_null() || s["gate"]["state"] == "Waiting";
        if status.is_some_and(is_frozen) {
            return Err("the step has ended or is under review".to_owned());
        }
        if write.kind == Kind::StepRun && write.part == Part::Main && comes_late(write) {
            return Err("too late, the deadline had passed".to_owned());
        }
        Ok(())
    }

    fn authenticate(&self, token: &str, audiences: &[String]) -> Option<(UserInfo, Vec<String>)> {
        let holder = self.all().get(token).filter(|holder| audiences.contains(&holder.audience)).cloned()?;
        let extra = |key: &str, value: String| (format!("authentication.kubernetes.io/{key}"), vec![value]);
        let user = UserInfo {
            username: Some(format!("system:serviceaccount:{NAMESPACE}:default")),
            extra: Some([extra("pod-name", holder.pod), extra("pod-uid", holder.uid)].into()),
            ..UserInfo::default()
        };
        Some((user, vec![holder.audience]))
    }
}
