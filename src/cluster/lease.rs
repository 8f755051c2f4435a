//! Who of several operators works: a Lease, held by one. `step` decides and knows no clock; `Elector` asks and writes.
//!
//! It saves work and protects nothing: two that work at once are safe. Another's lease counts as left only when its
//! resourceVersion stayed the same for the lease time on our own clock, so that clocks need not agree; the holder stops
//! before that, at the renew deadline, counted from when its last good write was sent.

#![expect(clippy::disallowed_methods, reason = "how long a lease stood still; the pace of renewals")]

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Error;
use super::clock::Clock;
use crate::api::name::OPERATOR;

/// The three times, and the longest that one call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// An unchanged lease of another is left after this.
    pub lease: Duration,
    /// Who could not renew for so long does not lead any more.
    pub renew: Duration,
    pub retry: Duration,
    /// Less than `lease - renew`.
    pub call: Duration,
}

pub const TIMES: Times = Times {
    lease: Duration::from_secs(15),
    renew: Duration::from_secs(10),
    retry: Duration::from_secs(2),
    call: Duration::from_secs(4),
};

/// The lease as the API server gave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseRecord {
    pub version: String,
    /// Empty: nobody's.
    pub holder: String,
}

/// Instants are durations since the process began.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Another's lease, and since when it looks like that.
    Standby(Option<(LeaseRecord, Duration)>),
    /// Ours: its version, and when the write that brought it was sent.
    Leading {
        version: Option<String>,
        since: Duration,
    },
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// It is time to look, or to renew.
    Due,
    Read(Option<LeaseRecord>),
    /// Our write landed; when it was sent.
    Written {
        seen: LeaseRecord,
        sent: Duration,
    },
    /// Somebody wrote before us.
    Conflict,
    /// No answer, or none that helps.
    Failed,
    /// SIGTERM.
    Stop,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Read,
    /// Make ourselves the holder, of that version; of none: create it.
    Take(Option<String>),
    /// Empty the holder, so that the next need not wait.
    Leave(String),
    Wait(Duration),
    /// The process must end: why.
    Exit(&'static str),
}

/// Whether this one may work now.
pub fn leads(state: &State, now: Duration, times: &Times) -> bool {
    matches!(state, State::Leading { since, .. } if now.saturating_sub(*since) < times.renew)
}

/// What an event means at `now`, to the one that calls itself `own`.
pub fn step(state: State, event: Event, now: Duration, (own, times): (&str, &Times)) -> (State, Action) {
    match state {
        State::Standby(seen) => standby(seen, event, now, (own, times)),
        State::Leading { version, since } => leading((version, since), event, now, (own, times)),
        State::Over => (State::Over, Action::Exit("it is over")),
    }
}

fn standby(
    known: Option<(LeaseRecord, Duration)>,
    event: Event,
    now: Duration,
    (own, times): (&str, &Times),
) -> (State, Action) {
    match event {
        Event::Due => (State::Standby(known), Action::Read),
        Event::Read(None) => (State::Standby(None), Action::Take(None)),
        Event::Read(Some(seen)) => {
            let since = known.filter(|(before, _)| before.version == seen.version).map_or(now, |(_, since)| since);
            // Ours already: written by the process that was here before, or by a call whose reply was lost.
            let free = seen.holder.is_empty() || seen.holder == own;
            let left = now.saturating_sub(since) >= times.lease;
            let action =
                if free || left { Action::Take(Some(seen.version.clone())) } else { Action::Wait(times.retry) };
            (State::Standby(Some((seen, since))), action)
        }
        Event::Written { seen, sent } => {
            let state = State::Leading { version: Some(seen.version), since: sent };
            if leads(&state, now, times) {
                return (state, Action::Wait(times.retry));
            }
            // The reply came when the lease was nearly over; whoever waits may have it by now.
            (State::Standby(None), Action::Read)
        }
        Event::Conflict | Event::Failed => (State::Standby(known), Action::Wait(times.retry)),
        Event::Stop => (State::Over, Action::Exit("stopped")),
    }
}

fn leading(
    (version, since): (Option<String>, Duration),
    event: Event,
    now: Duration,
    (own, times): (&str, &Times),
) -> (State, Action) {
    if let (Event::Stop, Some(version)) = (&event, &version) {
        return (State::Over, Action::Leave(version.clone()));
    }
    if let Event::Written { seen, sent } = event {
        let state = State::Leading { version: Some(seen.version), since: sent };
        return if leads(&state, now, times) {
            (state, Action::Wait(times.retry))
        } else {
            (State::Over, Action::Exit("the lease was renewed too late"))
        };
    }
    let state = State::Leading { version: version.clone(), since };
    if !leads(&state, now, times) {
        return (State::Over, Action::Exit("the lease could not be renewed in time"));
    }
    match event {
        Event::Due => (state, Action::Take(version)),
        // Perhaps by ourselves: a call whose reply was lost.
        Event::Conflict => (state, Action::Read),
        Event::Read(Some(seen)) if seen.holder != own => (State::Over, Action::Exit("another has taken the lease")),
        Event::Read(seen) => {
            let version = seen.map(|seen| seen.version);
            (State::Leading { version: version.clone(), since }, Action::Take(version))
        }
        Event::Failed | Event::Written { .. } => (state, Action::Wait(times.retry)),
        Event::Stop => (State::Over, Action::Exit("stopped")),
    }
}

