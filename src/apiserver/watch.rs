//! A watch: what happened after a version, and then what happens, a line of JSON for each change.

#![expect(clippy::disallowed_macros, reason = "bookmarks and errors of a watch")]
#![expect(clippy::disallowed_methods, reason = "when a watch ends, and when it tells how far it is")]

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use futures::Stream;
use futures::stream::unfold;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::kind::Kind;
use super::object::Object;
use super::registry::Registry;
use super::request::{Start, Watch};
use super::selector::Selection;
use super::status::{Refusal, expired, too_new};
use super::store::{Change, ChangeType};

/// Between two bookmarks, as the real server has it.
const BOOKMARK: Duration = Duration::from_secs(60);
/// A watch that names no timeout ends after this; the client begins another.
const TIMEOUT_SECONDS: u64 = 1800;

/// Marks the bookmark behind all that was there when the watch began.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// A client's watch.
struct Watching {
    registry: Arc<Mutex<Registry>>,
    commits: Arc<Notify>,
    kind: Kind,
    selection: Selection,
    start: Start,
    /// The last version that was looked at, or the one that the client waits for; none before the beginning was told.
    cursor: Option<u64>,
    /// The last version that the client knows of.
    told: u64,
    /// When the next bookmark is due; none where the client wants none.
    bookmark: Option<Instant>,
    end: Instant,
    is_over: bool,
}

/// The body of the answer, line by line.
pub fn stream(
    (registry, commits): (Arc<Mutex<Registry>>, Arc<Notify>),
    kind: Kind,
    selection: Selection,
    asked: &Watch,
) -> impl Stream<Item = Bytes> + Send + use<> {
    let now = Instant::now();
    // Now is when it is asked, not when the client first reads.
    let after = match asked.start {
        Start::After(version) => Some(version),
        Start::Now => Some(super::lock(&registry).store().version()),
        Start::Everything | Start::List { .. } => None,
    };
    let watching = Watching {
        registry,
        commits,
        kind,
        selection,
        start: asked.start,
        cursor: after,
        told: after.unwrap_or_default(),
        bookmark: asked.bookmarks.then_some(now + BOOKMARK),
        end: now + Duration::from_secs(asked.timeout_seconds.unwrap_or(TIMEOUT_SECONDS)),
        is_over: false,
    };
    unfold(watching, |mut watching| async move {
        let lines = watching.next().await?;
        Some((lines, watching))
    })
}

