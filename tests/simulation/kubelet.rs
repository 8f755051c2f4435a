//! The Job controller, and the nodes: pods come up, their shims claim, start the command once, report; and die at every
//! place where one can die.

use std::sync::Arc;

use lockstep::api::name::{LABEL_ATTEMPT, LABEL_STEP_RUN};
use lockstep::api::step_run::ReportClass;
use lockstep::decide::seen;
use lockstep::protocol::mark;
use serde_json::{Value, json};

use super::gateway::{Verdict, Wrote};
use super::server::{Event as Change, Kind, Object, Part, Propagation, Request};
use super::world::{Event, Who, World};

/// How a command ends.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub class: ReportClass,
    pub code: Option<i32>,
    pub output: Option<String>,
    pub document: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Pulling,
    Claiming,
    Claimed,
    Running,
    Reporting,
}

/// The process in a pod.
#[derive(Clone, Debug)]
pub struct Process {
    pub pod: String,
    pub uid: String,
    pub step_run: String,
    pub step_uid: String,
    pub attempt: i32,
    /// Drawn once, kept in memory.
    pub id: String,
    stage: Stage,
    /// The write that the gateway is about to make for it.
    pending: Option<Box<Request>>,
    /// The termination log.
    log: String,
    outcome: Option<Outcome>,
    /// When its patience with the gateway ends.
    patience: i64,
    /// SIGTERM came.
    stopping: bool,
    /// The node is cut off: nothing that it does reaches the API server, except calls to the gateway.
    ghost: bool,
}

impl World {
    // ---- the Job controller

    pub fn job_controller(&mut self, name: &str) {
        let Some(job) = self.server.find(Kind::Job, name).cloned() else { return };
        if !seen::is_unfinished(&job.typed()) || job.controller.is_none() {
            return;
        }
        let pods: Vec<Arc<Object>> =
            self.server.all(Kind::Pod).filter(|p| p.is_controlled_by("Job", &job.uid)).cloned().collect();
        let Some(made) = self.podded.get(&job.uid).copied() else {
            self.podded.insert(job.uid.clone(), 1);
            self.make_pod(&job, 0);
            if self.chance.mille(self.faults.duplicate) {
                self.podded.insert(job.uid.clone(), 2);
                self.make_pod(&job, 1);
            }
            return;
        };
        let phase = |p: &Arc<Object>| p.value["status"]["phase"].as_str().map(str::to_owned);
        let ended = |wanted: &str| pods.iter().any(|p| phase(p).as_deref() == Some(wanted));
        let verdict = if ended("Succeeded") {
            "Complete"
        } else if ended("Failed")
            || pods.len() < made as usize && pods.iter().all(|p| phase(p).as_deref() == Some("Pending"))
        {
            "Failed"
        } else {
            return;
        };
        // A Job that is over leaves none of its pods behind that has yet to come up.
        for pod in pods.iter().filter(|p| phase(p).as_deref() == Some("Pending")) {
            let (kind, name, uid) = (Kind::Pod, pod.name.clone(), Some(pod.uid.clone()));
            let propagation = Propagation::Background;
            let _ = self.ask(Who::JobController, &Request::Delete { kind, name, uid, version: None, propagation });
        }
        let status = json!({"status": {"conditions": [{"type": verdict, "status": "True"}]}});
        let _ = self.ask(Who::JobController, &Request::Merge(Kind::Job, Part::Status, job.name.clone(), status));
    }

