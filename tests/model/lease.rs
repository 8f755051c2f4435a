//! The lease with the real `cluster::lease::step`: candidates whose calls are served late, twice thought lost, or answered
//! late; who stop for any time; whose clocks stand still for a while; who die and start again under their old name.
//!
//! Time goes in beats. A state keeps ages, not instants, and of versions only whether they are the newest.

use std::time::{Duration, Instant};

use lockstep::cluster::lease::{self, Action as Does, Event, LeaseRecord, Times};
use stateright::{Checker, HasDiscoveries, Model, Property};

use super::fence::explore::{self, Ends};

const BEAT: Duration = Duration::from_secs(1);
/// As far apart as the real ones, in fewer beats: a leader's clock may lose one beat between two renewals.
const TIMES: Times = Times { lease: beats(4), renew: beats(2), retry: BEAT, call: BEAT };
/// What every clock shows: ages count backwards from here.
const NOW: Duration = beats(100);
const NEWEST: &str = "newest";
const OLDER: &str = "older";

const fn beats(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A write that the API server has not served yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Put {
    base: Option<String>,
    holder: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    None,
    Reading,
    Writing(Put, Duration),
    /// Served; the answer is under way.
    Answer(Event),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    machine: lease::State,
    call: Call,
    /// A write of a call that nobody waits for any more.
    late: Option<Put>,
    /// Its clock has stood still since the last renewal.
    slow: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    lease: Option<LeaseRecord>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A beat passes for all, but not on the clock of this one.
    Beat(Option<usize>),
    Due(usize),
    /// The API server serves the call.
    Serve(usize),
    Hear(usize),
    /// The call counts as failed; a write may land yet.
    GiveUp(usize),
    Land(usize),
    Die(usize),
    /// SIGTERM: the lease is given back, and the next process starts.
    Stop(usize),
}

pub struct Election {
    pub candidates: usize,
}

fn own(n: usize) -> String {
    format!("c{n}")
}

fn fresh() -> lease::State {
    lease::State::Standby(None)
}

impl State {
    fn serve(&mut self, put: &Put) -> Option<LeaseRecord> {
        if self.lease.as_ref().map(|l| &l.version) != put.base.as_ref() {
            return None;
        }
        self.age_versions();
        let seen = LeaseRecord { version: NEWEST.into(), holder: put.holder.clone() };
        self.lease = Some(seen.clone());
        Some(seen)
    }

    /// What was the newest version is not any more, wherever it is remembered.
    fn age_versions(&mut self) {
        let older = |version: &mut String| OLDER.clone_into(version);
        for candidate in &mut self.candidates {
            match &mut candidate.machine {
                lease::State::Standby(Some((seen, _))) => older(&mut seen.version),
                lease::State::Leading { version: Some(version), .. } => older(version),
                _ => {}
            }
            match &mut candidate.call {
                Call::Writing(Put { base: Some(base), .. }, _) => older(base),
                Call::Answer(Event::Read(Some(seen)) | Event::Written { seen, .. }) => older(&mut seen.version),
                _ => {}
            }
            if let Some(Put { base: Some(base), .. }) = &mut candidate.late {
                older(base);
            }
        }
    }

    /// One step of a machine; what it wants becomes its call.
    fn hear(&mut self, n: usize, event: Event) {
        let own = own(n);
        let candidate = &mut self.candidates[n];
        if matches!(event, Event::Written { .. }) {
            candidate.slow = false;
        }
        let (machine, action) = lease::step(candidate.machine.clone(), event, NOW, (&own, &TIMES));
        candidate.machine = machine;
        candidate.call = match action {
            Does::Read => Call::Reading,
            Does::Take(base) => Call::Writing(Put { base, holder: own }, NOW),
            Does::Wait(_) => Call::None,
            Does::Leave(version) => {
                candidate.late = Some(Put { base: Some(version), holder: String::new() });
                candidate.machine = fresh();
                Call::None
            }
            // The process ends, and another begins in its place.
            Does::Exit(_) => {
                candidate.machine = fresh();
                Call::None
            }
        };
    }

    fn give_up(&mut self, n: usize) {
        let candidate = &mut self.candidates[n];
        if let Call::Writing(put, _) = std::mem::replace(&mut candidate.call, Call::None) {
            candidate.late = Some(put);
        }
    }

    fn beat(&mut self, still: Option<usize>) {
        let older = |at: &mut Duration| *at = at.saturating_sub(BEAT).max(NOW.saturating_sub(TIMES.lease));
        for (n, candidate) in self.candidates.iter_mut().enumerate() {
            if still == Some(n) {
                candidate.slow = matches!(candidate.machine, lease::State::Leading { .. })
                    || matches!(candidate.call, Call::Writing(..) | Call::Answer(Event::Written { .. }));
                continue;
            }
            match &mut candidate.machine {
                lease::State::Standby(Some((_, since))) | lease::State::Leading { since, .. } => older(since),
                _ => {}
            }
            if let Call::Writing(_, sent) | Call::Answer(Event::Written { sent, .. }) = &mut candidate.call {
                older(sent);
            }
        }
    }

    fn leaders(&self) -> usize {
        self.candidates.iter().filter(|c| lease::leads(&c.machine, NOW, &TIMES)).count()
    }

    /// A write whose base is gone can only fail, a second time it need not be told.
    fn tidy(mut self) -> Self {
        let version = self.lease.as_ref().map(|l| l.version.clone());
        for candidate in &mut self.candidates {
            candidate.late = candidate.late.take().filter(|put| put.base == version);
        }
        self
    }
}

impl Model for Election {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let candidate = Candidate { machine: fresh(), call: Call::None, late: None, slow: false };
        vec![State { lease: None, candidates: vec![candidate; self.candidates] }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Beat(None));
        for (n, candidate) in state.candidates.iter().enumerate() {
            if !candidate.slow {
                actions.push(Action::Beat(Some(n)));
            }
            match &candidate.call {
                Call::None => actions.push(Action::Due(n)),
                Call::Reading | Call::Writing(..) => actions.push(Action::Serve(n)),
                Call::Answer(_) => actions.push(Action::Hear(n)),
            }
            if candidate.call != Call::None {
                actions.push(Action::GiveUp(n));
            }
            if candidate.late.is_some() {
                actions.push(Action::Land(n));
            }
            actions.push(Action::Die(n));
            if lease::leads(&candidate.machine, NOW, &TIMES) {
                actions.push(Action::Stop(n));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Beat(still) => state.beat(still),
            Action::Due(n) => state.hear(n, Event::Due),
            Action::Serve(n) => {
                let answer = match state.candidates[n].call.clone() {
                    Call::Reading => Event::Read(state.lease.clone()),
                    Call::Writing(put, sent) => match state.serve(&put) {
                        Some(seen) => Event::Written { seen, sent },
                        None => Event::Conflict,
                    },
                    Call::None | Call::Answer(_) => return None,
                };
                state.candidates[n].call = Call::Answer(answer);
            }
            Action::Hear(n) => {
                let Call::Answer(event) = std::mem::replace(&mut state.candidates[n].call, Call::None) else {
                    return None;
                };
                state.hear(n, event);
            }
            Action::GiveUp(n) => {
                state.give_up(n);
                state.hear(n, Event::Failed);
            }
            Action::Land(n) => {
                let put = state.candidates[n].late.take()?;
                state.serve(&put);
            }
            Action::Die(n) => {
                state.give_up(n);
                state.candidates[n].machine = fresh();
                state.candidates[n].slow = false;
            }
            Action::Stop(n) => {
                state.give_up(n);
                state.hear(n, Event::Stop);
            }
        }
        Some(state.tidy())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two that believe they lead", |_: &Self, s: &State| s.leaders() <= 1),
            Property::sometimes("the second leads", |_: &Self, s: &State| {
                lease::leads(&s.candidates[1].machine, NOW, &TIMES)
            }),
        ]
    }
}

impl Ends for Election {
    fn is_fault(action: &Action) -> bool {
        matches!(action, Action::Beat(Some(_)) | Action::GiveUp(_) | Action::Die(_) | Action::Stop(_))
    }

    /// Somebody leads.
    fn is_end(&self, state: &State) -> bool {
        state.leaders() == 1
    }
}

/// The violation with the way to it, if there is one.
pub fn find_violation(candidates: usize) -> Option<String> {
    let begun = Instant::now();
    let checker = Election { candidates }.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "{candidates} candidates: {} states, {} transitions tried, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f64()
    );
    for (name, expected) in [("never two that believe they lead", false), ("the second leads", true)] {
        if let Some(path) = checker.discovery(name).filter(|_| !expected) {
            return Some(format!("not so: {name}\n{path:#?}"));
        }
        if expected && checker.discovery(name).is_none() {
            return Some(format!("{name}: never"));
        }
    }
    None
}

/// A state after which nobody leads again.
pub fn stuck(candidates: usize) -> Option<String> {
    explore::stuck("the lease", &Election { candidates }).map(|state| format!("nobody leads after\n{state:#?}"))
}
