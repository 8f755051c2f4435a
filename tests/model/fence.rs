//! Fence and claim, all of it: one StepRun, its Jobs and pods, two operators, a gateway, and whatever can go wrong
//! between them. The decisions are the real ones (`ledger`); this file is the world around them.
//!
//! What a state leaves out: time (a pass may see any clock), the identity of a cache (a pass may read the newest version
//! or the one before, of the StepRun and of the Jobs), resourceVersions (a write whose base is gone has failed already).

pub mod explore;
mod ledger;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use explore::Ends;
use ledger::{Facts, Ledger, Patch, View, Who};
use lockstep::api::step_run::{AttemptCounts, AttemptResult, StepRunStatus};
use lockstep::decide::claim::Answer;
use stateright::{Checker, HasDiscoveries, Model, Property};

/// Attempts looked at; a state beyond them is not gone into.
pub const ATTEMPTS: usize = 2;
const PODS: usize = 2;

/// How much may go wrong in one world.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub name: &'static str,
    pub operators: u8,
    /// A write that left its writer may arrive later, while the writer does other things.
    pub late: bool,
    /// A pass may see the Jobs as they were one change ago.
    pub stale_jobs: bool,
    /// Pods that there ever are, of all attempts.
    pub pods: usize,
    /// Jobs deleted by hand.
    pub deletions: u8,
    /// Shims that start again in their pod, with a new id.
    pub restarts: u8,
    /// Answers of a person.
    pub answers: u8,
    /// The run may fail or be deleted.
    pub closing: bool,
    pub idempotent: bool,
    /// Attempts already lost to the cluster: six are too many.
    pub lost: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub status: u32,
    /// A person's answer lies in the mailbox.
    pub answered: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Job {
    #[default]
    Absent,
    Live,
    Deleting,
    Ended,
}

/// A pod as the API server shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    Running,
    Deleting,
    /// How many marks its termination message has.
    Ended(u8),
    Gone,
}

/// The shim in a pod, which may go on where the API server knows no such pod any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    Born,
    Claimed,
    Started,
    Exited { success: bool },
    Dead,
}

/// What the gateway has in hands for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// Decided, not written yet.
    Writing(Patch),
    /// The claim is this pod's; the reply is under way.
    Granted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod {
    attempt: u8,
    life: u8,
    object: Object,
    process: Process,
    request: Option<Request>,
    /// How often its command was started, by all its processes.
    starts: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    Create(u8),
    Delete(u8),
    EmptyMailbox,
    Put(u32),
}

impl Act {
    /// Whether it goes by compare-and-swap on the StepRun.
    fn swaps(self) -> bool {
        matches!(self, Self::EmptyMailbox | Self::Put(_))
    }
}

/// The writes of one pass that are still to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Queue([Option<Act>; 5]);

impl Queue {
    pub fn push(&mut self, act: Act) {
        let free = self.0.iter().position(Option::is_none).expect("a short plan");
        self.0[free] = Some(act);
    }

    fn first(&self) -> Option<Act> {
        self.0[0]
    }

    fn keep(&mut self, acts: impl Iterator<Item = Act>) {
        let mut kept = Self::default();
        acts.for_each(|act| kept.push(act));
        *self = kept;
    }

    fn acts(self) -> impl Iterator<Item = Act> {
        self.0.into_iter().flatten()
    }

