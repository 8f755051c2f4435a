//! An Agent, checked: what is wrong with it, each fault with its path; its pod template, read; and what of it shapes the
//! work that is done with it.

mod egress;
mod prompt;
mod template;

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};

use super::expression::Evaluate;
use super::free_value;
use super::pinned::canonical_digest;
use crate::api::agent::{Agent, Protocol};

pub use egress::{Block, Destination, Egress};
pub use prompt::{API_KEY, CA_FILE, CA_VOLUME};
pub use template::result_mount;

/// The sidecar that claims and reports where the container is left as it is.
pub const ATTENDANT: &str = "lockstep-attend";
/// Name of the container that is the agent.
pub const CONTAINER: &str = "agent";

/// `sha256:...` of what shapes an Agent's work: its template or prompt, its schemas and how it repairs. How many of it run at once, how long they
/// may take and how often they are repeated is no part of it.
pub fn work_digest(agent: &Agent) -> String {
    let spec = &agent.spec;
    let schema = |schema: &Option<Map<String, Value>>| schema.clone().map_or(Value::Null, Value::Object);
    let always = [
        ("template", Value::Object(spec.template.clone())),
        ("parametersSchema", schema(&spec.parameters_schema)),
        ("outputSchema", schema(&spec.output_schema)),
    ];
    // Left out where there is none: the digests of older Agents stay what they were.
    let repair = spec.repair.as_ref().map(|repair| ("repair", Value::from_iter(repair.command.clone())));
    let bare = (spec.protocol == Protocol::None).then(|| ("bare", Value::from(spec.result_path.clone())));
    let egress = spec.egress.clone().map(|egress| ("egress", egress));
    let prompt = spec.prompt.as_ref().map(|prompt| ("prompt", serde_json::to_value(prompt).unwrap_or_default()));
    canonical_digest(&always.into_iter().chain(repair).chain(bare).chain(egress).chain(prompt).collect::<Value>())
}

/// Where its attempts may connect to; nothing where it does not say, or says what is refused.
pub fn egress_of(agent: &Agent) -> Option<Egress> {
    egress::read(agent.spec.egress.as_ref()).ok().flatten()
}

/// An Agent without faults, its pod template read: what a Job is built from.
#[derive(Clone, Debug)]
pub struct CheckedAgent<'a> {
    agent: &'a Agent,
    metadata: ObjectMeta,
    pod: PodSpec,
}

impl<'a> CheckedAgent<'a> {
    /// An error is all its faults.
    pub fn of(agent: &'a Agent, evaluator: &dyn Evaluate) -> Result<Self, Vec<String>> {
        let mut faults = schema_faults(agent, evaluator);
        match pod_template(agent) {
            Ok((metadata, pod)) if faults.is_empty() => return Ok(Self { agent, metadata, pod }),
            Ok(_) => {}
            Err(of_the_pod) => faults.extend(of_the_pod),
        }
        Err(faults)
    }

    pub fn agent(&self) -> &'a Agent {
        self.agent
    }

    /// Metadata and spec of its pods, as the author wrote them; of a prompt without image and command, which are Lockstep's own.
    pub fn pod(&self) -> (ObjectMeta, PodSpec) {
        (self.metadata.clone(), self.pod.clone())
    }
}

/// All faults of an Agent.
pub fn faults(agent: &Agent, evaluator: &dyn Evaluate) -> Vec<String> {
    CheckedAgent::of(agent, evaluator).err().unwrap_or_default()
}

/// The faults of its pod template alone: nothing has to be evaluated for them.
pub fn pod_faults(agent: &Agent) -> Vec<String> {
    pod_template(agent).err().unwrap_or_default()
}

/// The pod template as it is written; that of a prompt follows from it.
pub fn template(agent: &Agent) -> Cow<'_, Map<String, Value>> {
    agent.spec.prompt.as_ref().map_or(Cow::Borrowed(&agent.spec.template), |own| Cow::Owned(prompt::template(own)))
}

