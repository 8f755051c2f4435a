//! 10,000 StepRuns in one namespace: what selectors and pages give, and how long it takes. The times are printed and not
//! judged: `cargo test --test apiserver ten_thousand -- --nocapture`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::support::{Ask, Team, policies_whole, step_run};

const ALL: usize = 10_000;
const REQUESTS_AT_ONCE: usize = 64;

type Wanted = fn(&Of) -> bool;

/// One StepRun by its number: runs of 1,000 steps, seven agents, every thirteenth waits at its gate.
struct Of(usize);

impl Of {
    fn name(&self) -> String {
        format!("step-{:05}", self.0)
    }

    fn run(&self) -> String {
        format!("run-{}", self.0 % 10)
    }

    fn agent(&self) -> String {
        format!("agent-{}", self.0 % 7)
    }

    fn waits(&self) -> bool {
        self.0.is_multiple_of(13)
    }

    fn body(&self) -> Value {
        let spec = json!({"workflow": {"name": self.run(), "uid": "u-1"}, "agentId": self.agent()});
        let mut body = step_run(&self.name(), &spec);
        body["metadata"]["labels"] = json!({"lockstep.dev/workflow": self.run(), "lockstep.dev/agent": self.agent()});
        body
    }
}

/// What a list came to.
struct Listed {
    names: Vec<String>,
    pages: usize,
    bytes: usize,
    took: Duration,
}

/// All pages, as kubectl asks for them: each continues the one before, over the same state of the store.
async fn list(team: &Team, query: &[(&str, &str)]) -> Result<Listed> {
    let (began, mut listed) =
        (Instant::now(), Listed { names: Vec::new(), pages: 0, bytes: 0, took: Duration::default() });
    let (mut token, mut version) = (String::new(), None);
    loop {
        let mut words = form_urlencoded::Serializer::new(String::new());
        words.extend_pairs(query);
        if !token.is_empty() {
            words.append_pair("continue", &token);
        }
        let page = team.bob.gets(&Ask::get(format!("{}?{}", team.all("stepruns"), words.finish()))).await?;
        let meta = &page["metadata"];
        let same = version.get_or_insert_with(|| meta["resourceVersion"].clone());
        ensure!(*same == meta["resourceVersion"], "the pages are of different states: {query:?}");
        let items = page["items"].as_array().context("no items")?;
        let name = |item: &Value| item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        listed.names.extend(items.iter().map(name));
        listed.pages += 1;
        listed.bytes += page.to_string().len();
        let limit = query.iter().find(|(key, _)| *key == "limit").and_then(|(_, value)| value.parse().ok());
        ensure!(limit.is_none_or(|limit: usize| items.len() <= limit), "a page of {}: {query:?}", items.len());
        meta["continue"].as_str().unwrap_or_default().clone_into(&mut token);
        if token.is_empty() {
            listed.took = began.elapsed();
            return Ok(listed);
        }
    }
}

#[tokio::test]
async fn ten_thousand_step_runs_are_found_by_selector_and_page() -> Result<()> {
    let team = {
        let _whole = policies_whole().await;
        Team::open("many").await?
    };
    // Where its policies were tried.
    team.admin.gets(&Ask::delete(team.one("stepruns", "canary"))).await?;
    let began = Instant::now();
    let made = stream::iter((0..ALL).map(Of)).map(|of| {
        let team = &team;
        async move {
            team.operator.gets(&Ask::post(team.all("stepruns"), of.body())).await?;
            if of.waits() {
                let phase = json!({"status": {"phase": "WaitingForAcceptance"}});
                team.operator.gets(&Ask::patch(team.one("stepruns", &format!("{}/status", of.name())), phase)).await?;
            }
            anyhow::Ok(())
        }
    });
    made.buffer_unordered(REQUESTS_AT_ONCE).try_collect::<()>().await?;
    println!("{ALL} StepRuns made in {:.1} s", began.elapsed().as_secs_f64());

    let waiting = ("fieldSelector", "status.phase=WaitingForAcceptance");
    let of_run = ("fieldSelector", "spec.workflow.name=run-3");
    let three = ("fieldSelector", "spec.workflow.name=run-3,spec.agentId=agent-2,status.phase=WaitingForAcceptance");
    let labelled = ("labelSelector", "lockstep.dev/workflow=run-3");
    let cases: [(&[(&str, &str)], Wanted); 9] = [
        (&[], |_| true),
        (&[("limit", "500")], |_| true),
        (&[waiting], Of::waits),
        (&[waiting, ("limit", "100")], Of::waits),
        (&[of_run], |of| of.run() == "run-3"),
        (&[("fieldSelector", "spec.agentId=agent-2"), ("limit", "500")], |of| of.agent() == "agent-2"),
        (&[three], |of| of.run() == "run-3" && of.agent() == "agent-2" && of.waits()),
        (&[labelled, ("limit", "500")], |of| of.run() == "run-3"),
        (&[labelled, waiting], |of| of.run() == "run-3" && of.waits()),
    ];
    println!("{:>8} {:>6} {:>8} {:>9}  query", "objects", "pages", "KiB", "ms");
    for (query, wanted) in cases {
        let listed = list(&team, query).await?;
        println!(
            "{:>8} {:>6} {:>8} {:>9.1}  {query:?}",
            listed.names.len(),
            listed.pages,
            listed.bytes / 1024,
            listed.took.as_secs_f64() * 1000.0
        );
        let expected: BTreeSet<String> = (0..ALL).map(Of).filter(wanted).map(|of| of.name()).collect();
        let found: BTreeSet<String> = listed.names.iter().cloned().collect();
        ensure!(found.len() == listed.names.len(), "one is listed twice: {query:?}");
        ensure!(found == expected, "{} of {} were found: {query:?}", found.len(), expected.len());
    }
    team.close().await
}
