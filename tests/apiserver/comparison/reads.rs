//! What lists and watches say of versions, in memory and by the real server: where a watch begins, what is still to come, and that
//! a busy watch ends in time. Both sides go through the same stories, and what they say must be the same.

use anyhow::{Context as _, Result, anyhow, ensure};
use futures::future::try_join_all;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Method, Request as Http};
use kube::Client;
use kube::core::{Status, WatchEvent};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::server::{Kind, NAMESPACE, Server};
use crate::support::{PATIENCE, Team, Who, policies_whole};

/// A version that neither side comes to.
const FUTURE: &str = "resourceVersion=4000000000000000";
const LIST: &str = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
const NO_LIST: &str = "sendInitialEvents=false&resourceVersionMatch=NotOlderThan";
const BOOKMARKS: &str = "allowWatchBookmarks=true";

/// What is told, or why nothing is.
type Told = Result<Events, String>;
type Events = BoxStream<'static, kube::Result<WatchEvent<Value>>>;

/// One of both servers, with the Agents of a namespace.
struct Side {
    client: Client,
    agents: String,
}

/// What a server is able to do: those before 1.34 do not begin a watch with a list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lists {
    ByWatch,
    Only,
}

#[tokio::test]
async fn lists_and_watches_in_memory_say_of_versions_what_the_real_ones_say() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("reads").await?;
    let real = Side { client: Who::once().await?.client(), agents: team.all("agents") };
    let server = Server::default();
    let memory = Side { client: server.api.client(NAMESPACE), agents: Kind::Agent.path(NAMESPACE) };
    let lists = real.lists_by_watch().await?;
    if lists == Lists::Only {
        println!("this server does not list by a watch: that is left out");
    }
    let stories = [
        ("refusals", refusals(&memory, lists).await?, refusals(&real, lists).await?),
        ("beginnings", beginnings(&memory, lists).await?, beginnings(&real, lists).await?),
        ("the future", future(&memory, lists).await?, future(&real, lists).await?),
    ];
    for (story, memory, real) in stories {
        ensure!(memory == real, "{story}: memory says\n{}\nthe real one\n{}", memory.join("\n"), real.join("\n"));
    }
    for (side, name) in [(&memory, "memory"), (&real, "real")] {
        ends_while_it_is_busy(side).await.context(name)?;
    }
    team.close().await
}

impl Side {
    async fn lists_by_watch(&self) -> Result<Lists> {
        let refused = self.watch(&format!("{LIST}&{BOOKMARKS}")).await?.err();
        Ok(if refused.is_some_and(|why| why.contains("WatchList")) { Lists::Only } else { Lists::ByWatch })
    }

    async fn ask(&self, method: Method, rest: &str, body: &Value) -> Result<Result<Value, Box<Status>>> {
        let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Http::builder().method(method).uri(format!("{}{rest}", self.agents));
        let request = request.header("content-type", content).body(body)?;
        match timeout(PATIENCE, self.client.request::<Value>(request)).await.context("no answer")? {
            Ok(value) => Ok(Ok(value)),
            Err(kube::Error::Api(status)) => Ok(Err(status)),
            Err(other) => Err(other.into()),
        }
    }

    async fn make(&self, name: &str) -> Result<()> {
        let agent = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name},
            "spec": {"template": {}}});
        self.ask(Method::POST, "", &agent).await?.map(drop).map_err(|why| anyhow!("{name}: {why}"))
    }

    /// What a list is refused for.
    async fn list(&self, query: &str) -> Result<String> {
        let said = self.ask(Method::GET, &format!("?{query}"), &Value::Null).await?;
        Ok(said.err().map_or_else(|| "a list".to_owned(), |status| refusal(&status)))
    }

    async fn watch(&self, query: &str) -> Result<Told> {
        let request = Http::get(format!("{}?watch=true&{query}", self.agents)).body(Vec::new())?;
        match timeout(PATIENCE, self.client.request_events::<Value>(request)).await.context("no answer")? {
            Ok(events) => Ok(Ok(events.boxed())),
            Err(kube::Error::Api(status)) => Ok(Err(refusal(&status))),
            Err(other) => Err(other.into()),
        }
    }

    async fn begin(&self, query: &str) -> Result<Events> {
        self.watch(query).await?.map_err(|why| anyhow!("{query}: {why}"))
    }
}

/// A refusal without the numbers of either side.
fn refusal(status: &Status) -> String {
    let mut message = String::new();
    for c in status.message.chars() {
        match c {
            '0'..='9' if message.ends_with('#') => {}
            '0'..='9' => message.push('#'),
            other => message.push(other),
        }
    }
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    let causes: Vec<String> = causes.iter().map(|c| format!("{} {} {}", c.reason, c.field, c.message)).collect();
    format!("{} {} {message} {causes:?}", status.code, status.reason)
}

fn again_in(status: &Status) -> u32 {
    status.details.as_ref().map(|details| details.retry_after_seconds).unwrap_or_default()
}

fn shown(event: &WatchEvent<Value>) -> String {
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match event {
        WatchEvent::Added(object) => format!("added {}", name(object)),
        WatchEvent::Modified(object) => format!("modified {}", name(object)),
        WatchEvent::Deleted(object) => format!("deleted {}", name(object)),
        // What else it says there is for caches of the same server.
        WatchEvent::Bookmark(bookmark) => {
            format!("bookmark {:?}", bookmark.metadata.annotations.get("k8s.io/initial-events-end"))
        }
        WatchEvent::Error(status) => format!("error {}, again in {} s", refusal(status), again_in(status)),
    }
}

