//! The course of a run as server-sent events: what happened so far, then what happens, until the run is over.

#![expect(clippy::disallowed_methods, reason = "heartbeats, and when rights are asked again")]

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use kube::ResourceExt;
use serde::Serialize;
use tokio::time::Instant;

use super::call::Call;
use super::caller::Right;
use super::outcome::{self, Outcome};
use super::problem::{Problem, Result};
use super::result::{answer, output_of, url};
use super::stream_limit::StreamPermit;
use super::view::Begun;
use super::watches::Following;
use super::{Http, runs};
use crate::api::{StepRun, Workflow};
use crate::decide::history::label;
use crate::decide::timeline::{self, EventPayload, Fact, FactKey};
use crate::server::Peer;
use crate::server::peer::Busy;

const HEARTBEAT: Duration = Duration::from_secs(15);
/// Rights are asked again after this.
const RECHECK: Duration = Duration::from_secs(60);
/// Changes that come together are told together.
const PACE: Duration = Duration::from_millis(100);
/// After a broken line what is new comes first, and what was probably told before so much later: a line that breaks again and
/// again gets on all the same.
const REPEAT: Duration = Duration::from_secs(2);
/// A reader that takes nothing for so long is sent away: heartbeats fill its buffers in the end.
const STALLED: Duration = Duration::from_secs(120);
/// A run that the watch does not know yet, or not any more, is waited for so long.
const ABSENT: Duration = Duration::from_secs(10);
/// Events that are ready for a reader who has not taken them yet: what is more stays where all readers have it, in the watch.
const READY: usize = 256;
/// A larger result is told by its address.
const RESULT_BYTES: usize = 64 * 1024;

/// `GET /runs/{run}/events`
pub async fn events(http: Arc<Http>, mut call: Call) -> Result<Response> {
    let run = runs::find(&http, &call).await?;
    runs::must_see_steps(&http, &call).await?;
    call.place = None;
    open(&http, call, run, Begun::Now)
}

/// Opens the stream. What its caller may see was asked, and is asked again every minute.
pub fn open(http: &Arc<Http>, call: Call, run: Arc<Workflow>, begun: Begun) -> Result<Response> {
    let permit = http.streams.try_acquire(&call.caller.user).ok_or_else(Problem::no_stream)?;
    let (namespace, name) = (run.namespace().unwrap_or_default(), run.name_any());
    let last = call.header("last-event-id").or_else(|| call.query("lastEventId")).unwrap_or_default();
    let location = url(&run, "");
    let feed = Feed {
        following: http.watches.follow(&namespace, &name),
        last: FactKey::parse(last),
        sent: HashSet::new(),
        versions: HashMap::new(),
        newest: HashMap::new(),
        queue: VecDeque::new(),
        later: Vec::new(),
        repeat: Instant::now() + REPEAT,
        recheck: Instant::now() + RECHECK,
        absent: Instant::now() + ABSENT,
        state: StreamState::Open,
        _busy: call.peer.hold(),
        guard: Guard::of(&call.peer),
        http: Arc::clone(http),
        call,
        run,
        begun,
        _permit: permit,
    };
    let events = futures::stream::unfold(Box::new(feed), |mut feed| async move {
        let event = feed.next().await?;
        Some((Ok::<_, Infallible>(event), feed))
    });
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("heartbeat")).into_response();
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(&location) {
        headers.insert(header::CONTENT_LOCATION, location);
    }
    // Proxies that gather answers would hold the events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// How far a stream has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StreamState {
    Open,
    /// The run is over; its outcome is still to be sent.
    Over,
    /// The last event was sent.
    Closed,
}

/// One stream. It holds the ids of what it has sent, and the few events that its reader has not taken yet: a slow reader costs
/// no more.
struct Feed {
    http: Arc<Http>,
    call: Call,
    run: Arc<Workflow>,
    begun: Begun,
    following: Following,
    /// The last fact that was seen on an earlier line.
    last: Option<FactKey>,
    /// Hashes of the ids of all facts that were sent.
    sent: HashSet<u64>,
    /// The version of each StepRun that was looked at, by the hash of its UID.
    versions: HashMap<u64, u64>,
    /// The last event without an id that was sent, by step; under the empty name that of the run.
    newest: HashMap<String, EventPayload>,
    queue: VecDeque<Event>,
    /// What an earlier line has probably told.
    later: Vec<Event>,
    repeat: Instant,
    recheck: Instant,
    absent: Instant,
    state: StreamState,
    guard: Guard,
    _busy: Busy,
    _permit: StreamPermit,
}