/// Whether its pod template can be read at all, whatever else is wrong with it.
pub fn is_readable(agent: &Agent) -> bool {
    read_template(agent).is_ok()
}

fn schema_faults(agent: &Agent, evaluator: &dyn Evaluate) -> Vec<String> {
    let spec = &agent.spec;
    let schemas = [("parametersSchema", &spec.parameters_schema), ("outputSchema", &spec.output_schema)];
    let faults = schemas.into_iter().filter_map(|(field, schema)| {
        let schema = schema.as_ref()?;
        let fault = free_value::nesting_of(schema).or_else(|| evaluator.check(schema).err())?;
        Some(format!("spec.{field}: {fault}"))
    });
    faults.collect()
}

type Misread = serde_path_to_error::Error<serde_json::Error>;

/// More than so many values of another type are not told at once.
const MISREAD: usize = 20;

/// The template, or all values in it that are of another type. What one of them should be nobody knows, so each is looked at
/// with those before it mended or left out.
fn read_template(agent: &Agent) -> Result<PodTemplateSpec, Vec<String>> {
    let mut template = Value::Object(template(agent).into_owned());
    let mut faults = Vec::new();
    loop {
        let error: Misread = match serde_path_to_error::deserialize(&template) {
            Ok(read) if faults.is_empty() => return Ok(read),
            Ok(_) => return Err(faults),
            Err(error) => error,
        };
        let fault = misread(&error, &template);
        let again = faults.contains(&fault);
        faults.extend(Some(fault).filter(|_| !again));
        if again || faults.len() == MISREAD || !mended(&error, &mut template) {
            return Err(faults);
        }
    }
}

/// Puts a text in the place of a number or a boolean, or leaves out what is of another type; whether it could.
fn mended(error: &Misread, template: &mut Value) -> bool {
    use serde_path_to_error::Segment;
    let segments: Vec<&Segment> = error.path().iter().collect();
    let Some((last, before)) = segments.split_last() else { return false };
    let parent = before.iter().try_fold(template, |value, segment| match segment {
        Segment::Seq { index } => value.get_mut(index),
        Segment::Map { key } => value.get_mut(key),
        _ => None,
    });
    match (parent, last) {
        (Some(Value::Object(members)), Segment::Map { key }) => members.shift_remove(key).is_some(),
        (Some(Value::Array(items)), Segment::Seq { index }) => {
            match items.get_mut(*index) {
                Some(item) if item.is_number() || item.is_boolean() => *item = Value::String(item.to_string()),
                _ => items.clear(),
            }
            true
        }
        _ => false,
    }
}

/// Where the template is no PodTemplateSpec, and what to do about it.
fn misread(error: &Misread, template: &Value) -> String {
    let (path, words) = (error.path().to_string(), error.inner().to_string());
    let found = error.path().iter().try_fold(template, |value, segment| match segment {
        serde_path_to_error::Segment::Seq { index } => value.get(index),
        serde_path_to_error::Segment::Map { key } => value.get(key),
        _ => None,
    });
    let wants_text = words.contains("expected a string");
    match found {
        Some(Value::Number(number)) if wants_text => format!("spec.template.{path}: {number} is a number; quote it"),
        Some(Value::Bool(truth)) if wants_text => format!("spec.template.{path}: {truth} is a boolean; quote it"),
        _ => format!("spec.template.{path}: {words}"),
    }
}

