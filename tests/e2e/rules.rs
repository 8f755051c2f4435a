//! Pods of agents in clusters with rules of their own, and what clusters do to pods: quotas, LimitRanges, Pod Security, root,
//! sidecars, what keeps a pod from starting, evictions, memory. Whatever an agent's container alone would get through,
//! it gets through with Lockstep; and what holds it up is told where people look.

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::jiff::Timestamp;
use lockstep::api::StepRun;
use lockstep::api::step_run::{AttemptResult, StepRunStatus, WaitKind};
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::causes::shell;
use crate::support::{PATIENCE, Space, ask, pod_template};

const AGENT: &str = "/spec/containers/0";

fn one_step() -> Value {
    json!({"steps": [{"name": "only", "agentId": "worker"}]})
}

/// A template that is changed at these places.
fn changed(script: &str, changes: &[(&str, Value)]) -> Value {
    let mut template = pod_template(script);
    for (pointer, value) in changes {
        let mut place = &mut template;
        for key in pointer.split('/').skip(1) {
            place = match key.parse::<usize>() {
                Ok(index) => &mut place[index],
                Err(_) => &mut place[key],
            };
        }
        *place = value.clone();
    }
    template
}

/// Adds a container that sleeps to a list.
fn beside(template: &mut Value, list: &str, name: &str, more: &Value) -> Result<()> {
    let mut sidecar = template["spec"]["containers"][0].clone();
    sidecar["name"] = json!(name);
    sidecar["command"] = json!(["sh", "-c", "sleep 3600"]);
    let sidecar_fields = sidecar.as_object_mut().context("a container")?;
    sidecar_fields.extend(more.as_object().cloned().unwrap_or_default());
    let mut all = template["spec"][list].as_array().cloned().unwrap_or_default();
    all.push(sidecar);
    template["spec"][list] = json!(all);
    Ok(())
}

/// The spec of an Agent of this template.
fn laid(more: &Value, template: Value) -> Value {
    let mut spec = more.clone();
    spec["template"] = template;
    spec
}

fn started(status: &StepRunStatus) -> Option<&str> {
    let condition = status.conditions.iter().find(|c| c.type_ == "Started")?;
    (condition.status == "False").then_some(condition.message.as_str())
}

impl Space {
    async fn worker(&self, template: &Value, more: &Value) -> Result<()> {
        let mut spec = json!({"template": template});
        spec.as_object_mut().context("an object")?.extend(more.as_object().cloned().unwrap_or_default());
        self.agent("worker", "", &spec).await
    }

    async fn pods_running(&self, run: &str) -> Result<usize> {
        let running = |phase: Option<&str>| matches!(phase, Some("Running" | "Pending"));
        let pods = self.pods(run).await?;
        Ok(pods.iter().filter(|p| running(p.status.as_ref().and_then(|s| s.phase.as_deref()))).count())
    }

    async fn no_pod_runs(&self, run: &str) -> Result<()> {
        self.until("no pod runs", PATIENCE, Some(run), async || Ok((self.pods_running(run).await? == 0).then_some(())))
            .await
    }

    async fn claimed_by(&self, run: &str) -> Result<String> {
        // The claim tells 0 percent; what the agent itself tells comes later.
        let progress = |s: &StepRunStatus| s.agent.as_ref().and_then(|a| a.progress.as_ref().map(|p| p.percent));
        let claimed = |s: &StepRunStatus| progress(s).is_some_and(|percent| percent > 0);
        let step = self.only(run, "its agent is at work", claimed).await?;
        let claim = step.status.and_then(|s| s.agent?.claim).context("a claim")?;
        Ok(claim.pod_name)
    }
}

/// What it shows, the objects that rule, the level of Pod Security, and the pod template.
type Case = (&'static str, Vec<(&'static str, Value)>, &'static str, Value);

