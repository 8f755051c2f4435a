//! What an attempt is held to: what its Agent said when the attempt was launched. The text goes with the pod, its digest is
//! latched in `status.job`, so that whoever judges the attempt reads no Agent, and a change counts from the next attempt on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::api::agent::{Agent, Prompt, Repair};
use crate::api::name;

/// On a pod: the terms. On its Job: their digest.
pub const ANNOTATION_TERMS: &str = "lockstep.dev/terms";
pub const ANNOTATION_TERMS_DIGEST: &str = "lockstep.dev/terms-digest";
/// Bytes of the annotations of a pod together, the terms among them: under the 256 KiB that the API server takes.
const ANNOTATIONS_BYTES: usize = 192 * 1024;

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    pub timeout_seconds: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_timeout_seconds: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Map<String, Value>>,
    /// Of an Agent that is only a prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
}

impl Terms {
    /// The timeout is the step's, where it says one.
    pub fn of(agent: &Agent, timeout_seconds: i64) -> Self {
        let spec = &agent.spec;
        Self {
            timeout_seconds,
            progress_timeout_seconds: spec.progress_timeout_seconds,
            repair: spec.repair.clone(),
            output_schema: spec.output_schema.clone(),
            prompt: spec.prompt.clone(),
        }
    }

    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// If the text is the one with that digest: anybody who may change a pod may change its annotations.
    pub fn read(text: &str, digest: &str) -> Option<Self> {
        (name::digest_bytes(text.as_bytes()) == digest).then(|| serde_json::from_str(text).ok()).flatten()
    }

    /// Writes them on a pod, and gives their digest; nothing where the pod has no room, and the Agent is read instead.
    pub fn pin(&self, pod: &mut ObjectMeta) -> Option<String> {
        let text = self.text();
        let annotations = pod.annotations.get_or_insert_default();
        annotations.remove(ANNOTATION_TERMS);
        let taken: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if taken + text.len() > ANNOTATIONS_BYTES {
            return None;
        }
        let digest = name::digest_bytes(text.as_bytes());
        annotations.insert(ANNOTATION_TERMS.to_owned(), text);
        Some(digest)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn agent(spec: Value) -> Agent {
        Agent::new("writer", serde_json::from_value(spec).expect("a spec"))
    }

    #[test]
    fn what_an_agent_said_goes_with_the_pod_and_is_proven_by_its_digest() {
        let spec = json!({"template": {}, "outputSchema": {"type": "integer"}, "progressTimeoutSeconds": 5,
            "repair": {"command": ["mend"]}, "timeoutSeconds": 9});
        let terms = Terms::of(&agent(spec), 60);
        let mut pod = ObjectMeta::default();
        let digest = terms.pin(&mut pod).expect("there is room");
        let text = pod.annotations.as_ref().expect("annotations")[ANNOTATION_TERMS].clone();
        assert_eq!(Terms::read(&text, &digest), Some(terms));
        assert_eq!(Terms::read(&text.replace("integer", "string"), &digest), None, "somebody changed it");
        // Nobody can say the terms in the Agent's own template.
        let mut forged =
            ObjectMeta { annotations: Some([(ANNOTATION_TERMS.to_owned(), "{}".to_owned())].into()), ..pod };
        assert_eq!(Terms::of(&agent(json!({"template": {}})), 60).pin(&mut forged).map(|d| d == digest), Some(false));
        assert_ne!(forged.annotations.expect("annotations")[ANNOTATION_TERMS], "{}");
    }

    #[test]
    fn what_has_no_room_on_a_pod_is_left_with_the_agent() {
        let terms = Terms::of(&agent(json!({"template": {}, "outputSchema": {"description": "x".repeat(1_000)}})), 60);
        for (own, pinned) in [(190_000, true), (196_000, false)] {
            let own = [("a".to_owned(), "x".repeat(own))].into();
            let mut pod = ObjectMeta { annotations: Some(own), ..ObjectMeta::default() };
            assert_eq!(terms.pin(&mut pod).is_some(), pinned);
            assert_eq!(pod.annotations.expect("annotations").contains_key(ANNOTATION_TERMS), pinned);
        }
    }
}