impl Watching {
    /// What there is to tell; waits until there is something. None at the end.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.is_over {
            // However much happens: its time is over when it is over, and a bookmark comes when it is due.
            let now = Instant::now();
            if now >= self.end {
                return None;
            }
            if let Some(line) = self.due_bookmark(now) {
                return Some(Bytes::from(line));
            }
            // From here on no commit is missed.
            let commits = Arc::clone(&self.commits);
            let mut commit = pin!(commits.notified());
            commit.as_mut().enable();
            let lines = self.lines();
            if !lines.is_empty() {
                return Some(Bytes::from(lines));
            }
            let due = self.bookmark.map_or(self.end, |at| at.min(self.end));
            // Whichever it was, the next round looks.
            let _ = timeout_at(due, commit).await;
        }
        None
    }

    fn lines(&mut self) -> String {
        let registry = Arc::clone(&self.registry);
        let registry = super::lock(&registry);
        let Some(cursor) = self.cursor else { return self.begin(&registry) };
        let version = registry.store().version();
        // Whoever waits for a version that is still to come is told what happens after that one.
        self.cursor = Some(cursor.max(version));
        let mut lines = String::new();
        let Some(changes) = registry.store().changes(cursor) else {
            return self.fail(&expired(&format!("too old resource version: {cursor} ({version})")));
        };
        for change in &changes {
            self.tell(&mut lines, change);
        }
        lines
    }

    /// What is told at first to a client that names no version to go on from.
    fn begin(&mut self, registry: &Registry) -> String {
        let version = registry.store().version();
        if let Start::List { at_least } = self.start
            && at_least > version
        {
            return self.fail(&too_new(at_least, version));
        }
        (self.cursor, self.told) = (Some(version), version);
        let mut lines = String::new();
        for object in registry.store().list(self.kind).iter().filter(|o| self.selection.takes(o)) {
            push(&mut lines, "ADDED", object);
        }
        if matches!(self.start, Start::List { .. }) && self.bookmark.is_some() {
            lines.push_str(&self.bookmark_line(version, &json!({INITIAL_EVENTS_END: "true"})));
        }
        lines
    }

    /// The line that ends the watch with a refusal: its answer has begun, so that no code can say it.
    fn fail(&mut self, why: &Refusal) -> String {
        self.is_over = true;
        format!("{}\n", json!({"type": "ERROR", "object": **why}))
    }

    /// An object that comes into the selection was added, one that leaves it was deleted.
    fn tell(&mut self, lines: &mut String, change: &Change) {
        if change.object.key.kind != self.kind {
            return;
        }
        let is = change.change_type != ChangeType::Deleted && self.selection.takes(&change.object);
        let before = change.before.as_ref().filter(|before| self.selection.takes(before));
        match (before, is) {
            (None, false) => return,
            (None, true) => push(lines, "ADDED", &change.object),
            (Some(_), true) => push(lines, "MODIFIED", &change.object),
            (Some(before), false) => {
                let mut value = before.value.clone();
                value["metadata"]["resourceVersion"] = json!(change.object.version.to_string());
                push(lines, "DELETED", &Object::new(before.key.clone(), value));
            }
        }
        self.told = change.object.version;
    }

    /// Tells which version the client has seen all of; none where that is not due, or where it knows.
    fn due_bookmark(&mut self, now: Instant) -> Option<String> {
        let due = self.bookmark.filter(|due| now >= *due)?;
        self.bookmark = Some(due + BOOKMARK);
        let version = self.cursor.filter(|version| *version > self.told)?;
        self.told = version;
        Some(self.bookmark_line(version, &Value::Null))
    }

    fn bookmark_line(&self, version: u64, annotations: &Value) -> String {
        let (api, name) = (self.kind.api_version(), self.kind.name());
        let mut meta = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        if !annotations.is_null() {
            meta["annotations"] = annotations.clone();
        }
        let object = json!({"apiVersion": api, "kind": name, "metadata": meta});
        format!("{}\n", json!({"type": "BOOKMARK", "object": object}))
    }
}

fn push(lines: &mut String, word: &str, object: &Object) {
    lines.push_str(&format!("{{\"type\":\"{word}\",\"object\":{}}}\n", String::from_utf8_lossy(&object.json())));
}

#[cfg(test)]
mod tests {
    use futures::stream::BoxStream;
    use futures::{FutureExt, StreamExt};
    use k8s_openapi::jiff::Timestamp;
    use tokio::time::advance;

    use super::*;
    use crate::apiserver::access::Open;
    use crate::apiserver::{ApiServer, Format, Key, MemoryStore, Part, Writer};

    const ADMIN: Writer<'static> = Writer { user: "admin", is_dry_run: false };

    fn server() -> ApiServer {
        let (store, clock) = (Box::new(MemoryStore::default()), Box::new(|| Timestamp::UNIX_EPOCH));
        ApiServer::new(Registry::new(store, Box::new(Open), clock, "watch".to_owned()), "admin")
    }

    /// Makes an object, or changes it.
    fn write(server: &ApiServer, name: &str, content: u64) {
        let key = Key::new(Kind::ConfigMap, "team", name);
        let value = json!({"metadata": {"name": name}, "data": {"content": content.to_string()}});
        server.with(|registry| match registry.get(&key) {
            Ok(_) => registry.patch(&key, Part::Main, (Format::Merge, &value), ADMIN).expect("it is changed"),
            Err(_) => registry.create(&key, value, ADMIN).expect("it is made"),
        });
    }

