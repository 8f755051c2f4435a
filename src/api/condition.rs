//! Conditions, written so that a pass that changes nothing yields the very same list.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::limits::MESSAGE_BYTES;

/// `observedGeneration` of an object that nobody has looked at yet: kstatus then reads "in progress".
pub fn unseen() -> i64 {
    -1
}

/// Set to True while it is on its way: kstatus then reads "in progress".
pub const RECONCILING: &str = "Reconciling";

/// Set to True where it stands, and waiting does not help: kstatus then reads "failed".
pub const STALLED: &str = "Stalled";

/// The three states of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Sets a condition; its transition time moves only when its status does.
pub fn set(conditions: &mut Vec<Condition>, kind: &str, truth: Truth, reason: &str, message: &str, at: (&Time, i64)) {
    let (now, generation) = at;
    let fresh = Condition {
        type_: kind.to_owned(),
        status: truth.as_str().to_owned(),
        reason: reason.to_owned(),
        message: clip(message, MESSAGE_BYTES),
        last_transition_time: now.clone(),
        observed_generation: Some(generation),
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(old) => {
            let since = if old.status == fresh.status { old.last_transition_time.clone() } else { now.clone() };
            *old = Condition { last_transition_time: since, ..fresh };
        }
        None => conditions.push(fresh),
    }
}

/// Takes a condition away.
pub fn clear(conditions: &mut Vec<Condition>, kind: &str) {
    conditions.retain(|c| c.type_ != kind);
}

/// The condition of that type.
pub fn get<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// At most `bytes` of a text, cut between characters.
pub fn clip(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut end = bytes.saturating_sub("…".len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}