    fn make_pod(&mut self, job: &Object, number: u32) {
        let pod = json!({
            "metadata": {
                "name": format!("{}-{number}{}", job.name, self.chance.below(1000)),
                "labels": job.meta("labels"),
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job.uid,
                    "controller": true, "blockOwnerDeletion": true}],
            },
            "spec": {"nodeName": "node", "stepRunUID": job.controller.as_ref().map(|(_, uid)| uid)},
        });
        let _ = self.ask(Who::JobController, &Request::Create(Kind::Pod, pod));
    }

    /// News of a pod, for its node and its Job.
    pub fn pod_changed(&mut self, change: &Change) {
        let pod = Arc::clone(change.object());
        if change.before.is_none() {
            self.admit_process(&pod);
        } else if pod.is_deleting() && self.processes.contains_key(&pod.uid) {
            self.soon(10, 5_000, Event::Pod(pod.uid.clone()));
        }
        let job = pod.meta("ownerReferences")[0]["name"].as_str().map(str::to_owned);
        if let Some(job) = job {
            let wait = if self.chance.mille(self.faults.slow_job) { 20_000 } else { 1_200 };
            self.soon(20, wait, Event::Job(job));
        }
    }

    // ---- a node

    fn admit_process(&mut self, pod: &Object) {
        let label = |key| pod.label(key).unwrap_or_default().to_owned();
        let process = Process {
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            step_run: label(LABEL_STEP_RUN),
            step_uid: pod.value["spec"]["stepRunUID"].as_str().unwrap_or_default().to_owned(),
            attempt: label(LABEL_ATTEMPT).parse().unwrap_or_default(),
            id: format!("{:032x}", self.chance.draw()),
            stage: Stage::Pulling,
            pending: None,
            log: String::new(),
            outcome: None,
            patience: 0,
            stopping: false,
            ghost: false,
        };
        self.processes.insert(pod.uid.clone(), process);
        if self.chance.mille(self.faults.stuck_pod) {
            let status = json!({"status": {"phase": "Pending", "containerStatuses": [
                {"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}});
            let _ = self.ask(Who::Kubelet, &Request::Merge(Kind::Pod, Part::Status, pod.name.clone(), status));
            return;
        }
        self.soon(100, 3_000, Event::Pod(pod.uid.clone()));
    }

    /// A process goes on by one step, or learns that it is to stop.
    pub fn kubelet(&mut self, uid: &str) {
        let Some(mut process) = self.processes.remove(uid) else { return };
        let pod = self.live(Kind::Pod, &process.pod, uid);
        if !process.ghost && pod.as_ref().is_none_or(|p| p.is_deleting()) && !process.stopping {
            process.stopping = true;
            if !self.stop(&mut process) {
                return self.end(&process, "Failed");
            }
        }
        if self.chance.mille(self.faults.death) && process.pending.is_none() {
            self.tell(|| format!("pod {} dies {:?}", process.pod, process.stage));
            return self.end(&process, "Failed");
        }
        if self.chance.mille(self.faults.node_loss) && !process.ghost && pod.is_some() {
            self.tell(|| format!("the node of pod {} is cut off, its pod is taken from the list", process.pod));
            process.ghost = true;
            self.server.purge(Kind::Pod, &process.pod);
            self.spread(Who::Kubelet);
        }
        match process.stage {
            Stage::Pulling => {
                self.set_pod(&process, &json!({"phase": "Running"}));
                process.stage = Stage::Claiming;
                process.patience = self.now + 300_000;
                self.later(process, 50, 400);
            }
            Stage::Claiming => self.claiming(process),
            Stage::Claimed => self.starting(process),
            Stage::Running => {
                let outcome = self.outcome(&process);
                process.outcome.get_or_insert(outcome);
                process.stage = Stage::Reporting;
                process.patience = self.now + 600_000;
                self.later(process, 5, 100);
            }
            Stage::Reporting => self.reporting(process),
        }
    }

    /// SIGTERM; whether anything is left to do.
    fn stop(&mut self, process: &mut Process) -> bool {
        match process.stage {
            // It may end the command in time, and say so.
            Stage::Running if self.chance.percent(60) => {
                let outcome = Outcome { class: ReportClass::Exited, code: Some(143), output: None, document: None };
                process.outcome = Some(outcome);
                true
            }
            Stage::Reporting => true,
            Stage::Pulling | Stage::Claiming | Stage::Claimed | Stage::Running => false,
        }
    }

    fn later(&mut self, process: Process, least: i64, most: i64) {
        let uid = process.uid.clone();
        self.processes.insert(uid.clone(), process);
        let stalled = self.chance.mille(self.faults.stall);
        let (least, most) = if stalled { (2_000, 60_000) } else { (least, most) };
        self.soon(least, most, Event::Pod(uid));
    }

    fn claiming(&mut self, mut process: Process) {
        let claimed = match process.pending.take() {
            None => match self.claim_verdict(&process) {
                Verdict::Again => true,
                Verdict::Write(request) => {
                    process.pending = Some(request);
                    return self.later(process, 1, 30);
                }
                Verdict::Refused(why) => {
                    self.tell(|| format!("pod {} does not get attempt {}: {why}", process.pod, process.attempt));
                    return self.end(&process, "Failed");
                }
                Verdict::Unavailable => false,
            },
            Some(request) => match self.gateway_writes(&request) {
                Wrote::Done => true,
                Wrote::Outrun | Wrote::Unavailable => false,
            },
        };
        if claimed && !self.chance.mille(self.faults.lost_reply) {
            self.tell(|| {
                format!("pod {} has claimed attempt {} of {}", process.pod, process.attempt, process.step_run)
            });
            process.log.push_str(&format!("{}\n", mark::CLAIMED));
            process.stage = Stage::Claimed;
            return self.later(process, 10, 500);
        }
        if self.now > process.patience {
            return self.end(&process, "Failed");
        }
        self.later(process, 200, 1_500);
    }

    fn starting(&mut self, mut process: Process) {
        process.log.push_str(&format!("{}\n", mark::STARTED));
        process.stage = Stage::Running;
        self.tell(|| format!("pod {} STARTS attempt {} of {}", process.pod, process.attempt, process.step_run));
        self.judge_start(&process);
        let seconds = self.workload.seconds(&process.step_uid, process.attempt);
        self.later(process, seconds * 500, seconds * 1000);
    }

    fn reporting(&mut self, mut process: Process) {
        let outcome = process.outcome.clone().expect("the command has ended");
        let written = match process.pending.take() {
            None => match self.report_verdict(&process, &outcome) {
                Verdict::Again => true,
                Verdict::Write(request) => {
                    process.pending = Some(request);
                    return self.later(process, 1, 30);
                }
                Verdict::Refused(why) => {
                    self.tell(|| format!("the report of pod {} is refused: {why}", process.pod));
                    return self.end(&process, "Failed");
                }
                Verdict::Unavailable => false,
            },
            Some(request) => self.gateway_writes(&request) == Wrote::Done,
        };
        if written && !self.chance.mille(self.faults.lost_reply) {
            if outcome.class == ReportClass::Succeeded {
                process.log.push_str(&format!("{}\n", mark::SUCCEEDED));
                return self.end(&process, "Succeeded");
            }
            let phase = if outcome.class == ReportClass::Asked { "Succeeded" } else { "Failed" };
            return self.end(&process, phase);
        }
        if self.now > process.patience {
            return self.end(&process, "Failed");
        }
        self.later(process, 200, 3_000);
    }

    /// The container has ended; a pod that was to go is gone.
    fn end(&mut self, process: &Process, phase: &str) {
        if process.ghost {
            return;
        }
        let log = process.log.clone();
        self.set_pod(
            process,
            &json!({"phase": phase,
            "containerStatuses": [{"state": {"terminated": {"message": log}, "waiting": null}}]}),
        );
        if self.live(Kind::Pod, &process.pod, &process.uid).is_some_and(|p| p.is_deleting()) {
            self.server.purge(Kind::Pod, &process.pod);
            self.spread(Who::Kubelet);
        }
    }

    fn set_pod(&mut self, process: &Process, status: &Value) {
        if self.live(Kind::Pod, &process.pod, &process.uid).is_some() && !process.ghost {
            let change = json!({"status": status});
            let _ = self.ask(Who::Kubelet, &Request::Merge(Kind::Pod, Part::Status, process.pod.clone(), change));
        }
    }

    /// A pod whose container never came up goes when it is told to.
    pub fn sweep_pods(&mut self) {
        let gone: Vec<Arc<Object>> = self
            .server
            .all(Kind::Pod)
            .filter(|p| p.is_deleting() && !self.processes.contains_key(&p.uid))
            .cloned()
            .collect();
        for pod in gone {
            self.server.purge(Kind::Pod, &pod.name);
            self.spread(Who::Kubelet);
        }
    }
}
