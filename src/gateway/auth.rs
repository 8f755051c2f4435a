//! Who calls: the token's audience names the attempt, TokenReview names the pod, the pod's labels and its owner say that
//! the Job controller made it for the attempt's Job.

#![expect(clippy::disallowed_methods, reason = "how long a verdict on a token is kept")]

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::Api;
use kube::api::PostParams;
use tokio::time::Instant;

use super::metrics::Review;
use super::refusal::{Reason, Refusal, Result};
use super::{Gateway, cluster};
use crate::api::StepRun;
use crate::api::name::{self, LABEL_ATTEMPT, LABEL_STEP_RUN};
use crate::cluster::fair::Fair;
use crate::cluster::ttl_cache::TtlCache;
use crate::decide::seen;
use crate::decide::terms::ANNOTATION_TERMS;
use crate::definition::agent::CONTAINER;
use crate::protocol::{AttemptRef, header};
use crate::server::rate::{Rate, Rates};

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// The API server itself keeps a good verdict as long.
const KEEP: Duration = Duration::from_secs(10);
/// A token may become good: the API server's view of a new pod may lag.
const KEEP_REFUSED: Duration = Duration::from_secs(1);
const KEPT: usize = 4096;
const TOKEN_BYTES: usize = 8 * 1024;
/// TokenReviews that are under way at once, and those of one address that wait.
const REVIEWS_AT_ONCE: usize = 16;
const REVIEWS_QUEUED: usize = 64;
/// Tokens of one address that are asked about and turn out bad. Good ones do not count.
const BAD_TOKENS: Rate = Rate { burst: 64, per_second: 4 };

/// The pod that a token was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub pod_name: String,
    pub pod_uid: String,
}

/// What is known of tokens, by digest of token, audience and namespace; and who may ask for more.
pub struct Verdicts {
    good: TtlCache<Caller>,
    /// Apart, so that no flood of bad ones drives the good ones out.
    bad: TtlCache<Refusal>,
    bad_tokens: Mutex<Rates>,
    reviews: Fair,
}

impl Default for Verdicts {
    fn default() -> Self {
        Self {
            good: TtlCache::new(KEEP, KEPT),
            bad: TtlCache::new(KEEP_REFUSED, KEPT),
            bad_tokens: Mutex::new(Rates::new(BAD_TOKENS)),
            reviews: Fair::new(REVIEWS_AT_ONCE, REVIEWS_QUEUED),
        }
    }
}

impl Verdicts {
    fn recall(&self, key: &str) -> Option<Result<Caller>> {
        self.good.get(key).map(Ok).or_else(|| self.bad.get(key).map(Err))
    }

    fn rates(&self) -> std::sync::MutexGuard<'_, Rates> {
        self.bad_tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The attempt that the head of a request names.
pub fn attempt(headers: &http::HeaderMap) -> Result<AttemptRef> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    AttemptRef::read(text(header::ATTEMPT), text(header::CLAIM)).map_err(Refusal::bad_request)
}

/// The bearer token of a request.
pub fn bearer(headers: &http::HeaderMap) -> Result<&str> {
    headers
        .get(http::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty() && token.len() <= TOKEN_BYTES)
        .ok_or_else(|| Refusal::new(Reason::Unauthenticated, "a bearer token is required"))
}

/// Asks the API server who holds the token, for the audience of that attempt alone. Strangers get a bounded number of
/// answers: whoever calls from an address that sent many bad tokens waits.
pub async fn caller(gateway: &Gateway, from: IpAddr, token: &str, attempt: &AttemptRef) -> Result<Caller> {
    let verdicts = &gateway.verdicts;
    let audience = name::audience(&attempt.uid, attempt.attempt);
    let key = name::digest([token.as_bytes(), audience.as_bytes(), attempt.namespace.as_bytes()]);
    if let Some(verdict) = verdicts.recall(&key) {
        return verdict;
    }
    // Counted as bad until it is known to be good, so that many at once are counted, too.
    if !verdicts.rates().take(from, Instant::now().into_std()) {
        gateway.metrics.reviewed(Review::NotAsked);
        return Err(Refusal::unavailable("many bad tokens came from this address; try again in a moment"));
    }
    let verdict = reviewed(gateway, from, (token, &audience, &key), attempt).await;
    let is_bad = matches!(&verdict, Err(refusal) if refusal.reason != Reason::Unavailable);
    if !is_bad {
        verdicts.rates().give_back(from);
    }
    verdict
}

