//! Calls of whoever may not speak for an attempt: refused at every path, and told in the log.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;

use super::log::Log;
use super::*;
use crate::protocol::memory;

/// Every call of the protocol, with a body that its attempt may send.
fn calls() -> Vec<(&'static str, Value)> {
    let remember = json!({"operation": {"kind": "get", "key": "status"}});
    let ask = json!({"questions": [{"question": "How much?"}], "waitSeconds": 300});
    vec![
        (protocol::CLAIM, json!({"shimVersion": "0"})),
        (protocol::DOCUMENT, json!({"name": "x"})),
        (protocol::CHECK, json!({"output": {"result": "1", "document": null}})),
        (protocol::PROGRESS, json!({"percent": 50, "message": "half"})),
        (protocol::ASK, ask),
        (protocol::APPROVAL, mail(CALL)),
        (protocol::AWAIT, waits_for("How much?", 1)),
        (memory::PATH, remember),
        (protocol::HISTORY, json!({})),
        (protocol::USAGE, json!({"tokensIn": 10, "tokensOut": 2, "models": []})),
        (protocol::DOCUMENTS, json!({"kind": "list"})),
        (protocol::ENDED, json!({})),
        (protocol::REPORT, report("1")),
    ]
}

impl Scene {
    /// A living pod that bears the labels of the attempt and is of its Job, and its token for the attempt.
    fn pod(&self, of: &Attempt, name: &str) -> String {
        let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": "job", "controller": true});
        let labels = json!({LABEL_STEP_RUN: of.who.step_run, LABEL_ATTEMPT: "1"});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": TEAM,
            "labels": labels, "ownerReferences": [owner]}, "spec": {}});
        let uid = self.create(Kind::Pod, &pod)["metadata"]["uid"].as_str().expect("a UID").to_owned();
        format!("{name}|{uid}|{}", name::audience(&of.who.uid, 1))
    }

    /// All of it is refused with one of those codes, and nothing is written.
    async fn refuses(&self, what: &str, of: &Attempt, codes: &[u16]) {
        let version = || self.api.with(|registry| registry.store().version());
        for (path, body) in calls() {
            let before = version();
            let (code, answer) = self.call(of, path, &body).await;
            // A pod of the attempt hears how its own container ended, and of no other one; it has not ended.
            let is_own = (path, code) == (protocol::ENDED, 503) && codes.contains(&409);
            assert!(codes.contains(&code) || is_own, "{what}: {path}: {code} {answer}");
            assert_eq!(version(), before, "{what}: {path} has written");
        }
    }

    fn expire(&self, token: &str) {
        self.tokens.0.lock().expect("a lock").insert(token.to_owned());
    }
}

/// Who speaks as the attempt with another token.
fn with(of: &Attempt, token: String) -> Attempt {
    Attempt { who: of.who.clone(), token }
}

#[tokio::test(start_paused = true)]
async fn a_good_verdict_on_a_token_expires_for_every_call() {
    let scene = Scene::new();
    scene.create_agent_once();
    let attempt = scene.acting("run", &json!([{"name": "mail"}])).await;
    scene.expire(&attempt.token);
    assert_eq!(scene.call(&attempt, protocol::HISTORY, &json!({})).await.0, 200, "the verdict is kept for 10 s");
    tokio::time::advance(Duration::from_secs(11)).await;
    scene.refuses("expired", &attempt, &[401]).await;
    scene.beside().refuses("expired, of a gateway that never saw it", &attempt, &[401]).await;
}

