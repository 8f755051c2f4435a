//! One run: pin its definition, start what may start, say where it stands, end it.

mod committed;
mod finished;
mod needs;
mod refused;
mod start;
mod taken;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;
use kube::core::ObjectMeta;

pub use committed::{Committed, committed};
pub use finished::{is_due, kept_for};
pub use needs::agents;
pub use refused::{has_no_session, session_refused};
pub use taken::name_taken;

use super::content::Pin;
use super::graph::{self, NewStepRun, RunProgress};
pub use super::observed::{Observed, Previous, StepRuns, UnreadableObjects};
use super::outcome::Failure;
use super::scope::Admission;
use super::settled::Settled;
use super::step_run::POLICIES;
use super::{DeletableKind, Effect, Plan, budget, build, document, seen, status};
use crate::api::condition::{self, clip};
use crate::api::limits::RUN_OUTPUT_BYTES;
use crate::api::name;
use crate::api::step_run::AttemptResult;
use crate::api::workflow::{DefinitionRef, Phase, RunOutput, WorkflowStatus};
use crate::definition::program::Program;

/// When a cancelled run looks again whether the pods of what has completed have ended: they wake it, but for one on a node that
/// nobody reaches any more.
const PODS_AGAIN: Duration = Duration::from_secs(60);

/// Documents whose contents a decision turns on, and lacks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unread(pub Vec<Pin>);

/// When a run goes on whose expressions read more than there is room for at once.
const NEXT_PART: Duration = Duration::from_secs(1);

/// What a pass decided or lacks, and what it found to be settled.
pub struct Decided {
    pub plan: Result<Plan<WorkflowStatus>, Unread>,
    pub settled: Arc<Settled>,
}

impl From<Plan<WorkflowStatus>> for Decided {
    fn from(plan: Plan<WorkflowStatus>) -> Self {
        Self { plan: Ok(plan), settled: Arc::default() }
    }
}

/// What to do with this run now, contents at hand.
pub fn workflow(o: &Observed) -> Plan<WorkflowStatus> {
    decide(o).plan.unwrap_or_default()
}

/// What to do with this run now.
pub fn decide(o: &Observed) -> Decided {
    let before = o.workflow.status.clone().unwrap_or_default();
    if o.workflow.metadata.deletion_timestamp.is_some() {
        return going(o).into();
    }
    if before.completed_at.is_some() {
        return finished::finished(o, &before).into();
    }
    let mut decided = match (&before.definition, &o.definition) {
        (None, _) => start::start(o, before.clone()).into(),
        (Some(_), Some(definition)) => advance(o, before.clone(), definition),
        (Some(pinned), None) => lost_definition(o, before.clone(), pinned).into(),
    };
    if let Ok(plan) = &mut decided.plan
        && plan.status.as_ref() == o.workflow.status.as_ref()
    {
        plan.status = None;
    }
    decided
}

/// Kubernetes takes what the run owns with it, or leaves it where that was asked for. A definition that an older version pinned
/// it cannot leave, because its patch would spell the data anew, and without its run nobody reads it: it is deleted.
fn going(o: &Observed) -> Plan<WorkflowStatus> {
    let delete = |meta: &ObjectMeta| Effect::Delete {
        what: DeletableKind::ControllerRevision,
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    };
    Plan { effects: o.plain_revision.iter().map(delete).collect(), ..Plan::default() }
}