/// A namespace, what rules in it, and an Agent that would run there by itself.
async fn under(rule: &str, objects: Vec<(&str, Value)>, level: &str, spec: Value) -> Result<()> {
    let space = Space::open("rules").await?;
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    space.patch(&format!("/api/v1/namespaces/{}", space.namespace), &labels).await?;
    for (plural, spec) in objects {
        let kind = if plural == "limitranges" { "LimitRange" } else { "ResourceQuota" };
        let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "rule"}, "spec": spec});
        space.post(&space.core(plural), &object).await?;
    }
    space.agent("worker", "", &spec).await?;
    space.run("r", &one_step()).await?;
    space.phase("r", Phase::Completed).await.with_context(|| rule.to_owned())?;
    space.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_runs_under_every_rule_that_its_own_container_meets() -> Result<()> {
    let resources = |of: Value| changed("true", &[(&format!("{AGENT}/resources"), of)]);
    let all = json!({"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "64Mi"});
    let hard = json!({"limits.cpu": "1", "limits.memory": "1Gi", "requests.cpu": "1", "requests.memory": "1Gi",
        "limits.ephemeral-storage": "1Gi", "pods": "3"});
    let range = |of: Value| json!({"limits": [of]});
    let guaranteed = resources(json!({"limits": all, "requests": all}));
    let as_root = |at: &str| {
        let context = json!({"runAsUser": 0});
        changed(
            "id -u | grep -qx 0",
            &[("/spec/securityContext", json!({})), (&format!("{AGENT}/securityContext"), json!({})), (at, context)],
        )
    };
    let cases = vec![
        ("a quota on all limits", vec![("resourcequotas", json!({"hard": hard}))], "restricted", guaranteed.clone()),
        (
            "a minimum",
            vec![("limitranges", range(json!({"type": "Container", "min": {"cpu": "50m", "memory": "60Mi"}})))],
            "restricted",
            guaranteed.clone(),
        ),
        (
            "limits that are no more than requests",
            vec![(
                "limitranges",
                range(json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "1", "memory": "1"}})),
            )],
            "restricted",
            guaranteed.clone(),
        ),
        (
            "a maximum of a pod",
            vec![("limitranges", range(json!({"type": "Pod", "max": {"cpu": "100m", "memory": "64Mi"}})))],
            "restricted",
            guaranteed,
        ),
        (
            "defaults for who states nothing, under a quota",
            vec![
                ("limitranges", range(json!({"type": "Container", "default": {"cpu": "100m", "memory": "64Mi"}}))),
                ("resourcequotas", json!({"hard": hard})),
            ],
            "restricted",
            resources(json!({})),
        ),
        ("root by its pod", vec![], "privileged", as_root("/spec/securityContext")),
        ("root by its container", vec![], "baseline", as_root(&format!("{AGENT}/securityContext"))),
        (
            "a user of its own, in a pod that says nothing",
            vec![],
            "baseline",
            changed(
                "id -u | grep -qx 1234",
                &[
                    ("/spec/securityContext", json!({})),
                    (&format!("{AGENT}/securityContext"), json!({"runAsUser": 1234})),
                ],
            ),
        ),
    ];
    let bare = json!({"protocol": "None"});
    tokio::try_join!(all_under(cases, json!({})), all_under(left_as_they_are(), bare))?;
    Ok(())
}

/// Each for itself, with more in its Agent.
async fn all_under(cases: Vec<Case>, spec: Value) -> Result<()> {
    let of = |template| laid(&spec, template);
    try_join_all(cases.into_iter().map(|(rule, objects, level, template)| under(rule, objects, level, of(template))))
        .await?;
    Ok(())
}

