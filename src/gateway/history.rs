//! The conversation that an attempt goes on with: what was said of its own step, what people answered to questions of the run,
//! and in a named session what the same Agent gave in other steps and runs. Read for the claim, and page by page for the call `history`. The order is that of the steps'
//! making, and in a step that of its attempts; the own step comes last. A cursor is a place in this order.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use kube::Api;
use kube::api::{ListParams, PartialObjectMeta};

use super::attempt::Asked;
use super::auth::Caller;
use super::refusal::{Refusal, Result};
use super::{Gateway, answers, attempt, cluster, entries};
use crate::api::StepRun;
use crate::api::name::{LABEL_AGENT, LABEL_SESSION, label_value};
use crate::api::step_run::StepRunSpec;
use crate::cluster::bounded_cache::BoundedCache;
use crate::cluster::stored;
use crate::definition::program::Program;
use crate::protocol::AttemptRef;
use crate::protocol::HistoryRequest;
use crate::protocol::context::{Entry, HistoryPage};

/// Entries of other steps in `context.json`, and of all in a page.
pub const PAGE: usize = 20;
/// Entries of the own step in `context.json`: more than its status holds.
const OWN: usize = 200;
/// Bytes of text in one answer.
const BYTES: usize = 128 * 1024;
/// StepRuns of agent and session that are listed, metadata only: so many pages of so many.
const LISTED: u32 = 500;
const LISTS: usize = 4;
/// StepRuns that one answer reads; the next page reads on.
const READS: usize = 40;
const READS_AT_ONCE: usize = 4;
const KEPT_BYTES: usize = 4 * 1024 * 1024;

/// The entries of other StepRuns, by UID and `resourceVersion`.
pub struct HistoryCache(BoundedCache<Vec<Entry>>);

impl Default for HistoryCache {
    fn default() -> Self {
        Self(BoundedCache::new(KEPT_BYTES))
    }
}

/// A position in the history: the number of an entry within its StepRun, ordered by when that was made. The attempt's own
/// StepRun comes after all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    made: i64,
    name: String,
    number: usize,
}

impl Cursor {
    /// Reads `MADE.NAME.NUMBER`, as `text` writes it.
    fn read(text: &str) -> Result<Self> {
        let wrong = || Refusal::bad_request("before: must be a cursor that history gave");
        let (made, rest) = text.split_once('.').ok_or_else(wrong)?;
        let (name, number) = rest.rsplit_once('.').ok_or_else(wrong)?;
        let (Ok(made), Ok(number)) = (made.parse(), number.parse()) else { return Err(wrong()) };
        Ok(Self { made, name: name.to_owned(), number })
    }

    fn text(&self) -> String {
        format!("{}.{}.{}", self.made, self.name, self.number)
    }

    fn of_own(name: &str, number: usize) -> Self {
        Self { made: i64::MAX, name: name.to_owned(), number }
    }
}

/// The newest entries that an answer has room for; filled from the newest back.
struct Window {
    room: usize,
    bytes: usize,
    /// Newest first.
    taken: Vec<Entry>,
    oldest: Option<Cursor>,
    /// Something older was left out.
    full: bool,
}

impl Window {
    fn of(room: usize) -> Self {
        Self { room, bytes: BYTES, taken: Vec::new(), oldest: None, full: false }
    }

    /// Takes the entries of one StepRun that come before a cursor, newest first, as far as there is room.
    fn take(&mut self, entries: &[Entry], cursor: impl Fn(usize) -> Cursor, before: Option<&Cursor>) {
        for (number, entry) in entries.iter().enumerate().rev() {
            let cursor = cursor(number);
            if before.is_some_and(|before| cursor >= *before) {
                continue;
            }
            // One entry always finds room, or a page would end nowhere.
            if self.room == 0 || self.bytes < entry.text.len() && !self.taken.is_empty() {
                self.full = true;
                return;
            }
            self.room -= 1;
            self.bytes = self.bytes.saturating_sub(entry.text.len());
            self.taken.push(entry.clone());
            self.oldest = Some(cursor);
        }
    }

    /// The window of a history that has older entries than were read.
    fn leaves_out(mut self) -> Self {
        self.full = true;
        self
    }

    fn page(mut self) -> HistoryPage {
        self.taken.reverse();
        let cursor = self.oldest.filter(|_| self.full).map(|cursor| cursor.text());
        HistoryPage { entries: self.taken, cursor }
    }
}

/// For `context.json`.
pub async fn newest(
    gateway: &Gateway,
    who: &AttemptRef,
    step_run: &StepRun,
    definition: &Program,
) -> Result<HistoryPage> {
    let mut window = Window::of(OWN);
    own(&mut window, who, step_run, None);
    if window.full {
        return Ok(window.page());
    }
    window.room = PAGE;
    others(gateway, who, (step_run, definition), window, None).await
}