/// Whether this process leads, as the rest of it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// Another process leads: its identity, empty where that is not known.
    Following(String),
    Leading,
}

/// Asks and writes, for one candidate.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    own: String,
    begun: Instant,
    clock: Clock,
    state: State,
    leadership: watch::Sender<Leadership>,
}

impl Elector {
    /// `own` must be of this process alone, or of the ones that were in its place before.
    pub fn new(client: Client, (namespace, name): (&str, &str), own: String, clock: Clock) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            own,
            begun: Instant::now(),
            clock,
            state: State::Standby(None),
            leadership: watch::Sender::new(Leadership::Following(String::new())),
        }
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Stands by, leads, renews; returns why it is over.
    pub async fn run(&mut self) -> &'static str {
        let mut event = Event::Due;
        loop {
            let now = self.begun.elapsed();
            let before = std::mem::replace(&mut self.state, State::Over);
            let (state, action) = step(before, event, now, (&self.own, &TIMES));
            self.state = state;
            self.tell();
            event = match action {
                Action::Read => self.read().await,
                Action::Take(version) => self.take(version).await,
                Action::Wait(time) => {
                    tokio::time::sleep(self.at_most(time)).await;
                    Event::Due
                }
                Action::Leave(_) => return "stopped",
                Action::Exit(why) => return why,
            };
        }
    }

    /// Gives the lease back, if it is ours: the next need not wait for its end.
    pub async fn leave(&mut self) {
        let before = std::mem::replace(&mut self.state, State::Over);
        let (_, action) = step(before, Event::Stop, self.begun.elapsed(), (&self.own, &TIMES));
        if let Action::Leave(version) = action {
            let left = self.bounded(self.write(Some(version), String::new())).await;
            tracing::info!(given = left.is_ok(), "the lease is given back");
        }
    }

    fn tell(&self) {
        let leadership = match &self.state {
            State::Leading { .. } => Leadership::Leading,
            State::Standby(known) => {
                Leadership::Following(known.as_ref().map(|(seen, _)| seen.holder.clone()).unwrap_or_default())
            }
            State::Over => return,
        };
        let news = self.leadership.send_if_modified(|old| {
            let differs = *old != leadership;
            *old = leadership.clone();
            differs
        });
        match leadership {
            Leadership::Leading if news => tracing::info!(lease = self.name, own = self.own, "leading"),
            Leadership::Following(holder) if news && !holder.is_empty() => {
                tracing::info!(lease = self.name, own = self.own, "standing by for {holder}");
            }
            _ => {}
        }
    }

    /// Nothing is waited for beyond the moment at which leading ends.
    fn at_most(&self, time: Duration) -> Duration {
        match self.state {
            State::Leading { since, .. } => time.min((since + TIMES.renew).saturating_sub(self.begun.elapsed())),
            _ => time,
        }
    }

    async fn bounded<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
        let limit = self.at_most(TIMES.call);
        match tokio::time::timeout(limit, call).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Error::Timeout("leases", limit)),
        }
    }

    async fn read(&self) -> Event {
        match self.bounded(self.api.get_opt(&self.name)).await {
            Ok(found) => Event::Read(found.as_ref().map(seen)),
            Err(error) => failed(&error),
        }
    }

    async fn take(&self, version: Option<String>) -> Event {
        let sent = self.begun.elapsed();
        match self.bounded(self.write(version, self.own.clone())).await {
            Ok(written) => Event::Written { seen: seen(&written), sent },
            Err(error) if error.is_conflict() || error.is_already_exists() => Event::Conflict,
            // Deleted: the next look finds none.
            Err(error) if error.is_not_found() => Event::Conflict,
            Err(error) => failed(&error),
        }
    }

    /// PUT with the version, or POST without one: both fail if anybody wrote before.
    async fn write(&self, version: Option<String>, holder: String) -> kube::Result<Lease> {
        let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
        let mut lease = Lease::default();
        lease.metadata.name = Some(self.name.clone());
        lease.metadata.resource_version.clone_from(&version);
        // For people who read the Lease; no decision reads a clock of another machine.
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(holder),
            lease_duration_seconds: i32::try_from(TIMES.lease.as_secs()).ok(),
            renew_time: Some(MicroTime(self.clock.now().0)),
            ..LeaseSpec::default()
        });
        match version {
            Some(_) => self.api.replace(&self.name, &params, &lease).await,
            None => self.api.create(&params, &lease).await,
        }
    }
}

