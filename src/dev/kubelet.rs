//! The Job controller and the node: each Job gets its pod, and each pod a process of this machine, the product's own shim around
//! the agent's command. What they know stands in the objects; what is here is only which processes live.

mod environment;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::select;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::folder::pod_name;
use super::installation::NAMESPACE;
use crate::apiserver::{ApiServer, Format, Key, Kind, Object, Part, Writer};
use crate::decide::seen;
pub use process::Machine;
use process::Running;

const BY: Writer<'static> = Writer { user: "system:node:dev", is_dry_run: false };

/// How `dev` ends what runs.
pub enum ShutdownOrder {
    /// To end all that runs, as a node that is shut down; it says when nothing runs any more.
    Stop(oneshot::Sender<()>),
    /// Not to wait any longer.
    Kill,
}

/// The state of a container that has terminated.
struct Termination {
    code: i32,
    /// The termination message: how far the shim came.
    marks: String,
    /// Whether its pod was disrupted, as by a drain of its node.
    is_disrupted: bool,
}

/// The exit code of what SIGKILL ends.
const KILLED: i32 = 137;

/// The end of the process of a pod.
struct Ended {
    /// The UID of the pod.
    uid: String,
    code: i32,
}

pub struct Kubelet {
    api: ApiServer,
    machine: Arc<Machine>,
    running: BTreeMap<String, Running>,
    /// Pods that wait for what their environment lacks.
    unset: BTreeSet<String>,
    ends: mpsc::Sender<Ended>,
    /// Who waits until nothing runs; from then on nothing is started.
    stopping: Option<oneshot::Sender<()>>,
    is_stopping: bool,
}

/// For ever. `orders` come from whoever runs this.
pub async fn run(api: ApiServer, machine: Machine, mut orders: mpsc::Receiver<ShutdownOrder>) {
    let client = api.as_user(BY.user).client(NAMESPACE);
    let (ends, mut ended) = mpsc::channel(64);
    let mut kubelet = Kubelet {
        api,
        machine: Arc::new(machine),
        running: BTreeMap::new(),
        unset: BTreeSet::new(),
        ends,
        stopping: None,
        is_stopping: false,
    };
    let jobs = watcher(Api::<Job>::all(client.clone()), watcher::Config::default()).default_backoff();
    let pods = watcher(Api::<Pod>::all(client), watcher::Config::default()).default_backoff();
    let jobs = jobs.filter_map(async |event| Some(ChangedObject::Job(applied(event)?)));
    let pods = pods.filter_map(async |event| Some(ChangedObject::Pod(applied(event)?)));
    let mut seen = select(jobs.boxed(), pods.boxed());
    loop {
        tokio::select! {
            one = seen.next() => match one {
                Some(ChangedObject::Job(name)) => kubelet.job(&name),
                Some(ChangedObject::Pod(name)) => kubelet.pod(&name).await,
                None => return,
            },
            Some(Ended { uid, code }) = ended.recv() => kubelet.ended(&uid, code),
            Some(order) = orders.recv() => kubelet.order(order),
        }
    }
}

/// The name of an object that was made or changed.
enum ChangedObject {
    Job(String),
    Pod(String),
}

/// The name of the object, unless the event is a deletion or an error.
fn applied<K: ResourceExt>(event: watcher::Result<watcher::Event<K>>) -> Option<String> {
    match event {
        Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => Some(object.name_any()),
        Ok(_) | Err(_) => None,
    }
}

impl Kubelet {
    fn find(&self, kind: Kind, name: &str) -> Option<Arc<Object>> {
        self.api.with(|registry| registry.get(&Key::new(kind, NAMESPACE, name)).ok())
    }

    fn set_status(&self, kind: Kind, name: &str, status: &Value) {
        let patch = json!({"status": status});
        let key = Key::new(kind, NAMESPACE, name);
        // It may be gone meanwhile.
        let _ = self.api.with(|registry| registry.patch(&key, Part::Status, (Format::Merge, &patch), BY));
    }

    // ---- the Job controller

    fn job(&mut self, name: &str) {
        let Some(object) = self.find(Kind::Job, name) else { return };
        let Some(job) = object.typed::<Job>().filter(|job| seen::is_unfinished(job)) else { return };
        let pod = self.find(Kind::Pod, &pod_of(&object));
        let phase = |pod: &Object| pod.value["status"]["phase"].as_str().map(str::to_owned);
        match pod.as_deref().map(phase) {
            None if job.status.as_ref().is_some_and(|status| status.start_time.is_some()) => {
                self.conclude(name, "Failed");
            }
            None if !self.is_stopping => self.make_pod(&object),
            Some(Some(phase)) if phase == "Succeeded" => self.conclude(name, "Complete"),
            Some(Some(phase)) if phase == "Failed" => self.conclude(name, "Failed"),
            None | Some(_) => {}
        }
    }

    fn conclude(&self, job: &str, verdict: &str) {
        let condition = json!({"type": verdict, "status": "True", "lastTransitionTime": now()});
        self.set_status(Kind::Job, job, &json!({"active": 0, "conditions": [condition]}));
    }