    /// Somebody else wrote the StepRun: the first swap fails, and with it what follows.
    fn outrun(&mut self) {
        self.keep(self.acts().take_while(|act| !act.swaps()));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Clock {
    Early,
    AfterBackoff,
    AfterDeadlines,
}

/// A write that left its writer and did not arrive yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Delayed {
    Act(Act),
    Patch(Who, Patch),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    now: Version,
    before: Option<Version>,
    jobs: [Job; ATTEMPTS],
    /// What the last Job that changed was before.
    was: Option<(u8, Job)>,
    pods: [Option<Pod>; PODS],
    operators: [Queue; 2],
    delayed: Option<Delayed>,
    closing: bool,
    deletions: u8,
    restarts: u8,
    answers: u8,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// An operator makes up its mind.
    Pass(u8, Queue),
    /// It makes its next write.
    Write(u8),
    /// It crashes; its next write is lost, or on its way.
    Crash(u8, Loss),
    Arrive,
    MakePod(u8),
    EndJob(u8),
    DeleteByHand(u8),
    Finalize(u8),
    AskToClaim(u8),
    AskToReport(u8, bool),
    Commit(u8),
    LoseReport(u8),
    Forget(u8, Loss),
    Deliver(u8),
    Start(u8),
    Kill(u8, u8),
    Evict(u8),
    CutOff(u8),
    Collect(u8),
    Restart(u8),
    AnswerRetry,
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Lost,
    Delayed,
}

/// All that the passes of a moment can see.
type Moment = (Version, Option<Version>, [Job; ATTEMPTS], Option<(u8, Job)>, [Option<(u8, Object)>; 2], bool);

pub struct World {
    faults: Faults,
    ledger: Arc<Ledger>,
    known: Mutex<HashMap<Moment, Arc<Vec<Queue>>>>,
}

impl State {
    /// A new version of the StepRun; everybody else's swap is outrun.
    fn write(&mut self, version: Version, writer: Option<usize>) {
        if version == self.now {
            return;
        }
        self.before = Some(self.now);
        self.now = version;
        for (n, queue) in self.operators.iter_mut().enumerate() {
            if Some(n) != writer {
                queue.outrun();
            }
        }
        if matches!(self.delayed, Some(Delayed::Act(act)) if act.swaps()) {
            self.delayed = None;
        }
        let stale = |patch: &mut Patch| {
            if let Patch::Claim { fresh, .. } = patch {
                *fresh = false;
            }
        };
        if let Some(Delayed::Patch(_, patch)) = &mut self.delayed {
            stale(patch);
        }
        for pod in self.pods.iter_mut().flatten() {
            if let Some(Request::Writing(patch)) = &mut pod.request {
                stale(patch);
            }
        }
    }

    fn set_job(&mut self, slot: u8, job: Job) {
        let place = &mut self.jobs[usize::from(slot)];
        if *place != job {
            self.was = Some((slot, *place));
            *place = job;
        }
    }

    fn carry_out(&mut self, act: Act, writer: Option<usize>) {
        match act {
            Act::Create(slot) => {
                if self.jobs[usize::from(slot)] == Job::Absent {
                    self.set_job(slot, Job::Live);
                    // Deletes that are under way name the UID of the one before.
                    for queue in &mut self.operators {
                        queue.keep(queue.acts().filter(|a| *a != Act::Delete(slot)));
                    }
                    if self.delayed == Some(Delayed::Act(Act::Delete(slot))) {
                        self.delayed = None;
                    }
                }
            }
            Act::Delete(slot) => self.set_job(slot, Job::Absent),
            Act::EmptyMailbox => self.write(Version { answered: false, ..self.now }, writer),
            Act::Put(status) => self.write(Version { status, ..self.now }, writer),
        }
    }

    /// Whether the write of a gateway landed.
    fn commit(&mut self, ledger: &Ledger, who: Who, patch: Patch) -> bool {
        let landed = ledger.patched(self.now, who, patch);
        if let Some(status) = landed {
            self.write(Version { status, ..self.now }, None);
        }
        landed.is_some()
    }

    fn pod(&mut self, n: u8) -> &mut Pod {
        self.pods[usize::from(n)].as_mut().expect("a pod")
    }

    fn who(&self, n: u8) -> Who {
        let pod = self.pods[usize::from(n)].expect("a pod");
        Who { attempt: pod.attempt, pod: n, life: pod.life }
    }

