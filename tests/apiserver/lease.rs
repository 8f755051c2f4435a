//! Several operators and one Lease, with the rights that the chart gives them.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use lockstep::cluster::clock::Clock;
use lockstep::cluster::lease::{Elector, Leadership, TIMES};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::support::{Ask, OPERATOR, PATIENCE, Who};

const NAMESPACE: &str = "lockstep-system";
/// The chart's: its role speaks of no other.
const LEASE: &str = "lockstep-operator";

struct Candidate {
    leadership: watch::Receiver<Leadership>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

async fn candidate(own: &str) -> Result<Candidate> {
    let client = Who::user(OPERATOR, &[]).await?.client();
    let mut elector = Elector::new(client, (NAMESPACE, LEASE), own.to_owned(), Clock::default());
    let leadership = elector.leadership();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(async move {
        tokio::select! {
            _ = elector.run() => {}
            _ = stopped => {}
        }
        elector.leave().await;
    });
    Ok(Candidate { leadership, stop, task })
}

impl Candidate {
    async fn comes_to(&mut self, wanted: Leadership) -> Result<()> {
        let heard = self.leadership.wait_for(|leadership| *leadership == wanted);
        tokio::time::timeout(PATIENCE, heard).await.with_context(|| format!("not {wanted:?} in time"))??;
        Ok(())
    }

    fn leads(&self) -> bool {
        *self.leadership.borrow() == Leadership::Leading
    }
}

#[tokio::test]
async fn one_operator_leads_and_another_goes_on() -> Result<()> {
    let admin = Who::admin().await?;
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{LEASE}");
    // What a run before this one may have left; most often there is none.
    let _ = admin.asks(&Ask::delete(&path)).await;

    let mut first = candidate("first").await?;
    first.comes_to(Leadership::Leading).await?;
    let mut second = candidate("second").await?;
    second.comes_to(Leadership::Following("first".to_owned())).await?;
    ensure!(first.leads() && !second.leads(), "both lead");

    let begun = Instant::now();
    first.stop.send(()).ok().context("the first ended by itself")?;
    first.task.await?;
    second.comes_to(Leadership::Leading).await?;
    ensure!(begun.elapsed() < TIMES.renew, "a lease that was given back was waited for: {:?}", begun.elapsed());
    let lease = admin.gets(&Ask::get(&path)).await?;
    ensure!(lease["spec"]["holderIdentity"] == "second", "{lease}");

    let mut third = candidate("third").await?;
    third.comes_to(Leadership::Following("second".to_owned())).await?;
    let begun = Instant::now();
    second.task.abort();
    third.comes_to(Leadership::Leading).await?;
    ensure!(begun.elapsed() > TIMES.renew, "taken from one that could still lead: {:?}", begun.elapsed());
    third.stop.send(()).ok().context("the third ended by itself")?;
    third.task.await?;
    let lease = admin.gets(&Ask::get(&path)).await?;
    ensure!(lease["spec"]["holderIdentity"] == "", "not given back: {lease}");
    Ok(())
}
