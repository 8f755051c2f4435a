//! One round after the other: seven workloads at once in fresh namespaces, the operator struck and started again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::try_join_all;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::kubelet::{Kubelet, Runs};
use super::observer::Observer;
use super::operator::Operator;
use super::people::People;
use super::plane::{Plane, ask, kubeconfig, until};
use super::proxy::{Fault, Proxy, Write};
use super::state::{End, end};
use super::workloads::{self, Workload, workloads};

/// How long a round may take on a machine that has other things to do.
const ROUND: Duration = Duration::from_secs(90);
/// Longer than anything in the operator is put off on purpose.
const QUIET: Duration = Duration::from_millis(1500);

/// What came of a round with a fault.
#[derive(Debug)]
pub struct Outcome {
    pub hit: Option<Write>,
    pub differences: Vec<String>,
    pub seconds: f64,
}

pub struct Stage {
    plane: Plane,
    proxy: Arc<Proxy>,
    operator: Arc<Operator>,
    observer: Arc<Observer>,
    kubelet: Arc<Kubelet>,
    people: Arc<People>,
    workloads: Vec<Workload>,
    prefix: String,
    rounds: usize,
    /// The round before, which is looked at once more before it goes.
    last: Option<(String, Option<End>)>,
    leaving: Vec<JoinHandle<Result<()>>>,
    strange: Vec<String>,
}

impl Stage {
    pub async fn open() -> Result<Self> {
        let plane = Plane::find().await?;
        let prefix = format!("crash-{}-", std::process::id());
        let (proxy, port) = Proxy::open(plane.operator.clone()).await?;
        let wire = kubeconfig(&json!({"server": format!("http://127.0.0.1:{port}")}), &json!({}));
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("crash");
        let operator = Arc::new(Operator::new(env!("CARGO_BIN_EXE_lockstep").as_ref(), &folder, &wire)?);
        ensure!(proxy.operator.set(Arc::clone(&operator)).is_ok());
        let workloads = workloads();
        let kubelet = Kubelet::new(&plane, workloads::agents(&workloads)?, Runs::Told, 32);
        let people = People::new(&plane);
        let observer = Observer::begin(&plane, &prefix, Arc::clone(&kubelet), Arc::clone(&people)).await?;
        decides(&plane, &prefix).await?;
        proxy.begin(&prefix, None);
        operator.start()?;
        let (leaving, strange) = (Vec::new(), Vec::new());
        Ok(Self {
            plane,
            proxy,
            operator,
            observer,
            kubelet,
            people,
            workloads,
            prefix,
            rounds: 0,
            last: None,
            leaving,
            strange,
        })
    }

    /// A round without a fault; ends when nothing is written any more.
    pub async fn undisturbed(&mut self) -> Result<(End, Vec<Write>)> {
        let prefix = self.begin(None).await?;
        self.drive("no more writes", |stage| stage.ended(&prefix) && stage.proxy.quiet() > QUIET).await?;
        let end = end(&self.observer, &prefix);
        let writes = self.proxy.writes();
        self.strange.extend(self.broken_rules(&prefix));
        self.turn_over(prefix, Some(end.clone()));
        Ok((end, writes))
    }

    pub async fn disturbed(&mut self, fault: &Fault, expected: &End) -> Result<Outcome> {
        let began = Instant::now();
        let prefix = self.begin(Some(fault.clone())).await?;
        let same = |stage: &Self| stage.ended(&prefix) && end(&stage.observer, &prefix).against(expected).is_empty();
        let mut differences = Vec::new();
        if let Err(error) = self.drive("the round ends as the undisturbed one did", same).await {
            differences.push(format!("{error:#}"));
            differences.extend(end(&self.observer, &prefix).against(expected));
        }
        differences.extend(self.broken_rules(&prefix));
        let hit = self.proxy.hit();
        let seconds = began.elapsed().as_secs_f64();
        let settled = differences.is_empty().then(|| expected.clone());
        self.turn_over(prefix, settled);
        Ok(Outcome { hit, differences, seconds })
    }

