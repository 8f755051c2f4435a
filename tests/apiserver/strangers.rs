//! Jobs, pods, documents and runs beside ours: what passes as ours, and what others may go on doing.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::policies::{Case, flood, owner};
use crate::support::{
    Ask, GATEWAY, JOB_CONTROLLER, OPERATOR, Team, Who, document, object, policies_whole, step_run, until, workflow,
};

const STEP_RUN: &str = "lockstep.dev/steprun";
const ATTEMPT: &str = "lockstep.dev/attempt";

fn ours() -> Value {
    json!({STEP_RUN: "shop-a", ATTEMPT: "1"})
}

/// A Job; the labels are its pods' too where `pods` says so.
fn job(name: &str, labels: &Value, pods: &Value) -> Value {
    json!({"apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "labels": labels, "annotations": {"lockstep.dev/agent-generation": "1"}},
        "spec": {"backoffLimit": 0, "suspend": false, "template": {"metadata": {"labels": pods}, "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [{"name": "agent", "image": "none"}]}}}})
}

fn pod(name: &str, labels: &Value, owners: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels, "ownerReferences": owners},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "agent", "image": "none"}]}})
}

fn of_a_job(name: &str, uid: &Value) -> Value {
    json!([{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": true}])
}

/// The pod that the Job controller makes for a Job.
async fn pod_of(team: &Team, job: &str) -> Result<Value> {
    let path = format!("{}?labelSelector=batch.kubernetes.io%2Fjob-name%3D{job}", team.core("pods"));
    until(&format!("a pod of {job}"), || async {
        let list = team.admin.gets(&Ask::get(&path)).await?;
        Ok(list["items"].as_array().and_then(|items| items.first()).cloned())
    })
    .await
}

/// Jobs, pods and documents in every state that the rules tell apart, and people with other roles: rita makes runs of
/// the template `release`, dora keeps documents.
pub async fn stage(team: &Team) -> Result<()> {
    let mut paused = job("paused", &ours(), &ours());
    paused["spec"]["suspend"] = json!(true);
    for made in [job("held", &ours(), &ours()), paused] {
        team.operator.gets(&Ask::post(team.jobs(), made)).await?;
    }
    let foreign = json!({"team": "a"});
    team.admin.gets(&Ask::post(team.jobs(), job("bystander", &foreign, &foreign))).await?;
    team.admin.gets(&Ask::post(team.core("pods"), pod("plain", &foreign, &json!([])))).await?;
    pod_of(team, "held").await?;
    let run = team.admin.gets(&Ask::post(team.all("workflows"), workflow("making", &json!({})))).await?;
    let made = |name: &str, more: Value| {
        let mut made = document(name, &more);
        made["metadata"]["labels"] = json!({"lockstep.dev/workflow": "making"});
        made
    };
    let mut of_run =
        made("made", json!({"scope": "Workflow", "scopeId": "u-1", "workflow": "making", "path": "a", "attempt": 1}));
    of_run["metadata"]["ownerReferences"] = owner(&run);
    let wide = json!({"scope": "Session", "session": "s", "workflow": "making", "path": "a", "attempt": 1});
    for made in [of_run, made("drafted", wide.clone()), made("published", wide)] {
        team.gateway.gets(&Ask::post(team.all("documents"), made)).await?;
    }
    let status = json!({"status": {"phase": "Published", "revision": 1}});
    team.operator.gets(&Ask::patch(team.one("documents", "published/status"), status)).await?;
    team.bob.gets(&Ask::post(team.all("documents"), document("bobs", &json!({})))).await?;
    let user = |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name});
    team.bind("lockstep-runner", json!([user("rita")])).await?;
    let run = json!([{"apiGroups": ["lockstep.dev"], "resources": ["workflowtemplates"], "resourceNames": ["release"], "verbs": ["run"]}]);
    team.grant("rita", "run-release", run).await?;
    let keep = json!([{"apiGroups": ["lockstep.dev"], "resources": ["documents"], "verbs": ["get", "delete"]}]);
    team.grant("dora", "keep-documents", keep).await?;
    let write =
        json!([{"apiGroups": ["lockstep.dev"], "resources": ["triggers"], "verbs": ["create", "patch", "update"]}]);
    team.grant("rita", "write-triggers", write).await?;
    for (user, verb, resource) in
        [("rita", "create", "workflows"), ("dora", "delete", "documents"), ("rita", "patch", "triggers")]
    {
        until(&format!("{user} may {verb} {resource}"), || async {
            Ok(team.may(user, &[], verb, "lockstep.dev", resource).await?.then_some(()))
        })
        .await?;
    }
    let rita = Who::user("rita", &[]).await?;
    let release = Ask::post(team.all("workflows"), workflow("may", &json!({"templateRef": {"name": "release"}})));
    until("rita may run release", || async { Ok(rita.tries(&release).await.ok()) }).await?;
    rita.gets(&Ask::post(team.all("triggers"), trigger("ritas", "release"))).await?;
    // Labels start nothing, and a change of what is started is asked about.
    team.admin.gets(&Ask::post(team.all("triggers"), trigger("admins", "other"))).await?;
    rita.gets(&Ask::patch(team.one("triggers", "admins"), json!({"metadata": {"labels": {"a": "b"}}}))).await?;
    Ok(())
}

/// At least one case a rule.
#[rustfmt::skip] // one case, one line
pub async fn cases(team: &Team) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut add = |policy: &'static str, words: &'static str, who: &Who, ask: Ask| {
        cases.push(Case { policy, words, who: who.clone(), ask, unstamped_only: false });
    };
    let (admin, bob) = (&team.admin, &team.bob);
    // Whatever RBAC says.
    let operator = Who::user(OPERATOR, &["system:masters"]).await?;
    let gateway = Who::user(GATEWAY, &["system:masters"]).await?;
    let controller = Who::user(JOB_CONTROLLER, &[]).await?;
    let cron = Who::user("system:serviceaccount:kube-system:cronjob-controller", &[]).await?;
    let sets = Who::user("system:serviceaccount:kube-system:replicaset-controller", &[]).await?;
    let (rita, dora) = (Who::user("rita", &[]).await?, Who::user("dora", &[]).await?);

    let j = "lockstep-job";
    let jobs = |name: &str| format!("{}/{name}", team.jobs());
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    let stray = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "y"});
    add(j, "only the operator creates Jobs", admin, Ask::post(team.jobs(), job("forged", &ours(), &json!({}))));
    add(j, "only the operator creates Jobs", admin, Ask::post(team.jobs(), job("forged", &json!({}), &ours())));
    add(j, "only the operator creates Jobs", admin, Ask::post(team.jobs(), job("forged", &json!({"lockstep.dev/any": "x"}), &json!({}))));
    add(j, "only the operator creates Jobs", &gateway, Ask::post(team.jobs(), job("forged", &ours(), &ours())));
    add(j, "only the operator creates Jobs", &cron, Ask::post(team.jobs(), job("forged", &ours(), &ours())));
    add(j, "only the operator changes", admin, Ask::patch(jobs("bystander"), labels(ours())));
    add(j, "only the operator changes", admin, Ask::patch(jobs("held"), labels(json!({ATTEMPT: "2"}))));
    add(j, "only the operator changes", admin, Ask::patch(jobs("held"), labels(json!({"lockstep.dev/more": "x"}))));
    // Without any label a Job gets those of its template again.
    add(j, "only the operator changes", admin, Ask::patch(jobs("held"), labels(json!({STEP_RUN: null}))));
    add(j, "only the operator changes", admin, Ask::annotate(jobs("held"), json!({"lockstep.dev/agent-generation": "9"})));
    add(j, "only the operator changes", admin, Ask::patch(jobs("paused"), json!({"spec": {"template": labels(json!({ATTEMPT: "2"}))}})));
    add(j, "only the operator changes", admin, Ask::patch(jobs("paused"), json!({"spec": {"template": labels(json!({ATTEMPT: null}))}})));
    add(j, "the owners of an attempt's Job", admin, Ask::patch(jobs("held"), json!({"metadata": {"ownerReferences": [stray]}})));

    let p = "lockstep-pod";
    let held = admin.gets(&Ask::get(jobs("held"))).await?;
    let owned = of_a_job("held", &held["metadata"]["uid"]);
    let held = pod_of(team, "held").await?["metadata"]["name"].as_str().context("no name")?.to_owned();
    let pods = |name: &str| format!("{}/{name}", team.core("pods"));
    add(p, "only the Job controller creates", admin, Ask::post(team.core("pods"), pod("forged", &ours(), &owned)));
    add(p, "only the Job controller creates", &operator, Ask::post(team.core("pods"), pod("forged", &ours(), &owned)));
    add(p, "only the Job controller creates", &sets, Ask::post(team.core("pods"), pod("forged", &json!({STEP_RUN: "x"}), &owned)));
    add(p, "the controller of a pod with", &controller, Ask::post(team.core("pods"), pod("forged", &ours(), &json!([]))));
    add(p, "the controller of a pod with", &controller, Ask::post(team.core("pods"), pod("forged", &ours(), &json!([
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "held", "uid": "y", "controller": true}]))));
    add(p, "nobody adds, changes or removes", admin, Ask::patch(pods("plain"), labels(ours())));
    add(p, "nobody adds, changes or removes", &controller, Ask::patch(pods("plain"), labels(ours())));
    add(p, "nobody adds, changes or removes", admin, Ask::patch(pods(&held), labels(json!({ATTEMPT: "2"}))));
    add(p, "nobody adds, changes or removes", admin, Ask::patch(pods(&held), labels(json!({STEP_RUN: null, ATTEMPT: null}))));
    add(p, "nobody adds, changes or removes", admin, Ask::patch(pods(&held), labels(json!({"batch.kubernetes.io/controller-uid": "x"}))));
    add(p, "nobody adds, changes or removes", admin, Ask::patch(pods(&held), labels(json!({"job-name": null}))));
    let image = json!([{"op": "replace", "path": "/spec/containers/0/image", "value": "evil"}]);
    add(p, "the images of an attempt's pod", admin, Ask::edit(pods(&held), image));
    let debug = json!({"name": "debug", "image": "evil", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"});
    add(p, "gets no ephemeral container", admin,
        Ask::patch(pods(&format!("{held}/ephemeralcontainers")), json!({"spec": {"ephemeralContainers": [debug]}})));
    add(p, "the owners of an attempt's pod", admin, Ask::patch(pods(&held), json!({"metadata": {"ownerReferences": null}})));

    let d = "lockstep-document";
    let put = |more: Value| Ask::post(team.all("documents"), document("forged", &more));
    let bare = |metadata: Value| {
        let mut bare = document("forged", &json!({}));
        bare["metadata"].as_object_mut().expect("fields").extend(metadata.as_object().expect("fields").clone());
        Ask::post(team.all("documents"), bare)
    };
    let docs = |name: &str| team.one("documents", name);
    let run = admin.gets(&Ask::get(team.one("workflows", "making"))).await?;
    add(d, "put by Lockstep", bob, put(json!({"scope": "Workflow"})));
    add(d, "put by Lockstep", bob, put(json!({"scope": "Item"})));
    add(d, "put by Lockstep", admin, put(json!({"scope": "Workflow"})));
    for field in [json!({"scopeId": "u-1"}), json!({"workflow": "shop"}), json!({"path": "discovery"}), json!({"attempt": 1})] {
        add(d, "only Lockstep may set them", bob, put(field));
    }
    add(d, "types that begin with lockstep-", bob, put(json!({"type": "lockstep-output"})));
    add(d, "types that begin with lockstep-", admin, put(json!({"type": "lockstep-memory", "scope": "Session", "session": "s"})));
    for name in ["discovery-1-0123456789abcdef", "x-0000000000000000"] {
        add(d, "is kept for what the steps of runs make", bob, bare(json!({"name": name})));
        add(d, "is kept for what the steps of runs make", admin, bare(json!({"name": name})));
    }
    add(d, "session and project are letters", bob, put(json!({"scope": "Session", "session": "_shop-1a2b3c4d"})));
    add(d, "session and project are letters", admin, put(json!({"scope": "Session", "session": "_shop-1a2b3c4d"})));
    add(d, "session and project are letters", bob, put(json!({"scope": "Project", "project": "a/b"})));
    add(d, "labels of lockstep.dev/ on a Document", bob, bare(json!({"labels": {"lockstep.dev/workflow": "making"}})));
    add(d, "labels of lockstep.dev/ on a Document", bob, Ask::patch(docs("bobs"), labels(json!({"lockstep.dev/workflow": "making"}))));
    add(d, "labels of lockstep.dev/ on a Document", admin, Ask::patch(docs("made"), labels(json!({"lockstep.dev/workflow": "other"}))));
    add(d, "labels of lockstep.dev/ on a Document", bob, Ask::patch(docs("published"), labels(json!({"lockstep.dev/workflow": null}))));
    add(d, "a Document that belongs to a run", bob, bare(json!({"ownerReferences": owner(&run)})));
    add(d, "a Document that belongs to a run", bob, Ask::patch(docs("bobs"), json!({"metadata": {"ownerReferences": owner(&run)}})));
    add(d, "the owners of a run's documents", bob, Ask::patch(docs("made"), json!({"metadata": {"ownerReferences": [stray]}})));
    add(d, "the owners of a run's documents", admin, Ask::patch(docs("made"), json!({"metadata": {"ownerReferences": null}})));
    add(d, "the owners of a run's documents", bob, Ask::patch(docs("published"), json!({"metadata": {"ownerReferences": [stray]}})));
    add(d, "a document of a run goes with", bob, Ask::delete(docs("made")));
    add(d, "a document of a run goes with", admin, Ask::delete(docs("made")));
    add(d, "is not decided on yet", bob, Ask::delete(docs("drafted")));
    add(d, "made this document", &dora, Ask::delete(docs("published")));
    add(d, "a Document may have 1000 labels", bob, bare(json!({"labels": flood(1001)})));
    add(d, "a Document may have 1000 labels", bob, Ask::patch(docs("bobs"), labels(flood(1001))));

    let r = "lockstep-run";
    let make = |spec: Value| Ask::post(team.all("workflows"), workflow("forged", &spec));
    add(r, "lacks the permission run", &rita, make(json!({})));
    add(r, "lacks the permission run", &rita, make(json!({"templateRef": {"name": "releases"}})));
    let inline = json!({"templateRef": null, "steps": [{"name": "a", "agentId": "writer"}]});
    add(r, "may not run steps that are written", &rita, make(inline));
    let by_trigger = "lockstep-trigger";
    let other = json!({"spec": {"run": {"templateRef": {"name": "other"}}}});
    add(by_trigger, "which this Trigger would start", &rita, Ask::post(team.all("triggers"), trigger("forged", "other")));
    add(by_trigger, "which this Trigger would start", &rita, Ask::patch(team.one("triggers", "ritas"), other));
    add(by_trigger, "which this Trigger would start", &rita, Ask::patch(team.one("triggers", "admins"), json!({"spec": {"run": {"input": "x"}}})));
    Ok(cases)
}

fn trigger(name: &str, template: &str) -> Value {
    object("Trigger", name, &json!({"event": {"type": "t"}, "run": {"templateRef": {"name": template}}}))
}

/// A queue holds and places the Jobs, the kubelet writes statuses, the Job controller ends what has ended, the TTL
/// controller and the garbage collector take it away.
#[tokio::test]
async fn what_kubernetes_and_others_do_with_our_jobs() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("queued").await?;
    let mut queued = job("queued", &ours(), &ours());
    queued["spec"]["suspend"] = json!(true);
    queued["spec"]["ttlSecondsAfterFinished"] = json!(0);
    team.operator.gets(&Ask::post(team.jobs(), queued)).await?;
    let at = format!("{}/queued", team.jobs());
    let placed = json!({"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "q"}, "annotations": {"kueue.x-k8s.io/admitted": "yes"}},
        "spec": {"template": {"metadata": {"labels": {"kueue.x-k8s.io/podset": "main"}}, "spec": {"nodeSelector": {"zone": "a"}}}}});
    team.admin.gets(&Ask::patch(&at, placed)).await.context("a queue places the Job")?;
    team.admin.gets(&Ask::patch(&at, json!({"spec": {"suspend": false}}))).await.context("and lets it go")?;
    let pod = pod_of(&team, "queued").await?;
    ensure!(
        pod["metadata"]["labels"][STEP_RUN] == "shop-a" && pod["metadata"]["labels"]["kueue.x-k8s.io/podset"] == "main"
    );
    let pod = format!("{}/{}", team.core("pods"), pod["metadata"]["name"].as_str().unwrap_or_default());
    team.admin
        .gets(&Ask::patch(&pod, json!({"metadata": {"labels": {"team": "a"}}})))
        .await
        .context("labels of others")?;
    team.admin.gets(&Ask::annotate(&pod, json!({"example.com/note": "x"}))).await.context("annotations of others")?;
    let kubelet = Who::user("kubelet", &["system:masters"]).await?;
    let state = json!({"terminated": {"exitCode": 0}});
    let ended = json!({"status": {"phase": "Succeeded", "containerStatuses": [{"name": "agent", "image": "none", "imageID": "",
        "ready": false, "restartCount": 0, "state": state}]}});
    kubelet.gets(&Ask::patch(format!("{pod}/status"), ended)).await.context("the kubelet's word")?;
    for (what, path) in [("the TTL controller takes the Job", at), ("the garbage collector takes its pod", pod)] {
        until(what, || async { Ok(team.admin.asks(&Ask::get(&path)).await.err().filter(|r| r.code == 404)) }).await?;
    }
    // A Job that is deleted without its pods: the garbage collector cuts them loose, and people take them away.
    team.operator.gets(&Ask::post(team.jobs(), job("cut", &ours(), &ours()))).await?;
    let pod = pod_of(&team, "cut").await?;
    let pod = format!("{}/{}", team.core("pods"), pod["metadata"]["name"].as_str().unwrap_or_default());
    team.admin.gets(&Ask::orphan(format!("{}/cut", team.jobs()))).await?;
    until("the pod has no owner", || async {
        let pod = team.admin.gets(&Ask::get(&pod)).await?;
        Ok(pod["metadata"]["ownerReferences"].is_null().then_some(()))
    })
    .await?;
    team.admin.gets(&Ask::delete(&pod)).await?;
    // The operator deletes with the pods.
    team.operator.gets(&Ask::post(team.jobs(), job("given-up", &ours(), &ours()))).await?;
    pod_of(&team, "given-up").await?;
    team.operator.gets(&Ask::delete(format!("{}/given-up", team.jobs()))).await?;
    let left = format!("{}?labelSelector=lockstep.dev%2Fsteprun", team.core("pods"));
    until("nothing is left", || async {
        let list = team.admin.gets(&Ask::get(&left)).await?;
        Ok(list["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })
    .await?;
    team.close().await
}

/// What has none of our labels is nobody's business here.
#[tokio::test]
async fn jobs_and_pods_of_others_are_left_alone() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("others").await?;
    let foreign = json!({"team": "a"});
    let mut own = job("own", &foreign, &foreign);
    own["metadata"]["ownerReferences"] = json!([]);
    team.admin.gets(&Ask::post(team.jobs(), own)).await?;
    let pod = pod_of(&team, "own").await?;
    let pod = format!("{}/{}", team.core("pods"), pod["metadata"]["name"].as_str().unwrap_or_default());
    team.admin
        .gets(&Ask::annotate(format!("{}/own", team.jobs()), json!({"lockstep.dev/agent-generation": "7"})))
        .await?;
    team.admin.gets(&Ask::patch(format!("{}/own", team.jobs()), json!({"metadata": {"labels": flood(1500)}}))).await?;
    team.admin
        .gets(&Ask::edit(&pod, json!([{"op": "replace", "path": "/spec/containers/0/image", "value": "other"}])))
        .await?;
    let debug =
        json!({"name": "debug", "image": "busybox", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"});
    team.admin
        .gets(&Ask::patch(format!("{pod}/ephemeralcontainers"), json!({"spec": {"ephemeralContainers": [debug]}})))
        .await?;
    team.admin.gets(&Ask::patch(&pod, json!({"metadata": {"labels": {"team": "b", "job-name": "x"}}}))).await?;
    team.close().await
}

/// Runs by those who may run, documents by those whose they are.
#[tokio::test]
async fn people_run_what_they_may_and_keep_their_documents() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("may").await?;
    stage(&team).await?;
    let (rita, dora) = (Who::user("rita", &[]).await?, Who::user("dora", &[]).await?);
    let inline = json!({"templateRef": null, "steps": [{"name": "a", "agentId": "writer"}]});
    let run = |name: &str, spec: &Value| Ask::post(team.all("workflows"), workflow(name, spec));
    rita.gets(&run("ritas", &json!({"templateRef": {"name": "release"}}))).await.context("a template by name")?;
    rita.gets(&Ask::patch(team.one("workflows", "ritas"), json!({"spec": {"suspend": true}})))
        .await
        .context("is held")?;
    rita.gets(&Ask::patch(team.one("workflows", "ritas"), json!({"spec": {"cancel": true}})))
        .await
        .context("is ended")?;
    rita.is_refused(&Ask::delete(team.one("workflows", "ritas")), 403, "cannot delete resource").await?;
    let template = object("WorkflowTemplate", "mine", &json!({"steps": [{"name": "a", "agentId": "writer"}]}));
    rita.is_refused(&Ask::post(team.all("workflowtemplates"), template.clone()), 403, "cannot create resource").await?;
    team.bob.gets(&Ask::post(team.all("workflowtemplates"), template)).await?;
    team.bob.gets(&run("bobs", &json!({}))).await.context("any template")?;
    team.bob.gets(&run("bobs-own", &inline)).await.context("steps of his own")?;
    // The message names the command; what it grants is enough.
    let refusal = rita.asks(&run("more", &json!({"templateRef": {"name": "mine"}}))).await.expect_err("not hers");
    ensure!(
        refusal
            .message
            .contains("create role run-mine --verb=run --resource=workflowtemplates.lockstep.dev --resource-name=mine")
            && refusal.message.contains("--user=rita"),
        "{}",
        refusal.message
    );
    let grant = json!([{"apiGroups": ["lockstep.dev"], "resources": ["workflowtemplates"], "resourceNames": ["mine"], "verbs": ["run"]}]);
    team.grant("rita", "run-mine", grant).await?;
    until("rita may run mine", || async {
        Ok(rita.tries(&run("more", &json!({"templateRef": {"name": "mine"}}))).await.ok())
    })
    .await?;

    let docs = |name: &str| team.one("documents", name);
    let bare = json!({"metadata": {"labels": {"team": "a"}, "annotations": {"lockstep.dev/note": "x"}}});
    team.bob.gets(&Ask::patch(docs("bobs"), bare)).await.context("labels of one's own")?;
    team.bob.gets(&Ask::annotate(docs("made"), json!({"example.com/note": "x"}))).await.context("a note on a run's")?;
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "keeper"}});
    let config = team.admin.gets(&Ask::post(team.core("configmaps"), config)).await?;
    let keeper = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "keeper", "uid": config["metadata"]["uid"]}]);
    team.bob
        .gets(&Ask::patch(docs("bobs"), json!({"metadata": {"ownerReferences": keeper}})))
        .await
        .context("an owner of one's own")?;
    for (scope, field, value) in [("Session", "session", "shop-1a2b3c4d"), ("Project", "project", "A.b_c-1")] {
        let mine = document(&format!("mine-{field}"), &json!({"scope": scope, field: value}));
        team.bob.gets(&Ask::post(team.all("documents"), mine)).await?;
    }
    // As `doc put` calls them, and such as look alike.
    for name in
        ["brief-0123456789abcdef0123", "brief-0123456789abcdeg", "brief-0123456789abcde", "brief.0123456789abcdef"]
    {
        team.bob.gets(&Ask::post(team.all("documents"), document(name, &json!({})))).await.context(name)?;
    }
    dora.gets(&Ask::delete(docs("bobs"))).await.context("a person's document")?;
    team.bob.gets(&Ask::delete(docs("published"))).await.context("he may delete the run that made it")?;
    team.admin.gets(&Ask::delete(docs("drafted"))).await.context("she may delete StepRuns")?;
    team.operator.gets(&Ask::delete(docs("made"))).await.context("what a run leaves behind")?;
    team.close().await
}