/// What is told next: so many events, or fewer and the word that this is the end.
async fn hear(events: &mut Events, count: usize) -> Result<Vec<String>> {
    let mut told = Vec::new();
    while told.len() < count {
        let next = timeout(PATIENCE, events.try_next()).await;
        let Some(event) = next.with_context(|| format!("neither an event nor an end after {told:?}"))?? else {
            told.push("the end".to_owned());
            break;
        };
        told.push(shown(&event));
    }
    Ok(told)
}

/// What does not go together in a list, and in a watch.
async fn refusals(side: &Side, lists: Lists) -> Result<Vec<String>> {
    let mut said = Vec::new();
    for query in [
        "sendInitialEvents=true",
        "resourceVersionMatch=Exact",
        "resourceVersionMatch=NotOlderThan",
        "resourceVersion=0&resourceVersionMatch=Exact",
    ] {
        said.push(format!("list {query}: {}", side.list(query).await?));
    }
    let mut queries = vec!["resourceVersionMatch=NotOlderThan"];
    if lists == Lists::ByWatch {
        queries.extend([
            "sendInitialEvents=true",
            "sendInitialEvents=false",
            "sendInitialEvents=true&resourceVersionMatch=Exact",
        ]);
    }
    for query in queries {
        let refused = side.watch(query).await?.err();
        said.push(format!("watch {query}: {}", refused.unwrap_or_else(|| "a watch".to_owned())));
    }
    Ok(said)
}

/// What a watch tells first, and what when something comes: no more lies between.
async fn beginnings(side: &Side, lists: Lists) -> Result<Vec<String>> {
    if lists == Lists::Only {
        return Ok(Vec::new());
    }
    for name in ["b", "a"] {
        side.make(name).await?;
    }
    let mut said = Vec::new();
    for (query, first, comes) in [
        (format!("{LIST}&{BOOKMARKS}"), 3, "c"),
        (LIST.to_owned(), 3, "d"),
        (format!("{LIST}&{BOOKMARKS}&resourceVersion=0"), 5, "e"),
        (format!("{LIST}&{BOOKMARKS}&resourceVersion=1"), 6, "f"),
        (NO_LIST.to_owned(), 0, "g"),
        (format!("{NO_LIST}&resourceVersion=0"), 0, "h"),
    ] {
        let mut events = side.begin(&query).await?;
        let mut told = hear(&mut events, first).await?;
        // Nobody promises an order of what was there; what follows it does so on both sides.
        told.sort_by_key(|word| !word.starts_with("added"));
        let there = told.partition_point(|word| word.starts_with("added"));
        told[..there].sort();
        side.make(comes).await?;
        told.extend(hear(&mut events, 1).await?);
        said.push(format!("{query}: {}", told.join(", ")));
    }
    Ok(said)
}

/// A list of what is still to come is refused; a watch from there on is silent till then, or till its time is over.
async fn future(side: &Side, lists: Lists) -> Result<Vec<String>> {
    let queries = [FUTURE.to_owned(), format!("{FUTURE}&resourceVersionMatch=NotOlderThan")];
    let refused = try_join_all(queries.iter().map(|query| async move {
        let status = side.ask(Method::GET, &format!("?{query}"), &Value::Null).await?.err();
        let status = status.with_context(|| format!("{query}: a list"))?;
        anyhow::Ok(format!("list {query}: {}, again in {} s", refusal(&status), again_in(&status)))
    }));
    // When to come again it says in its own way.
    let exact = format!("{FUTURE}&resourceVersionMatch=Exact");
    // That it is refused all servers say; not all say how.
    let (mut said, exactly) = tokio::try_join!(refused, side.list(&exact))?;
    said.push(format!("list {exact}: {}", if exactly == "a list" { "a list" } else { "refused" }));
    let mut events = side.begin(&format!("{FUTURE}&timeoutSeconds=2")).await?;
    side.make("future").await?;
    said.push(format!("watch: {:?}", hear(&mut events, 2).await?));
    if lists == Lists::ByWatch {
        let mut events = side.begin(&format!("{FUTURE}&{LIST}&{BOOKMARKS}")).await?;
        said.push(format!("watch with a list: {:?}", hear(&mut events, 2).await?));
    }
    Ok(said)
}

/// Something happens all the time, and yet the watch has its end.
async fn ends_while_it_is_busy(side: &Side) -> Result<()> {
    side.make("busy").await?;
    let mut events = side.begin("timeoutSeconds=2").await?;
    let mut changes = 0_u64;
    let busy = async {
        loop {
            changes += 1;
            let change = json!({"metadata": {"labels": {"change": changes.to_string()}}});
            if let Err(why) = side.ask(Method::PATCH, "/busy", &change).await? {
                return Err::<(), _>(anyhow!("{why}"));
            }
        }
    };
    let ending = async {
        while events.try_next().await?.is_some() {}
        anyhow::Ok(())
    };
    tokio::select! {
        ended = timeout(PATIENCE, ending) => ended.context("it goes on and on")?,
        failed = busy => failed,
    }
}
