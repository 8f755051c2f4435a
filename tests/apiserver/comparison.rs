//! T4: the API server in memory, `src/apiserver`, against the real one, through the same client. Random requests from a seed go to both; after each the
//! replies must agree, and at the end of a story what the watches told. The garbage collector works in its own time, so
//! where it acts its end is waited for, and compared. What lists and watches say of versions needs no chance: `reads`.
//! LOCKSTEP_COMPARISON_SEEDS=N runs that many stories from LOCKSTEP_COMPARISON_FIRST_SEED on, LOCKSTEP_COMPARISON_SEED=n one, with every request and both replies:
//!
//!     KUBECONFIG=... cargo test --test apiserver comparison -- --nocapture

#[path = "../simulation/chance.rs"]
#[expect(dead_code, reason = "the simulation's, which uses all of it")]
mod chance;
mod draw;
mod reads;
#[path = "../simulation/server.rs"]
#[expect(dead_code, reason = "the simulation's, which uses all of it")]
mod server;
mod sides;
mod twins;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use draw::{Both, Drawer};
use http::Method;
use serde_json::{Value, json};
use server::{KINDS, Kind, NAMESPACE};
use sides::{Real, Said, Sent, send};
use twins::{Twins, differences};

use crate::support::{Ask, OPERATOR, Team, Who, policies_whole, until};

const SEEDS: u64 = 80;
const REQUESTS: usize = 30;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What was compared: how often, by the reason of the refusal.
#[derive(Default)]
struct Counts {
    requests: usize,
    refused: BTreeMap<String, usize>,
    collected: usize,
}

/// One seed's requests to both.
struct Story {
    twins: Twins,
    lines: Vec<String>,
    counts: Counts,
    /// The garbage collector had something to do.
    collected: bool,
    /// What the watches told before.
    heard: usize,
}

#[tokio::test]
async fn the_server_in_memory_is_like_the_real_one() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("comparison").await?;
    // The policies let the operator do what the kinds allow, and as a master it may ask for it.
    let client = Who::user(OPERATOR, &["system:masters"]).await?.client();
    until("the default account", || async {
        Ok(team.admin.asks(&Ask::get(format!("{}/default", team.core("serviceaccounts")))).await.ok())
    })
    .await?;
    collector_knows_the_kinds(&team).await?;
    let mut real = Real::open(client, &team.namespace).await?;
    let one = number("LOCKSTEP_COMPARISON_SEED");
    let first = number("LOCKSTEP_COMPARISON_FIRST_SEED").unwrap_or(0);
    let many = first..first + number("LOCKSTEP_COMPARISON_SEEDS").unwrap_or(SEEDS);
    let seeds = one.map_or(many, |seed| seed..seed + 1);
    let (began, mut counts, stories) = (Instant::now(), Counts::default(), seeds.end - seeds.start);
    for seed in seeds {
        let mut story = Story {
            twins: Twins::default(),
            lines: Vec::new(),
            counts: Counts::default(),
            collected: false,
            heard: real.log.len(),
        };
        let told = story.tell(seed, &team.namespace, &mut real).await;
        counts.add(&story.counts);
        if one.is_some() || told.is_err() {
            println!("{}", story.lines.join("\n"));
        }
        if let Err(why) = told {
            bail!(
                "seed {seed}: {why}\nagain: LOCKSTEP_COMPARISON_SEED={seed} cargo test --test apiserver comparison -- --nocapture"
            );
        }
    }
    let Counts { requests, refused, collected } = &counts;
    let (events, took) = (real.log.len(), began.elapsed());
    println!("{stories} stories, {requests} requests compared, {events} watch events, {took:.0?}");
    println!("refused: {refused:?}; acts of the collector: {collected}");
    if stories >= SEEDS {
        let reasons = ["", "AlreadyExists", "Conflict", "Invalid", "NotFound"];
        let never: Vec<_> = reasons.iter().filter(|r| !refused.contains_key(**r)).collect();
        ensure!(never.is_empty() && *collected > 0, "these stories are too dull: nothing is refused as {never:?}");
    }
    team.close().await
}

