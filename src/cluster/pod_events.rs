//! Why an attempt has no pod, or a pod that is not set up: neither Job nor pod says it, only Events do. A quota, Pod
//! Security, a LimitRange or a webhook refuses the pod (Events of the Job); a Secret or ConfigMap that a volume needs is not
//! there, a volume cannot be attached, or the node can make no sandbox, for want of a network or a runtime (Events of the
//! pod). Kept by the UID of what the Event is about, bounded: a storm of Events of other pods takes no memory, and what
//! is asked for stays; after a restart the watch tells anew.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::events::v1::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};

use super::bounded_cache::BoundedCache;
use crate::api::condition::clip;

/// In bytes, 1 KiB for each entry included.
const KEPT: usize = 4 << 20;
const WORDS: usize = 512;

/// What is watched: of which kind the Event tells, and with which reasons. The API server sends these alone.
pub const WATCHED: [(&str, &str); 4] =
    [("Job", "FailedCreate"), ("Pod", "FailedMount"), ("Pod", "FailedAttachVolume"), ("Pod", "FailedCreatePodSandBox")];
/// Before the words of what the kubelet has told often.
const COMBINED: &str = "(combined from similar events): ";
/// Fewer hexadecimal digits may be a word.
const ID_DIGITS: usize = 32;

pub struct PodEvents(BoundedCache<String>);

impl Default for PodEvents {
    fn default() -> Self {
        Self(BoundedCache::new(KEPT))
    }
}

impl PodEvents {
    /// What was told last of that object.
    pub fn of(&self, uid: &str) -> Option<String> {
        self.0.get(uid).map(|words| words.as_ref().clone())
    }

    fn remember(&self, uid: &str, words: String) {
        let bytes = words.len();
        self.0.insert(uid.to_owned(), Arc::new(words), bytes);
    }

    /// Watches for ever; `told` hears namespace and name of what an Event is about.
    pub async fn watch<F: Future<Output = ()>>(
        &self,
        client: Client,
        (kind, reason): (&str, &str),
        told: impl Fn(String, String) -> F,
    ) {
        let config = watcher::Config::default().fields(&format!("regarding.kind={kind},reason={reason}"));
        let mut events = watcher(Api::<Event>::all(client), config).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(event) | watcher::Event::InitApply(event)) => {
                    let about = event.regarding.clone().unwrap_or_default();
                    let (Some(uid), Some(name)) = (about.uid, about.name) else { continue };
                    self.remember(&uid, words(&event));
                    told(event.namespace().unwrap_or_default(), name).await;
                }
                // What was told stays true of its object.
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(kind, reason, %error, "Events cannot be watched, so that what keeps pods from starting is told less well; it is tried again with back-off");
                }
            }
        }
    }
}

/// The reason and the words, without what is another one with each try: the pod's name that the Job controller takes, and
/// the id of a sandbox. Else each try would be a write of a status.
fn words(event: &Event) -> String {
    let note = event.note.as_deref().unwrap_or_default();
    let note = note.strip_prefix(COMBINED).unwrap_or(note);
    let named = note.strip_prefix("Error creating: pods \"").and_then(|rest| rest.split_once("\" is forbidden: "));
    let note = named.map_or_else(|| without_ids(note), |(_, why)| format!("its pod is forbidden: {why}"));
    clip(&format!("{}: {note}", event.reason.as_deref().unwrap_or_default()), WORDS)
}

/// The text with an ellipsis in the place of each long hexadecimal number.
fn without_ids(text: &str) -> String {
    let mut told = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let digits = rest[start..].find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len() - start);
        let end = start + digits;
        told.push_str(&rest[..start]);
        told.push_str(if digits < ID_DIGITS { &rest[start..end] } else { "\u{2026}" });
        rest = &rest[end..];
    }
    told + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_do_not_change_with_each_try() {
        let event = |reason: &str, note: &str| Event {
            reason: Some(reason.to_owned()),
            note: Some(note.to_owned()),
            ..Event::default()
        };
        let sandbox = |id: char, before: &str| {
            let id = String::from(id).repeat(64);
            let why = format!(
                "failed to setup network for sandbox \"{id}\": plugin type=\"cni\" failed (add): no bridge cafe"
            );
            event("FailedCreatePodSandBox", &format!("{before}Failed to create pod sandbox: {why}"))
        };
        let no_network = "FailedCreatePodSandBox: Failed to create pod sandbox: failed to setup network for sandbox \"\u{2026}\": plugin type=\"cni\" failed (add): no bridge cafe";
        let attach = "AttachVolume.Attach failed for volume \"pvc-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f\": no such disk";
        let quota = |pod: &str| format!("Error creating: pods \"{pod}\" is forbidden: exceeded quota: small");
        for (event, expected) in [
            (event("FailedCreate", &quota("a-x7b")), "FailedCreate: its pod is forbidden: exceeded quota: small"),
            (event("FailedCreate", &quota("a-9cc")), "FailedCreate: its pod is forbidden: exceeded quota: small"),
            (event("FailedCreate", "Error creating: timeout"), "FailedCreate: Error creating: timeout"),
            (event("FailedMount", "configmap \"c\" not found"), "FailedMount: configmap \"c\" not found"),
            (sandbox('a', ""), no_network),
            (sandbox('7', COMBINED), no_network),
            (event("FailedAttachVolume", attach), &format!("FailedAttachVolume: {attach}")),
        ] {
            assert_eq!(words(&event), expected);
        }
        assert!(words(&event("FailedCreate", &"x".repeat(9000))).len() <= WORDS);
    }

    #[test]
    fn it_is_bounded() {
        let pod_events = PodEvents::default();
        for n in 0..20_000 {
            pod_events.remember(&n.to_string(), "no".to_owned());
        }
        assert!(pod_events.0.bytes() <= KEPT as u64);
        assert_eq!(pod_events.of("19999").as_deref(), Some("no"));
    }

    #[test]
    fn what_is_asked_for_stays_in_a_storm_of_others() {
        let pod_events = PodEvents::default();
        for ours in ["a", "b"] {
            pod_events.remember(ours, "no network".to_owned());
            assert!(pod_events.of(ours).is_some());
        }
        for n in 0..20_000 {
            pod_events.remember(&format!("pod {n}"), "no network".to_owned());
        }
        assert_eq!(
            (pod_events.of("a"), pod_events.of("b")),
            (Some("no network".to_owned()), Some("no network".to_owned()))
        );
    }
}