async fn reviewed(
    gateway: &Gateway,
    from: IpAddr,
    (token, audience, key): (&str, &str, &str),
    attempt: &AttemptRef,
) -> Result<Caller> {
    let verdicts = &gateway.verdicts;
    let _place = verdicts.reviews.acquire(&from.to_string()).await?;
    if let Some(verdict) = verdicts.recall(key) {
        return verdict;
    }
    let review = TokenReview {
        spec: TokenReviewSpec { audiences: Some(vec![audience.to_owned()]), token: Some(token.to_owned()) },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(gateway.client.clone());
    let asked_at = Instant::now();
    let answer = cluster::call(|| async { api.create(&PostParams::default(), &review).await }).await?;
    let verdict = judge(answer.status.as_ref(), audience, &attempt.namespace);
    match &verdict {
        Ok(caller) => {
            gateway.metrics.reviewed(Review::Good);
            verdicts.good.insert(key.to_owned(), caller.clone(), asked_at);
        }
        Err(refusal) => {
            gateway.metrics.reviewed(Review::Bad);
            verdicts.bad.insert(key.to_owned(), refusal.clone(), asked_at);
        }
    }
    verdict
}

/// What a TokenReview proves. Absent is false: a refused token has no `authenticated` at all.
fn judge(status: Option<&TokenReviewStatus>, audience: &str, namespace: &str) -> Result<Caller> {
    let refuse = |why: &str| Refusal::new(Reason::Unauthenticated, why);
    let status = status
        .filter(|status| status.authenticated == Some(true))
        .ok_or_else(|| refuse("the token is not good for this attempt"))?;
    if !status.audiences.iter().flatten().any(|echo| echo == audience) {
        return Err(refuse("the token has another audience"));
    }
    let user = status.user.as_ref().ok_or_else(|| refuse("the token names nobody"))?;
    let home = user
        .username
        .as_deref()
        .and_then(|user| user.strip_prefix("system:serviceaccount:"))
        .and_then(|user| user.split_once(':'))
        .map(|(namespace, _)| namespace);
    if home != Some(namespace) {
        return Err(Refusal::new(Reason::WrongPod, "the token is not of a service account of the StepRun's namespace"));
    }
    let extra = |key: &str| {
        user.extra
            .as_ref()
            .and_then(|extra| extra.get(key))
            .and_then(|values| values.first())
            .filter(|value| !value.is_empty())
            .cloned()
    };
    match (extra(POD_NAME), extra(POD_UID)) {
        (Some(pod_name), Some(pod_uid)) => Ok(Caller { pod_name, pod_uid }),
        _ => Err(Refusal::new(Reason::WrongPod, "the token is not bound to a pod")),
    }
}

/// For which call a pod proves itself: a pod that may still report may not claim any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptCall {
    Claim,
    Report,
}

/// The pod of an attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttemptPod {
    /// UID of the Job that owns it.
    pub job: String,
    /// Whether the cluster takes it away.
    pub pod_disrupted: bool,
    /// How the agent's container has ended, where it has.
    pub ended: Option<ContainerStateTerminated>,
    /// That it was killed for want of memory, with its limit.
    pub out_of_memory: Option<String>,
    /// What the attempt is held to, as its annotation says: proven by the digest in the StepRun alone.
    pub terms: Option<String>,
}

/// The caller's pod, if it lives and was made for the attempt. Tokens outlive both for some seconds.
pub async fn pod(client: &kube::Client, caller: &Caller, attempt: &AttemptRef, act: AttemptCall) -> Result<AttemptPod> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &attempt.namespace);
    let pod = cluster::find(|| api.get(&caller.pod_name)).await?;
    judge_pod(pod.as_ref(), caller, attempt, act)
}