/// The collector of a young cluster learns of new kinds within half a minute.
async fn collector_knows_the_kinds(team: &Team) -> Result<()> {
    for round in 0..3 {
        let name = format!("young-{round}");
        let owner = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name},
            "spec": {"template": {}}});
        let made = team.admin.gets(&Ask::post(team.all("agents"), owner.clone())).await?;
        let mut child = owner;
        child["metadata"] = json!({"name": format!("{name}-child"), "ownerReferences": [{
            "apiVersion": "lockstep.dev/v1alpha1", "kind": "Agent", "name": name, "uid": made["metadata"]["uid"]}]});
        team.admin.gets(&Ask::post(team.all("agents"), child)).await?;
        team.admin.gets(&Ask::delete(team.one("agents", &name))).await?;
        let gone = until("what an agent owns is collected", || async {
            let child = team.admin.asks(&Ask::get(team.one("agents", &format!("{name}-child")))).await;
            Ok(child.is_err_and(|refusal| refusal.code == 404).then_some(()))
        });
        if gone.await.is_ok() {
            return Ok(());
        }
    }
    bail!("the garbage collector does not act on Lockstep's kinds")
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.collected += other.collected;
        for (reason, count) in &other.refused {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
    }
}

impl Story {
    async fn tell(&mut self, seed: u64, namespace: &str, real: &mut Real) -> Result<()> {
        // A node of its own, which nobody has: the controller manager forgets pods of a node that it long misses.
        let mut drawer = Drawer::new(seed, &format!("{namespace}-{seed}"));
        self.twins.memory.set_clock("2026-01-01T00:00:00Z".parse()?);
        for _ in 0..REQUESTS {
            let both = drawer.next(&self.twins);
            self.step(&both, real).await?;
        }
        while let Some(both) = Drawer::last(&self.twins) {
            ensure!(self.counts.requests < REQUESTS + 100, "what is left cannot be taken away");
            self.step(&both, real).await?;
        }
        self.settle(real).await?;
        self.watched(real)
    }

    async fn step(&mut self, both: &Both, real: &mut Real) -> Result<()> {
        self.counts.requests += 1;
        if both.memory.method == Method::DELETE {
            // The collector hears of dependants by watches as we do: it must know them before the owner goes.
            self.settle(real).await?;
        }
        let client = self.twins.memory.api.client(NAMESPACE);
        let memory = send(&client, NAMESPACE, &both.memory).await?;
        self.twins.memory.catch_up();
        self.lines.push(format!("{:3} {:?}", self.counts.requests, both.memory));
        self.lines.push(format!("    memory {}", shown(&memory)));
        let said = real.send(&both.real).await?;
        self.lines.push(format!("    real   {}", shown(&said)));
        self.agree(&both.memory, &memory, &said)?;
        if let Err((_, reason, _)) = &memory {
            *self.counts.refused.entry(reason.clone()).or_default() += 1;
        }
        let before = self.counts.collected;
        while let Some(act) = self.twins.memory.collect() {
            self.lines.push(format!("    {act}"));
            self.counts.collected += 1;
            ensure!(self.counts.collected < 1000, "the collector in memory comes to no end");
        }
        if self.counts.collected > before {
            self.collected = true;
            self.settle(real).await?;
        }
        Ok(())
    }

    fn agree(&mut self, sent: &Sent, memory: &Said, real: &Said) -> Result<()> {
        match (memory, real) {
            (Err((code, reason, message)), Err((real_code, real_reason, real_message))) => {
                ensure!(
                    (code, reason) == (real_code, real_reason),
                    "{sent:?}: memory {code} {reason} {message}, real {real_code} {real_reason} {real_message}"
                );
                // Where it names neither UIDs nor versions, people read the same.
                let is_plain = matches!(reason.as_str(), "NotFound" | "AlreadyExists")
                    || message.contains("object has been modified");
                ensure!(!is_plain || message == real_message, "memory says {message:?}, the real one {real_message:?}");
            }
            (Ok(object), Ok(value)) => {
                // The reply to a delete that is done is a bare Status for most kinds.
                if object["kind"] == "Status" {
                    let finalizers = &value["metadata"]["finalizers"];
                    ensure!(finalizers.is_null(), "{sent:?}: memory: gone, real: {}", brief(value));
                    return Ok(());
                }
                ensure!(value["kind"] == object["kind"], "{sent:?}: memory: it is there, real: {value}");
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let stored = self.twins.memory.find(sent.kind, name).cloned();
                if let Some(stored) = stored.filter(|o| object["metadata"]["uid"] == o.uid.as_str()) {
                    self.twins.pair(&stored, value, true).map_err(|why| anyhow::anyhow!("{sent:?}: {why}"))?;
                }
                let different = self.differ(sent.kind, object, value);
                ensure!(different.is_empty(), "{sent:?}:\n{different}");
            }
            (Ok(_), Err((code, reason, message))) => {
                bail!("{sent:?}: memory: accepted, real: {code} {reason} {message}")
            }
            (Err(refused), Ok(value)) => bail!("{sent:?}: memory: {refused:?}, real: accepted {}", brief(value)),
        }
        Ok(())
    }