fn advance(o: &Observed, mut status: WorkflowStatus, program: &Program) -> Decided {
    let mut plan = Plan::default();
    status.observed_generation = o.workflow.metadata.generation.unwrap_or_default();
    let stop = stop(o, &status, program);
    if let Some(left) = stop.left {
        plan.look_again(left);
    }
    let is_any = !o.step_runs.is_empty() || !o.unreadable.step_runs.is_empty();
    let has_begun = is_any || seen::begun(&o.workflow) > 0;
    // Where nothing has begun, a cancel turns on nothing: neither on what is waited for nor on what an expression reads.
    let ends = !has_begun && stop.end == status::End::Cancelled;
    let missing = if has_begun || ends { Vec::new() } else { needs::missing_at_start(o, program) };
    let mut walked = if missing.is_empty() && !ends {
        graph::walk(o, program, stop.start)
    } else {
        let waits = graph::Waits { documents: missing, ..graph::Waits::default() };
        let steps = if status.steps.is_empty() { graph::ahead(program) } else { Vec::new() };
        let pods_ending = o.pods_ending;
        let progress = RunProgress { steps, pods_ending, waits, ..RunProgress::default() };
        let (gone, shown) = (Arc::clone(&o.settled.gone), Arc::clone(&o.settled.shown));
        let settled = Settled { gone, shown, ..Settled::default() };
        graph::Walked { progress, settled, ..graph::Walked::default() }
    };
    let settled = Arc::new(walked.settled);
    if !walked.unread.is_empty() {
        return Decided { plan: Err(Unread(walked.unread)), settled };
    }
    if o.contents.is_closed() {
        plan.look_again(NEXT_PART);
    }
    let progress = &mut walked.progress;
    if let Some(failure) = stop.failure {
        progress.failure.get_or_insert(failure);
    }
    if o.pods_ending > 0 {
        plan.look_again(PODS_AGAIN);
    }
    create(o, &status, progress, &mut plan);
    let (was, told) = (status.phase, condition::get(&status.conditions, POLICIES).is_some());
    status::derive(&mut status, progress, (stop.end, &o.now));
    status::show_outputs(&mut status, &o.workflow, &o.step_runs);
    status.budget = budget::status(&o.budget, &o.step_runs, status.budget.as_ref());
    if let Some(missing) = progress.waits.unproven.as_ref().filter(|_| !told) {
        plan.warn("PolicyMissing", clip(missing, 900));
    }
    if status.phase == Some(Phase::Completed) {
        status.output = output(o, progress, &mut plan);
    }
    announce(&mut plan, was, &status, progress);
    plan.status = Some(status);
    Decided { plan: Ok(plan), settled }
}

/// Whether the run goes on, and why not.
struct Stop {
    start: Admission,
    end: status::End,
    failure: Option<Failure>,
    /// Time until the run's own limit.
    left: Option<Duration>,
}

fn stop(o: &Observed, status: &WorkflowStatus, program: &Program) -> Stop {
    let spec = &o.workflow.spec;
    let limit = program.timeout_seconds.zip(status.started_at.as_ref());
    let due = limit.and_then(|(seconds, start)| start.0.checked_add(SignedDuration::from_secs(seconds)).ok());
    let left = due.map(|due| Duration::try_from(due.duration_since(o.now.0)).unwrap_or(Duration::ZERO));
    let end = if spec.cancel == Some(true) {
        status::End::Cancelled
    } else if left == Some(Duration::ZERO) || status.timed_out_at.is_some() {
        status::End::TimedOut
    } else if spec.suspend == Some(true) {
        status::End::Suspended
    } else {
        status::End::Open
    };
    let start = if end == status::End::Open { Admission::Open } else { Admission::Closed };
    let failure = (end == status::End::TimedOut).then(|| Failure {
        place: program.run.name.clone(),
        class: AttemptResult::Timeout,
        message: format!(
            "the run took longer than its timeoutSeconds ({})",
            program.timeout_seconds.unwrap_or_default()
        ),
    });
    Stop { start, end, failure, left: left.filter(|l| !l.is_zero()) }
}

fn create(o: &Observed, status: &WorkflowStatus, progress: &mut RunProgress, plan: &mut Plan<WorkflowStatus>) {
    let session = status.session.as_ref().map(|s| s.id.clone()).unwrap_or_default();
    for (copy, status) in progress.creates.iter_mut().flat_map(|begun| std::mem::take(&mut begun.copies)) {
        match status {
            Some(status) => plan.effects.extend(document::create(copy, status)),
            None => plan.effects.push(Effect::CreateDocument(Box::new(copy))),
        }
    }
    for NewStepRun { spec, keys, .. } in std::mem::take(&mut progress.creates) {
        plan.effects.push(Effect::CreateStepRun(Box::new(build::step_run(&o.workflow, &session, spec, &keys))));
    }
}

/// What the run gives: in its status if it is short, else in a document that is made before.
fn output(o: &Observed, progress: &RunProgress, plan: &mut Plan<WorkflowStatus>) -> Option<RunOutput> {
    let text = progress.done.as_ref().filter(|value| !value.is_null())?.to_string();
    let digest = name::digest_bytes(text.as_bytes());
    if text.len() <= RUN_OUTPUT_BYTES {
        return Some(RunOutput { digest, value: Some(text), document_name: None });
    }
    let document = build::output_document(&o.workflow, text);
    let document_name = document.metadata.name.clone();
    plan.effects.push(Effect::CreateDocument(Box::new(document)));
    Some(RunOutput { digest, value: None, document_name })
}