impl Feed {
    async fn next(&mut self) -> Option<Event> {
        loop {
            self.guard.alive();
            if self.queue.is_empty() && (self.state == StreamState::Over || Instant::now() >= self.repeat) {
                self.queue.extend(self.later.drain(..));
            }
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            match self.state {
                StreamState::Closed => return None,
                StreamState::Over => {
                    self.state = StreamState::Closed;
                    let outcome = self.came_to().await;
                    self.queue.push_back(outcome);
                    continue;
                }
                StreamState::Open => {}
            }
            let is_left = self.gather();
            if self.queue.is_empty() && self.state == StreamState::Open && (!is_left || self.is_full()) {
                self.wait().await;
            }
        }
    }

    /// Until something changes; asks for the rights again when it is time.
    async fn wait(&mut self) {
        let mut due = self.recheck.min(Instant::now() + HEARTBEAT);
        if !self.later.is_empty() {
            due = due.min(self.repeat);
        }
        if tokio::time::timeout_at(due, self.following.changed()).await.is_ok() {
            tokio::time::sleep(PACE).await;
        }
        self.guard.alive();
        if Instant::now() >= self.recheck {
            self.recheck = Instant::now() + RECHECK;
            if let Err(problem) = self.may_go_on().await {
                self.state = StreamState::Closed;
                self.queue.push_back(event("error", &problem.refusal));
            }
        }
    }

    async fn may_go_on(&self) -> Result<()> {
        let (callers, caller) = (&self.http.callers, &self.call.caller);
        // A token that is not good any more is refused here, too.
        let name = self.run.name_any();
        let namespace = self.call.namespace.as_str();
        callers.must_now(caller, Right { verb: "get", resource: "workflows", namespace, name: &name }).await?;
        callers.must_now(caller, Right { verb: "list", resource: "stepruns", namespace, name: "" }).await
    }

    /// Puts into the queue what was not told yet, the oldest first, as far as there is room; says whether something is left.
    fn gather(&mut self) -> bool {
        let Some(run) = self.current() else { return false };
        let mut news = self.http.watches.steps(&run);
        news.retain(|step| self.is_news(step));
        news.sort_by_cached_key(began);
        let mut facts: Vec<(Fact, Option<usize>)> =
            timeline::of_run(&run).into_iter().map(|fact| (fact, None)).collect();
        let ended = facts.pop_if(|(fact, _)| fact.payload.event == "run.ended");
        let (taken, until) = self.take(&news, &mut facts);
        facts.sort_by(|(a, _), (b, _)| a.key.cmp(&b.key));
        let mut is_whole = vec![true; taken];
        let mut is_left = taken < news.len();
        for (fact, of) in facts {
            if fact.key.seconds() > until || self.is_full() {
                is_left = true;
                if let Some(of) = of {
                    is_whole[of] = false;
                }
            } else {
                self.send(fact);
            }
        }
        for (step, is_whole) in news.iter().zip(is_whole) {
            if !is_whole || self.is_full() {
                is_left = true;
                continue;
            }
            match timeline::progress(step) {
                Some(payload) => self.send_newest(label(step), payload),
                None => drop(self.newest.remove(&label(step))),
            }
            self.versions.insert(hash(&step.uid().unwrap_or_default()), version(step));
        }
        if !is_left {
            self.send_newest(String::new(), timeline::phase(&run));
            if let Some((ended, _)) = ended {
                self.send(ended);
                self.state = StreamState::Over;
            }
        }
        self.run = run;
        is_left
    }

    /// The facts of as many steps as it takes to fill the queue; how many those are, and up to when nothing of the others comes
    /// before: steps stand in the order in which they began, and a later one tells of nothing earlier.
    fn take(&self, news: &[Arc<StepRun>], facts: &mut Vec<(Fact, Option<usize>)>) -> (usize, i64) {
        let mut taken = 0;
        loop {
            let until = news.get(taken).map_or(i64::MAX, began);
            let is_ready = |fact: &Fact| fact.key.seconds() <= until && !self.sent.contains(&hash(&fact.payload.id));
            if taken == news.len() || facts.iter().filter(|(fact, _)| is_ready(fact)).count() >= READY {
                return (taken, until);
            }
            let some = (taken..news.len()).take(READY);
            taken += some.len();
            facts
                .extend(some.flat_map(|of| timeline::of_step(&news[of]).into_iter().map(move |fact| (fact, Some(of)))));
        }
    }

