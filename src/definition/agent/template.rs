//! What a pod template may not have, because something that Lockstep promises would not hold: that the command runs after
//! the claim and once, that nobody else in the pod has the attempt's token, that agents get no credentials for the API
//! server. Own volumes, init containers, sidecars and Secrets are the agent's business.

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec, Volume};

use super::CONTAINER;
use crate::protocol::path;

/// Volumes, containers and labels that begin so are Lockstep's.
const OURS: &str = "lockstep";
const OUR_LABELS: &str = "lockstep.dev/";
/// Where the shim and its token lie in the agent's container; the folders of input, output and work are the agent's to lay
/// something over.
const OUR_PATHS: [&str; 2] = ["/lockstep/bin", "/var/run/secrets/lockstep.dev"];
const PLACE: &str = "spec.template.spec";

/// All faults of the template, each with its path.
pub fn faults(template: &PodTemplateSpec) -> Vec<String> {
    let Some(pod) = &template.spec else {
        return vec![format!("{PLACE}: is required")];
    };
    let mut faults = Vec::new();
    labels(template, &mut faults);
    of_pod(pod, &mut faults);
    if !pod.containers.iter().any(|c| c.name == CONTAINER) {
        faults.push(format!("{PLACE}.containers: one must be named {CONTAINER}"));
    }
    for (index, container) in pod.containers.iter().enumerate() {
        let place = format!("{PLACE}.containers[{index}]");
        if container.restart_policy.is_some() {
            faults.push(format!("{place}.restartPolicy: is not allowed; a restart would start the agent twice"));
        }
        if container.name == CONTAINER {
            agent(container, &place, &mut faults);
        }
        any(container, &place, &mut faults);
    }
    for (index, container) in pod.init_containers.iter().flatten().enumerate() {
        let place = format!("{PLACE}.initContainers[{index}]");
        if container.restart_policy.as_deref().is_some_and(|p| p != "Always") {
            faults.push(format!("{place}.restartPolicy: must be Always, which makes it a sidecar, or absent"));
        }
        any(container, &place, &mut faults);
    }
    for (index, volume) in pod.volumes.iter().flatten().enumerate() {
        of_volume(volume, &format!("{PLACE}.volumes[{index}]"), &mut faults);
    }
    faults
}

fn labels(template: &PodTemplateSpec, faults: &mut Vec<String>) {
    let labels = template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
    for key in labels.into_iter().flat_map(|labels| labels.keys()).filter(|key| key.starts_with(OUR_LABELS)) {
        faults.push(format!(
            "spec.template.metadata.labels[{key}]: labels that begin with {OUR_LABELS} are Lockstep's own"
        ));
    }
}

fn of_pod(pod: &PodSpec, faults: &mut Vec<String>) {
    if pod.restart_policy.as_deref().is_some_and(|p| p != "Never") {
        faults.push(format!("{PLACE}.restartPolicy: must be Never or absent; Lockstep repeats attempts itself"));
    }
    if pod.automount_service_account_token == Some(true) {
        faults.push(format!(
            "{PLACE}.automountServiceAccountToken: must not be true; agents get no credentials for the API server"
        ));
    }
    for (flag, set) in [("hostNetwork", pod.host_network), ("hostPID", pod.host_pid), ("hostIPC", pod.host_ipc)] {
        if set == Some(true) {
            faults.push(format!("{PLACE}.{flag}: must not be true"));
        }
    }
    if pod.share_process_namespace == Some(true) {
        faults.push(format!(
            "{PLACE}.shareProcessNamespace: must not be true; other containers would see the shim's memory and token"
        ));
    }
    if pod.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        faults.push(format!("{PLACE}.ephemeralContainers: are not allowed"));
    }
}

/// The container whose command the shim runs.
fn agent(container: &Container, place: &str, faults: &mut Vec<String>) {
    if container.command.as_ref().is_none_or(Vec::is_empty) {
        faults.push(format!(
            "{place}.command: is required, because Kubernetes does not tell an image's entrypoint; find it with: skopeo inspect --config docker://IMAGE"
        ));
    }
    for (n, variable) in container.env.iter().flatten().enumerate().filter(|(_, v)| v.name.starts_with("LOCKSTEP_")) {
        faults.push(format!(
            "{place}.env[{n}].name: {}: names that begin with LOCKSTEP_ are Lockstep's own",
            variable.name
        ));
    }
    if container.image.as_ref().is_none_or(String::is_empty) {
        faults.push(format!("{place}.image: is required"));
    }
    if container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some()) {
        faults.push(format!(
            "{place}.lifecycle.postStart: is not allowed; it would run before the attempt is claimed, and once more with every pod"
        ));
    }
    for (n, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let whole = lies_in(path::ROOT, &mount.mount_path).then_some(&path::ROOT);
        if let Some(ours) = OUR_PATHS.iter().find(|ours| lies_in(&mount.mount_path, ours)).or(whole) {
            faults.push(format!("{place}.volumeMounts[{n}].mountPath: {}: {ours} is Lockstep's own", mount.mount_path));
        }
    }
}

