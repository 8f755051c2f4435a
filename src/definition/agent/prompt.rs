//! An Agent that is only a prompt: the pod that follows from it, and what does not go with it.

#![expect(clippy::disallowed_macros, reason = "a pod template is written as one")]

use serde_json::{Map, Value, json};

use super::CONTAINER;
use crate::api::agent::{AgentSpec, ApiKeyRef, CaRef, Prompt, Protocol};

/// The variable of the endpoint's key.
pub const API_KEY: &str = "LOCKSTEP_API_KEY";
/// The variable that names the file of the authorities that are trusted, and the volume of that file.
pub const CA_FILE: &str = "LOCKSTEP_CA_FILE";
pub const CA_VOLUME: &str = "lockstep-ca";
const CA_FOLDER: &str = "/etc/lockstep/prompt";
/// The key under which authorities lie in ConfigMaps: of trust-manager, and in `kube-root-ca.crt` of every namespace.
const CA_KEY: &str = "ca.crt";

/// Its pod template, which passes at the strictest level of Pod Security. Image, command and resources are of the installation.
pub fn template(prompt: &Prompt) -> Map<String, Value> {
    let key =
        |of: &ApiKeyRef| json!({"name": API_KEY, "valueFrom": {"secretKeyRef": {"name": of.name, "key": of.key}}});
    let mut env: Vec<Value> = prompt.api_key_secret_ref.iter().map(key).collect();
    let authorities = prompt.ca_config_map_ref.as_ref();
    env.extend(authorities.map(|_| json!({"name": CA_FILE, "value": format!("{CA_FOLDER}/{CA_KEY}")})));
    let mut container = json!({"name": CONTAINER, "env": env, "securityContext": {
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
        "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}});
    let mut pod = Map::new();
    if let Some(authorities) = authorities {
        container["volumeMounts"] = json!([{"name": CA_VOLUME, "mountPath": CA_FOLDER, "readOnly": true}]);
        pod.insert("volumes".to_owned(), json!([ca_volume(authorities)]));
    }
    pod.insert("containers".to_owned(), json!([container]));
    Map::from_iter([("spec".to_owned(), pod.into())])
}

/// As a file: with what browsers trust in it, as trust-manager may put it there, it is too long for a variable (128 KiB on Linux).
fn ca_volume(of: &CaRef) -> Value {
    let item = json!({"key": of.key.as_deref().unwrap_or(CA_KEY), "path": CA_KEY});
    json!({"name": CA_VOLUME, "configMap": {"name": of.name, "items": [item]}})
}

/// All that is wrong with it.
pub fn faults(prompt: &Prompt, spec: &AgentSpec) -> Vec<String> {
    let mut faults = Vec::new();
    if !spec.template.is_empty() {
        faults.push("spec.template: does not go with prompt; one of the two says what the agent is".to_owned());
    }
    for (field, is_set, why) in [
        ("protocol", spec.protocol == Protocol::None, "a prompt is told and asked by the shim; leave it out"),
        ("resultPath", spec.result_path.is_some(), "is for the protocol None"),
        ("repair", spec.repair.is_some(), "a prompt mends its output itself, within its maxTurns"),
    ] {
        if is_set {
            faults.push(format!("spec.{field}: {why}"));
        }
    }
    let after = prompt.base_url.strip_prefix("https://").or_else(|| prompt.base_url.strip_prefix("http://"));
    let host = after.and_then(|after| after.split('/').next()).unwrap_or_default();
    if host.is_empty() || prompt.base_url.contains(['@', '?', '#']) || prompt.base_url.contains(char::is_whitespace) {
        faults.push(format!(
            "spec.prompt.baseURL: {}: must be http:// or https:// with a host and a path, without user, query and fragment",
            if prompt.base_url.contains('@') { "it holds a user" } else { &prompt.base_url }
        ));
    } else if prompt.base_url.trim_end_matches('/').ends_with("/chat/completions") {
        faults.push("spec.prompt.baseURL: leave /chat/completions out; Lockstep adds it".to_owned());
    }
    if prompt.ca_config_map_ref.is_some() && prompt.base_url.starts_with("http://") {
        let why = "goes with a baseURL that begins with https://; without TLS no certificate is checked";
        faults.push(format!("spec.prompt.caConfigMapRef: {why}"));
    }
    if prompt.system.trim().is_empty() {
        faults.push("spec.prompt.system: is empty; it says what the model is to do".to_owned());
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Agent;
    use crate::definition::agent::{CheckedAgent, work_digest};
    use crate::definition::expression::InProcess;

    fn agent(change: impl FnOnce(&mut Value)) -> Agent {
        let mut spec = json!({"prompt": {"system": "Write a plan.", "model": "small", "baseURL": "https://models.example/v1",
            "apiKeySecretRef": {"name": "model-keys", "key": "api"}}});
        change(&mut spec);
        Agent::new("writer", serde_json::from_value(spec).expect("a spec"))
    }

    #[test]
    fn a_prompt_has_a_pod_whose_key_comes_from_its_secret() {
        let agent = agent(|_| {});
        let (_, pod) = CheckedAgent::of(&agent, &InProcess).expect("no faults").pod();
        let env = pod.containers[0].env.clone().expect("an environment");
        let of = env[0].value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref()).expect("a Secret");
        assert_eq!((env[0].name.as_str(), of.name.as_str(), of.key.as_str()), (API_KEY, "model-keys", "api"));
        assert!(env.len() == 1 && env[0].value.is_none(), "nothing of what it says stands in a variable: {env:?}");
    }

    #[test]
    fn authorities_are_a_file_from_their_config_map() {
        for (authorities, key) in
            [(json!({"name": "models-ca"}), "ca.crt"), (json!({"name": "models-ca", "key": "root.pem"}), "root.pem")]
        {
            let agent = agent(|s| s["prompt"]["caConfigMapRef"] = authorities.clone());
            let (_, pod) = CheckedAgent::of(&agent, &InProcess).expect("no faults").pod();
            let expected = json!([{"name": CA_VOLUME, "configMap": {"name": "models-ca", "items": [{"key": key, "path": "ca.crt"}]}}]);
            assert_eq!(json!(pod.volumes), expected);
            let own = &pod.containers[0];
            let mount = json!([{"name": CA_VOLUME, "mountPath": "/etc/lockstep/prompt", "readOnly": true}]);
            assert_eq!(json!(own.volume_mounts), mount);
            let file = json!({"name": CA_FILE, "value": "/etc/lockstep/prompt/ca.crt"});
            assert_eq!(json!(own.env)[1], file);
        }
    }

    #[test]
    fn what_a_prompt_says_shapes_its_work() {
        let digest = |change: fn(&mut Value)| work_digest(&agent(change));
        let own = digest(|_| {});
        assert_eq!(own, digest(|_| {}));
        for change in [
            (|s| s["prompt"]["system"] = json!("Write two.")) as fn(&mut Value),
            |s| s["prompt"]["model"] = json!("large"),
            |s| s["prompt"]["temperature"] = json!(0.5),
            |s| s["prompt"]["caConfigMapRef"] = json!({"name": "models-ca"}),
        ] {
            assert_ne!(own, digest(change));
        }
    }

    #[test]
    fn what_does_not_go_with_a_prompt_is_refused_by_its_path() {
        type Change = fn(&mut Value);
        let cases: [(&str, Change); 11] = [
            ("spec.template: does not go with prompt", |s| s["template"] = json!({"spec": {"containers": []}})),
            ("spec.protocol: ", |s| s["protocol"] = json!("None")),
            ("spec.resultPath: ", |s| s["resultPath"] = json!("/out/result.json")),
            ("spec.repair: ", |s| s["repair"] = json!({"command": ["mend"]})),
            ("spec.prompt.baseURL: ftp://x: must be http://", |s| s["prompt"]["baseURL"] = json!("ftp://x")),
            ("spec.prompt.baseURL: https:///v1: ", |s| s["prompt"]["baseURL"] = json!("https:///v1")),
            ("spec.prompt.baseURL: it holds a user: ", |s| s["prompt"]["baseURL"] = json!("https://a:hunter22@x/v1")),
            ("spec.prompt.baseURL: leave /chat/completions out", |s| {
                s["prompt"]["baseURL"] = json!("https://x/v1/chat/completions/");
            }),
            ("spec.prompt.caConfigMapRef: goes with a baseURL that begins with https://", |s| {
                s["prompt"]["baseURL"] = json!("http://x/v1");
                s["prompt"]["caConfigMapRef"] = json!({"name": "models-ca"});
            }),
            ("spec.prompt.system: is empty", |s| s["prompt"]["system"] = json!(" ")),
            ("spec.outputSchema: ", |s| s["outputSchema"] = json!({"type": "number", "pattern": "("})),
        ];
        for (words, change) in cases {
            let faults = CheckedAgent::of(&agent(change), &InProcess).map(|_| ()).expect_err(words);
            assert!(faults.len() == 1 && faults[0].starts_with(words), "{words}: {faults:?}");
            assert!(!faults[0].contains("hunter22"), "{faults:?}");
        }
    }
}
