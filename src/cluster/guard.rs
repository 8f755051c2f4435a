//! Do the admission policies stand that prove who decides? The live specs are compared with those this program was built
//! with, key by key; then a canary write that they must refuse shows that they are in force for this very object.

#![expect(clippy::disallowed_methods, reason = "how long a proof of the policies is worth something")]
#![expect(clippy::disallowed_macros, reason = "the dry run of the canary")]

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, try_join_all};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Error;
use super::client::bounded;
use crate::api::StepRun;
use crate::api::condition::clip;
use crate::api::name::{self, CANARY};
use crate::decide::gate::Guard;

/// The files that the chart installs, with the accounts of its default release.
pub const FILES: [&str; 9] = [
    include_str!("../../charts/lockstep/policies/gate.yaml"),
    include_str!("../../charts/lockstep/policies/status.yaml"),
    include_str!("../../charts/lockstep/policies/spec.yaml"),
    include_str!("../../charts/lockstep/policies/delete.yaml"),
    include_str!("../../charts/lockstep/policies/document.yaml"),
    include_str!("../../charts/lockstep/policies/memory.yaml"),
    include_str!("../../charts/lockstep/policies/creator.yaml"),
    include_str!("../../charts/lockstep/policies/job.yaml"),
    include_str!("../../charts/lockstep/policies/pod.yaml"),
];
const DEFAULT_OPERATOR: &str = "system:serviceaccount:lockstep-system:lockstep-operator";
const DEFAULT_GATEWAY: &str = "system:serviceaccount:lockstep-system:lockstep-gateway";
/// Who makes the pods of Jobs, where the controllers have accounts of their own.
pub const JOB_CONTROLLER: &str = "system:serviceaccount:kube-system:job-controller";
/// How long a comparison of the specs may be used again; the canary is fresh every time.
const REUSE: Duration = Duration::from_secs(2);

/// Bytes of what refused a canary write.
const HIDDEN_BYTES: usize = 300;

/// The accounts that the policies name.
#[derive(Clone, Debug)]
pub struct Accounts {
    pub operator: String,
    pub gateway: String,
    pub job_controller: String,
}

/// Whoever says whether it is proven who writes into a mailbox. In a cluster that is `PolicyGuard` and nobody else: the other
/// one stands above everything that runs there (`tests/house/proofs.rs`).
pub trait Proves: Send + Sync {
    /// The verdict for one StepRun, now.
    fn check<'a>(&'a self, client: &'a Client, step_run: &'a StepRun) -> BoxFuture<'a, Result<Guard, Error>>;
}

impl Proves for PolicyGuard {
    fn check<'a>(&'a self, client: &'a Client, step_run: &'a StepRun) -> BoxFuture<'a, Result<Guard, Error>> {
        self.verdict(client, step_run).boxed()
    }
}

/// The stamp of the policies or what is wrong with them; or why they could not be read.
type Comparison = Result<Result<String, String>, String>;

pub struct PolicyGuard {
    expected: Vec<Value>,
    /// Held while the specs are read: whoever needs them at the same time waits, and asks for nothing itself.
    last: Mutex<Option<(Instant, Comparison)>>,
}

impl PolicyGuard {
    pub fn new(accounts: &Accounts) -> anyhow::Result<Self> {
        let mut expected = Vec::new();
        for file in FILES {
            let text = file.replace(DEFAULT_OPERATOR, &accounts.operator).replace(DEFAULT_GATEWAY, &accounts.gateway);
            let text = text.replace(JOB_CONTROLLER, &accounts.job_controller);
            expected.extend(serde_saphyr::from_multiple::<Value>(&text)?);
        }
        Ok(Self { expected, last: Mutex::new(None) })
    }