    /// The process ends by itself; the pod shows how far it came.
    fn end(&mut self, n: u8, marks: u8) {
        let pod = self.pod(n);
        pod.process = Process::Dead;
        pod.request = None;
        if pod.object != Object::Gone {
            pod.object = Object::Ended(marks);
        }
    }

    /// Equal worlds look equal: operators have no names, and how a pod of an attempt long past ended tells nobody anything.
    fn tidy(mut self, past: i32, faults: &Faults) -> Self {
        self.was = self.was.filter(|_| faults.stale_jobs);
        if self.operators[0] < self.operators[1] {
            self.operators.swap(0, 1);
        }
        for pod in self.pods.iter_mut().flatten() {
            if i32::from(pod.attempt) < past && pod.process == Process::Dead {
                pod.object = Object::Gone;
            }
        }
        self
    }

    fn starts(&self, attempt: i32) -> u8 {
        self.pods.iter().flatten().filter(|p| i32::from(p.attempt) == attempt).map(|p| p.starts).sum()
    }
}

impl World {
    pub fn new(faults: Faults) -> Self {
        Self { faults, ledger: Arc::new(Ledger::new(faults.idempotent)), known: Mutex::default() }
    }

    fn facts(&self, version: Version) -> Arc<Facts> {
        self.ledger.facts(version.status)
    }

    /// Everything that a pass could decide now, each once.
    fn passes(&self, state: &State) -> Arc<Vec<Queue>> {
        let seen = |version| self.pod_seen(state, version);
        let pods = [seen(state.now), state.before.and_then(seen)];
        let key = (state.now, state.before, state.jobs, state.was, pods, state.closing);
        if let Some(known) = self.known.lock().expect("one thread").get(&key) {
            return Arc::clone(known);
        }
        let mut found = Vec::new();
        let mut older = state.jobs;
        if let Some((slot, job)) = state.was {
            older[usize::from(slot)] = job;
        }
        for (version, pod) in [(Some(state.now), pods[0]), (state.before, pods[1])] {
            let Some(version) = version else { continue };
            for jobs in [state.jobs, older] {
                for closing in [false, state.closing] {
                    for clock in [Clock::Early, Clock::AfterBackoff, Clock::AfterDeadlines] {
                        let mut queue = self.ledger.pass(&View { version, closing, jobs, pod, clock });
                        if version != state.now {
                            queue.outrun();
                        }
                        if queue.first().is_some() && !found.contains(&queue) {
                            found.push(queue);
                        }
                    }
                }
            }
        }
        let found = Arc::new(found);
        self.known.lock().expect("one thread").insert(key, Arc::clone(&found));
        found
    }

    /// As `cluster::observe`: the pod that claimed, else the newest of the attempt.
    fn pod_seen(&self, state: &State, version: Version) -> Option<(u8, Object)> {
        let facts = self.facts(version);
        let claim = facts.claim.filter(|c| i32::from(c.attempt) == facts.attempt);
        let there = (0..).zip(state.pods).filter_map(|(n, pod)| Some((n, pod?)));
        let wanted = there
            .filter(|(n, pod)| match claim {
                Some(claim) => claim.pod == *n,
                None => i32::from(pod.attempt) == facts.attempt && pod.object != Object::Gone,
            })
            .last();
        wanted.map(|(n, pod)| (n, pod.object)).filter(|(_, object)| *object != Object::Gone)
    }

