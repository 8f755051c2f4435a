//! Words for effects, notices and standings. Names of StepRuns are hashes; stories say `step/key` instead.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use lockstep::api::condition;
use lockstep::api::name::LABEL_ATTEMPT;
use lockstep::api::step_run::{Answer, StepRun};
use lockstep::api::workflow::{Phase, Workflow};
use lockstep::decide::{DeletableKind, Effect};

use super::world::{Happened, World};

/// `step/key/key`.
pub fn place(step_run: &StepRun) -> String {
    let path = &step_run.spec.path;
    let keys = step_run
        .spec
        .scope_chain
        .last()
        .and_then(|link| link.scope_id.split_once('/'))
        .map(|(_, keys)| format!("/{keys}"))
        .unwrap_or_default();
    format!("{}{keys}", path.rsplit('/').next().unwrap_or(path))
}

pub fn attempt(job: &Job) -> i32 {
    let labels = job.metadata.labels.as_ref();
    labels.and_then(|l| l.get(LABEL_ATTEMPT)?.parse().ok()).unwrap_or_default()
}

/// What was printed last, so that only news is.
#[derive(Default)]
pub struct Printer {
    last: BTreeMap<(String, String), String>,
    /// Places of all StepRuns that there ever were, by name.
    names: BTreeMap<String, String>,
}

impl Printer {
    pub fn news(&mut self, world: &World, log: &[Happened]) -> String {
        let several = world.workflows.len() > 1;
        for (name, step_run) in &world.step_runs {
            let run = &step_run.spec.workflow.name;
            let place = place(step_run);
            let place = if several { format!("{run}:{place}") } else { place };
            self.names.insert(name.clone(), place);
        }
        let mut lines: Vec<String> = log
            .iter()
            .map(|happened| match happened {
                Happened::Effect(effect) => format!("+ {}", Self::effect(world, effect)),
                Happened::Notice(about, notice) => {
                    format!("{} {about}: {}: {}", if notice.warning { "!" } else { "*" }, notice.reason, notice.note)
                }
            })
            .collect();
        for (id, about, standing) in self.standings(world) {
            let id = (id, about.rsplit(':').next().unwrap_or_default().to_owned());
            if self.last.get(&id) != Some(&standing) {
                lines.push(format!("{about}: {standing}"));
                self.last.insert(id, standing);
            }
        }
        lines.iter().map(|l| self.readable(l) + "\n").collect()
    }

    fn readable(&self, line: &str) -> String {
        let names = self.names.iter();
        names.fold(line.to_owned(), |line, (name, place)| line.replace(name, place))
    }

    fn effect(world: &World, effect: &Effect) -> String {
        match effect {
            Effect::CreateRevision(_) => "pin the definition".to_owned(),
            Effect::CreateDocument(d) => format!("create Document {}", d.spec.document_type),
            Effect::CreateStepRun(s) => {
                let mut words = format!("create StepRun {}", super::world::own(&s.metadata));
                if s.spec.parameters != "{}" {
                    words += &format!(" with {}", s.spec.parameters);
                }
                let documents: Vec<String> = s
                    .spec
                    .documents
                    .iter()
                    .map(|d| {
                        let key = d.key.as_ref().map(|k| format!("/{k}"));
                        format!("{}{}", d.document_type, key.unwrap_or_default())
                    })
                    .collect();
                if !documents.is_empty() {
                    words += &format!(" reading {}", documents.join(", "));
                }
                words
            }
            Effect::CreateJob(job) => {
                let of = job.metadata.owner_references.as_ref();
                let of = of.map(|o| o[0].name.clone()).unwrap_or_default();
                format!("create Job of {of}, attempt {}", attempt(job))
            }
            Effect::CreateMemory(m) => format!("create Memory of {} in {}", m.spec.agent_id, m.spec.session),
            Effect::CreateNetworkPolicy(_) => "create NetworkPolicy".to_owned(),
            Effect::StartRun { .. } => unreachable!("no Trigger is looked at"),
            Effect::UseMemory { name, .. } => {
                let found = &world.memories[name].spec;
                format!("the Memory of {} in {} is used", found.agent_id, found.session)
            }
            Effect::Delete { what: DeletableKind::Job, name, .. } => format!("delete Job {}", head(name)),
            Effect::Delete { what, name, .. } => format!("delete {what:?} {name}"),
            Effect::SetDocumentStatus { name, status, .. } => {
                let found = world.documents.get(name).map(|d| &d.spec);
                let kind = found.map_or("?", |d| d.document_type.as_str());
                let scope = found.map(|d| format!("{:?}", d.scope)).unwrap_or_default();
                format!(
                    "document {kind} of scope {scope} is {:?}, revision {}",
                    status.phase.expect("a phase"),
                    status.revision.unwrap_or_default()
                )
            }
            Effect::EmptyMailbox { step_run, .. } => format!("empty the mailbox of {step_run}"),
        }
    }

    /// Object, place and standing: runs first, then StepRuns by place.
    fn standings(&self, world: &World) -> Vec<(String, String, String)> {
        let mut found = Vec::new();
        for (name, workflow) in &world.workflows {
            found.push((name.clone(), format!("run {name}"), run(workflow)));
            for step in workflow.status.iter().flat_map(|s| &s.steps) {
                if let Some(c) = step.counts {
                    let mut words = format!(
                        "{}, {} of {} done, {} started, {} failed",
                        step.phase, c.done, c.total, c.started, c.failed
                    );
                    if c.skipped > 0 {
                        words += &format!(", {} skipped", c.skipped);
                    }
                    let about = if world.workflows.len() > 1 {
                        format!("items of {name}:{}", step.path)
                    } else {
                        format!("items of {}", step.path)
                    };
                    found.push((name.clone(), about, words));
                }
            }
        }
        let mut step_runs: Vec<(String, String, String)> = world
            .step_runs
            .iter()
            .map(|(name, s)| (name.clone(), self.names[name].clone(), standing(s, world)))
            .collect();
        step_runs.sort_by(|a, b| a.1.cmp(&b.1));
        found.extend(step_runs);
        found
    }
}

