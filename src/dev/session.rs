//! What the local user sees and says: the run as the plugin's `watch` shows it, and its waits as its `approve`, `reject` and
//! `answer` end them.

mod prompt;

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::ResourceExt;

use super::durable::Durable;
use super::installation::NAMESPACE;
use super::preset_decisions::{PresetDecision, PresetDecisions};
use crate::api::name::{ACTION, ANSWER, DECISION};
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow};
use crate::cli::connect::Connection;
use crate::cli::decide::{Consent, GateDecision, decide};
use crate::cli::fault::{Code, Fault};
use crate::cli::print::Format;
use crate::cli::target::{label, waits_at_gate};
use crate::cli::wait::{self, Ways};
use crate::cli::watch::{Commands, Follower, Scene};
use crate::cli::{actions, answer, pager};
use crate::telemetry::Metrics;

/// How long one request may take: nothing here is far away.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// How long nothing must be written before a run is taken to wait.
const QUIET: std::time::Duration = std::time::Duration::from_secs(1);

pub struct Session {
    pub server: Durable,
    pub metrics: Arc<Metrics>,
    pub user: String,
    pub decisions: PresetDecisions,
}

/// What there is to do.
enum Next {
    Ended(Code),
    Asks(Box<StepRun>),
    /// Nothing goes on without people, and nobody is here.
    Waits,
}

/// What became of a wait.
enum Done {
    Said,
    /// It is left as it is.
    Left,
    Leaves,
}

impl Session {
    /// The local user, as the plugin sees them.
    pub fn connection(&self, user: &str) -> Connection {
        let client = self.server.client(user, NAMESPACE);
        let namespace = NAMESPACE.to_owned();
        Connection { client, namespace, output: Format::Table, timeout: PATIENCE, is_reached: false }
    }

    /// Shows the run to its end, and has its waits ended.
    pub async fn follow(&mut self, run: Workflow) -> Result<Code, Fault> {
        let on = self.connection(&self.user);
        let mut follower = Follower::open(&on, run, Commands { live: Ways::Dev, plain: Ways::Dev })?;
        let is_attended = pager::is_attended();
        let mut left = BTreeSet::new();
        loop {
            let decisions = &self.decisions;
            let Some(next) = follower.until(|scene| next(scene, decisions, (&left, is_attended))).await? else {
                return Ok(Code::Interrupted);
            };
            let step = match next {
                Next::Ended(code) => return Ok(code),
                Next::Waits if self.is_quiet().await => return Ok(Code::Waiting),
                Next::Waits => continue,
                Next::Asks(step) => step,
            };
            follower.pause();
            let done = match self.decisions.take(&step) {
                Some(act) => self.act(&step, &act).await.map(|()| Done::Said)?,
                None => prompt::ask(self, &on, &step).await?,
            };
            match done {
                Done::Said => {}
                Done::Left => drop(left.insert(id(&step))),
                Done::Leaves => return Ok(Code::Interrupted),
            }
        }
    }

    /// Whether the operator has nothing to say any more: what the run waits for may just have come.
    async fn is_quiet(&self) -> bool {
        let version = || self.server.api.with(|registry| registry.store().version());
        let (has_looked, before) = (self.metrics.has_passed("Workflow"), version());
        let mut looks = tokio::time::interval(QUIET);
        // The first comes at once.
        looks.tick().await;
        looks.tick().await;
        has_looked && version() == before
    }

    /// Does what was said, as the plugin does it.
    async fn act(&self, step: &StepRun, act: &PresetDecision) -> Result<(), Fault> {
        let target = step.name_any();
        let (accepted, comment) = match act {
            PresetDecision::Answer(words) => {
                let args =
                    answer::Args { target, answer: Some(words.clone()), skip: false, fail: false, comment: None };
                return answer::run(&self.connection(&self.user), &args).await.map(drop);
            }
            PresetDecision::Accept => (true, None),
            PresetDecision::Reject(why) => (false, Some(why.as_str())),
        };
        let gate = step.status.as_ref().and_then(|status| status.gate.as_ref());
        let consent = Consent::to(gate.map(|gate| gate.output_digest.clone()));
        let on = self.connection(&self.someone(step));
        Box::pin(decide(&on, GateDecision { target: &target, accepted, comment, consent: &consent })).await.map(drop)
    }