/// Whether a path is a folder, or lies in it.
fn lies_in(path: &str, folder: &str) -> bool {
    let parts =
        |text: &str| text.split('/').filter(|p| !p.is_empty() && *p != ".").map(str::to_owned).collect::<Vec<_>>();
    parts(path).starts_with(&parts(folder))
}

/// What no container may: see what is the shim's.
fn any(container: &Container, place: &str, faults: &mut Vec<String>) {
    if container.name.starts_with(OURS) {
        faults.push(format!("{place}.name: names that begin with {OURS} are Lockstep's own"));
    }
    for (n, mount) in container.volume_mounts.iter().flatten().enumerate() {
        if mount.name.starts_with(OURS) {
            faults.push(format!(
                "{place}.volumeMounts[{n}].name: {}: volumes that begin with {OURS} hold the attempt's token and files, no container mounts them itself",
                mount.name
            ));
        }
    }
}

fn of_volume(volume: &Volume, place: &str, faults: &mut Vec<String>) {
    if volume.name.starts_with(OURS) {
        faults.push(format!("{place}.name: names that begin with {OURS} are Lockstep's own"));
    }
    if volume.host_path.is_some() {
        faults.push(format!("{place}.hostPath: is not allowed"));
    }
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    for (n, _) in sources.enumerate().filter(|(_, source)| source.service_account_token.is_some()) {
        faults.push(format!(
            "{place}.projected.sources[{n}].serviceAccountToken: is not allowed; agents get no credentials of the cluster but the attempt's own"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn template(change: impl FnOnce(&mut Value)) -> PodTemplateSpec {
        let mut template = json!({"metadata": {"labels": {"team": "a"}}, "spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true}, "serviceAccountName": "writer", "shareProcessNamespace": false,
            "initContainers": [
                {"name": "fetch", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
                {"name": "proxy", "image": "i", "restartPolicy": "Always", "lifecycle": {"postStart": {"exec": {"command": ["warm-up"]}}}}],
            "containers": [
                {"name": "agent", "image": "i", "command": ["run"], "env": [{"name": "MODEL", "value": "m"}],
                    "envFrom": [{"secretRef": {"name": "keys"}}], "lifecycle": {"preStop": {"exec": {"command": ["save"]}}},
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "keys", "mountPath": "/var/run/secrets/keys"},
                        {"name": "data", "mountPath": "/lockstep-data"}, {"name": "data", "mountPath": "/lockstep/work"}]},
                {"name": "cache", "image": "i", "lifecycle": {"postStart": {"exec": {"command": ["warm-up"]}}},
                    "volumeMounts": [{"name": "data", "mountPath": "/lockstep"}]}],
            "volumes": [
                {"name": "data", "emptyDir": {}}, {"name": "keys", "secret": {"secretName": "keys"}},
                {"name": "mixed", "projected": {"sources": [{"configMap": {"name": "c"}}, {"secret": {"name": "s"}}]}}],
        }});
        change(&mut template);
        serde_json::from_value(template).expect("a template")
    }

    #[test]
    fn what_agents_need_is_theirs() {
        assert_eq!(faults(&template(|_| {})), Vec::<String>::new());
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table is as long as its cases")]
    fn what_would_break_a_promise_is_refused_by_its_path() {
        type Change = fn(&mut Value);
        let cases: Vec<(&str, Change)> = vec![
            ("spec.template.spec: is required", |t| t["spec"] = Value::Null),
            ("spec.template.metadata.labels[lockstep.dev/steprun]: ", |t| {
                t["metadata"]["labels"]["lockstep.dev/steprun"] = json!("x");
            }),
            ("spec.template.spec.restartPolicy: ", |t| t["spec"]["restartPolicy"] = json!("OnFailure")),
            ("spec.template.spec.automountServiceAccountToken: ", |t| {
                t["spec"]["automountServiceAccountToken"] = json!(true);
            }),
            ("spec.template.spec.hostNetwork: ", |t| t["spec"]["hostNetwork"] = json!(true)),
            ("spec.template.spec.hostPID: ", |t| t["spec"]["hostPID"] = json!(true)),
            ("spec.template.spec.hostIPC: ", |t| t["spec"]["hostIPC"] = json!(true)),
            ("spec.template.spec.shareProcessNamespace: ", |t| t["spec"]["shareProcessNamespace"] = json!(true)),
            ("spec.template.spec.ephemeralContainers: ", |t| {
                t["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "i"}]);
            }),
            ("spec.template.spec.containers: one must be named agent", |t| {
                t["spec"]["containers"][0]["name"] = json!("main");
            }),
            ("spec.template.spec.containers[0].command: ", |t| t["spec"]["containers"][0]["command"] = json!([])),
            ("spec.template.spec.containers[0].image: ", |t| t["spec"]["containers"][0]["image"] = json!("")),
            ("spec.template.spec.containers[0].env[0].name: LOCKSTEP_OUT: ", |t| {
                t["spec"]["containers"][0]["env"][0]["name"] = json!("LOCKSTEP_OUT");
            }),
            ("spec.template.spec.containers[0].restartPolicy: ", |t| {
                t["spec"]["containers"][0]["restartPolicy"] = json!("OnFailure");
            }),
            ("spec.template.spec.containers[1].restartPolicy: ", |t| {
                t["spec"]["containers"][1]["restartPolicy"] = json!("Always");
            }),
            ("spec.template.spec.initContainers[0].restartPolicy: ", |t| {
                t["spec"]["initContainers"][0]["restartPolicy"] = json!("OnFailure");
            }),
            ("spec.template.spec.containers[0].lifecycle.postStart: ", |t| {
                t["spec"]["containers"][0]["lifecycle"] = json!({"postStart": {"exec": {"command": ["run"]}}});
            }),
            ("spec.template.spec.initContainers[0].volumeMounts[0].name: lockstep-token: ", |t| {
                t["spec"]["initContainers"][0]["volumeMounts"][0]["name"] = json!("lockstep-token");
            }),
            ("spec.template.spec.containers[1].volumeMounts[0].name: lockstep: ", |t| {
                t["spec"]["containers"][1]["volumeMounts"][0]["name"] = json!("lockstep");
            }),
            ("spec.template.spec.containers[0].volumeMounts[0].name: lockstep-token: ", |t| {
                t["spec"]["containers"][0]["volumeMounts"][0]["name"] = json!("lockstep-token");
            }),
            ("spec.template.spec.containers[0].volumeMounts[0].mountPath: /lockstep/bin: ", |t| {
                t["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = json!("/lockstep/bin");
            }),
            ("spec.template.spec.containers[0].volumeMounts[0].mountPath: /lockstep/: /lockstep is", |t| {
                t["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = json!("/lockstep/");
            }),
            ("spec.template.spec.containers[0].volumeMounts[0].mountPath: /var/run//secrets/./lockstep.dev: ", |t| {
                t["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = json!("/var/run//secrets/./lockstep.dev");
            }),
            ("spec.template.spec.initContainers[0].name: ", |t| {
                t["spec"]["initContainers"][0]["name"] = json!("lockstep-install");
            }),
            ("spec.template.spec.containers[1].name: ", |t| t["spec"]["containers"][1]["name"] = json!("lockstep-2")),
            ("spec.template.spec.volumes[0].name: ", |t| {
                t["spec"]["volumes"][0]["name"] = json!("lockstep");
            }),
            ("spec.template.spec.volumes[0].hostPath: ", |t| {
                t["spec"]["volumes"][0] = json!({"name": "data", "hostPath": {"path": "/"}});
            }),
            ("spec.template.spec.volumes[2].projected.sources[1].serviceAccountToken: ", |t| {
                t["spec"]["volumes"][2]["projected"]["sources"][1] = json!({"serviceAccountToken": {"path": "token"}});
            }),
            ("spec.template.spec.volumes[2].projected.sources[1].serviceAccountToken: ", |t| {
                t["spec"]["volumes"][2]["projected"]["sources"][1] =
                    json!({"serviceAccountToken": {"path": "token", "audience": "lockstep.dev/uid/1"}});
            }),
        ];
        for (fault, change) in cases {
            let found = faults(&template(change));
            assert!(found.len() == 1 && found[0].starts_with(fault), "{fault}: {found:?}");
        }
    }
}