    fn differ(&self, kind: Kind, memory: &Value, real: &Value) -> String {
        differences(&self.twins.view(kind, memory), &self.twins.view(kind, real))
    }

    /// Waits until the real server has what the one in memory has, and nothing else.
    async fn settle(&mut self, real: &mut Real) -> Result<()> {
        let same = real.hears(|real| self.apart(real).is_empty()).await?;
        ensure!(same, "what is there at last:\n{}", self.apart(real));
        let all: Vec<_> = KINDS.iter().flat_map(|kind| self.twins.memory.all(*kind)).cloned().collect();
        for object in all {
            let value = &real.objects[&(object.kind, object.name.clone())];
            self.twins.pair(&object, value, false).map_err(|why| anyhow::anyhow!("{} at last: {why}", object.name))?;
        }
        Ok(())
    }

    /// Where what is there differs, or was not yet heard of.
    fn apart(&self, real: &Real) -> String {
        let mut lines = Vec::new();
        for object in KINDS.iter().flat_map(|kind| self.twins.memory.all(*kind)) {
            match real.objects.get(&(object.kind, object.name.clone())) {
                None => lines.push(format!("  {:?} {}: only the one in memory has it", object.kind, object.name)),
                Some(value) => {
                    let mut different = self.differ(object.kind, &object.value, value);
                    if let Some(version) = self.twins.other_version(object, value) {
                        different += &format!("    version: real {version} at first");
                    }
                    if !different.is_empty() {
                        lines.push(format!("  {:?} {}:\n{different}", object.kind, object.name));
                    }
                }
            }
        }
        for (kind, name) in real.objects.keys().filter(|(k, n)| self.twins.memory.find(*k, n).is_none()) {
            lines.push(format!("  {kind:?} {name}: only the real server has it"));
        }
        // What came and went, or is again as it was, looks the same before it was heard of.
        let (events, told) = (self.twins.memory.log.len(), real.log.len() - self.heard);
        if events != told {
            lines.push(format!("  the one in memory tells {events} events, the real server {told}"));
        }
        lines.join("\n")
    }

    /// The log in memory is what the watches told: object by object, and where no collector acted, all in one order.
    fn watched(&self, real: &Real) -> Result<()> {
        let mut told: Vec<_> = real.log[self.heard..].iter().collect();
        told.sort_by_key(|(_, _, o)| o["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok()));
        let mut told: Vec<_> = told.into_iter().map(|(kind, word, o)| (*word, self.twins.view(*kind, o))).collect();
        let mut log: Vec<_> = Vec::new();
        for event in &self.twins.memory.log {
            let word = match (&event.before, &event.after) {
                (None, _) => "added",
                (_, None) => "deleted",
                _ => "modified",
            };
            log.push((word, self.twins.view(event.object().kind, &event.object().value)));
        }
        if self.collected {
            let name = |(_, o): &(&str, Value)| (o["kind"].to_string(), o["name"].to_string());
            told.sort_by_key(name);
            log.sort_by_key(name);
        }
        for at in 0..log.len().max(told.len()) {
            let (memory, real) = (log.get(at), told.get(at));
            let different = match (memory, real) {
                (Some((a, memory)), Some((b, real))) if a == b => differences(memory, real),
                _ => format!("    memory {memory:?}\n    real {real:?}"),
            };
            ensure!(different.is_empty(), "event {at} of the watch:\n{different}");
        }
        Ok(())
    }
}

fn shown(said: &Said) -> String {
    said.as_ref().map_or_else(|refusal| format!("{refusal:?}"), |value| brief(value).to_string())
}

/// Without what makes a real object long.
fn brief(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(meta) = value["metadata"].as_object_mut() {
        meta.remove("managedFields");
    }
    value
}
