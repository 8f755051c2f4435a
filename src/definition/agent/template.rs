//! What a pod template may not have, because something that Lockstep promises would not hold: that the command runs after
//! the claim and once, that nobody else in the pod has the attempt's token, that agents get no credentials for the API
//! server. Own volumes, init containers, sidecars and Secrets are the agent's business.

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec, Volume, VolumeMount, VolumeProjection};
use serde_json::Value;

use super::CONTAINER;
use crate::api::agent::{AgentSpec, Protocol};
use crate::protocol::path;

/// Volumes, containers and labels that begin so are Lockstep's.
const OURS: &str = "lockstep";
const OUR_LABELS: &str = "lockstep.dev/";
/// Where the shim and its token lie in the agent's container, and where it marks how far it came, in a file that is new with each
/// container; the folders of input, output and work are the agent's to lay something over.
const OUR_PATHS: [&str; 3] = ["/lockstep/bin", "/var/run/secrets/lockstep.dev", path::TERMINATION_LOG];
const PLACE: &str = "spec.template.spec";

/// All faults of the template, each with its path.
pub fn faults(template: &PodTemplateSpec, spec: &AgentSpec) -> Vec<String> {
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
            agent(container, (&place, spec.protocol), &mut faults);
            bare(container, spec, &mut faults);
        } else if spec.protocol == Protocol::None {
            faults.push(format!(
                "{place}: with the protocol None other containers must be sidecars (initContainers with restartPolicy Always), or the pod would not end with the agent"
            ));
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
        let written = spec.template.get("spec").and_then(|pod| pod.get("volumes")?.get(index));
        of_volume((volume, written), &format!("{PLACE}.volumes[{index}]"), &mut faults);
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
fn agent(container: &Container, (place, protocol): (&str, Protocol), faults: &mut Vec<String>) {
    if container.command.as_ref().is_none_or(Vec::is_empty) && protocol == Protocol::Shim {
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
    // A container that is left as it is starts after the claim, and probes and preStop go through the shim.
    if protocol == Protocol::Shim && container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some()) {
        faults.push(format!(
            "{place}.lifecycle.postStart: is not allowed; it would run before the attempt is claimed, and once more with every pod; let the command begin with it"
        ));
    }
    for (n, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let whole = lies_in(path::ROOT, &mount.mount_path).then_some(&path::ROOT);
        if let Some(ours) = OUR_PATHS.iter().find(|ours| lies_in(&mount.mount_path, ours)).or(whole) {
            faults.push(format!("{place}.volumeMounts[{n}].mountPath: {}: {ours} is Lockstep's own", mount.mount_path));
        }
    }
}

/// What goes with a container that is left as it is, and what does not.
fn bare(container: &Container, spec: &AgentSpec, faults: &mut Vec<String>) {
    let Some(path) = &spec.result_path else {
        if spec.protocol == Protocol::None {
            needs_shim(spec, faults);
        }
        return;
    };
    if spec.protocol == Protocol::Shim {
        faults.push(
            "spec.resultPath: is for the protocol None; with the shim the output is $LOCKSTEP_OUT/result.json"
                .to_owned(),
        );
        return;
    }
    needs_shim(spec, faults);
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        faults.push(format!("spec.resultPath: {path}: must be an absolute path without .."));
    } else if result_mount(path, container).is_none() {
        faults.push(format!(
            "spec.resultPath: {path}: the container {CONTAINER} must mount a volume there, for example an emptyDir; it is where the sidecar finds the file"
        ));
    }
}

fn needs_shim(spec: &AgentSpec, faults: &mut Vec<String>) {
    for (field, is_set) in
        [("repair", spec.repair.is_some()), ("progressTimeoutSeconds", spec.progress_timeout_seconds.is_some())]
    {
        if is_set {
            faults.push(format!("spec.{field}: needs the shim, which the protocol None leaves out"));
        }
    }
}

/// The mount that a file of the container lies in: the innermost.
pub fn result_mount<'a>(path: &str, container: &'a Container) -> Option<&'a VolumeMount> {
    let around = container.volume_mounts.iter().flatten().filter(|mount| lies_in(path, &mount.mount_path));
    around.max_by_key(|mount| mount.mount_path.trim_end_matches('/').len())
}

/// Whether a path is a folder, or lies in it.
fn lies_in(path: &str, folder: &str) -> bool {
    let parts =
        |text: &str| text.split('/').filter(|p| !p.is_empty() && *p != ".").map(str::to_owned).collect::<Vec<_>>();
    parts(path).starts_with(&parts(folder))
}

