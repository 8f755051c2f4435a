//! What a pass says that it will do: the product's own log of plans, heard before the first effect is carried out.

use std::cell::RefCell;
use std::fmt::Debug;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// A plan, as it was logged.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The task of the pass.
    pub task: Option<tokio::task::Id>,
    pub kind: String,
    pub name: String,
    pub uid: String,
    /// The resourceVersion of the object that it is about.
    pub version: u64,
    /// `label name` of each effect.
    pub effects: Vec<String>,
    /// Reasons of its notices.
    pub notices: Vec<String>,
}

impl Plan {
    /// Names of the objects that effects of this label are about.
    pub fn targets(&self, label: &str) -> impl Iterator<Item = &str> {
        self.effects.iter().filter_map(move |e| e.split_once(' ').filter(|(l, _)| *l == label).map(|(_, name)| name))
    }

    pub fn starts(&self) -> bool {
        self.targets("create_job").chain(self.targets("create_steprun")).next().is_some()
    }
}

thread_local! {
    static HEARD: RefCell<Vec<Plan>> = const { RefCell::new(Vec::new()) };
}

/// Plans that were logged in this thread since the last call.
pub fn heard() -> Vec<Plan> {
    HEARD.take()
}

/// Hears the log of plans and nothing else.
pub struct Listener;

const TARGET: &str = "lockstep::plan";

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // `tracing::enabled!` asks with metadata that is neither a span's nor an event's.
        metadata.target() == TARGET && !metadata.is_span()
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(Level::DEBUG.into())
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut plan = Plan { task: tokio::task::try_id(), ..Plan::default() };
        event.record(&mut plan);
        HEARD.with_borrow_mut(|heard| heard.push(plan));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Visit for Plan {
    fn record_str(&mut self, field: &Field, value: &str) {
        let list = || value.split(", ").filter(|v| !v.is_empty()).map(str::to_owned).collect();
        match field.name() {
            "kind" => value.clone_into(&mut self.kind),
            "name" => value.clone_into(&mut self.name),
            "uid" => value.clone_into(&mut self.uid),
            "resourceVersion" => self.version = value.parse().unwrap_or_default(),
            "effects" => self.effects = list(),
            "notices" => self.notices = list(),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