fn judge_pod(pod: Option<&Pod>, caller: &Caller, attempt: &AttemptRef, act: AttemptCall) -> Result<AttemptPod> {
    let refuse = |why: &str| Err(Refusal::new(Reason::WrongPod, why));
    let Some(pod) = pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&caller.pod_uid)) else {
        return refuse("the pod is gone");
    };
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let pod_disrupted = seen::is_disrupted_pod(pod);
    // Of an evicted pod the node says that it has failed while its processes still end.
    let still_ends = act == AttemptCall::Report && pod_disrupted && phase == Some("Failed");
    if !matches!(phase, Some("Pending" | "Running")) && !still_ends {
        return refuse("the pod has ended");
    }
    if act == AttemptCall::Claim && pod.metadata.deletion_timestamp.is_some() {
        return refuse("the pod is being deleted");
    }
    // A Job adopts any pod that bears its controller-uid; our labels only the Job controller sets, and only at birth.
    let label = |key: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let made_for = label(LABEL_STEP_RUN) == Some(attempt.step_run.as_str())
        && label(LABEL_ATTEMPT) == Some(attempt.attempt.to_string().as_str());
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let job = owners.find(|o| o.controller == Some(true) && o.kind == "Job" && o.api_version == "batch/v1");
    match job {
        Some(job) if made_for => Ok(AttemptPod {
            job: job.uid.clone(),
            pod_disrupted,
            ended: ended(pod),
            out_of_memory: seen::pod(pod).out_of_memory,
            terms: pod.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_TERMS)).cloned(),
        }),
        _ => refuse("the pod is not of the attempt's Job"),
    }
}

fn ended(pod: &Pod) -> Option<ContainerStateTerminated> {
    let mut containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    containers.find(|c| c.name == CONTAINER)?.state.as_ref()?.terminated.clone()
}

/// Whether the Job that owns the pod is the one that the operator made for the attempt. What is not the current attempt
/// is the fence's business.
pub fn of_the_job(job_uid: &str, step_run: &StepRun, attempt: i32, act: AttemptCall) -> Result<()> {
    let Some(status) = step_run.status.as_ref().filter(|status| status.attempt == attempt) else {
        return match (&step_run.status, act) {
            (None, AttemptCall::Claim) => Err(not_yet()),
            _ => Ok(()),
        };
    };
    match status.job.as_ref().filter(|job| job.attempt == attempt) {
        Some(job) if job.uid == job_uid => Ok(()),
        Some(_) => Err(Refusal::new(Reason::WrongPod, "the Job of the pod is not the one that the operator made")),
        // A report is held to the pod that has claimed.
        None if act == AttemptCall::Report => Ok(()),
        None => Err(not_yet()),
    }
}