/// A Job's name without its hash.
fn head(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(head, _)| head)
}

/// What a run's status says of where the run stands, one field a line.
pub fn state(workflow: &Workflow) -> String {
    let status = serde_json::to_value(&workflow.status).expect("it serializes");
    let shown = [
        "phase",
        "project",
        "startedAt",
        "completedAt",
        "currentStep",
        "activeSteps",
        "completedSteps",
        "iterationProgress",
        "pendingAcceptance",
        "acceptanceDecisions",
        "usage",
        "steps",
    ];
    let mut lines = String::new();
    for name in shown {
        match &status[name] {
            serde_json::Value::Null => {}
            serde_json::Value::Array(list) => list.iter().for_each(|one| lines += &format!("{name}: {one}\n")),
            one => lines += &format!("{name}: {one}\n"),
        }
    }
    lines
}

fn run(workflow: &Workflow) -> String {
    let Some(status) = &workflow.status else {
        return "not seen yet".to_owned();
    };
    let phase = status.phase.unwrap_or_default();
    let mut words = phase.to_string();
    if let Some(step) = status.current_step.as_ref().filter(|_| !phase.is_terminal()) {
        words += &format!(" at {step}");
    }
    if let Some(session) = &status.session {
        words += &format!("; session {} {:?}", session.id, session.phase);
    }
    if let Some(waiting) = &status.waiting {
        words += &format!("; waits: {}", waiting.summary);
    }
    if !status.pending_documents.is_empty() {
        words += &format!("; missing: {}", status.pending_documents.join(", "));
    }
    let told = matches!(phase, Phase::Pending | Phase::Failed);
    if let Some(c) = condition::get(&status.conditions, "Succeeded").filter(|_| told) {
        words += &format!("; {}: {}", c.reason, c.message);
    }
    if let Some(c) = condition::get(&status.conditions, "GatePolicyInstalled") {
        words += &format!("; {}: {}", c.reason, c.message);
    }
    if let Some(c) = condition::get(&status.conditions, "Failing") {
        words += &format!("; failing, {}: {}", c.reason, c.message);
    }
    words
}

fn standing(step_run: &StepRun, world: &World) -> String {
    let status = step_run.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    let mut words = phase.to_string();
    if status.attempt > 1 {
        words += &format!(", attempt {}", status.attempt);
    }
    if status.round > 1 {
        words += &format!(", round {}", status.round);
    }
    if let Some(at) = status.not_before.filter(|at| at.0 > world.now && !phase.is_terminal()) {
        let wait = at.0.duration_since(world.now).as_millis();
        words += &format!(", not before {} s from now", (wait + 999) / 1000);
    }
    if let Some(gate) = &status.gate {
        words += &format!(", gate {:?}", gate.state);
        for d in &gate.decisions {
            let verb = if d.accepted { "accepted" } else { "rejected" };
            words += &format!(", {verb} by {}", d.decided_by);
        }
    }
    if let Some(wait) = &status.waiting_for {
        words += &format!("; {:?} {}: {} [{}]", wait.kind, wait.id, wait.question, wait.options.join(" | "));
        words += &wait.schema.as_ref().map_or_else(String::new, |schema| format!(" of {schema}"));
        let waits = wait.agent_waits_until.as_ref();
        words += waits.map_or("", |_| ", its agent waits in its pod");
    }
    if let Some(answer) = &status.answer {
        words += &format!(", answered {} by {}", answer.value, answer.by);
    }
    for asked in &status.questions {
        let told = |answer: &Answer| format!(", {} is {} by {}", asked.name(), answer.value, answer.by);
        words += &asked.answer.as_ref().map_or_else(String::new, told);
    }
    for own in &status.approval_requests {
        words += &format!("; {} at {} {:?}", own.action, own.gate_name, own.gate.state);
        for d in &own.gate.decisions {
            words += &format!(" by {}", d.decided_by);
        }
        words += own.agent_waits_until.as_ref().map_or("", |_| ", its agent waits in its pod");
        words += &own.used.as_ref().map_or_else(String::new, |used| format!(", used by attempt {}", used.attempt));
    }
    if let Some(last) = status.actions.last() {
        words += &format!(", {} by {}", last.action.past(), last.by);
    }
    if let Some(usage) = &status.usage {
        words += &format!(", used {usage}");
    }
    for attempt in status.attempts.iter().filter(|attempt| !attempt.documents_read.is_empty()) {
        let names: Vec<&str> = attempt.documents_read.iter().map(|read| read.name.as_str()).collect();
        words += &format!(", attempt {} asked for {}", attempt.number, names.join(" and "));
    }
    if let Some(raise) = status.budget_raises.last() {
        let whose = if raise.of_run { "run" } else { "step" };
        let tokens = raise.budget.tokens.map_or_else(String::new, |tokens| format!(" to {tokens} tokens"));
        let cost = raise.budget.cost.as_ref().map_or_else(String::new, |cost| format!(" to cost {cost}"));
        words += &format!(", budget of the {whose} raised{tokens}{cost} by {}", raise.by);
    }
    for kind in ["Started", "GatePolicyInstalled"] {
        if let Some(c) = condition::get(&status.conditions, kind).filter(|c| c.status == "False") {
            words += &format!("; {}: {}", c.reason, c.message);
        }
    }
    if let Some(error) = status.error.filter(|_| phase == Phase::Failed) {
        words += &format!("; {}: {}", error.class, error.message);
    }
    words
}
