//! Protocol None in real pods: containers that run as their image has them, with a sidecar that claims before and reports after.

use anyhow::{Context as _, Result, ensure};
use http::Method;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use lockstep::api::name::audience;
use lockstep::api::step_run::AttemptResult;
use lockstep::api::workflow::Phase;
use lockstep::definition::agent::ATTENDANT;
use lockstep::protocol::AttemptRef;
use serde_json::{Value, json};

use crate::claims::{claim, gateway, token};
use crate::support::{PATIENCE, Space, ask, pod_template};

/// An Agent whose container the operator leaves as it is; it may write to /out.
fn bare(script: &str, more: &Value) -> Value {
    let mut template = pod_template(script);
    let pod = &mut template["spec"];
    pod["containers"][0]["volumeMounts"] = json!([{"name": "out", "mountPath": "/out"}]);
    pod["volumes"] = json!([{"name": "out", "emptyDir": {}}]);
    let schema = json!({"properties": {"n": {"type": "integer"}}, "required": ["n"]});
    let mut spec = json!({"template": template, "protocol": "None", "outputSchema": schema,
        "retry": {"maxAttempts": 1, "initialBackoffSeconds": 1}});
    spec.as_object_mut().into_iter().for_each(|spec| spec.extend(more.as_object().cloned().unwrap_or_default()));
    spec
}

fn status_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.into_iter().find(|container| container.name == name)
}

#[tokio::test]
async fn containers_run_as_they_are() -> Result<()> {
    use AttemptResult as R;
    let space = Space::open("bare").await?;
    let file = json!({"resultPath": "/out/result.json"});
    for (name, script, more, result, code, said) in [
        ("message", r#"printf '{"n": 1}' > /dev/termination-log"#, json!({}), R::Succeeded, 0, r#"{"n": 1}"#),
        ("file", r#"sleep 1; printf '{"n": 2}' > /out/result.json"#, file.clone(), R::Succeeded, 0, r#"{"n": 2}"#),
        ("wrong", r#"printf '{"n": "two"}' > /out/result.json"#, file.clone(), R::InvalidOutput, 0, "/n: "),
        ("nothing", "true", file.clone(), R::InvalidOutput, 0, "no result.json"),
        ("failing", r#"printf '{"n": 2}' > /out/result.json; exit 3"#, file, R::Retryable, 3, "exited with 3"),
    ] {
        space.agent(name, "", &bare(script, &more)).await?;
        space.run(name, &json!({"onFailure": "Fail", "steps": [{"name": "work", "agentId": name}]})).await?;
        let ends = if result == R::Succeeded { Phase::Completed } else { Phase::Failed };
        space.phase(name, ends).await?;
        let status = space.step_run(name, "work").await?.and_then(|s| s.status).context("no StepRun")?;
        let attempt = status.attempts.first().context("no attempt")?;
        ensure!((attempt.result, attempt.exit_code) == (result, Some(code)), "{name}: {attempt:?}");
        let output = status.agent.as_ref().and_then(|agent| agent.report.as_ref()?.output.clone()).unwrap_or_default();
        let told = format!("{output} {}", attempt.message.clone().unwrap_or_default());
        ensure!(told.contains(said), "{name}: {told}");
    }
    // Nothing of ours is in the container, and it started after the claim.
    let pod = space.pods("file").await?.pop().context("no pod")?;
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first()).context("no container")?;
    ensure!(container.volume_mounts.iter().flatten().all(|mount| mount.name == "out"), "{container:?}");
    ensure!(container.env.iter().flatten().all(|v| !v.name.starts_with("LOCKSTEP_")), "{container:?}");
    let claim = space.step_run("file", "work").await?.and_then(|s| s.status?.agent?.claim).context("no claim")?;
    let ended = status_of(&pod, "agent").and_then(|c| c.state.clone()?.terminated).context("it has not ended")?;
    // The node's clock has whole seconds.
    let started = ended.started_at.context("it has not started")?.0.as_second();
    ensure!(started >= claim.at.0.as_second(), "started at {started}, claimed at {}", claim.at.0);
    space.close().await
}

/// The pod of an attempt that another process has claimed: its sidecar is refused, so its container never starts.
#[tokio::test]
async fn a_container_whose_claim_is_refused_never_starts() -> Result<()> {
    // A shim waits for a gateway that was killed; this test speaks to it directly, and does not.
    let _lock = crate::restart::KILLING.lock().await;
    let space = Space::open("bare-race").await?;
    let mut spec = bare("echo STARTED TWICE", &json!({}));
    spec["template"]["spec"]["schedulingGates"] = json!([{"name": "lockstep.dev/e2e"}]);
    space.agent("late", "", &spec).await?;
    space.run("race", &json!({"steps": [{"name": "work", "agentId": "late"}]})).await?;
    let held = async || Ok(space.pods("race").await?.pop());
    let pod: Pod = space.until("a pod that is held back", PATIENCE, Some("race"), held).await?;
    let step_run = space.step_run("race", "work").await?.context("no StepRun")?;
    let uid = step_run.metadata.uid.clone().context("no UID")?;
    let attempt = AttemptRef {
        namespace: space.namespace.clone(),
        step_run: step_run.metadata.name.clone().unwrap_or_default(),
        uid: uid.clone(),
        attempt: 1,
        id: "0123456789abcdef0123456789abcdef".to_owned(),
    };
    let token = token(&space, &pod, &audience(&uid, 1)).await?;
    let first = claim(&gateway(&pod)?, &token, &attempt).await?;
    ensure!(first.0 == 200, "{first:?}");
    let name = pod.metadata.name.clone().context("no name")?;
    let free = json!({"spec": {"schedulingGates": null}});
    ask(&space.admin, Method::PATCH, &space.core(&format!("pods/{name}")), Some(&free)).await?;
    let refused = async || {
        let pod = space.pods("race").await?.pop().context("the pod is gone")?;
        ensure!(
            status_of(&pod, "agent")
                .is_none_or(|c| c.started != Some(true) && c.state.as_ref().is_none_or(|s| s.terminated.is_none())),
            "it started"
        );
        let twice = status_of(&pod, ATTENDANT).is_some_and(|c| c.restart_count >= 2);
        Ok(twice.then_some(pod))
    };
    let pod = space.until("the sidecar was refused twice", PATIENCE, Some("race"), refused).await?;
    let last = status_of(&pod, ATTENDANT).and_then(|c| c.last_state.clone()?.terminated).context("it did not end")?;
    ensure!(last.exit_code == 75, "{last:?}");
    let agent = status_of(&pod, "agent").context("no status")?;
    ensure!(agent.state.as_ref().is_some_and(|state| state.waiting.is_some()), "{agent:?}");
    space.close().await
}
