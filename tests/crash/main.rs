//! The operator dies at each of its writes, at three positions, and every run must end as if nothing had been: the same
//! objects, each made once, each attempt started once. A real control plane without nodes (KUBECONFIG, rights of an
//! administrator, the chart installed), the real operator as a child process behind a proxy, a fake kubelet.
//!
//! Beside it, with the same operator: hostile runs cost themselves only (`hostile`).
//!
//!     LOCKSTEP_CRASH_SECONDS=300                    how long rounds are begun; 0: until all are done
//!     LOCKSTEP_CRASH_POSITIONS=all                  each write at all three positions, not at one in turn
//!     LOCKSTEP_CRASH_SEED=1                         the order of the writes
//!     LOCKSTEP_CRASH_ONLY='POST jobs:3:Committed'   one round: that write, that position

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test ends by panicking, and a table is as long as its cases"
)]

mod hostile;
mod kubelet;
mod observer;
mod operator;
mod people;
mod plane;
mod port;
mod proxy;
mod rounds;
mod stage;
mod state;
mod workloads;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rounds::{Often, Table, one, planned};
use stage::Stage;

/// Two operators at once would do each other's work.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_changes_nothing() -> Result<()> {
    let _alone = ALONE.lock().await;
    let budget: u64 = setting("LOCKSTEP_CRASH_SECONDS").map_or(Ok(300), |s| s.parse())?;
    let seed: u64 = setting("LOCKSTEP_CRASH_SEED").map_or(Ok(1), |s| s.parse())?;
    let mut stage = Stage::open().await?;
    let began = Instant::now();
    let (first, _) = stage.undisturbed().await?;
    let (expected, writes) = stage.undisturbed().await?;
    let unstable = first.against(&expected);
    ensure!(unstable.is_empty(), "two undisturbed rounds differ:\n{}", unstable.join("\n"));
    println!(
        "undisturbed: {} writes, {} objects, {:.1} s for both",
        writes.len(),
        expected.created.len(),
        began.elapsed().as_secs_f64()
    );

    let often = if setting("LOCKSTEP_CRASH_POSITIONS").as_deref() == Some("all") { Often::Thrice } else { Often::Once };
    let plan = match setting("LOCKSTEP_CRASH_ONLY") {
        Some(only) => vec![one(&only)?],
        None => planned(&writes, often, seed),
    };
    let mut table = Table::default();
    for (round, fault) in plan.iter().enumerate() {
        if budget > 0 && began.elapsed() > Duration::from_secs(budget) {
            break;
        }
        let outcome = stage.disturbed(fault, &expected).await?;
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "round {} of {}: {} {} {:?}, {seconds:.0} s",
            round + 1,
            plan.len(),
            fault.kind,
            fault.number,
            fault.position
        );
        table.enter(fault, outcome);
    }
    let strange = stage.close().await?;
    println!("{}", table.text(&writes, plan.len(), seed));
    ensure!(strange.is_empty(), "what should not have been:\n{}", strange.join("\n"));
    ensure!(
        table.failures().is_empty(),
        "{} rounds ended differently:\n{}",
        table.failures().len(),
        table.failures().join("\n")
    );
    ensure!(table.hits() > 0, "no write was met: the test is vacuous");
    Ok(())
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