/// A pod can be faster than the write that follows the creation of its Job.
fn not_yet() -> Refusal {
    Refusal::unavailable("the attempt's Job is not recorded yet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn attempt() -> AttemptRef {
        AttemptRef {
            namespace: "team".to_owned(),
            step_run: "shop-discovery-0123456789abcdef".to_owned(),
            uid: "11111111-2222-3333-4444-555555555555".to_owned(),
            attempt: 2,
            id: "0123456789abcdef0123456789abcdef".to_owned(),
        }
    }

    fn good() -> Value {
        json!({"authenticated": true, "audiences": ["aud"], "user": {
            "username": "system:serviceaccount:team:agent",
            "extra": {POD_NAME: ["pod"], POD_UID: ["uid"]}}})
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut review = good();
        *review.pointer_mut(pointer).expect("a field of the good one") = value;
        review
    }

    #[test]
    fn only_a_token_of_a_pod_for_this_audience_and_namespace_counts() {
        use Reason::{Unauthenticated, WrongPod};
        let refused = |review: Value| {
            let status: TokenReviewStatus = serde_json::from_value(review).expect("a status");
            judge(Some(&status), "aud", "team").expect_err("refused").reason
        };
        for (review, reason) in [
            (json!({"user": {}, "error": "invalid bearer token"}), Unauthenticated),
            (with("/authenticated", json!(false)), Unauthenticated),
            (with("/audiences", json!([])), Unauthenticated),
            (with("/audiences", json!(["other"])), Unauthenticated),
            (with("/user/username", json!("alice")), WrongPod),
            (with("/user/username", json!("system:serviceaccount:team2:agent")), WrongPod),
            (with("/user/username", json!("system:node:team")), WrongPod),
            (with("/user/extra", json!({POD_NAME: ["pod"]})), WrongPod),
            (with("/user/extra", json!({POD_NAME: ["pod"], POD_UID: []})), WrongPod),
            (with("/user/extra", json!({POD_NAME: ["pod"], POD_UID: [""]})), WrongPod),
        ] {
            assert_eq!(refused(review.clone()), reason, "{review}");
        }
        assert_eq!(judge(None, "aud", "team").expect_err("refused").reason, Unauthenticated);
        let status: TokenReviewStatus = serde_json::from_value(good()).expect("a status");
        let caller = judge(Some(&status), "aud", "team").expect("a caller");
        assert_eq!((caller.pod_name.as_str(), caller.pod_uid.as_str()), ("pod", "uid"));
    }

    #[test]
    #[expect(clippy::large_stack_arrays, reason = "whole pods in a table")]
    fn only_the_living_pod_of_the_attempts_job_counts() {
        let attempt = attempt();
        let caller = Caller { pod_name: "pod".to_owned(), pod_uid: "uid".to_owned() };
        let own = attempt.step_run.as_str();
        let pod = |uid: &str, phase: &str, step_run: &str, controller: bool, deleted: bool| -> Pod {
            let mut pod = json!({"metadata": {"name": "pod", "uid": uid,
                "labels": {LABEL_STEP_RUN: step_run, LABEL_ATTEMPT: "2"}, "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": "j", "controller": controller}]},
                "status": {"phase": phase}});
            if deleted {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            serde_json::from_value(pod).expect("a pod")
        };
        let changed = |change: fn(&mut Pod)| {
            let mut pod = pod("uid", "Running", own, true, false);
            change(&mut pod);
            pod
        };
        for (pod, claim, report) in [
            (pod("uid", "Running", own, true, false), true, true),
            (pod("uid", "Pending", own, true, false), true, true),
            (pod("uid", "Running", own, true, true), false, true),
            (pod("new", "Running", own, true, false), false, false),
            (pod("uid", "Succeeded", own, true, false), false, false),
            (pod("uid", "Failed", own, true, false), false, false),
            // Evicted: its processes still end.
            (
                changed(|p| {
                    p.status = serde_json::from_value(json!({"phase": "Failed", "reason": "Evicted",
                        "conditions": [{"type": "DisruptionTarget", "status": "True"}]}))
                    .expect("a status");
                }),
                false,
                true,
            ),
            (pod("uid", "Running", own, false, false), false, false),
            (pod("uid", "Running", "another", true, false), false, false),
            // Adopted by the Job, of an earlier attempt, of a ReplicaSet.
            (changed(|p| p.metadata.labels = None), false, false),
            (
                changed(|p| drop(p.metadata.labels.as_mut().expect("labels").insert(LABEL_ATTEMPT.into(), "1".into()))),
                false,
                false,
            ),
            (
                changed(|p| p.metadata.owner_references.as_mut().expect("owners")[0].kind = "ReplicaSet".into()),
                false,
                false,
            ),
            (changed(|p| p.metadata.owner_references = None), false, false),
        ] {
            assert_eq!(judge_pod(Some(&pod), &caller, &attempt, AttemptCall::Claim).is_ok(), claim, "{pod:?}");
            assert_eq!(judge_pod(Some(&pod), &caller, &attempt, AttemptCall::Report).is_ok(), report, "{pod:?}");
        }
        assert!(judge_pod(None, &caller, &attempt, AttemptCall::Report).is_err());
        let killed = changed(|p| {
            let limits = json!({"containers": [{"name": CONTAINER, "resources": {"limits": {"memory": "64Mi"}}}]});
            p.spec = serde_json::from_value(limits).expect("a spec");
            let state = json!({"name": CONTAINER, "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}});
            let status = json!({"phase": "Running", "containerStatuses": [state]});
            p.status = serde_json::from_value(status).expect("a status");
        });
        let seen = judge_pod(Some(&killed), &caller, &attempt, AttemptCall::Report).expect("its pod");
        assert_eq!(seen.out_of_memory.as_deref(), Some("out of memory, limit 64Mi"));
        assert_eq!(seen.ended.map(|ended| ended.exit_code), Some(137));
        assert_eq!(
            judge_pod(Some(&changed(|_| {})), &caller, &attempt, AttemptCall::Claim),
            Ok(AttemptPod { job: "j".to_owned(), ..AttemptPod::default() })
        );
    }

    #[test]
    fn only_a_pod_of_the_job_that_the_operator_made_claims() {
        use Reason::{Unavailable, WrongPod};
        let seen = |status: Value| -> StepRun {
            let spec = json!({"workflow": {"name": "w", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
                "path": "p", "parameters": "{}", "inputDigest": "d"});
            let object = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun", "metadata": {"name": "s"},
                "spec": spec, "status": status});
            serde_json::from_value(object).expect("a StepRun")
        };
        let job = |attempt: i32, uid: &str| json!({"attempt": attempt, "name": "n", "uid": uid});
        for (what, status, claim, report) in [
            ("the operator's", json!({"attempt": 2, "job": job(2, "j")}), Ok(()), Ok(())),
            ("a stranger's", json!({"attempt": 2, "job": job(2, "k")}), Err(WrongPod), Err(WrongPod)),
            ("not written yet", json!(null), Err(Unavailable), Ok(())),
            ("not recorded yet", json!({"attempt": 2}), Err(Unavailable), Ok(())),
            ("of the attempt before", json!({"attempt": 2, "job": job(1, "j")}), Err(Unavailable), Ok(())),
            ("fenced", json!({"attempt": 3, "job": job(3, "k")}), Ok(()), Ok(())),
        ] {
            let step_run = seen(status);
            for (act, expected) in [(AttemptCall::Claim, claim), (AttemptCall::Report, report)] {
                assert_eq!(of_the_job("j", &step_run, 2, act).map_err(|r| r.reason), expected, "{what}: {act:?}");
            }
        }
    }

    #[test]
    fn bad_verdicts_do_not_drive_good_ones_out() {
        let verdicts = Verdicts::default();
        let caller = Caller { pod_name: "pod".to_owned(), pod_uid: "uid".to_owned() };
        let refusal = Refusal::new(Reason::Unauthenticated, "no");
        let now = Instant::now();
        verdicts.good.insert("good".to_owned(), caller.clone(), now);
        for n in 0..=KEPT {
            verdicts.bad.insert(n.to_string(), refusal.clone(), now);
        }
        assert_eq!(verdicts.recall("good"), Some(Ok(caller.clone())));
        assert_eq!(verdicts.recall("0"), Some(Err(refusal.clone())));
        assert_eq!(verdicts.bad.entries(), KEPT, "bounded");
        let long_ago = now.checked_sub(KEEP).expect("the machine runs longer");
        verdicts.good.insert("old".to_owned(), caller, long_ago);
        assert_eq!(verdicts.recall("old"), None);
    }

    #[test]
    fn bearer_tokens_are_read() {
        let mut headers = http::HeaderMap::new();
        assert!(bearer(&headers).is_err());
        headers.insert("authorization", http::HeaderValue::from_static("Basic abc"));
        assert!(bearer(&headers).is_err());
        headers.insert("authorization", http::HeaderValue::from_static("bearer abc"));
        assert_eq!(bearer(&headers), Ok("abc"));
    }
}
