//! The pod of an attempt: the shim before the agent's own command, a sidecar beside a container that is left as it is, or
//! Lockstep's own image where the agent is only a prompt.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, EnvVar, ExecAction, PodSpec, PodTemplateSpec, Probe,
    ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecurityContext, ServiceAccountTokenProjection,
    Volume, VolumeMount, VolumeProjection,
};

use super::{Installation, resources};
use crate::api::agent::Protocol;
use crate::api::name;
use crate::api::step_run::StepRun;
use crate::decide::trace;
use crate::definition::agent::{ATTENDANT, CONTAINER, CheckedAgent, result_mount};
use crate::protocol::{env, hook, path};

pub const VOLUME: &str = "lockstep";
/// Where the volume lies in the init container: the image has a file where the agent has the folder.
pub const INSTALL_ROOT: &str = "/shared";
/// The same of the sidecar and of a prompt: where an agent's container has the folder, Lockstep's own image has a program.
pub const ATTENDANT_ROOT: &str = "/lockstep-attend";
/// The command of a prompt, in Lockstep's own image: the shim, and before what it runs below itself.
pub const PROMPT: [&str; 5] = ["/lockstep-shim", "run", "--", "/lockstep", "prompt"];
/// The user of Lockstep's image.
const IMAGE_USER: i64 = 65_532;
pub const TOKEN_VOLUME: &str = "lockstep-token";
const TOKEN_SECONDS: i64 = 3600;

pub fn template(
    step_run: &StepRun,
    attempt: i32,
    agent: &CheckedAgent<'_>,
    around: &Installation,
    labels: &BTreeMap<String, String>,
) -> PodTemplateSpec {
    let (mut meta, mut pod) = agent.pod();
    meta.labels.get_or_insert_default().extend(labels.clone());
    pod.restart_policy = Some("Never".to_owned());
    pod.automount_service_account_token = Some(false);
    pod.enable_service_links.get_or_insert(false);
    pod.volumes.get_or_insert_default().extend(volumes(step_run, attempt));
    let spec = &agent.agent().spec;
    // A checked Agent has that container; Kubernetes has no two of one name.
    let own = pod.containers.iter().find(|c| c.name == CONTAINER).cloned();
    if spec.protocol == Protocol::None {
        // Last: what the author has before the agent fails without costing a claim.
        let attendant = own.map(|own| attend(step_run, attempt, around, (&own, &pod), spec.result_path.as_deref()));
        pod.init_containers.get_or_insert_default().extend(attendant);
    } else if spec.prompt.is_some() {
        pod.containers.iter_mut().for_each(|container| talk(container, step_run, attempt, around));
    } else {
        let installer = own.map(|own| install(around, &own, &pod));
        pod.init_containers.get_or_insert_default().splice(0..0, installer);
        for container in pod.containers.iter_mut().filter(|c| c.name == CONTAINER) {
            wrap(container, step_run, attempt, around);
        }
    }
    PodTemplateSpec { metadata: Some(meta), spec: Some(pod) }
}

fn volumes(step_run: &StepRun, attempt: i32) -> [Volume; 2] {
    let uid = step_run.metadata.uid.as_deref().unwrap_or_default();
    let token = ServiceAccountTokenProjection {
        audience: Some(name::audience(uid, attempt)),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".to_owned(),
    };
    [
        Volume { name: VOLUME.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() },
        Volume {
            name: TOKEN_VOLUME.to_owned(),
            projected: Some(ProjectedVolumeSource {
                default_mode: Some(0o444),
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(token),
                    ..VolumeProjection::default()
                }]),
            }),
            ..Volume::default()
        },
    ]
}

/// Copies the shim into the pod. It passes wherever the agent's own container does: under a quota, a LimitRange and Pod
/// Security, because it states the same requests and limits, which cost nothing beside the agent's, and less of rights.
fn install(around: &Installation, own: &Container, pod: &PodSpec) -> Container {
    let context = own.security_context.clone().unwrap_or_default();
    let of_pod = pod.security_context.as_ref();
    let user = context.run_as_user.or(of_pod.and_then(|c| c.run_as_user));
    Container {
        name: "lockstep-install".to_owned(),
        image: Some(around.image.clone()),
        image_pull_policy: Some(around.image_pull_policy.clone()).filter(|p| !p.is_empty()),
        command: Some(vec!["/lockstep-shim".to_owned(), "install".to_owned(), INSTALL_ROOT.to_owned()]),
        resources: own.resources.as_ref().map(resources::counted),
        volume_mounts: Some(vec![VolumeMount {
            name: VOLUME.to_owned(),
            mount_path: INSTALL_ROOT.to_owned(),
            ..VolumeMount::default()
        }]),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            // An agent may be root; what only copies a file never is.
            run_as_user: if user == Some(0) { Some(IMAGE_USER) } else { context.run_as_user },
            run_as_group: context.run_as_group,
            // Files of a volume bear the label of who wrote them.
            se_linux_options: context.se_linux_options,
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// Claims for a container that is left as it is, and reports for it: a native sidecar, whose startup probe holds the agent back
/// until the attempt is its own. It ends after the agent, and then sends what that has left.
fn attend(
    step_run: &StepRun,
    attempt: i32,
    around: &Installation,
    (own, pod): (&Container, &PodSpec),
    result_path: Option<&str>,
) -> Container {
    let mount = result_path.and_then(|path| result_mount(path, own)).cloned();
    let shim = |verb: &str| Some(vec!["/lockstep-shim".to_owned(), verb.to_owned()]);
    let mut sidecar = Container {
        name: ATTENDANT.to_owned(),
        command: shim("attend"),
        restart_policy: Some("Always".to_owned()),
        startup_probe: Some(Probe {
            exec: Some(ExecAction { command: shim("attended") }),
            period_seconds: Some(1),
            timeout_seconds: Some(5),
            // The operator ends an attempt that does not start in time.
            failure_threshold: Some(1_000_000),
            ..Probe::default()
        }),
        // Beside the agent it costs, other than what runs before it.
        resources: own.resources.as_ref().map(|own| resources::beside(own, &around.attendant)),
        ..install(around, own, pod)
    };
    let mount = mount.map(|m| VolumeMount { read_only: Some(true), ..m });
    sidecar.volume_mounts = Some(own_mounts(ATTENDANT_ROOT).into_iter().chain(mount).collect());
    // By their values the output is masked.
    let is_secret = |v: &&EnvVar| v.value_from.as_ref().is_some_and(|f| f.secret_key_ref.is_some());
    sidecar.env = Some(own.env.iter().flatten().filter(is_secret).cloned().collect());
    tell(&mut sidecar, step_run, attempt, around);
    let path = result_path.map(|path| variable(env::RESULT_PATH, path.to_owned()));
    sidecar.env.get_or_insert_default().extend(folders("").into_iter().chain(path));
    sidecar
}

fn variable(name: &str, value: String) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value), value_from: None }
}

