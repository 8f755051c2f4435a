//! The real code behind the model: `decide::step_run` for the operator, `decide::claim` for the gateway. Every version
//! of the StepRun that ever occurs is kept once under a number, times and words made equal, so that a state is a few
//! bytes and each question is put to the real code once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lockstep::api::name::{self, ACTION, COMMENT, DECIDED_BY, LABEL_ATTEMPT};
use lockstep::api::step_run::{AttemptResult, Claim, Report, ReportClass, StepRunSpec, StepRunStatus};
use lockstep::api::{Agent, StepRun};
use lockstep::decide::build::Installation;
use lockstep::decide::claim::{self, Answer, Claimant, Precondition};
use lockstep::decide::content::DocumentLookup;
use lockstep::decide::gate::Guard;
use lockstep::decide::step_run::{Hold, JobSeen, Observed, PodSeen, Slot, SourceAgent, step_run};
use lockstep::decide::{DeletableKind, Effect};
use lockstep::protocol::mark;
use serde_json::{Value, json};

use super::{ATTEMPTS, Act, Clock, Job, Object, Queue, Version};

pub const NAME: &str = "s";
pub const UID: &str = "00000001-uid";
const BORN: &str = "2026-01-01T00:00:00Z";
/// Longer than any back-off, shorter than any deadline.
const WHILE_SECONDS: i64 = 60;
const AGES_SECONDS: i64 = 2 * 24 * 3600;

/// Who asks the gateway: a pod, and which of the processes that lived in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Who {
    pub attempt: u8,
    pub pod: u8,
    pub life: u8,
}

/// What a pass sees.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct View {
    pub version: Version,
    pub closing: bool,
    pub jobs: [Job; ATTEMPTS],
    pub pod: Option<(u8, Object)>,
    pub clock: Clock,
}

/// A write of the gateway, as it is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Patch {
    /// Whether the StepRun had no status when it was read, and whether nobody has written since.
    Claim {
        bare: bool,
        fresh: bool,
    },
    Report {
        success: bool,
    },
}

/// What properties ask of a status.
#[derive(Clone, Debug)]
pub struct Facts {
    pub text: String,
    pub status: Option<StepRunStatus>,
    pub attempt: i32,
    pub ended: bool,
    pub waits: bool,
    pub claim: Option<Who>,
    pub report: Option<i32>,
    pub records: Vec<(i32, AttemptResult)>,
    pub result: Option<i32>,
}

pub struct Ledger {
    agent: Arc<Agent>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    numbers: HashMap<String, u32>,
    facts: Vec<Arc<Facts>>,
    passes: HashMap<View, Queue>,
    patches: HashMap<(u32, Who, Patch), Option<u32>>,
}

pub fn time(seconds: i64) -> Time {
    let born: Timestamp = BORN.parse().expect("a time");
    Time(born + SignedDuration::from_secs(seconds))
}

pub fn id(who: Who) -> String {
    name::digest_bytes(format!("{}/{}", who.pod, who.life).as_bytes())
}