fn seen(lease: &Lease) -> LeaseRecord {
    LeaseRecord {
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        holder: lease.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default(),
    }
}

fn failed(error: &Error) -> Event {
    tracing::warn!(%error, "the lease could not be read or written");
    Event::Failed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lease(version: &str, holder: &str) -> LeaseRecord {
        LeaseRecord { version: version.to_owned(), holder: holder.to_owned() }
    }

    fn go(state: &State, event: Event, seconds: u64) -> (State, Action) {
        step(state.clone(), event, at(seconds), ("me", &TIMES))
    }

    fn take(version: &str) -> Action {
        Action::Take(Some(version.to_owned()))
    }

    const RETRY: Action = Action::Wait(TIMES.retry);

    #[test]
    fn another_s_lease_is_taken_when_it_stood_still_for_the_whole_time() {
        let (state, action) = go(&State::Standby(None), Event::Read(Some(lease("1", "you"))), 100);
        assert_eq!(action, RETRY);
        let (state, action) = go(&state, Event::Read(Some(lease("1", "you"))), 114);
        assert_eq!(action, RETRY);
        let (moved, action) = go(&state, Event::Read(Some(lease("2", "you"))), 115);
        assert_eq!(action, RETRY);
        assert_eq!(go(&moved, Event::Read(Some(lease("2", "you"))), 129).1, RETRY);
        assert_eq!(go(&moved, Event::Read(Some(lease("2", "you"))), 130).1, take("2"));
        assert_eq!(go(&state, Event::Read(Some(lease("1", "you"))), 115).1, take("1"));
    }

    #[test]
    fn what_is_nobodys_or_our_own_is_taken_at_once() {
        let fresh = State::Standby(None);
        assert_eq!(go(&fresh, Event::Due, 0).1, Action::Read);
        assert_eq!(go(&fresh, Event::Read(None), 0).1, Action::Take(None));
        assert_eq!(go(&fresh, Event::Read(Some(lease("1", ""))), 0).1, take("1"));
        assert_eq!(go(&fresh, Event::Read(Some(lease("1", "me"))), 0).1, take("1"));
        for event in [Event::Conflict, Event::Failed] {
            assert_eq!(go(&fresh, event, 0), (fresh.clone(), RETRY));
        }
    }

    #[test]
    fn leading_counts_from_the_sending_of_the_write() {
        let written = Event::Written { seen: lease("2", "me"), sent: at(100) };
        let (state, action) = go(&State::Standby(None), written.clone(), 103);
        assert_eq!(action, RETRY);
        assert!(leads(&state, at(109), &TIMES) && !leads(&state, at(110), &TIMES));
        assert_eq!(go(&state, Event::Due, 109).1, take("2"));
        for event in [Event::Due, Event::Failed, Event::Conflict, Event::Read(None)] {
            assert_eq!(go(&state, event, 110).0, State::Over);
        }
        assert_eq!(go(&State::Standby(None), written.clone(), 110), (State::Standby(None), Action::Read));
        assert_eq!(go(&state, written, 110).0, State::Over);
    }

    #[test]
    fn a_lost_reply_is_told_from_a_lost_lease() {
        let state = State::Leading { version: Some("2".to_owned()), since: at(100) };
        assert_eq!(go(&state, Event::Failed, 104), (state.clone(), RETRY));
        assert_eq!(go(&state, Event::Conflict, 104), (state.clone(), Action::Read));
        let (again, action) = go(&state, Event::Read(Some(lease("3", "me"))), 104);
        assert_eq!((action, leads(&again, at(110), &TIMES)), (take("3"), false));
        assert_eq!(go(&state, Event::Read(Some(lease("3", "you"))), 104).0, State::Over);
        assert_eq!(go(&state, Event::Read(None), 104).1, Action::Take(None));
    }

    #[test]
    fn who_stops_gives_back_what_it_holds() {
        let state = State::Leading { version: Some("2".to_owned()), since: at(100) };
        assert_eq!(go(&state, Event::Stop, 104), (State::Over, Action::Leave("2".to_owned())));
        assert_eq!(go(&State::Standby(None), Event::Stop, 104).0, State::Over);
    }

    #[test]
    fn the_times_fit() {
        assert!(TIMES.renew + TIMES.call < TIMES.lease && TIMES.retry + TIMES.call < TIMES.renew);
    }
}
