use super::pod::{ATTENDANT_ROOT, INSTALL_ROOT, TOKEN_VOLUME, VOLUME};
use super::*;
use crate::api::agent::AgentSpec;
use crate::api::step_run::{Item, ScopeLink, WorkflowIdentity};
use crate::definition::agent::{ATTENDANT, CONTAINER};
use crate::definition::expression::InProcess;
use crate::protocol::{env, path};
use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec};
use serde_json::{Value, json};

fn step_run_of(parameters: &str) -> StepRun {
    let mut step_run = StepRun::new(
        "shop-draft-0123456789abcdef",
        StepRunSpec {
            ask: None,
            reuse: None,
            workflow: WorkflowIdentity { name: "shop".into(), uid: "w".into(), ..Default::default() },
            path: "draft".into(),
            agent_id: "writer".into(),
            parameters: parameters.into(),
            scope_chain: vec![ScopeLink { scope: "workflow".into(), scope_id: "w".into(), index: None }],
            item: Some(Item::default()),
            ..StepRunSpec::default()
        },
    );
    step_run.metadata.namespace = Some("team".into());
    step_run.metadata.uid = Some("s".into());
    step_run.metadata.labels = Some([(LABEL_SESSION.to_owned(), "bikes".to_owned())].into());
    step_run
}