fn announce(plan: &mut Plan<WorkflowStatus>, was: Option<Phase>, status: &WorkflowStatus, progress: &RunProgress) {
    if was == status.phase {
        return;
    }
    match status.phase {
        Some(Phase::Completed) => plan.notice("Completed", "every step is done"),
        Some(Phase::Cancelled) if status.steps.iter().all(|step| step.phase == Phase::Skipped) => {
            plan.notice("Cancelled", status::NEVER_BEGUN);
        }
        Some(Phase::Cancelled) => plan.notice("Cancelled", "all its pods have ended; its documents and results stay"),
        Some(Phase::Suspended) => plan.notice("Suspended", "nothing new starts until spec.suspend is false"),
        Some(Phase::Failed) => {
            let why = progress
                .failure
                .as_ref()
                .map(|f| format!("{}: {}: {}", f.place, f.class, f.message))
                .unwrap_or_default();
            plan.warn("Failed", clip(&why, 900));
        }
        Some(Phase::WaitingForDocuments) => {
            plan.notice("WaitingForDocuments", status::missing(&progress.waits.documents));
        }
        _ => {}
    }
}

fn lost_definition(o: &Observed, mut status: WorkflowStatus, pinned: &DefinitionRef) -> Plan<WorkflowStatus> {
    let mut plan = Plan::default();
    let message = format!(
        "ControllerRevision {}, which keeps the definition of this run, was deleted or changed; the run cannot go on",
        pinned.revision_name
    );
    plan.warn("DefinitionLost", message.clone());
    let at = (&o.now, o.workflow.metadata.generation.unwrap_or_default());
    status::invalid(&mut status, "DefinitionLost", &message, at);
    plan.status = Some(status);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::agent::{Agent, AgentSpec};
    use crate::api::definition::Definition;
    use crate::api::document::Document;
    use crate::api::step::Step;
    use crate::api::workflow::{SessionPhase, Workflow, WorkflowSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    /// A run that begins, as its first pass sees it.
    fn observed(run: &Workflow) -> Observed {
        let agent = Arc::new(Agent::new("x", AgentSpec::default()));
        Observed {
            workflow: Arc::new(run.clone()),
            template: None,
            definition: None,
            agents: [("x".to_owned(), agent)].into(),
            step_runs: super::super::observed::StepRuns::default(),
            unreadable: UnreadableObjects::default(),
            documents: super::super::document::Documents::default(),
            contents: crate::decide::content::Contents::default(),
            previous: None,
            pods_ending: 0,
            plain_revision: None,
            memories: Vec::new(),
            budget: budget::RunBudget::default(),
            settled: Arc::default(),
            evaluator: Arc::new(crate::definition::expression::InProcess),
            now: Time(Timestamp::UNIX_EPOCH),
        }
    }

    /// As JSON it has another spelling after the garbage collector's patch, which may not change it.
    #[test]
    fn what_an_older_version_pinned_is_deleted_where_its_run_leaves_what_it_owns() {
        let mut run = Workflow::new("w", WorkflowSpec::default());
        run.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let mut o = observed(&run);
        assert_eq!(workflow(&o), Plan::default());
        o.plain_revision =
            Some(ObjectMeta { name: Some("w-1".into()), uid: Some("r".into()), ..ObjectMeta::default() });
        let (what, name, uid) = (DeletableKind::ControllerRevision, "w-1".to_owned(), "r".to_owned());
        assert_eq!(workflow(&o), Plan { effects: vec![Effect::Delete { what, name, uid }], ..Plan::default() });
    }

    /// What a list reads that nobody has fetched yet.
    #[test]
    fn a_cancel_before_anything_began_asks_for_nothing() {
        let step = json!({"name": "each", "agentId": "x", "forEach": {"in": "documents.brief.content", "as": "n"}});
        let definition: Definition =
            serde_json::from_value(json!({"workflow": "w", "workflowUid": "u", "session": "s", "steps": [step]}))
                .expect("a definition");
        let mut run = Workflow::new("w", WorkflowSpec::default());
        run.metadata.uid = Some("u".into());
        run.status = serde_json::from_value(json!({"definition": {"revisionName": "w-1", "digest": "d"},
            "startedAt": "1970-01-01T00:00:00Z"}))
        .ok();
        let mut brief: Document = serde_json::from_value(json!({"metadata": {"name": "brief", "uid": "b"},
            "spec": {"type": "brief", "scope": "Namespace", "format": "json", "content": ""}}))
        .expect("a document");
        brief.status = serde_json::from_value(json!({"phase": "Published", "revision": 1, "digest": "d"})).ok();
        let mut o = observed(&run);
        o.definition = Some(Arc::new(Program::compile(&definition).expect("a program")));
        o.documents.insert_mut(document::key(&brief), Arc::new(brief));
        assert!(decide(&o).plan.is_err_and(|unread| unread.0.len() == 1), "the list is read first");
        run.spec.cancel = Some(true);
        o.workflow = Arc::new(run);
        let status = decide(&o).plan.expect("a plan").status.expect("a status");
        assert_eq!((status.phase, status.completed_at), (Some(Phase::Cancelled), Some(o.now.clone())));
        assert_eq!(status.steps.iter().map(|s| s.phase).collect::<Vec<_>>(), [Phase::Skipped]);
    }

    #[test]
    fn a_run_says_what_of_its_references_cannot_be_read() {
        let step = |agent: &str| Step { name: agent.into(), agent_id: Some(agent.into()), ..Step::default() };
        let steps = WorkflowSpec { steps: vec![step("x"), step("y"), step("z")], ..WorkflowSpec::default() };
        let template_ref = Some(crate::api::workflow::TemplateRef { name: "t".into() });
        let of_template = WorkflowSpec { template_ref, ..WorkflowSpec::default() };
        for (spec, reason, message) in [
            (
                of_template,
                "TemplateInvalid",
                "WorkflowTemplate t cannot be read: too deep; the run starts when it is mended",
            ),
            (
                steps,
                "AgentInvalid",
                "spec.steps[1].agentId: Agent y cannot be read: too wide; spec.steps[2].agentId: Agent z does not exist in this namespace; the run starts when that is mended",
            ),
        ] {
            let mut o = observed(&Workflow::new("w", spec));
            o.unreadable.template = Some("too deep".to_owned());
            o.unreadable.agents.insert("y".to_owned(), "too wide".to_owned());
            let status = workflow(&o).status.expect("a status");
            let why = status.conditions.iter().find(|condition| condition.type_ == "Succeeded").expect("a condition");
            assert_eq!((why.reason.as_str(), why.message.as_str()), (reason, message));
        }
    }

    #[test]
    fn a_retry_says_why_there_is_nothing_to_go_on_from() {
        let of = serde_json::from_value(json!({"name": "old", "uid": "old-uid"})).expect("a retryOf");
        let step = Step { name: "a".into(), agent_id: Some("x".into()), ..Step::default() };
        let spec = WorkflowSpec { retry_of: Some(of), steps: vec![step], ..WorkflowSpec::default() };
        let mut o = observed(&Workflow::new("new", spec));
        for (fault, reason, words) in [
            (None, "RetryOfNotFound", ["there is no Workflow old with the UID old-uid", "that still exists"]),
            (
                Some("spec.input: too deep"),
                "RetryOfUnreadable",
                ["the Workflow old cannot be read, ", "from it: spec.input: too deep; start its work anew"],
            ),
        ] {
            o.unreadable.previous = fault.map(str::to_owned);
            let plan = workflow(&o);
            let status = plan.status.expect("a status");
            let why = condition::get(&status.conditions, "Succeeded").expect("a condition");
            assert_eq!((status.phase, why.reason.as_str()), (Some(Phase::Failed), reason));
            assert!(words.iter().all(|part| why.message.contains(*part)), "{}", why.message);
            assert_eq!(plan.notices.iter().map(|notice| notice.reason).collect::<Vec<_>>(), [reason]);
        }
    }

    #[test]
    fn the_session_is_written_before_anything_starts() {
        let step = Step { name: "a".into(), agent_id: Some("x".into()), ..Step::default() };
        let mut run = Workflow::new("w", WorkflowSpec { steps: vec![step.clone()], ..WorkflowSpec::default() });
        run.metadata.uid = Some("12345678-rest".into());
        let mut o = observed(&run);
        let begins = |plan: &Plan<WorkflowStatus>| {
            plan.effects.iter().any(|e| matches!(e, Effect::CreateStepRun(_) | Effect::CreateJob(_)))
        };
        let first = workflow(&o);
        assert!(!begins(&first));
        let status = first.status.expect("the first pass writes");
        let session = status.session.clone().expect("a session");
        assert_eq!((session.id.as_str(), session.phase), ("_w-12345678", SessionPhase::Initiated));
        assert_eq!(session.start_time, Some(o.now.clone()));
        // Only what was stored lets the next pass begin.
        assert!(!begins(&workflow(&o)));
        run.status = Some(status);
        o.workflow = Arc::new(run);
        let definition = Definition { steps: vec![step], ..Definition::default() };
        o.definition = Some(Arc::new(Program::compile(&definition).expect("a program")));
        assert!(begins(&workflow(&o)));
    }
}