    fn actions_of_pods(&self, state: &State, actions: &mut Vec<Action>) {
        for (n, pod) in (0..).zip(state.pods).filter_map(|(n, pod)| Some((n, pod?))) {
            let reachable = matches!(pod.object, Object::Running | Object::Deleting);
            match (pod.process, pod.request) {
                (Process::Born, None) if pod.object == Object::Running => actions.push(Action::AskToClaim(n)),
                (Process::Born, Some(Request::Granted)) => actions.push(Action::Deliver(n)),
                (Process::Claimed, _) => actions.push(Action::Start(n)),
                (Process::Started, None) if reachable => {
                    actions.extend([true, false].map(|success| Action::AskToReport(n, success)));
                }
                (Process::Exited { success }, None) if reachable => actions.push(Action::AskToReport(n, success)),
                _ => {}
            }
            if let Some(Request::Writing(patch)) = pod.request {
                actions.push(Action::Commit(n));
                if matches!(patch, Patch::Report { .. }) {
                    actions.push(Action::LoseReport(n));
                }
                if self.faults.late && state.delayed.is_none() {
                    actions.push(Action::Forget(n, Loss::Delayed));
                }
            }
            if pod.request.is_some() {
                actions.push(Action::Forget(n, Loss::Lost));
            }
            if pod.process != Process::Dead {
                actions.extend([Action::Evict(n)]);
                if pod.object == Object::Gone {
                    continue;
                }
                actions.push(Action::CutOff(n));
                match pod.process {
                    Process::Claimed => actions.extend([Action::Kill(n, 0), Action::Kill(n, 1)]),
                    Process::Started | Process::Exited { .. } => actions.push(Action::Kill(n, 2)),
                    _ => actions.push(Action::Kill(n, 0)),
                }
                if state.restarts < self.faults.restarts {
                    actions.push(Action::Restart(n));
                }
            } else if pod.object != Object::Gone {
                actions.push(Action::Collect(n));
            }
        }
    }

    fn actions_of_jobs(&self, state: &State, actions: &mut Vec<Action>) {
        let room = state.pods.iter().flatten().count() < self.faults.pods;
        for (slot, job) in (0..).zip(state.jobs) {
            match job {
                Job::Live => {
                    if room {
                        actions.push(Action::MakePod(slot));
                    }
                    let over = |p: &&Pod| p.attempt == slot + 1 && matches!(p.object, Object::Ended(_) | Object::Gone);
                    if state.pods.iter().flatten().any(|p| over(&p)) {
                        actions.push(Action::EndJob(slot));
                    }
                    if state.deletions < self.faults.deletions {
                        actions.push(Action::DeleteByHand(slot));
                    }
                }
                Job::Deleting => actions.push(Action::Finalize(slot)),
                Job::Absent | Job::Ended => {}
            }
        }
    }

    fn answer(&self, state: &mut State, n: u8) {
        let (who, bare) = (state.who(n), self.facts(state.now).status.is_none());
        match self.ledger.admit(state.now, who) {
            Answer::Free => {
                state.pod(n).request = Some(Request::Writing(Patch::Claim { bare, fresh: true }));
            }
            Answer::Again => state.pod(n).request = Some(Request::Granted),
            Answer::Refused(_) => state.end(n, 0),
        }
    }

    fn answer_report(&self, state: &mut State, n: u8, success: bool) {
        let who = state.who(n);
        state.pod(n).process = Process::Exited { success };
        match self.ledger.accept(state.now, who) {
            Answer::Free => state.pod(n).request = Some(Request::Writing(Patch::Report { success })),
            Answer::Again => state.end(n, if success { 3 } else { 2 }),
            Answer::Refused(_) => state.end(n, 2),
        }
    }

    fn commit(&self, state: &mut State, n: u8) {
        let who = state.who(n);
        let Some(Request::Writing(patch)) = state.pod(n).request.take() else { return };
        if !state.commit(&self.ledger, who, patch) {
            return;
        }
        match patch {
            Patch::Claim { .. } if state.pod(n).process == Process::Born => {
                state.pod(n).request = Some(Request::Granted);
            }
            Patch::Report { success } if state.pod(n).process != Process::Dead => {
                state.end(n, if success { 3 } else { 2 });
            }
            _ => {}
        }
    }