impl Ledger {
    pub fn new(idempotent: bool) -> Self {
        let spec = json!({"idempotent": idempotent, "retry": {"maxAttempts": 2, "initialBackoffSeconds": 10},
            "template": {"spec": {"containers": [{"name": "agent", "image": "i", "command": ["/agent"]}]}}});
        let agent = Agent::new("agent", serde_json::from_value(spec).expect("an Agent"));
        Self { agent: Arc::new(agent), inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn facts(&self, number: u32) -> Arc<Facts> {
        Arc::clone(&self.inner().facts[number as usize])
    }

    /// The number of a status, the same for statuses that differ in times and words only.
    pub fn number(&self, status: Option<StepRunStatus>) -> u32 {
        let status = status.map(alike);
        let text = serde_json::to_string(&status).expect("it serializes");
        let mut inner = self.inner();
        if let Some(known) = inner.numbers.get(&text) {
            return *known;
        }
        let number = u32::try_from(inner.facts.len()).expect("few");
        inner.numbers.insert(text.clone(), number);
        inner.facts.push(Arc::new(facts(status, text)));
        number
    }

    /// The object as the API server has it.
    fn object(&self, version: Version, resource_version: &str) -> StepRun {
        let spec = StepRunSpec {
            agent_id: "agent".into(),
            path: "step".into(),
            parameters: "{}".into(),
            ..StepRunSpec::default()
        };
        let mut object = StepRun::new(NAME, spec);
        object.metadata.namespace = Some("team".into());
        object.metadata.uid = Some(UID.into());
        object.metadata.generation = Some(1);
        object.metadata.resource_version = Some(resource_version.into());
        if version.answered {
            let letter = [(ACTION, "retry"), (COMMENT, "again"), (DECIDED_BY, "alice")];
            object.metadata.annotations = Some(letter.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        }
        object.status.clone_from(&self.facts(version.status).status);
        object
    }

    /// One pass of the operator: what it will write, in order.
    pub fn pass(&self, view: &View) -> Queue {
        if let Some(known) = self.inner().passes.get(view) {
            return *known;
        }
        let object = Arc::new(self.object(view.version, "2"));
        let attempt = object.status.as_ref().map_or(1, |s| s.attempt);
        let plan = step_run(&Observed {
            hold: if view.closing { Hold::Closing } else { Hold::No },
            refusal: None,
            slot: Some(Slot::Yours),
            pods_alive: 0,
            goes_last: false,
            definition: None,
            agent: Some(Arc::clone(&self.agent)),
            agent_fault: None,
            job: job_seen(attempt - 1, usize::try_from(attempt - 1).ok().and_then(|n| view.jobs.get(n)).copied()),
            pod: view.pod.map(|(pod, object)| pod_seen(pod, object)),
            unfinished: unfinished(&view.jobs),
            lingering: Vec::new(),
            event: None,
            document: DocumentLookup::NotAsked,
            revision: None,
            output: DocumentLookup::NotAsked,
            input: None,
            budget: lockstep::decide::budget::RunBudget::default(),
            guard: Guard::Proven("policies".into()),
            mail: lockstep::decide::mail::Mail::NotAsked,
            installation: Arc::new(Installation::default()),
            evaluator: Arc::new(lockstep::definition::expression::InProcess),
            now: time(match view.clock {
                Clock::Early => 0,
                Clock::AfterBackoff => WHILE_SECONDS,
                Clock::AfterDeadlines => AGES_SECONDS,
            }),
            step_run: object,
        });
        let mut queue = Queue::default();
        for effect in plan.effects {
            queue.push(act(&effect));
        }
        if let Some(status) = plan.status {
            let number = self.number(Some(status));
            if number != view.version.status {
                queue.push(Act::Put(number));
            }
        }
        self.inner().passes.insert(*view, queue);
        queue
    }

    /// What the gateway answers to a claim of a StepRun that it just read.
    pub fn admit(&self, version: Version, who: Who) -> Answer {
        claim::admit(&self.object(version, "2"), &claimant(who, &id(who), &pod_uid(who.pod)))
    }

    /// And to a report.
    pub fn accept(&self, version: Version, who: Who) -> Answer {
        claim::accept(&self.object(version, "2"), &claimant(who, &id(who), &pod_uid(who.pod)))
    }

    /// The status after a write of the gateway, if what it was decided on still holds.
    pub fn patched(&self, current: Version, who: Who, patch: Patch) -> Option<u32> {
        let key = (current.status, who, patch);
        if let Some(known) = self.inner().patches.get(&key) {
            return *known;
        }
        let (id, uid) = (id(who), pod_uid(who.pod));
        let claimant = claimant(who, &id, &uid);
        let object = self.object(current, "2");
        let now = serde_json::to_value(&object).expect("it serializes");
        let mut status = now.get("status").cloned();
        let (held, field, value) = match patch {
            Patch::Claim { bare, fresh } => {
                let read = self.object(current, if fresh { "2" } else { "1" });
                // As the API server does: defaults are filled in.
                if bare {
                    status = Some(json!({}));
                }
                (claim::claim_preconditions(&read), "agent", json!(claim::claimed(&claimant, time(0))))
            }
            Patch::Report { success } => {
                (claim::report_preconditions(UID, who.attempt.into(), &id), "report", json!(report(who, success)))
            }
        };
        let landed = held.iter().all(|h| holds(&now, h)).then_some(status).flatten().map(|mut status| {
            let place = if field == "agent" { Some(&mut status) } else { status.get_mut("agent") };
            // An absent parent fails; there is none, or the tests would have failed.
            place.expect("the parent")[field] = value;
            self.number(Some(serde_json::from_value(status).expect("a status")))
        });
        self.inner().patches.insert(key, landed);
        landed
    }
}

/// A `test` of a JSON patch, as the API server reads it: null is also what is absent.
fn holds(object: &Value, held: &Precondition) -> bool {
    object.pointer(held.path).unwrap_or(&Value::Null) == &held.value
}

fn claimant<'a>(who: Who, id: &'a str, pod_uid: &'a str) -> Claimant<'a> {
    Claimant { attempt: who.attempt.into(), id, pod_name: pod_uid, pod_uid }
}

fn pod_uid(pod: u8) -> String {
    format!("pod-{pod}")
}

fn report(who: Who, success: bool) -> Report {
    Report {
        attempt: who.attempt.into(),
        exit_code: Some(i32::from(!success)),
        class: if success { ReportClass::Succeeded } else { ReportClass::Exited },
        digest: "d".into(),
        output: None,
        output_document: None,
        output_binding: None,
        document_name: None,
        document_binding: None,
        questions: Vec::new(),
        message: None,
        log_tail: None,
        interrupted: false,
        at: time(0),
    }
}

fn job_name(slot: usize) -> String {
    name::job(NAME, UID, i32::try_from(slot).expect("small") + 1)
}

fn job_seen(slot: i32, job: Option<Job>) -> JobSeen {
    let uid = format!("uid-of-{slot}");
    let present = |deleting, ended| JobSeen::Present {
        uid,
        created: Some(time(0)),
        deleting,
        ended,
        agent_generation: None,
        ran: SourceAgent::default(),
    };
    match job {
        None | Some(Job::Absent) => JobSeen::Absent,
        Some(Job::Live) => present(false, false),
        Some(Job::Deleting) => present(true, false),
        Some(Job::Ended) => present(false, true),
    }
}

fn unfinished(jobs: &[Job]) -> Vec<(String, String, i32)> {
    let live = jobs.iter().enumerate().filter(|(_, job)| **job == Job::Live);
    live.map(|(n, _)| (job_name(n), format!("uid-of-{n}"), i32::try_from(n).expect("small") + 1)).collect()
}

fn pod_seen(pod: u8, object: Object) -> PodSeen {
    let termination = match object {
        Object::Ended(marks) => [mark::CLAIMED, mark::STARTED, mark::SUCCEEDED][..marks.into()].join("\n"),
        _ => String::new(),
    };
    PodSeen {
        uid: pod_uid(pod),
        ended: matches!(object, Object::Ended(_)),
        gone_by: (object == Object::Deleting).then(|| time(30)),
        termination,
        disrupted: object == Object::Deleting,
        ..PodSeen::default()
    }
}

fn act(effect: &Effect) -> Act {
    let slot = |name: &str| (0..=ATTEMPTS).find(|n| job_name(*n) == name).expect("the name of an attempt's Job");
    match effect {
        Effect::CreateJob(job) => {
            let slot = slot(job.metadata.name.as_deref().expect("a name"));
            let label = job.metadata.labels.as_ref().and_then(|l| l.get(LABEL_ATTEMPT)).cloned();
            assert_eq!(label, Some((slot + 1).to_string()), "a Job of two attempts");
            Act::Create(u8::try_from(slot).expect("small"))
        }
        Effect::Delete { what: DeletableKind::Job, name, uid } => {
            let slot = slot(name);
            assert_eq!(*uid, format!("uid-of-{slot}"), "a delete of another Job");
            Act::Delete(u8::try_from(slot).expect("small"))
        }
        Effect::EmptyMailbox { .. } => Act::EmptyMailbox,
        other => panic!("no part of this model: {other:?}"),
    }
}

/// Times and words that no decision reads are made equal.
fn alike(mut status: StepRunStatus) -> StepRunStatus {
    let (then, blank) = (time(0), String::new);
    for condition in &mut status.conditions {
        condition.last_transition_time = then.clone();
        condition.message = blank();
    }
    status.not_before = status.not_before.map(|_| time(10));
    status.started_at = status.started_at.map(|_| then.clone());
    status.completed_at = status.completed_at.map(|_| then.clone());
    for attempt in &mut status.attempts {
        attempt.started_at = attempt.started_at.take().map(|_| then.clone());
        attempt.completed_at = then.clone();
        attempt.message = None;
        attempt.job_uid = None;
    }
    if let Some(waiting) = &mut status.waiting_for {
        waiting.since = then.clone();
        waiting.question = blank();
        waiting.commands.clear();
    }
    if let Some(error) = &mut status.error {
        error.message = blank();
    }
    status.guidance.clear();
    status.actions.clear();
    // Written by whoever makes the Job, read by the gateway alone, whose look at pods is no part of this model.
    status.job = None;
    status
}

fn facts(status: Option<StepRunStatus>, text: String) -> Facts {
    let s = status.clone().unwrap_or_default();
    let agent = s.agent.clone().unwrap_or_default();
    Facts {
        text,
        attempt: s.attempt,
        ended: s.completed_at.is_some(),
        waits: s.waiting_for.is_some(),
        claim: agent.claim.map(|c| who(&c)),
        report: agent.report.map(|r| r.attempt),
        records: s.attempts.iter().map(|a| (a.number, a.result)).collect(),
        result: s.result.map(|r| r.attempt),
        status,
    }
}

fn who(claim: &Claim) -> Who {
    let pod = claim.pod_uid.strip_prefix("pod-").and_then(|n| n.parse().ok()).expect("a pod of the model");
    let attempt = u8::try_from(claim.attempt).expect("small");
    let lives = (0..4).map(|life| Who { attempt, pod, life });
    lives.into_iter().find(|who| id(*who) == claim.id).expect("an id of the model")
}