    /// Takes everything away; gives what was out of order beside the rounds' ends.
    pub async fn close(mut self) -> Result<Vec<String>> {
        self.turn_over(String::new(), None);
        for leaving in std::mem::take(&mut self.leaving) {
            if let Err(error) = leaving.await? {
                self.strange.push(format!("{error:#}"));
            }
        }
        self.operator.lives()?;
        self.operator.end();
        for number in 1..=self.rounds {
            for workload in &self.workloads {
                self.plane.leave(&format!("{}{number}-{}", self.prefix, workload.name)).await?;
            }
        }
        let log = std::fs::read_to_string(self.operator.log())?;
        let mut strange = self.strange;
        strange.extend(log.lines().filter(|line| line.contains("panicked")).map(str::to_owned));
        strange.extend(self.proxy.strange());
        strange.extend(self.observer.violations());
        strange.extend(self.kubelet.failures());
        strange.extend(self.people.failures());
        for ((uid, attempt), starts) in self.kubelet.starts().into_iter().filter(|(_, starts)| *starts > 1) {
            strange.push(format!("attempt {attempt} of StepRun {uid} was started {starts} times"));
        }
        Ok(strange)
    }

    /// Fresh namespaces, the agents, the runs.
    async fn begin(&mut self, fault: Option<Fault>) -> Result<String> {
        self.rounds += 1;
        let prefix = format!("{}{}-", self.prefix, self.rounds);
        let spaces: Vec<String> = self.workloads.iter().map(|w| format!("{prefix}{}", w.name)).collect();
        try_join_all(spaces.iter().map(|space| self.plane.namespace(space))).await?;
        self.proxy.begin(&prefix, fault);
        try_join_all(spaces.iter().map(|space| self.make(space, "agents", workloads::agent()))).await?;
        self.bystander(&spaces[0]).await?;
        self.drive("the agents are looked at", |stage| {
            let objects = stage.observer.objects(&prefix);
            let looked_at = |kind: &str, value: &Value| kind == "Agent" && value["status"]["conditions"].is_array();
            objects.iter().filter(|(_, kind, value)| looked_at(kind, value)).count() == spaces.len()
        })
        .await?;
        let runs = self.workloads.iter().zip(&spaces).flat_map(|(w, space)| w.runs.iter().map(move |run| (space, run)));
        try_join_all(runs.map(|(space, (name, spec))| self.make(space, "workflows", workloads::run(name, spec))))
            .await?;
        Ok(prefix)
    }

    async fn make(&self, namespace: &str, plural: &str, object: Value) -> Result<()> {
        let path = format!("/apis/lockstep.dev/v1alpha1/namespaces/{namespace}/{plural}");
        ask(&self.plane.admin, Method::POST, &path, Some(&object)).await.with_context(|| format!("POST {path}"))?;
        Ok(())
    }

    /// A Job that bears our label and is no StepRun's; by the policy nobody but the operator's account can make one.
    async fn bystander(&self, namespace: &str) -> Result<()> {
        let pod = json!({"restartPolicy": "Never", "containers": [{"name": "agent", "image": "none"}]});
        let job = json!({"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "bystander", "labels": {"lockstep.dev/steprun": "bystander"}},
            "spec": {"suspend": true, "template": {"spec": pod}}});
        let path = format!("/apis/batch/v1/namespaces/{namespace}/jobs");
        ask(&self.plane.operator, Method::POST, &path, Some(&job)).await?;
        Ok(())
    }

    fn ended(&self, prefix: &str) -> bool {
        self.observer.ended(prefix) == self.workloads.iter().map(|w| w.runs.len()).sum::<usize>()
    }

    /// Waits until it is so; the operator is started again when it was struck.
    async fn drive(&self, what: &str, ready: impl Fn(&Self) -> bool) -> Result<()> {
        let began = Instant::now();
        let mut changes = self.observer.changes.subscribe();
        while !ready(self) {
            if began.elapsed() > ROUND {
                bail!("not within {ROUND:?}: {what}");
            }
            self.operator.lives()?;
            tokio::select! {
                () = self.operator.struck.notified() => self.operator.start()?,
                // What is waited for may be that nothing changes.
                _ = tokio::time::timeout(Duration::from_millis(100), changes.changed()) => {}
            }
        }
        Ok(())
    }