#[tokio::test(start_paused = true)]
async fn another_living_pods_token_is_refused_at_every_call() {
    let scene = Scene::new();
    scene.create_agent_once();
    let attempt = scene.acting("run", &json!([{"name": "mail"}])).await;
    // A second pod of the same Job, with the same labels, and even with the id of the claim.
    let second = scene.pod(&attempt, "second");
    scene.refuses("of the same Job", &with(&attempt, second), &[409]).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pods_token_is_refused_at_every_call() {
    let scene = Scene::new();
    scene.create_agent_once();
    let attempt = scene.acting("run", &json!([{"name": "mail"}])).await;
    let second = with(&attempt, scene.pod(&attempt, "second"));
    for pod in ["run-pod", "second"] {
        let key = Key::new(Kind::Pod, TEAM, pod);
        scene.api.with(|registry| registry.delete(&key, &DeleteOptions::default(), BY)).expect("deleted");
    }
    // Its token still counts for seconds at the API server: it claims nothing, and nothing of it counts at the end.
    scene.refuses("one that had not claimed", &second, &[403, 409]).await;
    for (path, body) in
        [(protocol::CLAIM, json!({"shimVersion": "0"})), (protocol::REPORT, report("1")), (protocol::ENDED, json!({}))]
    {
        assert_eq!(scene.call(&attempt, path, &body).await.0, 403, "{path}");
    }
    // From then on it is a bad token.
    for gone in [&attempt, &second] {
        scene.expire(&gone.token);
        scene.beside().refuses("deleted", gone, &[401]).await;
    }
    tokio::time::advance(Duration::from_secs(11)).await;
    scene.refuses("deleted, of the gateway that knew it", &attempt, &[401]).await;
}

#[tokio::test]
async fn a_refused_caller_leaves_a_line_with_all_that_is_known() {
    let scene = Scene::new();
    scene.create_agent_once();
    let attempt = scene.attempt("run", "_private");
    scene.claim(&attempt).await;
    let stranger =
        Attempt { who: AttemptRef { id: "f".repeat(32), ..attempt.who.clone() }, token: attempt.token.clone() };
    let second = with(&attempt, scene.pod(&attempt, "second"));
    let unbound = scene.attempt("unbound", "_private");
    let key = Key::new(Kind::Pod, TEAM, "unbound-pod");
    let patch = json!({"metadata": {"labels": {LABEL_ATTEMPT: "2"}}});
    scene.api.with(|registry| registry.patch(&key, Part::Main, (Format::Merge, &patch), BY)).expect("written");
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.subscriber());
    let progress = json!({"percent": 50, "message": "half"});
    let claim = json!({"shimVersion": "0"});
    for (of, path, body, call, reason, pod) in [
        (&with(&attempt, "word".to_owned()), protocol::PROGRESS, &progress, "progress", "Unauthenticated", None),
        (&unbound, protocol::CLAIM, &claim, "claim", "WrongPod", Some("unbound-pod")),
        (&second, protocol::CLAIM, &claim, "claim", "AlreadyClaimed", Some("second")),
        (&stranger, protocol::PROGRESS, &progress, "progress", "AlreadyClaimed", Some("run-pod")),
    ] {
        scene.call(of, path, body).await;
        let lines = log.lines();
        let [line] = &lines[..] else { panic!("{reason}: one line: {lines:?}") };
        let own = of.who.step_run.as_str();
        for (field, value) in [
            ("level", Some("WARN")),
            ("call", Some(call)),
            ("reason", Some(reason)),
            ("namespace", Some(TEAM)),
            ("stepRun", Some(own)),
            ("pod", pod),
            ("address", Some("0.0.0.0")),
        ] {
            assert_eq!(line[field].as_str(), value, "{field}: {line}");
        }
        assert!(line["attempt"] == 1 && line["why"].is_string(), "{line}");
        let text = line.to_string();
        assert!(!text.contains(&of.token) && !text.contains(&of.who.id), "a secret: {text}");
    }
    // Whoever is only wrong leaves none, and a flood leaves few.
    assert_eq!(scene.call(&attempt, protocol::PROGRESS, &json!({"percent": 101, "message": ""})).await.0, 400);
    assert_eq!(log.lines().len(), 0);
    for _ in 0..200 {
        scene.call(&stranger, protocol::HISTORY, &json!({})).await;
    }
    let left = log.lines().len();
    assert!((20..40).contains(&left), "{left} lines");
}
