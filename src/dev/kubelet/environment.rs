//! The environment of an agent's container, as a kubelet makes it: what the template says, with what it takes from ConfigMaps,
//! Secrets and the pod itself.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod};
use serde_json::Value;

use crate::apiserver::Kind;
use crate::definition::agent::CA_VOLUME;

/// Where ConfigMaps and Secrets are found, by name.
pub type Find<'a> = &'a dyn Fn(Kind, &str) -> Option<Value>;

type Variables = BTreeMap<String, String>;

/// The variables by name; or what is missing, as a kubelet words it.
pub fn of(container: &Container, pod: &Pod, find: Find<'_>) -> Result<Variables, String> {
    let mut all = Variables::new();
    for source in container.env_from.iter().flatten() {
        let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), _) => (Kind::ConfigMap, map.name.as_str(), map.optional),
            (None, Some(secret)) => (Kind::Secret, secret.name.as_str(), secret.optional),
            (None, None) => continue,
        };
        match find(kind, name) {
            Some(object) => {
                let prefix = source.prefix.as_deref().unwrap_or_default();
                all.extend(entries(kind, &object).map(|(key, value)| (format!("{prefix}{key}"), value)));
            }
            None if optional == Some(true) => {}
            None => return Err(missing(kind, name)),
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(variable, pod, find, &all)? {
            all.insert(variable.name.clone(), value);
        }
    }
    Ok(all)
}

fn value_of(variable: &EnvVar, pod: &Pod, find: Find<'_>, known: &Variables) -> Result<Option<String>, String> {
    let Some(source) = &variable.value_from else {
        return Ok(Some(expanded(variable.value.as_deref().unwrap_or_default(), known)));
    };
    let EnvVarSource { config_map_key_ref, secret_key_ref, field_ref, .. } = source;
    let (kind, name, key, optional) = match (config_map_key_ref, secret_key_ref) {
        (Some(of), _) => (Kind::ConfigMap, of.name.as_str(), of.key.as_str(), of.optional),
        (None, Some(of)) => (Kind::Secret, of.name.as_str(), of.key.as_str(), of.optional),
        (None, None) => return Ok(field_ref.as_ref().map(|field| field_of(pod, &field.field_path))),
    };
    let Some(object) = find(kind, name) else {
        return if optional == Some(true) { Ok(None) } else { Err(missing(kind, name)) };
    };
    let found = entries(kind, &object).find(|(own, _)| own == key).map(|(_, value)| value);
    match found {
        None if optional != Some(true) => Err(format!("couldn't find key {key} in {}", what(kind, name))),
        found => Ok(found),
    }
}

/// What a prompt trusts: the text that its volume has in a pod.
pub fn authorities(pod: &Pod, find: Find<'_>) -> Result<Option<String>, String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let Some(map) = volumes.filter(|volume| volume.name == CA_VOLUME).find_map(|volume| volume.config_map.as_ref())
    else {
        return Ok(None);
    };
    let key = map.items.iter().flatten().map(|item| item.key.as_str()).next().unwrap_or_default();
    let unset = |why: String| format!("MountVolume.SetUp failed for volume \"{CA_VOLUME}\": {why}");
    let object = find(Kind::ConfigMap, &map.name).ok_or_else(|| unset(missing(Kind::ConfigMap, &map.name)))?;
    let found = entries(Kind::ConfigMap, &object).find(|(own, _)| own == key).map(|(_, text)| text);
    found.map(Some).ok_or_else(|| unset(format!("couldn't find key {key} in {}", what(Kind::ConfigMap, &map.name))))
}

fn what(kind: Kind, name: &str) -> String {
    format!("{} {name}", kind.name())
}

fn missing(kind: Kind, name: &str) -> String {
    format!("{} not found; put it into a file that -f names", what(kind, name))
}

/// What an object holds. Of a Secret, `data` is base64, and `stringData` is as it is.
fn entries(kind: Kind, object: &Value) -> impl Iterator<Item = (String, String)> {
    let of = |field: &str| object[field].as_object().cloned().unwrap_or_default().into_iter();
    let text = |(key, value): (String, Value)| Some((key, value.as_str()?.to_owned()));
    let read = move |(key, value): (String, String)| {
        if kind != Kind::Secret {
            return Some((key, value));
        }
        Some((key, String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?))
    };
    of("stringData")
        .filter_map(text)
        .chain(of("data").filter_map(text).filter_map(read))
        .collect::<Vec<_>>()
        .into_iter()
}