    fn act_on_pod(&self, state: &mut State, action: Action) {
        match action {
            Action::AskToClaim(n) => self.answer(state, n),
            Action::AskToReport(n, success) => self.answer_report(state, n, success),
            Action::Commit(n) => self.commit(state, n),
            Action::LoseReport(n) => {
                let who = state.who(n);
                if let Some(Request::Writing(patch)) = state.pod(n).request.take() {
                    state.commit(&self.ledger, who, patch);
                }
            }
            Action::Forget(n, loss) => {
                let who = state.who(n);
                if let (Some(Request::Writing(patch)), Loss::Delayed) = (state.pod(n).request.take(), loss) {
                    state.delayed = Some(Delayed::Patch(who, patch));
                }
            }
            Action::Deliver(n) => {
                let pod = state.pod(n);
                (pod.process, pod.request) = (Process::Claimed, None);
            }
            Action::Start(n) => {
                let pod = state.pod(n);
                (pod.process, pod.starts) = (Process::Started, pod.starts + 1);
            }
            Action::Kill(n, marks) => {
                let pod = state.pod(n);
                (pod.process, pod.object) = (Process::Dead, Object::Ended(marks));
                pod.request = pod.request.filter(|r| *r != Request::Granted);
            }
            Action::Evict(n) => {
                let pod = state.pod(n);
                (pod.process, pod.object) = (Process::Dead, Object::Gone);
                pod.request = pod.request.filter(|r| *r != Request::Granted);
            }
            Action::CutOff(n) | Action::Collect(n) => state.pod(n).object = Object::Gone,
            Action::Restart(n) => {
                let pod = state.pod(n);
                (pod.process, pod.life, pod.request) = (Process::Born, pod.life + 1, None);
                state.restarts += 1;
            }
            _ => {}
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let counts = AttemptCounts { infrastructure: self.faults.lost, ..AttemptCounts::default() };
        let begun = (self.faults.lost > 0).then(|| StepRunStatus { counts, ..StepRunStatus::default() });
        vec![State {
            now: Version { status: self.ledger.number(begun), answered: false },
            before: None,
            jobs: [Job::Absent; ATTEMPTS],
            was: None,
            pods: [None; PODS],
            operators: [Queue::default(); 2],
            delayed: None,
            closing: false,
            deletions: 0,
            restarts: 0,
            answers: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // Operators have no names: of two that are idle, the second is enough.
        let busy = state.operators.iter().filter(|queue| queue.first().is_some()).count();
        if busy < self.faults.operators.into() {
            actions.extend(self.passes(state).iter().map(|queue| Action::Pass(1, *queue)));
        }
        for (n, queue) in (0..).zip(state.operators) {
            if queue.first().is_some() {
                actions.extend([Action::Write(n), Action::Crash(n, Loss::Lost)]);
                if self.faults.late && state.delayed.is_none() {
                    actions.push(Action::Crash(n, Loss::Delayed));
                }
            }
        }
        if state.delayed.is_some() {
            actions.push(Action::Arrive);
        }
        self.actions_of_jobs(state, actions);
        self.actions_of_pods(state, actions);
        let facts = self.facts(state.now);
        if facts.waits && !state.now.answered && state.answers < self.faults.answers {
            actions.push(Action::AnswerRetry);
        }
        if self.faults.closing && !state.closing {
            actions.push(Action::Close);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Pass(n, queue) => state.operators[usize::from(n)] = queue,
            Action::Write(n) => {
                let n = usize::from(n);
                let act = state.operators[n].first()?;
                let rest = state.operators[n].acts().skip(1);
                state.operators[n].keep(rest);
                state.carry_out(act, Some(n));
            }
            Action::Crash(n, loss) => {
                let queue = std::mem::take(&mut state.operators[usize::from(n)]);
                if loss == Loss::Delayed {
                    state.delayed = queue.first().map(Delayed::Act);
                }
            }
            Action::Arrive => match state.delayed.take()? {
                Delayed::Act(act) => state.carry_out(act, None),
                Delayed::Patch(who, patch) => {
                    state.commit(&self.ledger, who, patch);
                }
            },
            Action::MakePod(slot) => {
                let free = state.pods.iter().position(Option::is_none)?;
                state.pods[free] = Some(Pod {
                    attempt: slot + 1,
                    life: 0,
                    object: Object::Running,
                    process: Process::Born,
                    request: None,
                    starts: 0,
                });
            }
            Action::EndJob(slot) => state.set_job(slot, Job::Ended),
            Action::DeleteByHand(slot) => {
                state.set_job(slot, Job::Deleting);
                state.deletions += 1;
            }
            Action::Finalize(slot) => state.set_job(slot, Job::Absent),
            Action::AnswerRetry => {
                state.answers += 1;
                state.write(Version { answered: true, ..state.now }, None);
            }
            Action::Close => state.closing = true,
            of_a_pod => self.act_on_pod(&mut state, of_a_pod),
        }
        let past = self.facts(state.before.unwrap_or(state.now)).attempt;
        Some(state.tidy(past, &self.faults))
    }

    fn within_boundary(&self, state: &State) -> bool {
        usize::try_from(self.facts(state.now).attempt).is_ok_and(|attempt| attempt <= ATTEMPTS)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a command starts once in an attempt", |_: &Self, s: &State| {
                (1..=ATTEMPTS).all(|attempt| s.starts(i32::try_from(attempt).unwrap_or_default()) <= 1)
            }),
            Property::always("only who claimed starts", |w: &Self, s: &State| w.only_holders_start(s)),
            Property::always("the fence never goes back", |w: &Self, s: &State| {
                s.before.is_none_or(|before| w.facts(before).attempt <= w.facts(s.now).attempt)
            }),
            Property::always("an end is the end", |w: &Self, s: &State| {
                s.before.is_none_or(|before| !w.facts(before).ended || before.status == s.now.status)
            }),
            Property::always("a report is of the attempt that claimed", |w: &Self, s: &State| {
                let facts = w.facts(s.now);
                facts.report.is_none_or(|report| facts.claim.is_some_and(|c| i32::from(c.attempt) == report))
            }),
            Property::always("a success was reported by who started", |w: &Self, s: &State| w.successes_happened(s)),
            Property::always("an attempt ends once", |w: &Self, s: &State| {
                let facts = w.facts(s.now);
                let mut numbers: Vec<i32> = facts.records.iter().map(|(number, _)| *number).collect();
                numbers.dedup();
                numbers.len() == facts.records.len() && numbers.is_sorted()
            }),
            // One that may simply be repeated is lost to the cluster, too, when its pod was taken away while it ran.
            Property::always(
                "what counts as lost to the cluster never starts, unless it is idempotent",
                |w: &Self, s: &State| {
                    let lost = |(_, result): &&(i32, AttemptResult)| *result == AttemptResult::Infrastructure;
                    w.faults.idempotent
                        || w.facts(s.now).records.iter().filter(lost).all(|(number, _)| s.starts(*number) == 0)
                },
            ),
            Property::always("nothing starts again before a person says so", |w: &Self, s: &State| {
                w.people_are_asked(s)
            }),
            Property::sometimes("a step completes", |w: &Self, s: &State| w.facts(s.now).result.is_some()),
            Property::sometimes("a step waits", |w: &Self, s: &State| w.facts(s.now).waits),
        ]
    }
}

impl World {
    /// A process that started had the claim; the claim of its attempt is its own for as long as it is there.
    fn only_holders_start(&self, state: &State) -> bool {
        let claim = self.facts(state.now).claim;
        (0..).zip(state.pods).all(|(n, pod)| {
            pod.is_none_or(|pod| pod.starts == 0 || claim.is_none_or(|c| c.attempt != pod.attempt || c.pod == n))
        })
    }