/// The same with a sidecar beside the container: both are counted, and it takes 50m, 64Mi and 16Mi, as the chart has it.
fn left_as_they_are() -> Vec<Case> {
    let resources = |of: Value| changed("true", &[(&format!("{AGENT}/resources"), of)]);
    let all = json!({"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "64Mi"});
    let guaranteed = || resources(json!({"limits": all, "requests": all}));
    let small = json!({"cpu": "40m", "memory": "48Mi"});
    let range = |of: Value| vec![("limitranges", json!({"limits": [of]}))];
    let quota = |hard: Value| vec![("resourcequotas", json!({"hard": hard}))];
    let tight = json!({"limits.cpu": "150m", "limits.memory": "192Mi", "requests.cpu": "150m", "requests.memory": "192Mi",
        "limits.ephemeral-storage": "80Mi", "pods": "1"});
    vec![
        ("none: a tight quota on all limits", quota(tight), "restricted", guaranteed()),
        (
            "none: a maximum of a pod",
            range(json!({"type": "Pod", "max": {"cpu": "150m", "memory": "192Mi"}})),
            "restricted",
            guaranteed(),
        ),
        (
            "none: a minimum",
            range(json!({"type": "Container", "min": {"cpu": "50m", "memory": "64Mi"}})),
            "restricted",
            guaranteed(),
        ),
        (
            "none: limits that are no more than requests",
            range(json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "1", "memory": "1"}})),
            "restricted",
            guaranteed(),
        ),
        (
            "none: less than the sidecar would take",
            range(json!({"type": "Container", "max": {"cpu": "40m", "memory": "48Mi"}})),
            "restricted",
            resources(json!({"limits": small, "requests": small})),
        ),
        (
            "none: defaults for who states nothing, under a quota",
            [
                range(json!({"type": "Container", "default": {"cpu": "100m", "memory": "64Mi"}})),
                quota(json!({"limits.cpu": "1", "limits.memory": "1Gi", "pods": "1"})),
            ]
            .concat(),
            "restricted",
            resources(json!({})),
        ),
        (
            "none: root by its container",
            vec![],
            "baseline",
            changed(
                "id -u | grep -qx 0",
                &[("/spec/securityContext", json!({})), (&format!("{AGENT}/securityContext"), json!({"runAsUser": 0}))],
            ),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_keeps_neither_the_pod_nor_a_cancelled_run() -> Result<()> {
    let space = Space::open("sidecar").await?;
    let mut template = pod_template("echo '{\"n\": 1}' > $LOCKSTEP_OUT/result.json");
    template["spec"]["terminationGracePeriodSeconds"] = json!(2);
    beside(&mut template, "containers", "mesh", &json!({}))?;
    beside(&mut template, "initContainers", "proxy", &json!({"restartPolicy": "Always"}))?;
    space.worker(&template, &json!({})).await?;
    space.run("mesh", &one_step()).await?;
    space.phase("mesh", Phase::Completed).await?;
    space.no_pod_runs("mesh").await?;
    // While the agent works and a sidecar too: Cancelled means that no pod runs.
    let mut busy = pod_template("lockstep progress 1; sleep 3600");
    busy["spec"]["terminationGracePeriodSeconds"] = json!(2);
    beside(&mut busy, "containers", "mesh", &json!({}))?;
    space.agent("busy", "", &json!({"template": busy})).await?;
    space.run("held", &json!({"steps": [{"name": "only", "agentId": "busy"}]})).await?;
    space.claimed_by("held").await?;
    space.patch(&space.ours("workflows/held"), &json!({"spec": {"cancel": true}})).await?;
    space.phase("held", Phase::Cancelled).await?;
    ensure!(space.pods_running("held").await? == 0, "Cancelled, and a pod runs on");
    space.close().await
}

/// What stands in the way of pods: an object of the namespace, or a rule of the cluster.
enum Rule {
    Nothing,
    Object(&'static str, Value),
    /// An admission policy that refuses all pods of the namespace.
    Policy(&'static str),
    /// A RuntimeClass of this name, whose handler no node has.
    Runtime(&'static str),
}

/// In seconds: how long after Kubernetes has said what keeps a pod from starting its StepRun may take to say it.
const TOLD_WITHIN: i64 = 30;

impl Space {
    /// Puts the rule in force; what of it lies outside of the namespace.
    async fn rule(&self, rule: Rule) -> Result<Vec<String>> {
        let name = &self.namespace;
        match rule {
            Rule::Nothing => Ok(Vec::new()),
            Rule::Object(plural, spec) => {
                let kind = if plural == "limitranges" { "LimitRange" } else { "ResourceQuota" };
                let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "small"}, "spec": spec});
                self.post(&self.core(plural), &object).await?;
                // A quota counts once its controller has looked.
                let path = self.core(&format!("{plural}/small"));
                self.until("the rule stands", PATIENCE, None, async || {
                    let found = self.get(&path).await?;
                    Ok((kind == "LimitRange" || found["status"]["hard"].is_object()).then_some(()))
                })
                .await?;
                Ok(Vec::new())
            }
            Rule::Runtime(class) => {
                let path = "/apis/node.k8s.io/v1/runtimeclasses";
                let object = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": class},
                    "handler": "no-such-handler"});
                // One that failed has left it.
                match ask(&self.admin, http::Method::POST, path, Some(&object)).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    other => drop(other?),
                }
                Ok(vec![format!("{path}/{class}")])
            }
            Rule::Policy(message) => {
                let group = "/apis/admissionregistration.k8s.io/v1";
                let pods =
                    json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
                let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
                    "metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": [pods]},
                    "validations": [{"expression": "false", "message": message}]}});
                let here = json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
                let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1",
                    "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
                    "spec": {"policyName": name, "validationActions": ["Deny"],
                        "matchResources": {"namespaceSelector": here}}});
                let paths = ["policies", "policybindings"].map(|kind| format!("{group}/validatingadmission{kind}"));
                self.post(&paths[0], &policy).await?;
                self.post(&paths[1], &binding).await?;
                // The API server takes it up in its own time.
                let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"},
                    "spec": pod_template("true")["spec"]});
                let tries = format!("{}?dryRun=All", self.core("pods"));
                self.until("the policy holds", PATIENCE, None, async || {
                    let answer = ask(&self.admin, http::Method::POST, &tries, Some(&pod)).await;
                    Ok(answer.err().filter(|error| error.to_string().contains(message)).map(drop))
                })
                .await?;
                Ok(paths.map(|path| format!("{path}/{name}")).into())
            }
        }
    }
}