/// A field of the pod, as `fieldRef` names it. What only a node knows is the one of this machine.
fn field_of(pod: &Pod, path: &str) -> String {
    let meta = &pod.metadata;
    let one = |all: &Option<BTreeMap<String, String>>, key: &str| {
        all.as_ref().and_then(|all| all.get(key)).cloned().unwrap_or_default()
    };
    let key = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("']"));
    if let Some(key) = key("metadata.labels['") {
        return one(&meta.labels, key);
    }
    if let Some(key) = key("metadata.annotations['") {
        return one(&meta.annotations, key);
    }
    let of_spec = |field: fn(&k8s_openapi::api::core::v1::PodSpec) -> Option<String>| pod.spec.as_ref().and_then(field);
    match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "spec.nodeName" => of_spec(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => Some("default".to_owned()),
        "status.podIP" | "status.hostIP" | "status.podIPs" | "status.hostIPs" => Some("127.0.0.1".to_owned()),
        _ => None,
    }
    .unwrap_or_default()
}

/// `$(NAME)` is the variable of that name where there is one; `$$` is a dollar.
pub fn expanded(text: &str, known: &Variables) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let name = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match (rest.strip_prefix('$'), name) {
            (Some(behind), _) => {
                out.push('$');
                rest = behind;
            }
            (None, Some((name, behind))) => {
                match known.get(name) {
                    Some(value) => out.push_str(value),
                    None => out.push_str(&format!("$({name})")),
                }
                rest = behind;
            }
            (None, None) => out.push('$'),
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(kind: Kind, name: &str) -> Option<Value> {
        match (kind, name) {
            (Kind::ConfigMap, "settings") => Some(json!({"data": {"mode": "fast", "n": "2"}})),
            (Kind::Secret, "keys") => Some(json!({"data": {"api": "aHVudGVyMjI="}, "stringData": {"plain": "p"}})),
            _ => None,
        }
    }

    fn environment(container: Value) -> Result<Variables, String> {
        let container: Container = serde_json::from_value(container).expect("a container");
        let pod =
            json!({"metadata": {"name": "p", "labels": {"a/b": "c"}}, "spec": {"nodeName": "here", "containers": []}});
        of(&container, &serde_json::from_value(pod).expect("a pod"), &found)
    }

    #[test]
    fn variables_come_from_everywhere() {
        let all = environment(json!({"name": "agent",
            "envFrom": [{"configMapRef": {"name": "settings"}, "prefix": "S_"}, {"secretRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$(S_mode)-$(none)-$$(A)-$x"},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "api"}}},
                {"name": "PLAIN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "plain"}}},
                {"name": "NO", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "x", "optional": true}}},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}));
        let all: Vec<String> =
            all.expect("all there").into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = "A=1 B=1-fast-$(none)-$(A)-$x KEY=hunter22 LABEL=c NODE=here PLAIN=p POD=p S_mode=fast S_n=2";
        assert_eq!(all.join(" "), expected);
    }

    #[test]
    fn what_a_prompt_trusts_comes_from_its_config_map() {
        let of = |map: Value| {
            let volumes = json!([{"name": "other", "emptyDir": {}}, {"name": CA_VOLUME, "configMap": map}]);
            let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": volumes}});
            authorities(&serde_json::from_value(pod).expect("a pod"), &found)
        };
        let map = |name: &str, key: &str| json!({"name": name, "items": [{"key": key, "path": "ca.crt"}]});
        assert_eq!(of(map("settings", "mode")), Ok(Some("fast".to_owned())));
        let failed = "MountVolume.SetUp failed for volume \"lockstep-ca\": ";
        for (name, key, why) in [
            ("none", "mode", "ConfigMap none not found; put it into a file that -f names"),
            ("settings", "ca.crt", "couldn't find key ca.crt in ConfigMap settings"),
        ] {
            assert_eq!(of(map(name, key)), Err(format!("{failed}{why}")));
        }
        let none = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": []}}));
        assert_eq!(authorities(&none.expect("a pod"), &found), Ok(None));
    }

    #[test]
    fn what_is_missing_is_told() {
        for (container, words) in [
            (json!({"name": "a", "envFrom": [{"secretRef": {"name": "x"}}]}), "Secret x not found"),
            (
                json!({"name": "a", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "y", "key": "k"}}}]}),
                "ConfigMap y not found",
            ),
            (
                json!({"name": "a", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}}]}),
                "couldn't find key k in Secret keys",
            ),
        ] {
            assert!(environment(container.clone()).expect_err("missing").contains(words), "{container}");
        }
    }
}