/// What no container may: see what is the shim's.
fn any(container: &Container, place: &str, faults: &mut Vec<String>) {
    privileges(container, place, faults);
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

/// With them a process reads the memory of others, and where the claim and the token lie, without anything shared.
const SEEING: [&str; 6] = ["ALL", "SYS_PTRACE", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "BPF"];

fn privileges(container: &Container, place: &str, faults: &mut Vec<String>) {
    let Some(context) = &container.security_context else { return };
    let place = format!("{place}.securityContext");
    if context.privileged == Some(true) {
        faults
            .push(format!("{place}.privileged: must not be true; the container would see the shim's memory and token"));
    }
    let added = context.capabilities.iter().flat_map(|all| all.add.iter().flatten());
    for (n, name) in added.enumerate() {
        let bare = name.to_ascii_uppercase();
        let bare = bare.strip_prefix("CAP_").unwrap_or(&bare);
        if SEEING.contains(&bare) {
            faults.push(format!(
                "{place}.capabilities.add[{n}]: {name}: is not allowed; the container could see the shim's memory and token"
            ));
        }
    }
    if context.proc_mount.as_deref().is_some_and(|mount| mount != "Default") {
        faults.push(format!("{place}.procMount: must be Default or absent"));
    }
}

fn of_volume((volume, written): (&Volume, Option<&Value>), place: &str, faults: &mut Vec<String>) {
    if volume.name.starts_with(OURS) {
        faults.push(format!("{place}.name: names that begin with {OURS} are Lockstep's own"));
    }
    if volume.host_path.is_some() {
        faults.push(format!("{place}.hostPath: is not allowed"));
    }
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    for (n, source) in sources.enumerate() {
        let written = written.and_then(|volume| volume.get("projected")?.get("sources")?.get(n));
        faults.extend(of_source(source, written).map(|fault| format!("{place}.projected.sources[{n}]{fault}")));
    }
}

/// What is projected is allowed by name: a source that is not known here may be a credential of the cluster.
fn of_source(source: &VolumeProjection, written: Option<&Value>) -> Option<String> {
    let credentials = "agents get no credentials of the cluster but the attempt's own";
    let VolumeProjection { config_map, secret, downward_api, cluster_trust_bundle, service_account_token } = source;
    if service_account_token.is_some() {
        return Some(format!(".serviceAccountToken: is not allowed; {credentials}"));
    }
    if config_map.is_some() || secret.is_some() || downward_api.is_some() || cluster_trust_bundle.is_some() {
        return None;
    }
    let name = written.and_then(|written| written.as_object()?.keys().next());
    let name = name.map(|name| format!(".{name}")).unwrap_or_default();
    Some(format!(
        "{name}: is not allowed; what may be projected are configMap, secret, downwardAPI and clusterTrustBundle, as {credentials}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults_of(template: &PodTemplateSpec) -> Vec<String> {
        faults(template, &AgentSpec::default())
    }

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
                    "startupProbe": {"exec": {"command": ["up"]}}, "livenessProbe": {"exec": {"command": ["well"]}},
                    "readinessProbe": {"exec": {"command": ["ready"]}},
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "keys", "mountPath": "/var/run/secrets/keys"},
                        {"name": "data", "mountPath": "/lockstep-data"}, {"name": "data", "mountPath": "/lockstep/work"}]},
                {"name": "cache", "image": "i", "lifecycle": {"postStart": {"exec": {"command": ["warm-up"]}}},
                    "volumeMounts": [{"name": "data", "mountPath": "/lockstep"}]}],
            "volumes": [
                {"name": "data", "emptyDir": {}}, {"name": "keys", "secret": {"secretName": "keys"}},
                {"name": "mixed", "projected": {"sources": [{"configMap": {"name": "c"}}, {"secret": {"name": "s"}},
                    {"downwardAPI": {"items": []}}, {"clusterTrustBundle": {"path": "ca"}}]}}],
        }});
        change(&mut template);
        serde_json::from_value(template).expect("a template")
    }

    #[test]
    fn what_agents_need_is_theirs() {
        assert_eq!(faults_of(&template(|_| {})), Vec::<String>::new());
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
            ("spec.template.spec.containers[0].lifecycle.postStart: is not allowed", |t| {
                t["spec"]["containers"][0]["lifecycle"]["postStart"] = json!({"sleep": {"seconds": 1}});
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
            ("spec.template.spec.containers[0].volumeMounts[0].mountPath: /dev/termination-log: ", |t| {
                t["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = json!("/dev/termination-log");
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
            let found = faults_of(&template(change));
            assert!(found.len() == 1 && found[0].starts_with(fault), "{fault}: {found:?}");
        }
    }

    #[test]
    fn nobody_sees_the_shims_memory() {
        let with = |place: &str, value: Value| {
            let (kind, more) = place.split_once('/').expect("a place");
            faults_of(&template(|t| t["spec"][kind][0][more] = value)).join("; ")
        };
        let allowed = json!({"privileged": false, "procMount": "Default", "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}});
        for kind in ["containers", "initContainers"] {
            let place = format!("{kind}/securityContext");
            assert_eq!(with(&place, allowed.clone()), "");
            for (field, context) in [
                (".privileged: ", json!({"privileged": true})),
                (".capabilities.add[1]: SYS_PTRACE: ", json!({"capabilities": {"add": ["CHOWN", "SYS_PTRACE"]}})),
                (".capabilities.add[0]: CAP_SYS_ADMIN: ", json!({"capabilities": {"add": ["CAP_SYS_ADMIN"]}})),
                (".capabilities.add[0]: all: ", json!({"capabilities": {"add": ["all"]}})),
                (".procMount: ", json!({"procMount": "Unmasked"})),
            ] {
                let told = with(&place, context);
                assert!(told.starts_with(&format!("spec.template.spec.{kind}[0].securityContext{field}")), "{told}");
            }
        }
        for (source, words) in [
            (
                json!({"podCertificate": {"signerName": "s", "keyType": "ED25519"}}),
                "[4].podCertificate: is not allowed",
            ),
            (json!({"somethingNew": {}}), "[4].somethingNew: is not allowed; what may be projected are configMap"),
            (json!({}), "[4]: is not allowed"),
        ] {
            let mut written = json!({"template": {}});
            let read = template(|t| {
                t["spec"]["volumes"][2]["projected"]["sources"].as_array_mut().expect("a list").push(source);
                written["template"] = t.clone();
            });
            let found = faults(&read, &serde_json::from_value(written).expect("a spec"));
            assert!(found.len() == 1 && found[0].contains(words), "{found:?}");
        }
    }

    #[test]
    fn a_container_that_is_left_as_it_is_needs_little() {
        let bare = |change: &dyn Fn(&mut Value)| {
            let mut template = json!({"spec": {"containers": [{"name": "agent", "image": "i",
                "volumeMounts": [{"name": "out", "mountPath": "/out"}, {"name": "deep", "mountPath": "/out/deep/"}]}],
                "volumes": [{"name": "out", "emptyDir": {}}, {"name": "deep", "emptyDir": {}}]}});
            change(&mut template);
            serde_json::from_value::<PodTemplateSpec>(template).expect("a template")
        };
        let told = |spec: Value, change: &dyn Fn(&mut Value)| {
            let mut all = json!({"template": {}});
            all.as_object_mut().expect("an object").extend(spec.as_object().cloned().unwrap_or_default());
            faults(&bare(change), &serde_json::from_value(all).expect("a spec")).join("; ")
        };
        let as_it_is = |_: &mut Value| {};
        let begins = |t: &mut Value| {
            t["spec"]["containers"][0]["lifecycle"] = json!({"postStart": {"exec": {"command": ["warm-up"]}}});
        };
        let beside = |t: &mut Value| {
            t["spec"]["containers"].as_array_mut().expect("a list").push(json!({"name": "b", "image": "i"}));
        };
        for (what, spec, change, part) in [
            ("no command, no path", json!({"protocol": "None"}), &as_it_is as &dyn Fn(&mut Value), ""),
            ("a file", json!({"protocol": "None", "resultPath": "/out/result.json"}), &as_it_is, ""),
            ("it starts after the claim", json!({"protocol": "None"}), &begins, ""),
            ("the shim needs a command", json!({}), &as_it_is, "command: is required"),
            (
                "the shim knows where",
                json!({"resultPath": "/out/r"}),
                &as_it_is,
                "spec.resultPath: is for the protocol None",
            ),
            ("nowhere", json!({"protocol": "None", "resultPath": "/tmp/r"}), &as_it_is, "must mount a volume there"),
            ("beside", json!({"protocol": "None", "resultPath": "/output/r"}), &as_it_is, "must mount a volume there"),
            ("relative", json!({"protocol": "None", "resultPath": "out/r"}), &as_it_is, "must be an absolute path"),
            ("upwards", json!({"protocol": "None", "resultPath": "/out/../etc/r"}), &as_it_is, "without .."),
            (
                "no repair",
                json!({"protocol": "None", "repair": {"command": ["x"]}}),
                &as_it_is,
                "spec.repair: needs the shim",
            ),
            (
                "no calls",
                json!({"protocol": "None", "progressTimeoutSeconds": 5}),
                &as_it_is,
                "spec.progressTimeoutSeconds: needs",
            ),
            ("ends with the agent", json!({"protocol": "None"}), &beside, "containers[1]: with the protocol None"),
        ] {
            let told = told(spec, change);
            assert!(if part.is_empty() { told.is_empty() } else { told.contains(part) }, "{what}: {told}");
        }
        let template = bare(&as_it_is);
        let container = &template.spec.expect("a pod").containers[0];
        assert_eq!(result_mount("/out/deep/r", container).map(|m| m.name.as_str()), Some("deep"));
        assert_eq!(result_mount("/out/r", container).map(|m| m.name.as_str()), Some("out"));
    }
}
