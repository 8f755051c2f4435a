//! `await`: holds a call until people have said what an attempt waits for. A watch of that one StepRun tells, so that any gateway
//! answers, whoever asked; nothing is kept here, and a call that is made again waits on.

#![expect(clippy::disallowed_methods, reason = "how long a call is held, and the pause before a watch begins anew")]

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{WatchEvent, WatchParams};
use tokio::time::{Instant, sleep, timeout_at};

use super::attempt::Asked;
use super::auth::Caller;
use super::refusal::{Refusal, Result};
use super::{Gateway, attempt};
use crate::api::StepRun;
use crate::api::limits::{APPROVAL_REQUESTS, QUESTIONS};
use crate::decide::{approval, question};
use crate::protocol::{AttemptRef, AwaitReply, AwaitRequest, HOLD_SECONDS};

const PAUSE: Duration = Duration::from_millis(200);

/// A call that waits.
struct Waiting<'a> {
    who: &'a AttemptRef,
    caller: &'a Caller,
    wanted: &'a AwaitRequest,
}

impl Waiting<'_> {
    /// Whether people have answered and decided all that is waited for; a refusal where the attempt is over.
    fn is_done(&self, step_run: &StepRun) -> Result<bool> {
        attempt::stands(step_run, self.who)?;
        attempt::holds(step_run, self.who, self.caller)?;
        let status = attempt::status(step_run);
        let decided = self.wanted.approvals.iter().all(|digest| approval::is_decided(&status, digest));
        Ok(decided && question::are_answered(&status, &self.wanted.questions))
    }
}

pub async fn wait(gateway: &Gateway, caller: &Caller, request: Asked<AwaitRequest>) -> Result<AwaitReply> {
    let waiting = Waiting { who: &request.attempt, caller, wanted: &request.body };
    let AwaitRequest { questions, approvals, .. } = &request.body;
    if questions.len() > QUESTIONS || approvals.len() > APPROVAL_REQUESTS {
        let most = format!("at most {QUESTIONS} questions and {APPROVAL_REQUESTS} approvals can be waited for");
        return Err(Refusal::bad_request(most));
    }
    let seconds = request.body.seconds.clamp(0, HOLD_SECONDS);
    let until = Instant::now() + Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let mut stopping = gateway.stopping.subscribe();
    let said = async {
        loop {
            let Some(from) = check(gateway, &waiting).await? else { return Ok::<_, Refusal>(()) };
            if watched(gateway, &waiting, &from).await? {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
    };
    let said = pin!(said);
    tokio::select! {
        said = timeout_at(until, said) => match said {
            Ok(Ok(())) => Ok(AwaitReply { done: true }),
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => Ok(AwaitReply::default()),
        },
        // Another gateway takes it up.
        _ = stopping.wait_for(|stopping| *stopping) => Ok(AwaitReply::default()),
    }
}

/// The version of the StepRun from which to watch. A thousand calls may wait at once: each keeps this, and not the object.
struct WatchStart {
    uid: Option<String>,
    version: Option<String>,
}

/// Reads the StepRun once; gives where to watch on from, or nothing where the wait is over.
async fn check(gateway: &Gateway, waiting: &Waiting<'_>) -> Result<Option<WatchStart>> {
    let step_run = attempt::read(gateway, waiting.who).await?;
    let is_done = waiting.is_done(&step_run)?;
    let (uid, version) = (step_run.metadata.uid, step_run.metadata.resource_version);
    Ok((!is_done).then_some(WatchStart { uid, version }))
}

/// Watches the StepRun from that version on; gives whether the wait was over before the watch ended.
async fn watched(gateway: &Gateway, waiting: &Waiting<'_>, from: &WatchStart) -> Result<bool> {
    let seconds = u32::try_from(HOLD_SECONDS).unwrap_or(u32::MAX);
    let name = &waiting.who.step_run;
    let one = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(seconds).disable_bookmarks();
    let version = from.version.as_deref().unwrap_or("0");
    let Ok(changes) = attempt::api(gateway, waiting.who).watch(&one, version).await else { return Ok(false) };
    let mut changes = pin!(changes);
    while let Some(Ok(change)) = changes.next().await {
        match change {
            WatchEvent::Added(now) | WatchEvent::Modified(now)
                if now.metadata.uid == from.uid && waiting.is_done(&now)? =>
            {
                return Ok(true);
            }
            WatchEvent::Deleted(_) | WatchEvent::Error(_) => break,
            _ => {}
        }
    }
    Ok(false)
}