/// Where the folders lie in a container of Lockstep's own image.
fn folders(work: &str) -> [EnvVar; 3] {
    let folders = [(env::IN, "/in"), (env::OUT, "/out"), (env::WORK, work)];
    folders.map(|(name, folder)| variable(name, format!("{ATTENDANT_ROOT}{folder}")))
}

/// Lockstep's own image in place of an author's: it has the shim, so nothing is installed before.
fn talk(container: &mut Container, step_run: &StepRun, attempt: i32, around: &Installation) {
    container.image = Some(around.image.clone());
    container.image_pull_policy = Some(around.image_pull_policy.clone()).filter(|p| !p.is_empty());
    container.command = Some(PROMPT.map(str::to_owned).to_vec());
    if !around.prompt.is_empty() {
        let amounts = Some(around.prompt.clone());
        container.resources = Some(ResourceRequirements {
            limits: amounts.clone(),
            requests: amounts,
            ..ResourceRequirements::default()
        });
    }
    report_through(container, ATTENDANT_ROOT);
    tell(container, step_run, attempt, around);
    container.env.get_or_insert_default().extend(folders("/work"));
}

/// Puts the shim before the agent's own command.
fn wrap(container: &mut Container, step_run: &StepRun, attempt: i32, around: &Installation) {
    let mut command = vec![path::SHIM.to_owned(), "run".to_owned(), "--".to_owned()];
    command.extend(container.command.take().into_iter().flatten());
    container.command = Some(command);
    guard_hooks(container);
    report_through(container, path::ROOT);
    tell(container, step_run, attempt, around);
}

/// What the kubelet runs in the container by itself goes through the shim, too: before the claim nothing of the agent's runs.
fn guard_hooks(container: &mut Container) {
    let probes = [
        (hook::STARTUP_PROBE, container.startup_probe.as_mut()),
        (hook::LIVENESS_PROBE, container.liveness_probe.as_mut()),
        (hook::READINESS_PROBE, container.readiness_probe.as_mut()),
    ];
    let probes = probes.into_iter().filter_map(|(name, probe)| Some((name, probe?.exec.as_mut()?)));
    let pre_stop = container.lifecycle.as_mut().and_then(|lifecycle| lifecycle.pre_stop.as_mut()?.exec.as_mut());
    for (name, exec) in probes.chain(pre_stop.map(|exec| (hook::PRE_STOP, exec))) {
        // The API server refuses one without a command.
        if let Some(command) = exec.command.as_mut().filter(|command| !command.is_empty()) {
            command.splice(0..0, [path::SHIM, "hook", name, "--"].map(str::to_owned));
        }
    }
}

/// What the shim tells the node, and where it finds its folder and its token.
fn report_through(container: &mut Container, root: &str) {
    container.termination_message_path = Some(path::TERMINATION_LOG.to_owned());
    container.termination_message_policy = Some("File".to_owned());
    container.volume_mounts.get_or_insert_default().extend(own_mounts(root));
}

fn own_mounts(root: &str) -> [VolumeMount; 2] {
    [
        VolumeMount { name: VOLUME.to_owned(), mount_path: root.to_owned(), ..VolumeMount::default() },
        VolumeMount {
            name: TOKEN_VOLUME.to_owned(),
            mount_path: "/var/run/secrets/lockstep.dev".to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        },
    ]
}

/// What the shim in a container must know.
fn tell(container: &mut Container, step_run: &StepRun, attempt: i32, around: &Installation) {
    let variables = container.env.get_or_insert_default();
    let secret: Vec<&str> = variables
        .iter()
        .filter(|v| v.value_from.as_ref().is_some_and(|f| f.secret_key_ref.is_some()))
        .map(|v| v.name.as_str())
        .collect();
    let secret = secret.join(",");
    let meta = &step_run.metadata;
    let id = format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    for (key, value) in [
        (env::GATEWAY, around.gateway_url.as_str()),
        (env::GATEWAY_CA, around.gateway_ca.as_str()),
        (env::STEP_RUN, id.as_str()),
        (env::STEP_RUN_UID, meta.uid.as_deref().unwrap_or_default()),
        (env::ATTEMPT, attempt.to_string().as_str()),
        (env::SECRET_NAMES, secret.as_str()),
        (env::TRACEPARENT, trace::of_attempt(step_run, attempt).as_str()),
    ] {
        variables.retain(|v| v.name != key);
        variables.push(variable(key, value.to_owned()));
    }
}