    fn broken_rules(&self, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        for workload in &self.workloads {
            for (run, gate, after) in &workload.gates {
                found.extend(self.observer.too_early(&format!("{prefix}{}", workload.name), run, (gate, after)));
            }
        }
        let touched = self.proxy.writes().into_iter().filter(|w| w.name == "bystander");
        found.extend(touched.map(|w| format!("{} {}: somebody else's Job", w.verb, w.what)));
        found
    }

    /// The round before this one: nothing may have changed since it ended; then it goes, beside the round that runs.
    fn turn_over(&mut self, prefix: String, settled: Option<End>) {
        let Some((before, was)) = self.last.replace((prefix, settled)) else { return };
        if let Some(was) = was {
            let later = end(&self.observer, &before).against(&was);
            self.strange.extend(later.iter().map(|line| format!("{before}, after its end: {line}")));
        }
        let (plane, observer) = (self.plane.clone(), Arc::clone(&self.observer));
        self.leaving.push(tokio::spawn(async move { all_goes(&plane, &observer, &before).await }));
    }
}

/// Deletes the runs; all that was made for them must go, and nothing else. The rest goes after that, so that a restarted
/// operator has no more to list than in the first round.
async fn all_goes(plane: &Plane, observer: &Observer, prefix: &str) -> Result<()> {
    for run in names(observer, prefix, "Workflow") {
        delete(plane, &run, "lockstep.dev/v1alpha1", "workflows").await?;
    }
    let stays = |kind: &str, value: &Value| match kind {
        "Agent" => true,
        "Document" => value["spec"]["scope"] == "Session",
        "Job" => value["metadata"]["name"] == "bystander",
        _ => false,
    };
    let left = || observer.objects(prefix).into_iter().filter(|(_, kind, value)| !stays(kind, value)).count();
    until("all of a deleted run is gone", || std::future::ready(left() == 0)).await?;
    for (kind, version, plural) in [
        ("Agent", "lockstep.dev/v1alpha1", "agents"),
        ("Document", "lockstep.dev/v1alpha1", "documents"),
        ("Job", "batch/v1", "jobs"),
    ] {
        let there = names(observer, prefix, kind);
        ensure!(!there.is_empty(), "{kind}: what is not the run's went with it");
        for place in there {
            delete(plane, &place, version, plural).await?;
        }
    }
    Ok(())
}

fn names(observer: &Observer, prefix: &str, kind: &str) -> Vec<(String, String)> {
    let all = observer.objects(prefix).into_iter().filter(|(_, k, _)| *k == kind);
    all.map(|(namespace, _, value)| (namespace, value["metadata"]["name"].as_str().unwrap_or_default().to_owned()))
        .collect()
}

async fn delete(plane: &Plane, (namespace, name): &(String, String), version: &str, plural: &str) -> Result<()> {
    let path = format!("/apis/{version}/namespaces/{namespace}/{plural}/{name}?propagationPolicy=Background");
    ask(&plane.admin, Method::DELETE, &path, None).await.with_context(|| format!("DELETE {path}"))?;
    Ok(())
}

/// Binds the person to the role of those who approve, in all namespaces.
async fn decides(plane: &Plane, prefix: &str) -> Result<()> {
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": format!("{prefix}approver")},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": super::plane::PERSON}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "lockstep-approver"}});
    ask(&plane.admin, Method::POST, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", Some(&binding)).await?;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
        "user": super::plane::PERSON,
        "resourceAttributes": {"verb": "approve", "group": "lockstep.dev", "resource": "gates", "namespace": "default"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    until("the person may approve", || async {
        let answer = ask(&plane.admin, Method::POST, path, Some(&review)).await;
        answer.is_ok_and(|answer| answer["status"]["allowed"] == true)
    })
    .await
}