/// `kubectl delete workflow --cascade=orphan`: what has lost its owner is taken away by whoever may.
#[tokio::test]
async fn what_lost_its_run_can_be_taken_away() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("orphans").await?;
    let run = team.bob.gets(&Ask::post(team.all("workflows"), workflow("shop", &json!({})))).await?;
    let mut left = step_run("left", &json!({}));
    left["metadata"]["ownerReferences"] = owner(&run);
    team.operator.gets(&Ask::post(team.all("stepruns"), left)).await?;
    let mut made = document("left", &json!({"scope": "Workflow", "scopeId": "u-1", "workflow": "shop"}));
    made["metadata"]["ownerReferences"] = owner(&run);
    team.gateway.gets(&Ask::post(team.all("documents"), made)).await?;
    team.admin.is_refused(&Ask::delete(team.one("stepruns", "left")), 403, "never alone").await?;
    team.bob.is_refused(&Ask::delete(team.one("documents", "left")), 403, "delete the Workflow shop").await?;
    team.bob.gets(&Ask::orphan(team.one("workflows", "shop"))).await?;
    for plural in ["stepruns", "documents"] {
        until(&format!("{plural} have no owner"), || async {
            let left = team.admin.gets(&Ask::get(team.one(plural, "left"))).await?;
            Ok(left["metadata"]["ownerReferences"].is_null().then_some(()))
        })
        .await?;
    }
    team.bob.is_refused(&Ask::delete(team.one("stepruns", "left")), 403, "cannot delete resource").await?;
    team.admin.gets(&Ask::delete(team.one("stepruns", "left"))).await?;
    team.bob.gets(&Ask::delete(team.one("documents", "left"))).await?;
    team.close().await
}