    fn successes_happened(&self, state: &State) -> bool {
        let facts = self.facts(state.now);
        let recorded = facts.records.iter().filter(|(_, r)| *r == AttemptResult::Succeeded).map(|(number, _)| *number);
        recorded.chain(facts.result).all(|number| state.starts(number) == 1)
    }

    /// After an attempt of unknown outcome a step that is not idempotent goes on by an answer only.
    fn people_are_asked(&self, state: &State) -> bool {
        let facts = self.facts(state.now);
        let answers = facts.status.as_ref().map_or(0, |s| s.counts.answers);
        let unknown =
            facts.records.iter().filter(|(_, r)| *r == AttemptResult::OutcomeUnknown).map(|(number, _)| *number);
        self.faults.idempotent || answers > 0 || unknown.max().is_none_or(|number| facts.attempt == number)
    }

    fn print(&self, path: Vec<(State, Option<Action>)>) -> String {
        let mut text = String::new();
        for (state, action) in path {
            let facts = self.facts(state.now);
            text += &format!("{}\n    jobs {:?} pods {:?}\n", facts.text, state.jobs, state.pods);
            if let Some(action) = action {
                text += &format!("  {action:?}\n");
            }
        }
        text
    }
}

impl Ends for World {
    fn is_fault(action: &Action) -> bool {
        use Action as A;
        matches!(
            action,
            A::Crash(..)
                | A::DeleteByHand(_)
                | A::LoseReport(_)
                | A::Forget(..)
                | A::Kill(..)
                | A::Evict(_)
                | A::CutOff(_)
                | A::Collect(_)
                | A::Restart(_)
                | A::AnswerRetry
                | A::Close
        )
    }
    /// A terminal phase, a wait that names what it waits for, or beyond what is looked at.
    fn is_end(&self, state: &State) -> bool {
        let facts = self.facts(state.now);
        facts.ended || facts.waits || !self.within_boundary(state)
    }
}

/// Checks one world; the violation with the way to it, if there is one.
pub fn check(faults: Faults) -> Option<String> {
    let begun = Instant::now();
    let world = World::new(faults);
    let ledger = Arc::clone(&world.ledger);
    let checker = world.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "{}: {} states, {} transitions tried, depth {}, {:.1} s",
        faults.name,
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f64()
    );
    let world = World { faults, ledger, known: Mutex::default() };
    for property in world.properties() {
        let discovery = checker.discovery(property.name);
        match (property.expectation, discovery) {
            (stateright::Expectation::Sometimes, None) => return Some(format!("{}: never", property.name)),
            (stateright::Expectation::Always, Some(path)) => {
                return Some(format!("not so: {}\n{}", property.name, world.print(path.into_vec())));
            }
            _ => {}
        }
    }
    None
}

