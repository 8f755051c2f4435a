//! A run that is carried from one cluster to another as a file, by the plugin itself over a port.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use axum::Router;
use axum::body::Body;
use http::Request;
use lockstep::api::name::digest_bytes;
use lockstep::apiserver::Kind;
use lockstep::server::{Limits, Security, Server, Stats};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt;

use super::town::{Deed, NAMESPACE, Town};

/// A cluster as somebody's kubeconfig names it.
struct Cluster {
    town: Town,
    kubeconfig: PathBuf,
    /// Serves as long as this is there.
    _stop: watch::Sender<bool>,
}

impl Cluster {
    async fn open(folder: &Path, name: &str) -> Self {
        let town = Town::open().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let api = town.api.as_user("bob");
        let router = Router::new().fallback(move |request: Request<Body>| api.clone().oneshot(request));
        let (stop, stopped) = watch::channel(false);
        let server = Server { limits: Limits::default(), security: Security::Plain, stats: Stats::default(), router };
        tokio::spawn(server.serve(listener, stopped));
        let kubeconfig = folder.join(format!("{name}.yaml"));
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": format!("http://{address}")}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": "bob", "namespace": NAMESPACE}}],
            "users": [{"name": "bob", "user": {}}]});
        std::fs::write(&kubeconfig, config.to_string()).expect("it is written");
        let here = Self { town, kubeconfig, _stop: stop };
        here.town.agent("planner", &json!({"requiredDocuments": ["brief", "law"]}), |context| Deed {
            output: json!({"of": context["parameters"], "for": context["input"]}),
            document: Some("# A plan".to_owned()),
            ..Deed::default()
        });
        here
    }

    async fn plugin(&self, words: &[&str]) -> (String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-lockstep"));
        command.env("KUBECONFIG", &self.kubeconfig).args(words).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it ends").expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    }

    /// Accepts what waits, and gives what the run came to.
    async fn accept(&self) -> Value {
        self.town.until("it waits for acceptance", || self.phase("WaitingForAcceptance")).await;
        let path = "/runs/s/steps/plan/decision";
        self.town.ask("bob", "POST", path, json!({"accepted": true})).await.is(200);
        self.town.until("it is over", || self.phase("Completed")).await;
        self.town.get("/runs/s/result").await.is(200).body["result"].clone()
    }

    fn phase(&self, phase: &str) -> Option<()> {
        self.town.objects(Kind::Workflow).iter().any(|run| run["status"]["phase"] == phase).then_some(())
    }

    /// What the agent was given, without what names a place.
    fn context(&self) -> Value {
        let given = self.town.given.lock().expect("nobody panicked");
        let [(_, context)] = &given[..] else { panic!("{} attempts", given.len()) };
        let parts = ["session", "input", "parameters", "item", "answers", "documents"];
        let mut told: Value = parts.iter().map(|part| (*part, context[*part].clone())).collect();
        for document in told["documents"].as_object_mut().expect("documents").values_mut() {
            // Of the run that it belongs to.
            document.as_object_mut().expect("a document").remove("scopeId");
        }
        told
    }
}

/// S2.8: the context comes over whole, to the byte. Results stand in the file for people: whoever carries it could have written
/// them, so the agents make them anew, and people decide anew.
#[tokio::test]
async fn a_run_goes_on_in_another_cluster_with_all_that_it_was_told_and_nothing_that_is_not_proven() {
    let folder = std::env::temp_dir().join(format!("lockstep-carry-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let one = Cluster::open(&folder, "one").await;
    let step = json!({"name": "plan", "agentId": "planner", "produces": {"type": "plan"}, "gate": {"name": "plan"},
        "parameters": {"depth": "${ parameters.depth }"}});
    let template = json!({"steps": [step], "parametersSchema": {"properties": {"depth": {"default": 3}}}});
    one.town.make(Kind::WorkflowTemplate, "default", &template);
    one.town.post("/documents", json!({"type": "law", "content": "No.", "story_id": "s"})).await.is(201);
    let body = json!({"input": "bikes", "story_id": "s", "documents": [{"type": "brief", "content": "# A shop"}]});
    one.town.post("/run", body).await.is(202);
    let result = one.accept().await;
    let run = one.town.get("/runs/s").await.is(200).body["run"].as_str().expect("a name").to_owned();
    let (export, left_out) = one.plugin(&["export", &run]).await;
    assert_eq!(left_out, "");
    // Whoever carries it writes a better result into it, and a decision.
    let mut forged: Value = serde_json::from_str(&export).expect("JSON");
    forged["steps"][0]["Output"] = json!("mine");
    forged["said"]["decisions"][0]["decidedBy"] = json!("somebody");
    let file = folder.join("run.json");
    std::fs::write(&file, forged.to_string()).expect("it is written");

    let other = Cluster::open(&folder, "other").await;
    let file = file.display().to_string();
    let (_, told) = other.plugin(&["run", "--from", &file, "--name", "carried"]).await;
    assert!(told.contains("every step runs, and nothing counts as approved"), "{told}");
    let again = other.accept().await;
    assert_eq!((&again, &other.context()), (&result, &one.context()));
    let documents = &one.context()["documents"];
    assert_eq!(documents["law"]["digest"], digest_bytes(b"No."), "{documents}");
    // It is a run like any other: nothing in it says that it was done elsewhere.
    let made = other.town.objects(Kind::Workflow)[0].clone();
    assert!(made["spec"]["retryOf"].is_null() && other.town.objects(Kind::StepRun)[0]["spec"]["reuse"].is_null());
    assert_eq!(other.town.objects(Kind::Job).len(), 1);
    std::fs::remove_dir_all(&folder).expect("it goes");
}