    async fn verdict(&self, client: &Client, step_run: &StepRun) -> Result<Guard, Error> {
        let stamp = match self.specs(client).await? {
            Ok(stamp) => stamp,
            Err(why) => return Ok(Guard::Missing(format!("{why}; reinstall the chart"))),
        };
        let (main, status) =
            futures::future::join(main_canary(client, step_run), status_canary(client, step_run)).await;
        for (policy, canary) in [("lockstep-gate", main?), ("lockstep-status", status?)] {
            match canary {
                Canary::Refused => {}
                Canary::Passed => {
                    let why = format!("the policy {policy} is not in force: it let a canary write pass");
                    return Ok(Guard::Missing(format!("{why}; reinstall the chart")));
                }
                Canary::Hidden(by) => {
                    let why = format!(
                        "whether the policy {policy} is in force cannot be seen: its canary write was refused before"
                    );
                    return Ok(Guard::Missing(format!("{why} ({by}); allow the operator that write")));
                }
            }
        }
        Ok(Guard::Proven(stamp))
    }

    async fn specs(&self, client: &Client) -> Result<Result<String, String>, Error> {
        let mut last = self.last.lock().await;
        if let Some((at, comparison)) = &*last
            && at.elapsed() < REUSE
        {
            return comparison.clone().map_err(Error::Unusable);
        }
        let live = try_join_all(self.expected.iter().map(|wanted| fetch(client, wanted))).await;
        let comparison = live.map(|live| compare(&self.expected, &live));
        let kept = comparison.as_ref().map(Clone::clone).map_err(ToString::to_string);
        *last = Some((Instant::now(), kept));
        comparison
    }
}

async fn fetch(client: &Client, wanted: &Value) -> Result<Option<DynamicObject>, Error> {
    let text = |pointer| wanted.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", text("/kind")));
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    bounded("GET admission policies", api.get_opt(text("/metadata/name"))).await
}

/// The stamp of the policies that stand, or what is wrong with them.
fn compare(expected: &[Value], live: &[Option<DynamicObject>]) -> Result<String, String> {
    let mut identities = Vec::new();
    for (wanted, found) in expected.iter().zip(live) {
        let label = format!(
            "{} {}",
            wanted.pointer("/kind").and_then(Value::as_str).unwrap_or_default(),
            wanted.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
        );
        let Some(found) = found else {
            return Err(format!("{label} is not installed"));
        };
        if let Some(place) = difference(
            wanted.get("spec").unwrap_or(&Value::Null),
            found.data.get("spec").unwrap_or(&Value::Null),
            "spec",
        ) {
            return Err(format!("{label} was changed at {place}"));
        }
        identities.push(format!(
            "{}/{}",
            found.metadata.uid.as_deref().unwrap_or_default(),
            found.metadata.generation.unwrap_or_default()
        ));
    }
    Ok(name::digest(identities.iter().map(String::as_bytes)))
}