/// More than a policy may cost is refused with the reason, and what is there goes on.
#[tokio::test]
async fn floods_are_refused_with_the_reason() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("flood").await?;
    let waiting = json!({"phase": "WaitingForAcceptance", "gate": {"state": "Waiting", "round": 1, "outputDigest": "sha256:a",
        "openedAt": "2026-01-01T00:00:00Z", "policy": "p", "decisions": []}});
    team.step_run("open", json!({"gate": {"name": "brief"}}), waiting).await?;
    let at = team.one("stepruns", "open");
    let words = "a StepRun may have 1000 annotations and 1000 labels";
    for keys in [1001, 12_000] {
        team.bob
            .is_refused(&Ask::annotate(&at, flood(keys)), 403, words)
            .await
            .with_context(|| format!("{keys} annotations"))?;
    }
    for keys in [1001, 10_000] {
        let labels = json!({"metadata": {"labels": flood(keys)}});
        team.admin
            .is_refused(&Ask::patch(&at, labels.clone()), 403, words)
            .await
            .with_context(|| format!("{keys} labels"))?;
        let mut many = document("many", &json!({}));
        many["metadata"]["labels"] = flood(keys);
        team.bob.is_refused(&Ask::post(team.all("documents"), many), 403, "may have 1000 labels").await?;
    }
    let mut with_decision = flood(6000);
    with_decision["lockstep.dev/decision"] = json!("accepted");
    with_decision["lockstep.dev/decided-by"] = json!("alice");
    team.alice.is_refused(&Ask::annotate(&at, with_decision), 403, words).await?;
    // As many as may be, and a decision still finds room.
    team.bob.gets(&Ask::annotate(&at, flood(1000))).await?;
    let accepted = json!({"lockstep.dev/decision": "accepted", "lockstep.dev/decided-by": "alice"});
    team.alice.gets(&Ask::annotate(&at, accepted)).await?;
    team.close().await
}