/// The call `history`: the entries before a cursor, or the newest.
pub async fn page(gateway: &Gateway, caller: &Caller, request: Asked<HistoryRequest>) -> Result<HistoryPage> {
    let who = &request.attempt;
    let before = request.body.before.as_deref().map(Cursor::read).transpose()?;
    let step_run = attempt::read(gateway, who).await?;
    attempt::stands(&step_run, who)?;
    attempt::holds(&step_run, who, caller)?;
    let definition = gateway.definitions.get(&gateway.client, &who.namespace, &step_run.spec).await?;
    let mut window = Window::of(PAGE);
    own(&mut window, who, &step_run, before.as_ref());
    if window.full {
        return Ok(window.page());
    }
    others(gateway, who, (&step_run, definition.as_ref()), window, before.as_ref()).await
}

fn own(window: &mut Window, who: &AttemptRef, step_run: &StepRun, before: Option<&Cursor>) {
    let entries = entries::own(&attempt::status(step_run), who.attempt);
    window.take(&entries, |number| Cursor::of_own(&who.step_run, number), before);
}

/// Goes on with other steps: the questions of the run, and those of a named session. A private one has no other runs.
async fn others(
    gateway: &Gateway,
    who: &AttemptRef,
    (step_run, definition): (&StepRun, &Program),
    mut window: Window,
    before: Option<&Cursor>,
) -> Result<HistoryPage> {
    let (spec, session) = (&step_run.spec, &definition.run.session);
    let answers = answers::of_run(gateway, who, step_run, definition).await?;
    let mut found: Vec<Other> = answers.iter().map(|answered| Other::from(answered.as_ref())).collect();
    if !session.starts_with('_') {
        found.extend(list(gateway, who, spec, session).await?);
    }
    found.retain(|other| before.is_none_or(|before| other.cursor(0) < *before));
    found.sort_by_key(|other| std::cmp::Reverse(other.cursor(0)));
    let count = found.len();
    let api = attempt::api(gateway, who);
    let read = found.into_iter().take(READS).map(|other| tell(gateway, &api, spec, other));
    let mut read = std::pin::pin!(stream::iter(read).buffered(READS_AT_ONCE));
    let mut seen = 0;
    while let Some((other, entries)) = read.try_next().await? {
        seen += 1;
        window.take(&entries, |number| other.cursor(number), before);
        if window.full {
            break;
        }
        // Even one without entries moves the cursor on.
        window.oldest = Some(other.cursor(0));
    }
    let window = if seen < count { window.leaves_out() } else { window };
    Ok(window.page())
}

/// Another StepRun, by its metadata; with its entries, where they are known already.
struct Other {
    made: i64,
    name: String,
    uid: String,
    version: String,
    entries: Option<Arc<Vec<Entry>>>,
}

impl From<&answers::AnsweredQuestion> for Other {
    fn from(answered: &answers::AnsweredQuestion) -> Self {
        let (made, name, entries) = (answered.made, answered.name.clone(), Some(Arc::clone(&answered.entries)));
        Self { made, name, uid: String::new(), version: String::new(), entries }
    }
}

impl Other {
    fn cursor(&self, number: usize) -> Cursor {
        Cursor { made: self.made, name: self.name.clone(), number }
    }
}

impl From<PartialObjectMeta<StepRun>> for Other {
    fn from(object: PartialObjectMeta<StepRun>) -> Self {
        let meta = object.metadata;
        Self {
            made: meta.creation_timestamp.map_or(0, |at| at.0.as_second()),
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            version: meta.resource_version.unwrap_or_default(),
            entries: None,
        }
    }
}

/// The StepRuns of this Agent in this session that are past their first attempt's start, by label, the own one left out.
async fn list(gateway: &Gateway, who: &AttemptRef, spec: &StepRunSpec, session: &str) -> Result<Vec<Other>> {
    let api: Api<PartialObjectMeta<StepRun>> = Api::namespaced(gateway.client.clone(), &who.namespace);
    let labels = format!("{LABEL_SESSION}={},{LABEL_AGENT}={}", label_value(session), label_value(&spec.agent_id));
    // What runs has given nothing yet: of a large forEach that would be nearly all.
    let mut wanted =
        ListParams::default().labels(&labels).fields("status.phase!=Running,status.phase!=Pending").limit(LISTED);
    let mut found = Vec::new();
    for _ in 0..LISTS {
        let page = match cluster::call(|| stored::list(api.clone(), &wanted)).await {
            Ok(page) => page,
            Err(failure) if failure.is_forbidden() => {
                // The role of an earlier chart: the attempt can do without.
                tracing::warn!(
                    "the gateway may not list StepRuns, so agents are not told of their session; upgrade the chart"
                );
                return Ok(Vec::new());
            }
            Err(failure) => return Err(failure.into()),
        };
        let others = page.items.into_iter().map(Other::from).filter(|other| other.uid != who.uid);
        found.extend(others);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => wanted = wanted.continue_token(&token),
            None => break,
        }
    }
    Ok(found)
}