/// The first place where two values differ; a key too many counts as well.
fn difference(wanted: &Value, found: &Value, place: &str) -> Option<String> {
    match (wanted, found) {
        (Value::Object(a), Value::Object(b)) => {
            let extra = b.keys().find(|key| !a.contains_key(*key)).map(|key| format!("{place}.{key}"));
            extra.or_else(|| {
                a.iter().find_map(|(key, value)| {
                    difference(value, b.get(key).unwrap_or(&Value::Null), &format!("{place}.{key}"))
                })
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(n, (x, y))| difference(x, y, &format!("{place}[{n}]")))
        }
        // YAML folding may leave a line end that the API server keeps.
        (Value::String(a), Value::String(b)) if a.trim_end() == b.trim_end() => None,
        (a, b) => (a != b).then(|| place.to_owned()),
    }
}

fn dry_run() -> PatchParams {
    PatchParams { dry_run: true, ..PatchParams::default() }
}

/// What became of a canary write.
#[derive(Debug, PartialEq)]
enum Canary {
    /// By the policy that is tried.
    Refused,
    Passed,
    /// Something else refused it first: RBAC, or a policy or webhook of somebody's own.
    Hidden(String),
}

fn canary<T>(answer: Result<T, Error>) -> Result<Canary, Error> {
    match answer {
        Ok(_) => Ok(Canary::Passed),
        Err(error) => match error.refusal() {
            Some(words) if words.contains("canary ok") => Ok(Canary::Refused),
            Some(words) => Ok(Canary::Hidden(clip(words, HIDDEN_BYTES))),
            None => Err(error),
        },
    }
}

async fn main_canary(client: &Client, step_run: &StepRun) -> Result<Canary, Error> {
    let (api, name) = api_of(client, step_run);
    let patch = json!({"metadata": {"annotations": {CANARY: "probe"}}});
    canary(bounded("PATCH stepruns (dry run)", api.patch(&name, &dry_run(), &Patch::Merge(patch))).await)
}

async fn status_canary(client: &Client, step_run: &StepRun) -> Result<Canary, Error> {
    let (api, name) = api_of(client, step_run);
    let patch = json!({"status": {"canary": "probe"}});
    canary(bounded("PATCH stepruns/status (dry run)", api.patch_status(&name, &dry_run(), &Patch::Merge(patch))).await)
}

fn api_of(client: &Client, step_run: &StepRun) -> (Api<StepRun>, String) {
    let meta = &step_run.metadata;
    (
        Api::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default()),
        meta.name.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Sixteen passes at once, of an API server that answers slowly.
    #[tokio::test]
    async fn the_policies_are_read_once_for_all() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let absent = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::task::yield_now().await;
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404});
                let answer = http::Response::builder()
                    .status(404)
                    .body(kube::client::Body::from(status.to_string().into_bytes()));
                Ok::<_, std::convert::Infallible>(answer.expect("an answer"))
            }
        });
        let client = Client::new(absent, "team");
        let account = String::from("system:serviceaccount:lockstep-system:some");
        let accounts = Accounts { operator: account.clone(), gateway: account.clone(), job_controller: account };
        let guard = PolicyGuard::new(&accounts).expect("the policies of the chart");
        let verdicts = futures::future::join_all((0..16).map(|_| guard.specs(&client))).await;
        assert!(verdicts.iter().all(|verdict| matches!(verdict, Ok(Err(why)) if why.ends_with("is not installed"))));
        assert_eq!(asked.load(Ordering::SeqCst), guard.expected.len());
    }

    #[test]
    fn what_refused_a_canary_write_is_told_apart() {
        let refused = |code: u16, words: &str| {
            let status = json!({"status": "Failure", "code": code, "reason": "Forbidden", "message": words});
            let status = serde_json::from_value(status).expect("a status");
            canary(Err::<(), _>(Error::Api(kube::Error::Api(status))))
        };
        assert!(canary(Ok(())).is_ok_and(|canary| canary == Canary::Passed));
        assert!(
            refused(403, "ValidatingAdmissionPolicy 'lockstep-gate' denied request: canary ok")
                .is_ok_and(|canary| canary == Canary::Refused)
        );
        for (code, words) in
            [(403, "User \"operator\" cannot patch resource \"stepruns\""), (422, "another policy denied it")]
        {
            assert!(refused(code, words).is_ok_and(|canary| canary == Canary::Hidden(words.to_owned())));
        }
        assert!(refused(503, "not now").is_err());
    }

    #[test]
    fn every_deviation_has_a_place() {
        let wanted = json!({"a": [1, {"b": "x\n"}]});
        assert_eq!(difference(&wanted, &json!({"a": [1, {"b": "x"}]}), "spec"), None);
        assert_eq!(difference(&wanted, &json!({"a": [1, {"b": "y"}]}), "spec").as_deref(), Some("spec.a[1].b"));
        assert_eq!(
            difference(&wanted, &json!({"a": [1, {"b": "x\n"}], "matchConditions": []}), "spec").as_deref(),
            Some("spec.matchConditions")
        );
        assert_eq!(difference(&wanted, &json!({}), "spec").as_deref(), Some("spec.a"));
    }

    #[test]
    fn the_built_in_policies_can_be_read() {
        let accounts = Accounts { operator: "o".into(), gateway: "g".into(), job_controller: "j".into() };
        let guard = PolicyGuard::new(&accounts).expect("the files parse");
        assert_eq!(guard.expected.len(), 2 * FILES.len());
        for account in [DEFAULT_OPERATOR, DEFAULT_GATEWAY, JOB_CONTROLLER] {
            assert!(!guard.expected.iter().any(|v| v.to_string().contains(account)), "{account}");
        }
        assert!(guard.expected.iter().any(|v| v.to_string().contains("== 'j'")));
    }
}
