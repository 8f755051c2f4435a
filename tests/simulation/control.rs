//! People who steer: they suspend and resume runs, cancel them, and let another go on from one that has ended.

use std::sync::Arc;

use serde_json::{Value, json};

use super::server::{Kind, Object, Part, Request};
use super::world::{Who, World};

impl World {
    /// Now and then somebody acts on a run.
    pub fn steer(&mut self) {
        let open: Vec<Arc<Object>> =
            self.all(Kind::Workflow).into_iter().filter(|w| w.value["status"]["completedAt"].is_null()).collect();
        if !open.is_empty() {
            let run = Arc::clone(self.chance.pick(&open));
            if self.people.suspends && self.chance.percent(35) {
                let suspended = run.value["spec"]["suspend"] == true;
                self.change_run(&run, &json!({"suspend": !suspended}));
            }
            if self.people.cancels && self.chance.percent(10) {
                self.change_run(&run, &json!({"cancel": true}));
            }
        }
        if self.workload.retries && self.chance.percent(30) {
            self.retry();
        }
    }

    fn change_run(&mut self, run: &Object, spec: &Value) {
        let change = json!({"spec": spec});
        let _ = self.ask(Who::Person, &Request::Merge(Kind::Workflow, Part::Main, run.name.clone(), change));
    }

    /// What is suspended goes on.
    pub fn resume_all(&mut self) {
        for run in self.all(Kind::Workflow) {
            if run.value["spec"]["suspend"] == true {
                self.change_run(&run, &json!({"suspend": false}));
                if run.value["status"]["phase"] == "Suspended" {
                    self.had("resume");
                }
            }
        }
    }

    /// A run that has ended is followed by one that goes on from it, once; whether there is one now.
    pub fn retry(&mut self) -> bool {
        let ended = self.server.find(Kind::Workflow, "run").filter(|w| !w.value["status"]["completedAt"].is_null());
        let Some(ended) = ended.filter(|w| !w.is_deleting() && !self.people.retried).cloned() else { return false };
        let mut spec = self.workload.spec.clone();
        spec["retryOf"] = json!({"name": ended.name, "uid": ended.uid});
        if !self.workload.settled && self.chance.percent(30) {
            let paths: Vec<Value> = ended.value["status"]["steps"].as_array().cloned().unwrap_or_default();
            if !paths.is_empty() {
                spec["retryOf"]["from"] = self.chance.pick(&paths)["path"].clone();
            }
        }
        let made = self.ask(Who::Person, &Request::Create(Kind::Workflow, self.run_named("again", &spec)));
        self.people.retried = made.is_ok();
        if made.is_ok() {
            self.had("retryOf");
        }
        made.is_ok()
    }

    /// A run as people write it.
    pub fn run_named(&self, name: &str, spec: &Value) -> Value {
        let mut object = json!({"metadata": {"name": name}, "spec": spec});
        if self.workload.throwaway {
            object["metadata"]["labels"] = json!({lockstep::api::name::LABEL_MADE_BY: "run"});
        }
        object
    }
}
