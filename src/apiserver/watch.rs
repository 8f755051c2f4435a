//! A watch: what happened after a version, and then what happens, a line of JSON for each change.

#![expect(clippy::disallowed_macros, reason = "bookmarks and errors of a watch")]
#![expect(clippy::disallowed_methods, reason = "when a watch ends, and when it tells how far it is")]

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use futures::Stream;
use futures::stream::unfold;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::kind::Kind;
use super::object::Object;
use super::registry::Registry;
use super::request::Watch;
use super::selector::Selection;
use super::status::expired;
use super::store::{Change, ChangeType};

/// Between two bookmarks, as the real server has it.
const BOOKMARK: Duration = Duration::from_secs(60);
/// A watch that names no timeout ends after this; the client begins another.
const TIMEOUT_SECONDS: u64 = 1800;

/// A client's watch.
struct Watching {
    registry: Arc<Mutex<Registry>>,
    commits: Arc<Notify>,
    kind: Kind,
    selection: Selection,
    /// The last version that was looked at; none before all that is there was told.
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
    let watching = Watching {
        registry,
        commits,
        kind,
        selection,
        cursor: asked.after,
        told: asked.after.unwrap_or_default(),
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
            // From here on no commit is missed.
            let commits = Arc::clone(&self.commits);
            let mut commit = pin!(commits.notified());
            commit.as_mut().enable();
            let lines = self.lines();
            if !lines.is_empty() {
                return Some(Bytes::from(lines));
            }
            let due = self.bookmark.map_or(self.end, |at| at.min(self.end));
            if timeout_at(due, commit).await.is_ok() {
                continue;
            }
            if due == self.end {
                return None;
            }
            self.bookmark = Some(due + BOOKMARK);
            if let Some(line) = self.bookmark_line() {
                return Some(Bytes::from(line));
            }
        }
        None
    }

    fn lines(&mut self) -> String {
        let registry = Arc::clone(&self.registry);
        let registry = super::lock(&registry);
        let version = registry.store().version();
        let mut lines = String::new();
        let Some(cursor) = self.cursor.replace(version) else {
            for object in registry.store().list(self.kind).iter().filter(|o| self.selection.takes(o)) {
                push(&mut lines, "ADDED", object);
            }
            self.told = version;
            return lines;
        };
        let Some(changes) = registry.store().changes(cursor) else {
            let status = expired(&format!("too old resource version: {cursor} ({version})"));
            self.is_over = true;
            return format!("{}\n", json!({"type": "ERROR", "object": *status}));
        };
        for change in &changes {
            self.tell(&mut lines, change);
        }
        lines
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

    /// Tells which version the client has seen all of; none where it knows.
    fn bookmark_line(&mut self) -> Option<String> {
        let version = self.cursor.filter(|version| *version > self.told)?;
        self.told = version;
        let (api, name) = (self.kind.api_version(), self.kind.name());
        let object = json!({"apiVersion": api, "kind": name,
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null}});
        Some(format!("{}\n", json!({"type": "BOOKMARK", "object": object})))
    }
}

fn push(lines: &mut String, word: &str, object: &Object) {
    lines.push_str(&format!("{{\"type\":\"{word}\",\"object\":{}}}\n", String::from_utf8_lossy(&object.json())));
}