    /// The second time there is one already.
    fn make_pod(&self, job: &Object) {
        let template = &job.value["spec"]["template"];
        let mut spec = template["spec"].clone();
        spec["nodeName"] = json!("dev");
        let name = pod_of(job);
        let pod = json!({
            "metadata": {
                "name": name, "labels": template["metadata"]["labels"],
                "annotations": template["metadata"]["annotations"],
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job.key.name, "uid": job.uid,
                    "controller": true, "blockOwnerDeletion": true}],
            },
            "spec": spec,
        });
        let key = Key::new(Kind::Pod, NAMESPACE, &name);
        if self.api.with(|registry| registry.create(&key, pod, BY)).is_ok() {
            self.set_status(Kind::Job, &job.key.name, &json!({"active": 1, "startTime": now()}));
        }
    }

    // ---- the node

    async fn pod(&mut self, name: &str) {
        let Some(pod) = self.find(Kind::Pod, name) else { return };
        let has_ended = matches!(pod.value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        match (self.running.get_mut(&pod.uid), has_ended) {
            (Some(running), _) if pod.is_deleting() => running.end(),
            (Some(_), _) => {}
            (None, true) if pod.is_deleting() => self.remove(&pod),
            (None, true) => {
                if let Some(job) = pod.owners().first().and_then(|owner| owner["name"].as_str()) {
                    self.job(job);
                }
            }
            (None, false) if self.unset.contains(&pod.uid) && !pod.is_deleting() => {}
            (None, false) => self.begin(&pod).await,
        }
    }

    /// A pod that does not run: a new one, or one of a process that has ended with an earlier `dev`.
    async fn begin(&mut self, pod: &Object) {
        let is_new = pod.value["status"]["containerStatuses"].is_null() && !self.machine.knows(&pod.key.name);
        if !is_new || pod.is_deleting() {
            self.unset.remove(&pod.uid);
            let machine = Arc::clone(&self.machine);
            let name = pod.key.name.clone();
            // A moment: it ends with whoever started it.
            let marks = tokio::task::spawn_blocking(move || machine.outlived(&name)).await.unwrap_or_default();
            return self.conclude_pod(pod, &Termination { code: KILLED, marks, is_disrupted: true });
        }
        if self.is_stopping {
            return;
        }
        let find = |kind: Kind, name: &str| self.find(kind, name).map(|object| object.value.clone());
        match self.machine.start(pod, &find) {
            Ok(running) => {
                let status = process::started(pod);
                self.watch(&pod.uid, &running);
                self.running.insert(pod.uid.clone(), running);
                self.set_status(Kind::Pod, &pod.key.name, &status);
            }
            Err(why) => {
                self.unset.insert(pod.uid.clone());
                let waiting = json!({"reason": "CreateContainerConfigError", "message": why});
                let status = process::container(pod, &json!({"waiting": waiting}));
                self.set_status(Kind::Pod, &pod.key.name, &json!({"phase": "Pending", "containerStatuses": status}));
            }
        }
    }

    /// A thread waits for its end.
    fn watch(&self, uid: &str, running: &Running) {
        let (ends, uid, process) = (self.ends.clone(), uid.to_owned(), running.process());
        std::thread::spawn(move || {
            // Where nobody listens any more, nobody needs to know.
            let _ = ends.blocking_send(Ended { code: process.wait(), uid });
        });
    }

    fn ended(&mut self, uid: &str, code: i32) {
        let Some(running) = self.running.remove(uid) else { return };
        self.machine.ended(uid);
        if let Some(pod) = self.find(Kind::Pod, running.pod()).filter(|pod| pod.uid == uid) {
            let marks = running.marks();
            running.clear(code);
            self.conclude_pod(&pod, &Termination { code, marks, is_disrupted: running.is_disrupted() });
        }
        if self.running.is_empty()
            && let Some(waits) = self.stopping.take()
        {
            let _ = waits.send(());
        }
    }

    fn conclude_pod(&self, pod: &Object, termination: &Termination) {
        let Termination { code, marks, is_disrupted } = termination;
        let reason = if *code == 0 { "Completed" } else { "Error" };
        let state = json!({"exitCode": code, "reason": reason, "message": marks, "finishedAt": now()});
        let mut status = json!({
            "phase": if *code == 0 { "Succeeded" } else { "Failed" },
            "containerStatuses": process::container(pod, &json!({"terminated": state})),
        });
        if *is_disrupted {
            status["conditions"] = json!([process::disrupted()]);
        }
        self.set_status(Kind::Pod, &pod.key.name, &status);
        if pod.is_deleting() {
            self.remove(pod);
        }
    }

    fn remove(&self, pod: &Object) {
        let options = k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions {
            grace_period_seconds: Some(0),
            ..Default::default()
        };
        let _ = self.api.with(|registry| registry.delete(&pod.key, &options, BY));
    }

    fn order(&mut self, order: ShutdownOrder) {
        match order {
            ShutdownOrder::Stop(waits) => {
                self.is_stopping = true;
                if self.running.is_empty() {
                    let _ = waits.send(());
                    return;
                }
                self.stopping = Some(waits);
                for running in self.running.values_mut() {
                    // Said before the process hears of it: so its report is that of a pod that was taken away.
                    self.api.with(|registry| {
                        let key = Key::new(Kind::Pod, NAMESPACE, running.pod());
                        let patch = json!({"status": {"conditions": [process::disrupted()]}});
                        let _ = registry.patch(&key, Part::Status, (Format::Merge, &patch), BY);
                    });
                    running.disrupt();
                }
            }
            ShutdownOrder::Kill => self.running.values_mut().for_each(Running::kill),
        }
    }
}

fn pod_of(job: &Object) -> String {
    pod_name(&job.key.name, &job.uid)
}

fn now() -> String {
    crate::cluster::clock::Clock::default().now().0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