async fn tell(
    gateway: &Gateway,
    api: &Api<StepRun>,
    spec: &StepRunSpec,
    other: Other,
) -> Result<(Other, Arc<Vec<Entry>>)> {
    if let Some(entries) = other.entries.clone() {
        return Ok((other, entries));
    }
    let key = format!("{}/{}", other.uid, other.version);
    if let Some(entries) = gateway.history.0.get(&key) {
        return Ok((other, entries));
    }
    let api = stored::alone(api.clone());
    // One that cannot be read has nothing to tell.
    let found = cluster::find(|| api.get(&other.name)).await?.and_then(|found| found.0.ok());
    // Labels can be changed by people, the spec cannot.
    let found = found.filter(|s| s.metadata.uid.as_ref() == Some(&other.uid) && s.spec.agent_id == spec.agent_id);
    let version = found.as_ref().and_then(|s| s.metadata.resource_version.clone()).unwrap_or_default();
    let entries = Arc::new(found.as_ref().map(entries::of_another).unwrap_or_default());
    let bytes = entries.iter().map(|entry| entry.text.len() + size_of::<Entry>()).sum();
    gateway.history.0.insert(format!("{}/{version}", other.uid), Arc::clone(&entries), bytes);
    Ok((other, entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::context::EntryKind;

    fn entry(text: &str) -> Entry {
        Entry {
            kind: EntryKind::Fault,
            of: None,
            attempt: None,
            round: None,
            by: None,
            at: None,
            text: text.to_owned(),
            accepted: None,
            digest: None,
        }
    }

    fn texts(page: &HistoryPage) -> Vec<&str> {
        page.entries.iter().map(|entry| entry.text.as_str()).collect()
    }

    #[test]
    fn a_cursor_is_a_place_and_nothing_else() {
        let cursor = Cursor { made: 7, name: "shop.plan-0123".to_owned(), number: 12 };
        assert_eq!(Cursor::read(&cursor.text()).expect("a cursor"), cursor);
        let own = Cursor::of_own("s", 0);
        assert_eq!(Cursor::read(&own.text()).expect("a cursor"), own);
        assert!(cursor < own);
        for text in ["", "x", "1.", "1.a", "a.b.c", "1.a.-1", "1.a.x"] {
            assert!(Cursor::read(text).is_err_and(|refusal| refusal.message.contains("before")), "{text}");
        }
    }

    #[test]
    fn pages_together_are_the_whole_and_nothing_comes_twice() {
        let steps: Vec<(i64, Vec<Entry>)> =
            [(1, vec!["a", "b", "c"]), (2, vec![]), (3, vec!["d"]), (9, vec!["e", "f"])]
                .into_iter()
                .map(|(made, texts)| (made, texts.into_iter().map(entry).collect()))
                .collect();
        for room in 1..=7 {
            let (mut all, mut before) = (Vec::new(), None);
            for _ in 0..10 {
                let mut window = Window::of(room);
                for (made, entries) in steps.iter().rev() {
                    if window.full {
                        break;
                    }
                    let cursor = |number| Cursor { made: *made, name: "s".to_owned(), number };
                    window.take(entries, cursor, before.as_ref());
                }
                let page = window.page();
                let mut texts: Vec<String> = texts(&page).into_iter().map(str::to_owned).collect();
                texts.append(&mut all);
                all = texts;
                match page.cursor {
                    Some(cursor) => before = Some(Cursor::read(&cursor).expect("a cursor")),
                    None => break,
                }
            }
            assert_eq!(all, ["a", "b", "c", "d", "e", "f"], "{room} a page");
        }
    }

    #[test]
    fn an_answer_is_bounded_in_bytes_and_never_empty() {
        let entries: Vec<Entry> = (0..100).map(|n| entry(&format!("{n}{}", "x".repeat(4096)))).collect();
        let mut window = Window::of(OWN);
        window.take(&entries, |number| Cursor::of_own("s", number), None);
        let page = window.page();
        assert!(page.entries.len() < 33 && page.cursor.is_some());
        assert!(page.entries.last().is_some_and(|entry| entry.text.starts_with("99x")));
        let mut window = Window::of(1);
        window.take(&[entry(&"x".repeat(BYTES + 1))], |number| Cursor::of_own("s", number), None);
        assert_eq!(window.page().entries.len(), 1);
    }
}