    /// Who decides: the local user; where that must be another than whoever made the run, or several must accept, another name
    /// of theirs.
    fn someone(&self, step: &StepRun) -> String {
        let not_by = step.spec.gate.as_ref().and_then(|gate| gate.not_by.as_deref());
        let gate = step.status.as_ref().and_then(|status| status.gate.as_ref());
        let has_decided = |name: &str| {
            gate.is_some_and(|gate| gate.decisions.iter().any(|d| d.round == gate.round && d.decided_by == name))
        };
        let names = std::iter::once(self.user.clone()).chain((2..).map(|n| format!("{}-{n}", self.user)));
        let mut free = names.filter(|name| not_by != Some(name.as_str()) && !has_decided(name));
        free.next().unwrap_or_default()
    }
}

/// What the run wants, if anything.
fn next(scene: &Scene, decisions: &PresetDecisions, (left, is_attended): (&BTreeSet<String>, bool)) -> Option<Next> {
    let phase = scene.run.status.as_ref()?.phase?;
    match phase {
        Phase::Completed => return Some(Next::Ended(Code::Done)),
        Phase::Failed | Phase::Cancelled => return Some(Next::Ended(Code::Failed)),
        _ => {}
    }
    let steps = scene.steps();
    let open: Vec<StepRun> = wait::open(&scene.run, &steps).into_iter().flat_map(views).collect();
    // What lies there is taken up first.
    let wanted = open.iter().find(|step| {
        !left.contains(&id(step)) && !has_mail(step) && (is_attended || decisions.clone().take(step).is_some())
    });
    if let Some(step) = wanted {
        return Some(Next::Asks(Box::new(step.clone())));
    }
    if open.iter().any(has_mail) || is_behind(scene, &steps) {
        return None;
    }
    let is_still = match phase {
        Phase::WaitingForDocuments => true,
        Phase::WaitingForAcceptance | Phase::WaitingForInput => !open.is_empty(),
        _ => false,
    };
    is_still.then_some(Next::Waits)
}

/// Whether the run has not yet heard of what became of a step.
fn is_behind(scene: &Scene, steps: &[StepRun]) -> bool {
    let listed = scene.run.status.iter().flat_map(|status| &status.steps);
    listed.into_iter().any(|listed| {
        let own = steps.iter().find(|step| step.spec.path == listed.path && step.spec.item.is_none());
        let phase = own.and_then(|own| own.status.as_ref()?.phase);
        phase.is_some_and(Phase::is_terminal) && !listed.phase.is_terminal()
    })
}

/// Whether what was said of a step is still to be taken up.
fn has_mail(step: &StepRun) -> bool {
    [DECISION, ANSWER, ACTION].iter().any(|key| step.annotations().contains_key(*key))
}

/// A step at each gate at which it waits; its own wait last.
fn views(step: &StepRun) -> Vec<StepRun> {
    let mut views = actions::waiting(step);
    if views.is_empty() {
        views.push(step.clone());
    }
    views
}

/// Names a wait: the next round, or the next question, is another one.
fn id(step: &StepRun) -> String {
    let status = step.status.as_ref();
    let gate = status.and_then(|s| s.gate.as_ref()).filter(|_| waits_at_gate(step));
    let of_gate = gate.map(|gate| format!("{} {}", gate.output_digest, gate.decisions.len()));
    let wait = status.and_then(|s| s.waiting_for.as_ref()).map(|wait| wait.id.clone());
    format!("{} {}", label(step), of_gate.or(wait).unwrap_or_default())
}