impl Space {
    /// Seconds since Kubernetes first said that something keeps a pod from starting: until then nobody can tell it, however long
    /// kubelet, scheduler and Job controller take on a busy machine. A pod's status may say it before any Event has been written:
    /// who was told from there did not wait.
    async fn since_first_warning(&self) -> Result<i64> {
        let all = self.get(&self.core("events")).await?;
        let all = all["items"].as_array().cloned().unwrap_or_default();
        let warnings = all.iter().filter(|event| event["type"] == "Warning");
        let times =
            warnings.filter_map(|event| event["metadata"]["creationTimestamp"].as_str()?.parse::<Timestamp>().ok());
        Ok(times.min().map_or(0, |first| Timestamp::now().duration_since(first).as_secs()))
    }
}

/// Whatever keeps a pod from starting: where it is told, in whose words, and how soon.
async fn held_up(what: &str, template: Value, rule: Rule, words: &[&str]) -> Result<()> {
    let space = Space::open("heldup").await?;
    let outside = space.rule(rule).await?;
    space
        .worker(&template, &json!({"startTimeoutSeconds": 60, "retry": {"maxAttempts": 1, "initialBackoffSeconds": 1}}))
        .await?;
    let told = |s: &StepRunStatus| started(s).is_some_and(|told| words.iter().all(|word| told.contains(word)));
    space.run("r", &one_step()).await?;
    let step = space.only("r", &format!("{what}: it says {words:?}"), told).await?;
    let took = space.since_first_warning().await?;
    ensure!(took <= TOLD_WITHIN, "{what}: told {took} s after Kubernetes knew");
    ensure!(step.status.is_some_and(|s| s.attempts.is_empty()), "{what}: within its first attempt");
    // A run that is watched goes on.
    for page in ["show r", "show r/only", "list", "inbox", "watch r"] {
        let command = format!("kubectl lockstep -n {} {page}", space.namespace);
        let line = if page == "watch r" { format!("timeout 5 {command} || [ $? = 124 ]") } else { command };
        let shown = shell(&line).await?;
        ensure!(words.iter().all(|word| shown.contains(word)), "{what}: {page} says {shown}");
    }
    // The attempt that ends of it keeps the words.
    let kept = |s: &StepRunStatus| {
        s.attempts.first().and_then(|a| a.message.as_ref()).is_some_and(|m| words.iter().all(|word| m.contains(word)))
    };
    space.only("r", &format!("{what}: attempts[0].message"), kept).await?;
    for path in outside {
        ask(&space.admin, http::Method::DELETE, &path, None).await?;
    }
    space.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_pod_from_starting_is_told_in_kubernetes_words() -> Result<()> {
    let mounts = json!([{"name": "c", "mountPath": "/c"}]);
    let volume = |of: Value| {
        changed("true", &[("/spec/volumes", json!([of])), (&format!("{AGENT}/volumeMounts"), mounts.clone())])
    };
    let config = json!({"name": "c", "configMap": {"name": "absent"}});
    let env = json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "k"}}}]);
    let nowhere = json!({"example.com/zone": "moon"});
    // Nobody listens there, so it is refused at once.
    let image = "localhost:1/no/such:image";
    let runtime = "lockstep-e2e-heldup";
    let small = json!({"limits": [{"type": "Container", "max": {"memory": "16Mi"}}]});
    let cases = vec![
        (
            "a quota",
            pod_template("true"),
            Rule::Object("resourcequotas", json!({"hard": {"pods": "0"}})),
            vec!["FailedCreate", "its pod is forbidden", "exceeded quota: small", "limited: pods=0"],
        ),
        (
            "a LimitRange",
            pod_template("true"),
            Rule::Object("limitranges", small),
            vec!["FailedCreate", "maximum memory usage per Container is 16Mi, but limit is 64Mi"],
        ),
        (
            "an admission policy",
            pod_template("true"),
            Rule::Policy("no pods on the moon"),
            vec!["FailedCreate", "ValidatingAdmissionPolicy", "denied request: no pods on the moon"],
        ),
        (
            "Pod Security",
            changed("true", &[(&format!("{AGENT}/securityContext"), json!({}))]),
            Rule::Nothing,
            vec!["FailedCreate", "violates PodSecurity \"restricted:latest\"", "allowPrivilegeEscalation"],
        ),
        ("a ConfigMap", volume(config), Rule::Nothing, vec!["FailedMount", "configmap \"absent\" not found"]),
        (
            "a Secret",
            changed("true", &[(&format!("{AGENT}/env"), env)]),
            Rule::Nothing,
            vec!["container agent", "CreateContainerConfigError", "secret \"absent\" not found"],
        ),
        (
            "an image",
            changed("true", &[(&format!("{AGENT}/image"), json!(image))]),
            Rule::Nothing,
            vec!["container agent", "ImagePull", image],
        ),
        (
            "no node",
            changed("true", &[("/spec/nodeSelector", nowhere)]),
            Rule::Nothing,
            vec!["Unschedulable", "nodes are available", "didn't match Pod's node affinity/selector"],
        ),
        (
            "no runtime",
            changed("true", &[("/spec/runtimeClassName", json!(runtime))]),
            Rule::Runtime(runtime),
            vec!["FailedCreatePodSandBox", "no-such-handler"],
        ),
    ];
    try_join_all(
        cases
            .into_iter()
            .map(|(what, template, rule, words)| async move { held_up(what, template, rule, &words).await }),
    )
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_never_start_is_asked_about_at_once_and_a_mended_agent_is_taken() -> Result<()> {
    let space = Space::open("mended").await?;
    let malformed = changed("true", &[(&format!("{AGENT}/image"), json!("UPPER CASE/::image"))]);
    space.worker(&malformed, &json!({})).await?;
    space.run("malformed", &one_step()).await?;
    let asked = |s: &StepRunStatus| s.waiting_for.as_ref().is_some_and(|w| w.kind == WaitKind::InfrastructureSpent);
    let step = space.only("malformed", "a person is asked", asked).await?;
    let status = step.status.context("a status")?;
    ensure!(status.attempts.len() == 1, "after {} attempts", status.attempts.len());
    ensure!(status.waiting_for.is_some_and(|w| w.question.contains("InvalidImageName")), "the question names it");

    let absent = changed("true", &[(&format!("{AGENT}/image"), json!("nowhere.invalid/no/such:image"))]);
    space.agent("late", "", &json!({"template": absent})).await?;
    space.run("absent", &json!({"steps": [{"name": "only", "agentId": "late"}]})).await?;
    space.only("absent", "its pod waits", |s| started(s).is_some()).await?;
    space.patch(&space.ours("agents/late"), &json!({"spec": {"template": pod_template("true")}})).await?;
    space.phase("absent", Phase::Completed).await?;
    let status = space.step_run("absent", "only").await?.and_then(|s| s.status).context("a status")?;
    ensure!(status.attempts[0].result == AttemptResult::AgentChanged, "{:?}", status.attempts);
    ensure!(status.counts.retryable == 0 && status.counts.infrastructure == 0, "{:?}", status.counts);
    space.close().await
}