    fn watch(server: &ApiServer, asked: &Watch) -> BoxStream<'static, Bytes> {
        let from = (Arc::clone(&server.registry), Arc::clone(&server.commits));
        stream(from, Kind::ConfigMap, Selection::default(), asked).boxed()
    }

    /// What the watch has to tell now, by word and name; none at its end.
    fn heard(lines: &mut BoxStream<'static, Bytes>) -> Option<Vec<String>> {
        let Some(told) = lines.next().now_or_never() else { return Some(Vec::new()) };
        let told = told?;
        let events = String::from_utf8_lossy(&told);
        let shown = events.lines().map(|line| {
            let event: Value = serde_json::from_str(line).expect("an event");
            let (word, object) = (event["type"].as_str().unwrap_or_default(), &event["object"]);
            let meta = &object["metadata"];
            match word {
                "BOOKMARK" => format!("{word} {} {}", meta["resourceVersion"], meta["annotations"]),
                "ERROR" => format!("{word} {} {}", object["code"], object["message"]),
                _ => format!("{word} {}", meta["name"]),
            }
        });
        Some(shown.collect())
    }

    #[expect(clippy::unnecessary_wraps, reason = "what `heard` gives where the watch goes on")]
    fn some(lines: &[&str]) -> Option<Vec<String>> {
        Some(lines.iter().map(|line| (*line).to_owned()).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_ends_in_time_however_much_happens() {
        let server = server();
        let mut lines = watch(&server, &Watch { timeout_seconds: Some(3), ..Watch::default() });
        for second in 0..3 {
            write(&server, "busy", second);
            assert!(heard(&mut lines).is_some_and(|told| !told.is_empty()), "{second}");
            advance(Duration::from_secs(1)).await;
        }
        write(&server, "busy", 3);
        assert_eq!(heard(&mut lines), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_that_is_to_come_is_waited_for() {
        let server = server();
        write(&server, "a", 0);
        let mut lines = watch(&server, &Watch { start: Start::After(3), bookmarks: true, ..Watch::default() });
        for name in ["b", "c"] {
            assert_eq!(heard(&mut lines), some(&[]), "before {name}");
            write(&server, name, 0);
        }
        advance(BOOKMARK).await;
        assert_eq!(heard(&mut lines), some(&[]), "not behind it yet");
        write(&server, "d", 0);
        assert_eq!(heard(&mut lines), some(&["ADDED \"d\""]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_comes_first_where_it_is_asked_for() {
        let server = server();
        write(&server, "b", 0);
        write(&server, "a", 0);
        let end = "BOOKMARK \"2\" {\"k8s.io/initial-events-end\":\"true\"}";
        let list = |at_least| Start::List { at_least };
        let all = ["ADDED \"a\"", "ADDED \"b\"", end];
        let mut watches = Vec::new();
        for (start, bookmarks, expected) in [
            (list(0), true, &all[..]),
            (list(2), true, &all[..]),
            (list(2), false, &all[..2]),
            (Start::Everything, true, &all[..2]),
            (Start::Now, true, &all[..0]),
        ] {
            let mut lines = watch(&server, &Watch { start, bookmarks, ..Watch::default() });
            assert_eq!(heard(&mut lines), some(expected), "{start:?}");
            assert_eq!(heard(&mut lines), some(&[]), "{start:?}");
            watches.push(lines);
        }
        let mut unread = watch(&server, &Watch { start: Start::Now, ..Watch::default() });
        let mut early = watch(&server, &Watch { start: list(3), bookmarks: true, ..Watch::default() });
        let refused = "ERROR 504 \"Timeout: Too large resource version: 3, current: 2\"";
        assert_eq!((heard(&mut early), heard(&mut early)), (some(&[refused]), None));
        write(&server, "c", 0);
        assert_eq!(heard(&mut unread), some(&["ADDED \"c\""]), "nobody read it before");
        for mut lines in watches {
            assert_eq!(heard(&mut lines), some(&["ADDED \"c\""]), "then it goes on");
        }
    }
}
