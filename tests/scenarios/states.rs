//! Every state that an object of each kind comes to in the stories, once, as the API server would show it: a table for the
//! tools that read health from outside. `UPDATE=1 cargo test --test scenarios` writes `hack/gitops/objects.json` anew.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use lockstep::api::condition;
use lockstep::api::step::Step;
use lockstep::api::step_run::{GateState, StepRunStatus};
use lockstep::api::workflow::{Phase, WorkflowStatus};
use lockstep::api::workflow_template::WorkflowTemplateSpec;
use lockstep::api::{Agent, Document, Memory, MemorySpec, StepRun, Trigger, Workflow, WorkflowTemplate};
use lockstep::decide::agent::{DryRun, agent, template_status};
use lockstep::decide::trigger::{Observed, trigger};
use lockstep::definition::expression::InProcess;
use serde::Serialize;
use serde_json::{Value, json};

use super::story;
use super::world::World;

/// What no other story comes to.
const MORE: &str = "\
agent writer
workflow story
  steps:
  - {name: draft, agentId: writer}
succeeds story:draft
workflow story suspended
workflow other
  steps:
  - {name: draft, agentId: writer}
reports other:draft Unrecoverable: no
workflow other suspended
unseen workflow third
  steps:
  - {name: draft, agentId: writer}
settle
unseen workflow third suspended
";

/// By kind and state, as they were first met.
pub struct States(BTreeMap<(String, String), Value>);

impl States {
    /// Those of Agents, WorkflowTemplates and Triggers, which no story tells; and of `MORE`.
    pub fn of_definitions() -> Self {
        let mut states = Self(BTreeMap::new());
        let now = Time("2026-01-01T00:00:00Z".parse().expect("a time"));
        let refused = DryRun::Refused(vec!["spec.template.spec.containers[0].imagee: is no field".into()]);
        for (state, dry_run) in [
            ("Ready", DryRun::Accepted),
            ("not Ready: Invalid", refused.clone()),
            ("not known: NotChecked", DryRun::Unknown("exceeded quota".into())),
        ] {
            let mut written = an_agent();
            states.add(NOT_SEEN, &unseen(&written));
            written.status = agent(&written, &dry_run, &InProcess, &now).status;
            states.add(state, &written);
            written.metadata.generation = Some(2);
            states.add("changed, and not looked at since", &written);
        }
        for (state, steps) in [("Ready", vec![a_step()]), ("not Ready: Invalid", vec![a_step(), a_step()])] {
            let mut written = WorkflowTemplate::new("story", WorkflowTemplateSpec { steps, ..Default::default() });
            written.metadata.namespace = Some("team".into());
            written.metadata.generation = Some(1);
            states.add(NOT_SEEN, &unseen(&written));
            written.status = Some(template_status(&written, &InProcess, &now));
            states.add(state, &written);
            written.metadata.generation = Some(2);
            states.add("changed, and not looked at since", &written);
        }
        states.see_triggers(&now);
        states.add("there", &Memory::new("writer-1", MemorySpec::default()));
        story::play(MORE, &mut |world| states.see(world));
        states
    }

    /// One for events, and one with a schedule, running and suspended.
    fn see_triggers(&mut self, now: &Time) {
        let run = json!({"templateRef": {"name": "story"}});
        let schedule = |suspend: bool| json!({"schedule": {"cron": "0 6 * * *", "suspend": suspend}, "run": run});
        let wrong = json!({"schedule": {"cron": "every morning"}, "run": run});
        let events = json!({"event": {"type": "order"}, "run": run});
        for (state, spec, template_exists) in [
            ("Ready", &events, true),
            ("Ready, with a schedule", &schedule(false), true),
            ("Ready, with a schedule, suspended", &schedule(true), true),
            ("not Ready: TemplateNotFound", &events, false),
            ("not Ready: Invalid", &wrong, true),
        ] {
            let mut written = Trigger::new("story", serde_json::from_value(spec.clone()).expect("a spec"));
            written.metadata.namespace = Some("team".into());
            written.metadata.generation = Some(1);
            self.add(NOT_SEEN, &unseen(&written));
            let observed = Observed {
                trigger: Arc::new(written.clone()),
                runs: Vec::new(),
                on_the_way: Vec::new(),
                template_exists,
                template_fault: None,
                installation: Arc::default(),
                evaluator: Arc::new(InProcess),
                now: now.clone(),
            };
            written.status = trigger(&observed).status;
            self.add(state, &written);
            written.metadata.generation = Some(2);
            self.add("changed, and not looked at since", &written);
        }
    }

