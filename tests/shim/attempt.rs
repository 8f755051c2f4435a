//! A first attempt whose pod is about to start, on an API server in memory that believes the tokens of its pods.

use std::sync::atomic::{AtomicI64, Ordering};

use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::jiff::Timestamp;
use lockstep::api::definition::Definition;
use lockstep::api::name::{self, LABEL_ATTEMPT, LABEL_STEP_RUN};
use lockstep::api::{StepRun, Workflow};
use lockstep::apiserver::access::Access;
use lockstep::apiserver::{ApiServer, Format, Key, Kind, MemoryStore, Part, Registry, Writer};
use lockstep::decide::build;
use lockstep::gateway::Bounds;
use serde_json::{Value, json};

pub const TEAM: &str = "team";
pub const SESSION: &str = "bikes";
pub const BY: Writer<'static> = Writer { user: "admin", is_dry_run: false };
/// Enough for one attempt.
pub const BOUNDS: Bounds = Bounds {
    max_connections: 8,
    max_connections_per_address: 8,
    max_handshakes_per_address: 8,
    max_inputs: 8,
    max_outputs: 8,
};

/// A token is the name of a pod, its UID and an audience.
struct Tokens;

impl Access for Tokens {
    fn authenticate(&self, token: &str, audiences: &[String]) -> Option<(UserInfo, Vec<String>)> {
        let [pod, uid, audience] = token.split('|').collect::<Vec<_>>()[..] else { return None };
        let extra = |key: &str, value: &str| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        let user = UserInfo {
            username: Some(format!("system:serviceaccount:{TEAM}:default")),
            extra: Some([extra("pod-name", pod), extra("pod-uid", uid)].into()),
            ..UserInfo::default()
        };
        audiences.iter().any(|wanted| wanted == audience).then(|| (user, vec![audience.to_owned()]))
    }
}

/// An object of ours, as somebody sends it.
pub fn ours(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": TEAM}, "spec": spec})
}

/// Of the Agent `writer`, in a run of the one step `work`.
pub struct Attempt {
    pub api: ApiServer,
    pub step_run: StepRun,
    pub token: String,
}

impl Attempt {
    /// `more` is laid over the Agent's spec.
    pub fn new(more: &Value) -> Self {
        let seconds = AtomicI64::new(0);
        let clock = move || Timestamp::new(seconds.fetch_add(1, Ordering::Relaxed), 0).expect("a time");
        let registry =
            Registry::new(Box::new(MemoryStore::keeping(10)), Box::new(Tokens), Box::new(clock), "gateway".to_owned());
        let api = ApiServer::new(registry, "gateway");
        let template = json!({"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}});
        let mut spec = json!({"template": template});
        spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        create(&api, Kind::Agent, &ours("Agent", "writer", &spec));
        let steps = json!([{"name": "work", "agentId": "writer"}]);
        let run = create(&api, Kind::Workflow, &ours("Workflow", "run", &json!({"steps": steps})));
        let workflow: Workflow = serde_json::from_value(run).expect("a run");
        let uid = workflow.metadata.uid.clone().expect("a UID");
        let definition = json!({"workflow": "run", "workflowUid": uid, "session": SESSION, "steps": steps});
        let definition: Definition = serde_json::from_value(definition).expect("a definition");
        let revision = build::revision(&workflow, &definition);
        create(&api, Kind::ControllerRevision, &revision);
        let digest = name::digest_bytes(serde_json::to_string(&definition).expect("JSON").as_bytes());
        let spec = json!({"workflow": {"name": "run", "uid": uid}, "path": "work", "agentId": "writer",
            "definition": {"revisionName": revision.metadata.name, "digest": digest}, "parameters": "{}",
            "inputDigest": "i", "scopeChain": [{"scope": "workflow", "scopeId": uid}]});
        let step_run = build::step_run(&workflow, SESSION, serde_json::from_value(spec).expect("a spec"), &[]);
        let step_run: StepRun = serde_json::from_value(create(&api, Kind::StepRun, &step_run)).expect("a StepRun");
        let mut attempt = Self { api, step_run, token: String::new() };
        let (own, uid) = (attempt.own(), attempt.uid());
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": TEAM,
            "labels": {LABEL_STEP_RUN: own, LABEL_ATTEMPT: "1"}, "ownerReferences": [{"apiVersion": "batch/v1",
            "kind": "Job", "name": "job", "uid": "job", "controller": true}]}, "spec": {}});
        let pod_uid = attempt.create(Kind::Pod, &pod)["metadata"]["uid"].as_str().expect("a UID").to_owned();
        let job = json!({"attempt": 1, "name": "job", "uid": "job"});
        attempt.set_status(Kind::StepRun, &own, &json!({"phase": "Running", "attempt": 1, "round": 1, "job": job}));
        attempt.token = format!("pod|{pod_uid}|{}", name::audience(&uid, 1));
        attempt
    }

    pub fn create(&self, kind: Kind, object: &impl serde::Serialize) -> Value {
        create(&self.api, kind, object)
    }

    pub fn set_status(&self, kind: Kind, name: &str, status: &Value) {
        set_status(&self.api, kind, name, status);
    }

    pub fn own(&self) -> String {
        self.step_run.metadata.name.clone().expect("a name")
    }

    pub fn uid(&self) -> String {
        self.step_run.metadata.uid.clone().expect("a UID")
    }

    /// What stands in the StepRun by now.
    pub fn stored(&self) -> Value {
        stored(&self.api, &self.own())
    }
}

fn create(api: &ApiServer, kind: Kind, object: &impl serde::Serialize) -> Value {
    let object = serde_json::to_value(object).expect("JSON");
    let key = Key::new(kind, TEAM, object["metadata"]["name"].as_str().expect("a name"));
    api.with(|registry| registry.create(&key, object, BY).expect("made").value.clone())
}

pub fn set_status(api: &ApiServer, kind: Kind, name: &str, status: &Value) {
    let (key, patch) = (Key::new(kind, TEAM, name), json!({"status": status}));
    api.with(|registry| registry.patch(&key, Part::Status, (Format::Merge, &patch), BY)).expect("written");
}

pub fn stored(api: &ApiServer, step_run: &str) -> Value {
    api.with(|registry| registry.get(&Key::new(Kind::StepRun, TEAM, step_run))).expect("it is there").value.clone()
}