/// A state of this world from which nothing leads to an end.
pub fn stuck(faults: Faults) -> Option<String> {
    let world = World::new(faults);
    let lost = explore::stuck(faults.name, &world)?;
    Some(format!("no way out of\n{}{lost:?}", world.print(vec![(lost, None)])))
}

const CALM: Faults = Faults {
    name: "calm",
    operators: 1,
    late: false,
    stale_jobs: true,
    pods: 2,
    deletions: 0,
    restarts: 0,
    answers: 0,
    closing: false,
    idempotent: false,
    lost: 4,
};

/// The worlds that are looked at, small ones first: together all that may go wrong, not all of it at once.
pub const WORLDS: [Faults; 6] = [
    Faults { name: "a Job deleted by hand, an answer", pods: 1, deletions: 1, answers: 1, ..CALM },
    Faults { name: "a shim that starts again", late: true, pods: 1, restarts: 1, lost: 0, ..CALM },
    Faults { name: "the run closes", late: true, pods: 1, closing: true, idempotent: true, ..CALM },
    Faults { name: "a late write beside two operators", late: true, operators: 2, pods: 1, stale_jobs: false, ..CALM },
    Faults { name: "two pods, stale caches", ..CALM },
    Faults { name: "two pods, two operators", operators: 2, stale_jobs: false, lost: 5, ..CALM },
];

/// The first violation in any world.
pub fn find_violation() -> Option<String> {
    WORLDS.into_iter().find_map(check)
}
