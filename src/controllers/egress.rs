//! NetworkPolicies that no Agent, Job or pod needs any more are looked for now and then: nothing wakes for them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::context::Context;
use crate::cluster::egress;

/// Between two looks; two of them must find the same. Longer than any launch takes.
const EVERY: Duration = Duration::from_secs(600);

/// Looks for ever.
pub async fn sweep(context: &Context) {
    let mut before = BTreeSet::new();
    let mut due = tokio::time::interval(EVERY);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let observer = &context.observer;
        let network = &observer.installation.network;
        match egress::sweep(&observer.client, &observer.world, network, &mut before).await {
            Ok(gone) => gone.iter().for_each(|policy| tracing::info!(policy, "not needed any more, deleted")),
            Err(error) => {
                tracing::warn!(%error, "NetworkPolicies that are not needed any more could not be looked for");
            }
        }
    }
}