fn around() -> Installation {
    Installation {
        image: "lockstep:1".into(),
        image_pull_policy: "IfNotPresent".into(),
        gateway_url: "https://gateway".into(),
        gateway_ca: "PEM".into(),
        api_url: String::new(),
        account: String::new(),
        stamps_names: false,
        attendant: quantities(r#"{"cpu": "50m", "memory": "32Mi"}"#).expect("amounts"),
        prompt: quantities(r#"{"cpu": "100m", "memory": "128Mi"}"#).expect("amounts"),
        ..Installation::default()
    }
}

fn agent(pod: impl Into<Value>) -> Agent {
    let pod = pod.into();
    let template = json!({"metadata": {"labels": {"team": "a"}, "annotations": {"note": "kept"}}, "spec": pod});
    let Value::Object(template) = template else { unreachable!() };
    let mut agent = Agent::new("writer", AgentSpec { template, ..AgentSpec::default() });
    agent.metadata.generation = Some(7);
    agent
}

fn built(agent: &Agent, attempt: i32) -> NewJob {
    let status = StepRunStatus { attempt, ..StepRunStatus::default() };
    let policy = AttemptPolicy::of(None, Some(agent));
    let agent = CheckedAgent::of(agent, &InProcess).expect("no faults");
    job(&step_run_of("{}"), &status, &agent, &policy, &around())
}

fn pod_of(job: &Job) -> PodSpec {
    job.spec.as_ref().and_then(|s| s.template.spec.clone()).expect("a pod")
}

fn plain() -> Value {
    json!({"containers": [{"name": "agent", "image": "i", "command": ["/agent", "-v"], "args": ["x"]}]})
}

fn agent_container(pod: &PodSpec) -> Container {
    pod.containers.iter().find(|c| c.name == CONTAINER).cloned().expect("the agent")
}

#[test]
fn the_shim_stands_before_the_agents_own_command() {
    let pod = pod_of(&built(&agent(plain()), 1));
    let own = agent_container(&pod);
    assert_eq!(own.command.expect("a command"), [path::SHIM, "run", "--", "/agent", "-v"]);
    assert_eq!(own.args.expect("arguments"), ["x"]);
    assert_eq!(own.termination_message_path.as_deref(), Some(path::TERMINATION_LOG));
    let first = &pod.init_containers.expect("an init container")[0];
    assert_eq!((first.name.as_str(), first.image.as_deref()), ("lockstep-install", Some("lockstep:1")));
    assert_eq!(first.command.clone().expect("a command"), ["/lockstep-shim", "install", INSTALL_ROOT]);
}

#[test]
fn what_the_kubelet_runs_in_the_agents_container_goes_through_the_shim() {
    let exec = |word: &str| json!({"exec": {"command": [word, "-v"], "newerField": "kept"}, "timeoutSeconds": 5});
    let hooks = json!({"startupProbe": exec("up"), "livenessProbe": exec("well"), "readinessProbe": exec("ready"),
        "lifecycle": {"preStop": {"exec": {"command": ["save", "--", "all"]}}, "stopSignal": "SIGUSR1"}});
    let with = |hooks: &Value| {
        let mut pod = plain();
        pod["initContainers"] = json!([{"name": "cache", "image": "c", "restartPolicy": "Always"}]);
        for place in ["/containers/0", "/initContainers/0"] {
            let container = pod.pointer_mut(place).and_then(Value::as_object_mut).expect("a container");
            container.extend(hooks.as_object().cloned().expect("an object"));
        }
        pod
    };
    let spec = built(&agent(with(&hooks)), 1).body["spec"]["template"]["spec"].clone();
    let own = &spec["containers"][0];
    for (field, kind, word) in [
        ("startupProbe", "startup-probe", "up"),
        ("livenessProbe", "liveness-probe", "well"),
        ("readinessProbe", "readiness-probe", "ready"),
    ] {
        let command = json!([path::SHIM, "hook", kind, "--", word, "-v"]);
        assert_eq!(own[field], json!({"exec": {"command": command, "newerField": "kept"}, "timeoutSeconds": 5}));
        assert_eq!(spec["initContainers"][1][field], hooks[field], "a sidecar's are its own");
    }
    let pre_stop = json!([path::SHIM, "hook", "pre-stop", "--", "save", "--", "all"]);
    let lifecycle = json!({"preStop": {"exec": {"command": pre_stop}}, "stopSignal": "SIGUSR1"});
    assert_eq!((&own["lifecycle"], &spec["initContainers"][1]["lifecycle"]), (&lifecycle, &hooks["lifecycle"]));
    // Who asks from outside runs nothing.
    let outside = json!({"startupProbe": {"tcpSocket": {"port": 80}}, "livenessProbe": {"httpGet": {"port": 80}},
        "readinessProbe": {"grpc": {"port": 80}}, "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}});
    let spec = built(&agent(with(&outside)), 1).body["spec"]["template"]["spec"].clone();
    for (field, written) in outside.as_object().into_iter().flatten() {
        assert_eq!(&spec["containers"][0][field], written);
    }
    // One that is left as it is starts after the claim.
    let mut bare = agent(json!({"containers": [with(&hooks)["containers"][0]]}));
    bare.spec.protocol = Protocol::None;
    let spec = built(&bare, 1).body["spec"]["template"]["spec"].clone();
    assert_eq!(spec["containers"][0], with(&hooks)["containers"][0]);
}

#[test]
fn a_pod_ends_once_and_has_no_credentials_for_the_api_server() {
    let pod = pod_of(&built(&agent(plain()), 1));
    assert_eq!(pod.restart_policy.as_deref(), Some("Never"));
    assert_eq!(pod.automount_service_account_token, Some(false));
    assert_eq!(pod.enable_service_links, Some(false));
}

#[test]
fn the_token_is_good_for_one_attempt_only() {
    for attempt in [1, 4] {
        let pod = pod_of(&built(&agent(plain()), attempt));
        let volumes = pod.volumes.clone().expect("volumes");
        let names: Vec<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, [VOLUME, TOKEN_VOLUME]);
        let projected = volumes[1].projected.clone().expect("a projection");
        let token = projected.sources.expect("sources")[0].service_account_token.clone().expect("a token");
        assert_eq!(token.audience, Some(name::audience("s", attempt)));
        let mounts = agent_container(&pod).volume_mounts.expect("mounts");
        assert!(mounts.iter().any(|m| m.name == VOLUME && m.mount_path == path::ROOT));
        assert!(mounts.iter().any(|m| m.name == TOKEN_VOLUME && m.read_only == Some(true)));
    }
}

#[test]
fn the_environment_names_the_attempt_and_the_secrets_and_cannot_be_forged() {
    let pod = json!({"containers": [{"name": "agent", "image": "i", "command": ["a"], "env": [
        {"name": "PLAIN", "value": "1"},
        {"name": "ATTEMPT", "value": "99"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "OTHER", "valueFrom": {"secretKeyRef": {"name": "s", "key": "o"}}}]}]});
    let own = agent_container(&pod_of(&built(&agent(pod), 3)));
    let env: Vec<EnvVar> = own.env.expect("an environment");
    let value = |name: &str| -> Vec<Option<&str>> {
        env.iter().filter(|v| v.name == name).map(|v| v.value.as_deref()).collect()
    };
    assert_eq!(value("PLAIN"), [Some("1")]);
    assert_eq!(value(env::ATTEMPT), [Some("3")]);
    assert_eq!(value(env::SECRET_NAMES), [Some("KEY,OTHER")]);
    assert_eq!(value(env::STEP_RUN), [Some("team/shop-draft-0123456789abcdef")]);
    assert_eq!(value(env::STEP_RUN_UID), [Some("s")]);
    assert_eq!(value(env::GATEWAY), [Some("https://gateway")]);
    assert_eq!(value(env::GATEWAY_CA), [Some("PEM")]);
}

#[test]
fn what_the_user_wrote_is_kept() {
    let pod = json!({
        "nodeSelector": {"disk": "ssd"}, "serviceAccountName": "writer", "enableServiceLinks": true,
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "volumes": [{"name": "cache", "emptyDir": {}}],
        "initContainers": [{"name": "own", "image": "i"}],
        "containers": [
            {"name": "side", "image": "s"},
            {"name": "agent", "image": "i", "command": ["a"], "resources": {"limits": {"cpu": "2"}},
             "volumeMounts": [{"name": "cache", "mountPath": "/cache"}]}]});
    let job = built(&agent(pod), 1);
    let pod = pod_of(&job);
    assert_eq!(pod.service_account_name.as_deref(), Some("writer"));
    assert_eq!(pod.enable_service_links, Some(true));
    assert!(pod.node_selector.is_some() && pod.tolerations.is_some());
    assert_eq!(pod.volumes.as_ref().map(Vec::len), Some(3));
    let inits = pod.init_containers.clone().expect("init containers");
    assert_eq!((inits[0].name.as_str(), inits[1].name.as_str()), ("lockstep-install", "own"));
    assert_eq!(pod.containers[0].command, None, "a sidecar is not wrapped");
    let own = agent_container(&pod);
    assert!(own.resources.is_some_and(|r| r.limits.is_some()));
    assert_eq!(own.volume_mounts.map(|m| m.len()), Some(3));
    let meta = job.job.spec.expect("a spec").template.metadata.expect("metadata");
    let labels = meta.labels.expect("labels");
    assert_eq!(labels.get("team").map(String::as_str), Some("a"));
    assert_eq!(labels.get(LABEL_STEP_RUN).map(String::as_str), Some("shop-draft-0123456789abcdef"));
    assert!(meta.annotations.is_some());
}

/// The rules of Pod Security "restricted" that containers can break.
fn is_restricted(pod: &PodSpec) -> bool {
    let outer = pod.security_context.clone().unwrap_or_default();
    pod.containers.iter().chain(pod.init_containers.iter().flatten()).all(|c| {
        let own = c.security_context.clone().unwrap_or_default();
        let drops = own.capabilities.and_then(|c| c.drop).unwrap_or_default();
        let seccomp = own.seccomp_profile.or(outer.seccomp_profile.clone());
        own.allow_privilege_escalation == Some(false)
            && own.run_as_non_root.or(outer.run_as_non_root) == Some(true)
            && own.run_as_user.or(outer.run_as_user) != Some(0)
            && drops == ["ALL"]
            && seccomp.is_some_and(|s| s.type_ == "RuntimeDefault")
            && own.privileged != Some(true)
    }) && pod.volumes.iter().flatten().all(|v| v.host_path.is_none())
}

#[test]
fn a_restricted_pod_stays_restricted() {
    let container = json!({"name": "agent", "image": "i", "command": ["a"],
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}});
    let outer = json!({"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}});
    let pod = json!({"securityContext": outer, "containers": [container]});
    assert!(is_restricted(&pod_of(&built(&agent(pod), 1))));
    let inner = json!({"name": "agent", "image": "i", "command": ["a"], "securityContext": {
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
        "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}});
    let built = pod_of(&built(&agent(json!({"containers": [inner]})), 1));
    assert!(is_restricted(&built));
    let install = &built.init_containers.expect("an init container")[0];
    let user = install.security_context.as_ref().and_then(|c| c.run_as_user);
    assert_eq!(user, Some(1000), "it writes what the agent's user must read");
}

/// What a quota, a LimitRange or Pod Security asks of the agent's container, the one beside it meets, too.
#[test]
fn the_shim_is_copied_under_the_limits_of_the_agent() {
    let limits = json!({"cpu": "500m", "memory": "64Mi", "ephemeral-storage": "1Gi"});
    let with_device = json!({"cpu": "500m", "memory": "64Mi", "ephemeral-storage": "1Gi", "example.com/gpu": "1"});
    for (what, resources, context, of_pod, expected, user) in [
        ("no limits", json!(null), json!(null), json!(null), json!(null), json!(null)),
        ("limits", json!({"limits": limits}), json!(null), json!(null), json!({"limits": limits}), json!(null)),
        (
            "a device",
            json!({"limits": with_device, "requests": {"cpu": "1m"}}),
            json!(null),
            json!(null),
            json!({"limits": limits, "requests": {"cpu": "1m"}}),
            json!(null),
        ),
        ("root by its container", json!(null), json!({"runAsUser": 0}), json!(null), json!(null), json!(65532)),
        ("root by its pod", json!(null), json!(null), json!({"runAsUser": 0}), json!(null), json!(65532)),
        (
            "root in a pod of another",
            json!(null),
            json!({"runAsUser": 0}),
            json!({"runAsUser": 7}),
            json!(null),
            json!(65532),
        ),
        (
            "another in a pod of root",
            json!(null),
            json!({"runAsUser": 7}),
            json!({"runAsUser": 0}),
            json!(null),
            json!(7),
        ),
        (
            "not root by name",
            json!(null),
            json!({"runAsUser": 0, "runAsNonRoot": false}),
            json!({"runAsNonRoot": false}),
            json!(null),
            json!(65532),
        ),
    ] {
        let mut container = json!({"name": "agent", "image": "i", "command": ["a"]});
        container["resources"] = resources;
        container["securityContext"] = context;
        let pod = pod_of(&built(&agent(json!({"securityContext": of_pod, "containers": [container]})), 1));
        let install = serde_json::to_value(&pod.init_containers.expect("an init container")[0]).expect("JSON");
        assert_eq!(install["resources"], expected, "{what}");
        assert_eq!(install["securityContext"]["runAsUser"], user, "{what}");
        assert_eq!(install["securityContext"]["runAsNonRoot"], json!(true), "{what}");
    }
}

/// Of Kubernetes 1.34 and later, which our types do not know; and one that nobody knows yet.
#[test]
fn fields_that_are_newer_than_our_types_reach_the_api_server() {
    let pod = json!({
        "hostnameOverride": "reader", "laterField": {"deep": [1]}, "nothing": null,
        "initContainers": [{"name": "fetch", "image": "f", "restartPolicyRules": [{"action": "Restart"}]}],
        "containers": [
            {"name": "agent", "image": "i", "command": ["/agent"], "newer": true,
                "env": [{"name": "A", "valueFrom": {"fileKeyRef": {"path": "p", "volumeName": "v", "key": "k"}}}],
                "volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b", "newer": 2}]},
            {"name": "other", "image": "o", "newer": false}],
        "volumes": [{"name": "v", "emptyDir": {"stickyBit": true}}],
    });
    let made = built(&agent(pod.clone()), 1);
    let sent = |pointer: &str| made.body.pointer(&format!("/spec/template/spec{pointer}")).cloned();
    for pointer in [
        "/hostnameOverride",
        "/laterField/deep/0",
        "/containers/0/newer",
        "/containers/0/env/0/valueFrom/fileKeyRef",
        "/containers/0/volumeMounts/1/newer",
        "/containers/1/newer",
        "/volumes/0/emptyDir/stickyBit",
    ] {
        assert!(pod.pointer(pointer).is_some() && sent(pointer) == pod.pointer(pointer).cloned(), "{pointer}");
    }
    assert_eq!(sent("/initContainers/0/name"), Some(json!("lockstep-install")));
    assert_eq!(sent("/initContainers/1/restartPolicyRules/0/action"), Some(json!("Restart")));
    assert_eq!(sent("/containers/0/command/0"), Some(json!(path::SHIM)), "what is ours stays ours");
    assert_eq!((sent("/nothing"), sent("/initContainers/2")), (None, None));
    // What our types know is sent as they say it.
    let mut known = made.body.clone();
    known["spec"]["template"] = json!(null);
    let mut typed = serde_json::to_value(&made.job).expect("JSON");
    typed["spec"]["template"] = json!(null);
    assert_eq!(known, typed);
}

#[test]
fn a_dry_run_has_the_template_as_it_was_written() {
    let sent = dry_run(&agent(json!({"containers": [{"name": "agent", "resourcess": {}}]})), &around());
    assert_eq!(sent.pointer("/spec/template/spec/containers/0/resourcess"), Some(&json!({})));
    assert_eq!(sent.pointer("/spec/template/spec/restartPolicy"), Some(&json!("Never")));
    assert!(sent.pointer("/metadata/labels").is_none());
}

#[test]
fn a_job_runs_one_pod_once_and_names_its_origin() {
    let job = built(&agent(plain()), 2);
    let meta = &job.metadata;
    assert_eq!(meta.name, Some(name::job("shop-draft-0123456789abcdef", "s", 2)));
    let owner = &meta.owner_references.as_ref().expect("an owner")[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("StepRun", "s"));
    assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), Some(true)));
    assert_eq!(meta.labels.as_ref().expect("labels")[LABEL_AGENT], "writer");
    let annotations = meta.annotations.as_ref().expect("annotations");
    assert_eq!(annotations[ANNOTATION_AGENT_GENERATION], "7");
    let spec = job.job.spec.expect("a spec");
    assert_eq!((spec.backoff_limit, spec.completions, spec.parallelism), (Some(0), Some(1), Some(1)));
    assert_eq!(spec.pod_replacement_policy.as_deref(), Some("Failed"));
    assert_eq!(spec.active_deadline_seconds, Some(600 + 3600 + 120));
}

/// What a run is given reaches its agent as data of the attempt. Nothing of it is in the pod, and nothing is expanded there.
#[test]
fn no_input_of_a_run_is_in_its_pods() {
    let command = json!({"containers": [{"name": "agent", "image": "i", "command": ["sh", "-c", "echo ${ parameters.word }"],
        "args": ["${ workflow.input }"], "env": [{"name": "WORD", "value": "${ parameters.word }"},
        {"name": "S3_BUCKET_NAME", "value": "b"}]}]});
    let of = |parameters: &str| {
        let agent = agent(command.clone());
        let policy = AttemptPolicy::of(None, Some(&agent));
        let agent = CheckedAgent::of(&agent, &InProcess).expect("no faults");
        pod_of(&job(&step_run_of(parameters), &StepRunStatus::default(), &agent, &policy, &around()))
    };
    let hostile = of(r#"{"word": "$(touch /tmp/x); `touch /tmp/x`", "image": "other"}"#);
    assert_eq!(hostile, of("{}"));
    let own = agent_container(&hostile);
    assert_eq!(own.command.expect("a command")[3..], ["sh", "-c", "echo ${ parameters.word }"]);
    assert_eq!(own.args.expect("arguments"), ["${ workflow.input }"]);
    let env: Vec<(String, Option<String>)> =
        own.env.expect("an environment").into_iter().take(2).map(|v| (v.name, v.value)).collect();
    assert_eq!(env[0], ("WORD".into(), Some("${ parameters.word }".into())));
    assert_eq!(env[1], ("S3_BUCKET_NAME".into(), Some("b".into())));
}

#[test]
fn the_policy_says_how_long_a_job_may_take() {
    let agent = agent(plain());
    let policy = AttemptPolicy { timeout: 10, ..AttemptPolicy::of(None, Some(&agent)) };
    let checked = CheckedAgent::of(&agent, &InProcess).expect("no faults");
    let job = job(&step_run_of("{}"), &StepRunStatus::default(), &checked, &policy, &around());
    assert_eq!(job.job.spec.and_then(|s| s.active_deadline_seconds), Some(600 + 10 + 120));
}

#[test]
fn a_template_without_an_agent_or_a_command_is_a_fault() {
    for pod in [
        json!({"containers": [{"name": "other", "image": "i", "command": ["a"]}]}),
        json!({"containers": [{"name": "agent", "image": "i"}]}),
        json!({"containers": [{"name": "agent", "image": "i", "command": []}]}),
        json!({"containers": "none"}),
    ] {
        assert!(CheckedAgent::of(&agent(pod), &InProcess).is_err());
    }
}

#[test]
fn a_container_is_left_as_it_is_and_a_sidecar_claims_before_it_starts() {
    let secret = json!({"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}});
    let pod = json!({"terminationGracePeriodSeconds": 60, "newerField": {"kept": true},
        "initContainers": [{"name": "fetch", "image": "f", "newerField": "kept"}],
        "containers": [{"name": "agent", "image": "i", "args": ["x"], "env": [secret, {"name": "A", "value": "1"}],
            "resources": {"requests": {"cpu": "2", "memory": "16Mi"}, "limits": {"memory": "1Gi", "example.com/gpu": "1"}},
            "volumeMounts": [{"name": "out", "mountPath": "/out", "subPath": "a"}]}],
        "volumes": [{"name": "out", "emptyDir": {}}]});
    let mut bare = agent(pod.clone());
    bare.spec.protocol = Protocol::None;
    bare.spec.result_path = Some("/out/result.json".to_owned());
    let job = built(&bare, 2);
    let spec = &job.body["spec"]["template"]["spec"];
    assert_eq!(spec["containers"], pod["containers"], "as it is written");
    let names: Vec<&str> =
        spec["initContainers"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(names, ["fetch", ATTENDANT]);
    assert_eq!(
        (&spec["initContainers"][0]["newerField"], &spec["newerField"]),
        (&json!("kept"), &json!({"kept": true}))
    );
    let sidecar = pod_of(&job).init_containers.expect("a list")[1].clone();
    assert_eq!(sidecar.command.expect("a command"), ["/lockstep-shim", "attend"]);
    assert_eq!(sidecar.restart_policy.as_deref(), Some("Always"));
    let resources = json!({"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"memory": "32Mi"}});
    assert_eq!(json!(sidecar.resources), resources, "it runs beside the agent, and what both have is counted");
    let probe = sidecar.startup_probe.and_then(|probe| probe.exec?.command).expect("a probe");
    assert_eq!(probe, ["/lockstep-shim", "attended"]);
    let env: Vec<String> = sidecar.env.iter().flatten().map(|v| v.name.clone()).collect();
    assert!(env.contains(&"KEY".to_owned()) && !env.contains(&"A".to_owned()), "{env:?}");
    let told = |name: &str| sidecar.env.iter().flatten().find(|v| v.name == name).and_then(|v| v.value.clone());
    assert_eq!(told(env::RESULT_PATH).as_deref(), Some("/out/result.json"));
    assert_eq!(told(env::SECRET_NAMES).as_deref(), Some("KEY"));
    let mounts: Vec<(String, String, Option<String>)> = sidecar
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| (m.name.clone(), m.mount_path.clone(), m.sub_path.clone()))
        .collect();
    assert!(mounts.contains(&("out".into(), "/out".into(), Some("a".into()))), "{mounts:?}");
    assert!(mounts.iter().any(|(name, ..)| name == TOKEN_VOLUME));
    assert!(mounts.iter().all(|(_, place, _)| place != path::ROOT), "a program of the image lies there: {mounts:?}");
    assert_eq!(told(env::WORK).as_deref(), Some(ATTENDANT_ROOT));
    // The token is in the sidecar alone.
    assert!(pod_of(&job).containers.iter().all(|c| c.volume_mounts.iter().flatten().all(|m| m.name == "out")));
    assert_eq!(sidecar.security_context.and_then(|c| c.run_as_non_root), Some(true));
}

#[test]
fn a_prompt_is_a_pod_of_our_own_image() {
    let spec = json!({"prompt": {"system": "Plan the work.", "model": "small", "baseURL": "https://models.example/v1",
        "apiKeySecretRef": {"name": "model-keys", "key": "api"}, "caConfigMapRef": {"name": "models-ca"}}});
    let mut prompt = Agent::new("writer", serde_json::from_value(spec).expect("a spec"));
    let job = built(&prompt, 2);
    let pod = pod_of(&job);
    assert!(is_restricted(&pod) && pod.init_containers.is_none(), "it has the shim already");
    assert_eq!(pod.automount_service_account_token, Some(false));
    let own = agent_container(&pod);
    assert_eq!((own.image.as_deref(), own.image_pull_policy.as_deref()), (Some("lockstep:1"), Some("IfNotPresent")));
    assert_eq!(own.command.expect("a command"), PROMPT);
    assert_eq!(own.args, None);
    assert_eq!(own.termination_message_path.as_deref(), Some(path::TERMINATION_LOG));
    let amounts = json!({"cpu": "100m", "memory": "128Mi"});
    assert_eq!(json!(own.resources), json!({"requests": amounts, "limits": amounts}));
    let mounts: Vec<(String, String)> =
        own.volume_mounts.iter().flatten().map(|m| (m.name.clone(), m.mount_path.clone())).collect();
    assert!(
        mounts.contains(&(VOLUME.to_owned(), ATTENDANT_ROOT.to_owned())),
        "a program of the image is where agents have it: {mounts:?}"
    );
    assert!(mounts.iter().any(|(name, _)| name == TOKEN_VOLUME));
    assert!(mounts.contains(&("lockstep-ca".to_owned(), "/etc/lockstep/prompt".to_owned())), "{mounts:?}");
    let volumes = pod.volumes.clone().unwrap_or_default();
    let map = volumes.iter().find(|volume| volume.name == "lockstep-ca").and_then(|volume| volume.config_map.as_ref());
    assert_eq!(json!(map), json!({"name": "models-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}));
    let env = own.env.expect("an environment");
    let value = |name: &str| env.iter().find(|v| v.name == name).and_then(|v| v.value.as_deref());
    assert_eq!(value(env::SECRET_NAMES), Some("LOCKSTEP_API_KEY"));
    assert_eq!(value("LOCKSTEP_CA_FILE"), Some("/etc/lockstep/prompt/ca.crt"));
    assert_eq!((value(env::IN), value(env::WORK)), (Some("/lockstep-attend/in"), Some("/lockstep-attend/work")));
    assert!(env.iter().all(|v| v.value.as_deref().is_none_or(|value| !value.contains("Plan the work"))), "{env:?}");
    // What it is told goes with the pod, and reaches it with the claim.
    let annotations = job.body["spec"]["template"]["metadata"]["annotations"].clone();
    let terms: Terms = serde_json::from_str(annotations["lockstep.dev/terms"].as_str().expect("terms")).expect("JSON");
    assert_eq!(terms.prompt, prompt.spec.prompt);
    let digest = |job: &NewJob| job.body["metadata"]["annotations"][ANNOTATION_AGENT_DIGEST].clone();
    let before = digest(&job);
    prompt.spec.prompt.as_mut().expect("a prompt").model = "large".to_owned();
    assert_ne!(digest(&built(&prompt, 2)), before);
    let asked = dry_run(&prompt, &around());
    assert_eq!(
        asked["spec"]["template"]["spec"]["containers"][0]["image"], "lockstep:1",
        "the API server is asked of it"
    );
}