    pub fn see(&mut self, world: &World) {
        for run in world.workflows.values() {
            self.add(NOT_SEEN, &unseen(run));
            if let Some(status) = run.status.clone().filter(|s| s.phase.is_some()) {
                self.add(&of_run(run, &status), run);
            }
        }
        for step_run in world.step_runs.values() {
            self.add(NOT_SEEN, &unseen(step_run));
            if let Some(status) = step_run.status.clone().filter(|s| s.phase.is_some()) {
                self.add(&of_step_run(step_run, &status), step_run);
            }
        }
        for document in world.documents.values() {
            if document.status.is_some() {
                self.add(&of_document(document), document);
            } else {
                self.add("a draft", &unseen(document));
            }
        }
    }

    fn add(&mut self, state: &str, object: &impl Serialize) {
        let object = serde_json::to_value(object).expect("it serializes");
        let kind = object["kind"].as_str().expect("a kind").to_owned();
        self.0.entry((kind, state.to_owned())).or_insert(object);
    }

    pub fn compare(&self) {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("hack/gitops/objects.json");
        let row =
            |((_, state), object): (&(String, String), &Value)| json!({"state": state, "object": object}).to_string();
        let found = format!("[\n{}\n]\n", self.0.iter().map(row).collect::<Vec<_>>().join(",\n"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, found).expect("the objects are written");
            return;
        }
        let expected = std::fs::read_to_string(&file).expect("the objects");
        let line = found.lines().zip(expected.lines()).position(|(a, b)| a != b);
        assert!(
            found == expected,
            "hack/gitops/objects.json is not what the stories come to, from line {:?}: run UPDATE=1 cargo test --test scenarios, then hack/gitops/check --update",
            line.map(|n| n + 1)
        );
    }
}

const NOT_SEEN: &str = "not looked at yet";

/// As the API server stores a new one: the default of its CRD.
fn unseen(object: &impl Serialize) -> Value {
    let mut object = serde_json::to_value(object).expect("it serializes");
    object["status"] = json!({"observedGeneration": condition::unseen()});
    object
}

fn an_agent() -> Agent {
    let container = json!({"name": "agent", "image": "i", "command": ["run"]});
    let spec = json!({"template": {"spec": {"containers": [container]}}});
    let mut written = Agent::new("writer", serde_json::from_value(spec).expect("a spec"));
    written.metadata.namespace = Some("team".into());
    written.metadata.generation = Some(1);
    written
}

fn a_step() -> Step {
    serde_json::from_value(json!({"name": "draft", "agentId": "writer"})).expect("a step")
}

fn on(conditions: &[Condition], kind: &str) -> bool {
    condition::get(conditions, kind).is_some_and(|c| c.status == "True")
}

/// The state of a run in words: its phase, and what of it a tool may take for something else.
fn of_run(run: &Workflow, status: &WorkflowStatus) -> String {
    let phase = status.phase.unwrap_or_default();
    let mut words = vec![phase.to_string()];
    let mut say = |when: bool, what: &str| words.extend(when.then(|| what.to_owned()));
    say(run.metadata.deletion_timestamp.is_some(), "being deleted");
    // A run whose change nobody has looked at yet differs in nothing else.
    let behind = run.metadata.generation != Some(status.observed_generation);
    say(behind, "changed, and not looked at since");
    let changed = run.metadata.generation > Some(1);
    say(phase.is_terminal() && phase != Phase::Cancelled && changed && !behind, "its spec changed afterwards");
    let open = !phase.is_terminal();
    say(open && run.spec.cancel == Some(true), "cancelled, its pods are being ended");
    say(phase == Phase::Running && run.spec.suspend == Some(true), "suspended, what runs finishes");
    say(open && on(&status.conditions, "Failing"), "failing, what runs finishes");
    say(phase == Phase::Running && on(&status.conditions, "Waiting"), "and a person is awaited");
    let policies = condition::get(&status.conditions, "GatePolicyInstalled").is_some();
    say(policies, "admission policies are missing");
    if phase == Phase::Pending {
        words.extend(
            condition::get(&status.conditions, "Succeeded").map(|c| c.reason.clone()).filter(|r| r != "Pending"),
        );
    }
    words.join(", ")
}

fn of_step_run(step_run: &StepRun, status: &StepRunStatus) -> String {
    let phase = status.phase.unwrap_or_default();
    let mut words = vec![phase.to_string()];
    words.extend(status.waiting_for.as_ref().map(|w| format!("{:?}", w.kind)));
    let started = condition::get(&status.conditions, "Started").filter(|c| c.status == "False");
    words.extend(started.map(|c| c.reason.clone()));
    let asked_again = status.gate.as_ref().is_some_and(|g| g.state == GateState::Waiting && g.round > 1);
    words.extend(asked_again.then(|| "in a later round".to_owned()));
    if step_run.spec.gate.as_ref().is_some_and(|g| g.revise) && phase == Phase::WaitingForAcceptance {
        words.push("a rejection revises".to_owned());
    }
    words.join(", ")
}

fn of_document(document: &Document) -> String {
    let phase = document.status.as_ref().and_then(|s| s.phase);
    phase.map_or("a draft".to_owned(), |p| format!("{p:?}"))
}