/// Evicts it by draining its node. The node takes new pods again as soon as the eviction stands, as another node would: this
/// cluster has but one, and a gateway that another test killed meanwhile must find a place before the report can arrive.
async fn drain(pod: &str, space: &Space) -> Result<()> {
    let node = space.kubectl(&format!("get pod {pod} -o jsonpath='{{.spec.nodeName}}'")).await?;
    let of = format!("--pod-selector=batch.kubernetes.io/job-name={}", pod.rsplit_once('-').context("a name")?.0);
    let drains = format!("kubectl drain {node} {of} --force --delete-emptydir-data --ignore-daemonsets --timeout=110s");
    let ends = format!(
        "kubectl -n {} wait pod/{pod} --for=jsonpath='{{.metadata.deletionTimestamp}}' --timeout=60s",
        space.namespace
    );
    shell(&format!("{drains} & {ends}; ended=$?; kubectl uncordon {node}; wait $! && exit $ended")).await?;
    Ok(())
}

fn results(step: &StepRun) -> Vec<AttemptResult> {
    step.status.iter().flat_map(|s| &s.attempts).map(|a| a.result).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evictions_drains_and_deletions_cost_an_agent_none_of_its_tries() -> Result<()> {
    let space = Space::open("evicted").await?;
    let once = json!({"retry": {"maxAttempts": 1, "initialBackoffSeconds": 1, "maxBackoffSeconds": 1}});
    // The second attempt is left alone. Other tests kill the gateway meanwhile, which must have time to come back.
    let grace = || ("/spec/terminationGracePeriodSeconds", json!(90));
    let work = "lockstep progress 1; [ $ATTEMPT = 2 ] || sleep 3600";
    space.worker(&changed(work, &[grace()]), &once).await?;
    // One that ends politely has done no work either, unless it has written what came of it.
    let polite = |last: &str| {
        format!("trap '{last}exit 0' TERM; lockstep progress 1; [ $ATTEMPT = 2 ] || {{ sleep 3600 & wait; }}")
    };
    space.agent("polite", "", &laid(&once, changed(&polite(""), &[grace()]))).await?;
    let saves = polite("echo 7 > $LOCKSTEP_OUT/result.json; ");
    space.agent("saves", "", &laid(&once, changed(&saves, &[grace()]))).await?;
    for (run, agent, codes) in [
        ("evicted", "worker", &[143, 0][..]),
        ("deleted", "worker", &[143, 0]),
        ("drained", "worker", &[143, 0]),
        ("polite", "polite", &[0, 0]),
        ("polite-evicted", "polite", &[0, 0]),
        ("saved", "saves", &[0]),
    ] {
        space.run(run, &json!({"steps": [{"name": "only", "agentId": agent}]})).await?;
        let pod = space.claimed_by(run).await?;
        match run {
            "evicted" | "polite-evicted" => {
                let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
                space.post(&space.core(&format!("pods/{pod}/eviction")), &eviction).await?;
            }
            "deleted" | "saved" => {
                ask(&space.admin, http::Method::DELETE, &space.core(&format!("pods/{pod}")), None).await?;
            }
            _ => drain(&pod, &space).await?,
        }
        space.phase(run, Phase::Completed).await?;
        let step = space.step_run(run, "only").await?.context("a StepRun")?;
        let mut ended = vec![AttemptResult::Infrastructure; codes.len() - 1];
        ended.push(AttemptResult::Succeeded);
        ensure!(results(&step) == ended, "{run}: {:?}", results(&step));
        let status = step.status.context("a status")?;
        let exits = status.attempts.iter().map(|a| a.exit_code).collect::<Vec<_>>();
        ensure!(exits == codes.iter().copied().map(Some).collect::<Vec<_>>(), "{run}: {:?}", status.attempts);
        ensure!(status.counts.retryable == 0, "{run}: {:?}", status.counts);
    }
    space.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stopped_keeps_its_last_words() -> Result<()> {
    let space = Space::open("stopped").await?;
    let script = "trap 'echo LAST-WORDS; exit 9' TERM; lockstep progress 1; sleep 3600 & wait";
    space.worker(&pod_template(script), &json!({})).await?;
    space.run("cancelled", &one_step()).await?;
    let mut late = one_step();
    late["timeoutSeconds"] = json!(15);
    space.run("late", &late).await?;
    space.claimed_by("cancelled").await?;
    space.patch(&space.ours("workflows/cancelled"), &json!({"spec": {"cancel": true}})).await?;
    for (run, end) in [("cancelled", Phase::Cancelled), ("late", Phase::Failed)] {
        space.phase(run, end).await?;
        let status = space.step_run(run, "only").await?.and_then(|s| s.status).context("a status")?;
        let error = status.error.context("an error")?;
        ensure!(error.log_tail.is_some_and(|tail| tail.contains("LAST-WORDS")), "{run}");
        ensure!(status.attempts[0].exit_code == Some(9), "{run}: {:?}", status.attempts);
    }
    space.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_memory_is_named_with_its_limit() -> Result<()> {
    let space = Space::open("memory").await?;
    let once = json!({"retry": {"maxAttempts": 1}});
    let limit = json!({"requests": {"memory": "8Mi"}, "limits": {"memory": "32Mi"}});
    // A line without an end, which `tail` keeps.
    let script = "set -o pipefail; head -c 300000000 /dev/zero | tail | wc -c";
    let template = changed(script, &[(&format!("{AGENT}/resources"), limit)]);
    space.worker(&template, &once).await?;
    let mut left = laid(&once, template);
    left["protocol"] = json!("None");
    space.agent("left", "", &left).await?;
    space.run("worker", &one_step()).await?;
    space.run("left", &json!({"steps": [{"name": "only", "agentId": "left"}]})).await?;
    for run in ["worker", "left"] {
        let step = space.only(run, "it has ended", |s| !s.attempts.is_empty()).await?;
        let attempt = step.status.clone().context("a status")?.attempts.remove(0);
        ensure!(attempt.result == AttemptResult::Retryable, "{run}: {attempt:?}");
        let told = attempt.message.clone().unwrap_or_default();
        ensure!(told.contains("out of memory, limit 32Mi"), "{run}: {attempt:?}");
    }
    space.close().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_field_of_an_agent_is_told_before_anything_runs() -> Result<()> {
    let space = Space::open("typo").await?;
    let mut template = pod_template("true");
    template["spec"]["containers"][0]["resourcess"] = json!({});
    template["spec"]["enviroment"] = json!("x");
    space.worker(&template, &json!({})).await?;
    let path = space.ours("agents/worker");
    let ready = async || -> Result<Value> {
        let agent = space.get(&path).await?;
        let conditions = agent["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.into_iter().find(|c| c["type"] == "Ready").unwrap_or_default())
    };
    let told = space
        .until("it is judged", PATIENCE, None, async || {
            let ready = ready().await?;
            Ok((!ready.is_null()).then_some(ready))
        })
        .await?;
    let words = told["message"].as_str().unwrap_or_default();
    ensure!(
        told["status"] == "False" && words.contains("containers[0].resourcess") && words.contains("spec.enviroment"),
        "{told}"
    );
    // Mended, it is ready, and what waited for it goes on.
    space.run("r", &one_step()).await?;
    space.only("r", "it waits for its Agent", |s| started(s).is_some_and(|told| told.contains("resourcess"))).await?;
    let null = json!({"spec": {"template": {"spec": {"enviroment": null, "containers": pod_template("true")["spec"]["containers"]}}}});
    space.patch(&path, &null).await?;
    space.phase("r", Phase::Completed).await?;
    ensure!(ready().await?["status"] == "True");
    space.close().await
}
