//! Memories whose time is up are looked for now and then: nothing wakes what nobody uses.

use std::time::Duration;

use super::context::Context;
use crate::cluster::memories;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(30);

/// Looks for ever. Without an Agent that limits how long it is remembered a look asks nothing.
pub async fn sweep(context: &Context) {
    let mut due = tokio::time::interval(EVERY);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let observer = &context.observer;
        match memories::sweep(&observer.client, &observer.world, &observer.clock.now()).await {
            Ok(gone) => gone.iter().for_each(|memory| tracing::info!(memory, "not used any more, deleted")),
            Err(error) => tracing::warn!(%error, "Memories that are not used any more could not be looked for"),
        }
    }
}