    fn is_full(&self) -> bool {
        self.queue.len() + self.later.len() >= READY
    }

    /// The run as it is; none while the watch does not show it.
    fn current(&mut self) -> Option<Arc<Workflow>> {
        let cached = self.http.watches.run(&self.call.namespace, &self.run.name_any());
        if let Some(run) = cached.filter(|run| run.uid() == self.run.uid()) {
            self.absent = Instant::now() + ABSENT;
            return Some(run);
        }
        if Instant::now() >= self.absent {
            self.state = StreamState::Closed;
            self.queue.push_back(event("error", &Problem::not_found("the run was deleted").refusal));
            return None;
        }
        Some(Arc::clone(&self.run)).filter(|_| self.sent.is_empty())
    }

    fn is_news(&self, step: &StepRun) -> bool {
        self.versions.get(&hash(&step.uid().unwrap_or_default())) != Some(&version(step))
    }

    fn send(&mut self, fact: Fact) {
        let Fact { key, payload } = fact;
        let was_seen = self.last.as_ref().is_some_and(|last| key == *last || key.is_long_before(last));
        if !self.sent.insert(hash(&payload.id)) || was_seen {
            return;
        }
        let event = event(payload.event, &payload);
        // What an earlier line has probably told comes after what is new, and does not take its reader's place back.
        if self.last.as_ref().is_some_and(|last| key < *last) {
            self.later.push(event);
        } else {
            self.queue.push_back(event.id(payload.id));
        }
    }

    fn send_newest(&mut self, whose: String, payload: EventPayload) {
        if self.newest.get(&whose) != Some(&payload) {
            self.queue.push_back(event(payload.event, &payload));
            self.newest.insert(whose, payload);
        }
    }

    /// The last event: what `POST /run` answers.
    async fn came_to(&self) -> Event {
        let mut said = answer(&self.run, self.begun);
        match outcome::of(&self.run, self.http.watches.steps(&self.run).iter().map(AsRef::as_ref)) {
            Outcome::Failed(failure) | Outcome::Cancelled(failure) => event("failure", &failure),
            Outcome::Completed(output) => {
                match output_of(&self.call.caller, &self.call.namespace, output.as_ref()).await {
                    Ok(result) if result.to_string().len() <= RESULT_BYTES => said.result = result,
                    Ok(_) => said.result_url = Some(url(&self.run, "/result")),
                    Err(problem) => return event("error", &problem.refusal),
                }
                event("result", &said)
            }
            _ => event("result", &said),
        }
    }
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let text = serde_json::to_string(data).unwrap_or_default();
    Event::default().event(name).data(text)
}

/// In seconds; what has not begun has nothing to tell.
fn began(step: &Arc<StepRun>) -> i64 {
    let at = step.status.as_ref().and_then(|status| status.started_at.as_ref());
    at.map_or(i64::MAX, |at| at.0.as_second())
}

fn version(step: &StepRun) -> u64 {
    step.resource_version().and_then(|v| v.parse().ok()).unwrap_or_default()
}

/// Of ids that we made ourselves.
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Ends the connection of a reader that has not taken anything for long.
struct Guard {
    seen: tokio::sync::watch::Sender<Instant>,
    task: tokio::task::AbortHandle,
}

impl Guard {
    fn of(peer: &Peer) -> Self {
        let (seen, mut last) = tokio::sync::watch::channel(Instant::now());
        let peer = peer.clone();
        let task = tokio::spawn(async move {
            loop {
                let due = *last.borrow_and_update() + STALLED;
                tokio::time::sleep_until(due).await;
                if *last.borrow() + STALLED <= Instant::now() {
                    peer.cut();
                    return;
                }
            }
        });
        Self { seen, task: task.abort_handle() }
    }

    /// The reader asks for more.
    fn alive(&self) {
        self.seen.send_replace(Instant::now());
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
    }
}