fn pod_template(agent: &Agent) -> Result<(ObjectMeta, PodSpec), Vec<String>> {
    let read = read_template(agent)?;
    let mut faults = match &agent.spec.prompt {
        Some(own) => prompt::faults(own, &agent.spec),
        None => template::faults(&read, &agent.spec),
    };
    faults.extend(egress::read(agent.spec.egress.as_ref()).err().unwrap_or_default());
    match read.spec {
        Some(pod) if faults.is_empty() => Ok((read.metadata.unwrap_or_default(), pod)),
        _ => Err(faults),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_of_another_type_is_told_by_its_path() {
        let agent = |container: Value| {
            let template = json!({"spec": {"containers": [{"name": "other", "image": "o"}, container]}});
            let spec = serde_json::from_value(json!({"template": template})).expect("a spec");
            Agent::new("writer", spec)
        };
        let container = |field: &str, value: Value| {
            let mut container = json!({"name": "agent", "image": "i", "command": ["run"]});
            container[field] = value;
            agent(container)
        };
        let at = "spec.template.spec.containers[1]";
        for (agent, fault) in [
            (
                container("env", json!([{"name": "A", "value": "1"}, {"name": "B", "value": 0}])),
                format!("{at}.env[1].value: 0 is a number; quote it"),
            ),
            (
                container("env", json!([{"name": "B", "value": 1.5}])),
                format!("{at}.env[0].value: 1.5 is a number; quote it"),
            ),
            (
                container("env", json!([{"name": "B", "value": true}])),
                format!("{at}.env[0].value: true is a boolean; quote it"),
            ),
            (container("args", json!(["a", 2])), format!("{at}.args[1]: 2 is a number; quote it")),
            (container("command", json!("sh -c run")), format!("{at}.command: ")),
            (container("stdin", json!("yes")), format!("{at}.stdin: ")),
        ] {
            let faults = pod_faults(&agent);
            assert!(faults.len() == 1 && faults[0].starts_with(&fault), "{fault}: {faults:?}");
        }
        assert_eq!(pod_faults(&container("resources", json!({"limits": {"cpu": 1}}))), Vec::<String>::new());
    }

    #[test]
    fn all_values_of_another_type_are_told_at_once() {
        let template = |containers: Value| json!({"spec": {"containers": containers, "hostNetwork": "no"}});
        let env = json!([{"name": "A", "value": 1}, {"name": 2, "value": "b"}, {"name": "C", "value": true}]);
        let one = json!({"name": "agent", "image": 7, "args": ["a", 2, 3], "stdin": "yes", "env": env});
        let other = json!({"name": {"a": 1}, "image": "i", "ports": [[], []]});
        let spec = serde_json::from_value(json!({"template": template(json!([one, other]))})).expect("a spec");
        let agent = Agent::new("writer", spec);
        assert!(!is_readable(&agent));
        let faults = pod_faults(&agent);
        for told in [
            "containers[0].args[1]: 2 is a number; quote it",
            "containers[0].args[2]: 3 is a number; quote it",
            "containers[0].env[0].value: 1 is a number; quote it",
            "containers[0].env[1].name: 2 is a number; quote it",
            "containers[0].env[2].value: true is a boolean; quote it",
            "containers[0].image: 7 is a number; quote it",
            "containers[0].stdin: ",
            "containers[1].name: ",
            "containers[1].ports[0]: ",
            "hostNetwork: ",
        ] {
            let path = format!("spec.template.spec.{told}");
            assert_eq!(faults.iter().filter(|fault| fault.starts_with(&path)).count(), 1, "{told}: {faults:#?}");
        }
        let many: Vec<Value> = (0..100).map(|n| json!({"name": format!("V{n}"), "value": n})).collect();
        let container = json!({"name": "agent", "image": "i", "env": many});
        let spec = serde_json::from_value(json!({"template": template(json!([container]))})).expect("a spec");
        assert_eq!(pod_faults(&Agent::new("writer", spec)).len(), MISREAD);
        for odd in [json!({"spec": []}), json!({"spec": {"containers": 1}}), json!({"metadata": 1})] {
            let spec = serde_json::from_value(json!({"template": odd})).expect("a spec");
            assert!(!pod_faults(&Agent::new("writer", spec)).is_empty(), "{odd}");
        }
    }
}
