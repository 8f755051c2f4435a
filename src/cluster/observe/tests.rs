use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::api::step_run::WorkflowIdentity;
use crate::apiserver::{self, ApiServer, Key, Registry, Writer};
use crate::cluster::guard::{Accounts, JOB_CONTROLLER, PolicyGuard};
use crate::cluster::stored::Stored;
use crate::decide::content::Pin;

fn server() -> ApiServer {
    let store = Box::new(apiserver::MemoryStore::keeping(usize::MAX));
    let clock = Box::new(|| Timestamp::UNIX_EPOCH);
    let registry = Registry::new(store, Box::new(apiserver::access::Open), clock, "observe".to_owned());
    ApiServer::new(registry, "operator")
}

/// The operator, a moment after its start: no watch has told it anything.
pub(crate) fn observer(client: Client) -> Observer {
    let accounts = Accounts {
        operator: "operator".to_owned(),
        gateway: "gateway".to_owned(),
        job_controller: JOB_CONTROLLER.to_owned(),
    };
    Observer {
        client,
        clock: Clock::of(|| Timestamp::UNIX_EPOCH),
        world: World::default(),
        consistency: Consistency::default(),
        contents: Contents::default(),
        settled: SettledRuns::default(),
        guard: Box::new(PolicyGuard::new(&accounts).expect("the policies")),
        installation: Arc::new(Installation::default()),
        evaluator: Evaluator::here(),
        slots: Slots::new(0),
        refusals: Refusals::default(),
        taken: Refusals::default(),
        pod_events: PodEvents::default(),
        revisions: Revisions::default(),
    }
}

fn make(server: &ApiServer, kind: apiserver::Kind, name: &str, spec: &Value) -> Value {
    let object = json!({"apiVersion": kind.api_version(), "kind": kind.name(), "spec": spec,
        "metadata": {"name": name, "namespace": "team"}});
    let (key, by) = (Key::new(kind, "team", name), Writer { user: "ann", is_dry_run: false });
    server.with(|registry| registry.create(&key, object, by)).expect("it is made");
    server.with(|registry| registry.get(&key)).expect("it is there").value.clone()
}

fn unusable<T: std::fmt::Debug>(found: Result<T, Error>) -> String {
    match found {
        Err(Error::Unusable(words)) => words,
        other => panic!("it cannot be read, and was told as {other:?}"),
    }
}

/// The cache knows them as they were before, or does not know them yet.
#[tokio::test]
async fn an_object_that_cannot_be_read_is_named_with_the_reason() {
    let server = server();
    let observer = observer(server.client("team"));
    let wide =
        json!({"type": "brief", "scope": "Namespace", "format": "text", "content": "x", "attempt": 3_000_000_000_u32});
    make(&server, apiserver::Kind::Document, "brief", &wide);
    let expected = "the Document brief cannot be read: spec.attempt: ";
    let pin = Pin { name: "brief".to_owned(), ..Pin::default() };
    let words = unusable(observer.contents.content(&observer.client, "team", &pin).await);
    assert!(words.starts_with(expected), "{words}");
    let words = unusable(observer.live_document("team", "brief").await);
    assert!(words.starts_with(expected), "{words}");
    let known = json!({"metadata": {"name": "brief", "namespace": "team", "uid": "b"},
        "spec": {"type": "brief", "scope": "Namespace", "format": "text", "content": ""}});
    let known: Document = serde_json::from_value(known).expect("a document");
    let words = unusable(observer.put_document(Arc::new(known)).await);
    assert!(words.starts_with(expected), "{words}");
}

fn run_that_cannot_be_read(server: &ApiServer) -> Workflow {
    let steps = json!([{"name": "a", "agentId": "x"}]);
    let deep = (0..150).fold(json!(1), |inner, _| json!({"a": inner}));
    let old = make(server, apiserver::Kind::Workflow, "old", &json!({"parameters": deep, "steps": steps}));
    let of = json!({"name": "old", "uid": old["metadata"]["uid"]});
    let new = make(server, apiserver::Kind::Workflow, "new", &json!({"retryOf": of, "steps": steps}));
    serde_json::from_value(new).expect("a run")
}

#[tokio::test]
async fn a_retry_hears_why_its_run_cannot_be_read() {
    let server = server();
    let retry = run_that_cannot_be_read(&server);
    let seen = observer(server.client("team")).workflow(Arc::new(retry)).await.expect("what is seen");
    assert!(seen.previous.is_none());
    let fault = seen.unreadable.previous.expect("it is there");
    assert!(fault.starts_with("spec.parameters: nests 150 levels"), "{fault}");
}

/// No watch has told yet what became of either.
#[tokio::test]
async fn documents_of_one_second_are_numbered_one_after_the_other() {
    let server = server();
    let observer = observer(server.client("team"));
    let put = ["second", "first"].map(|name| {
        let spec = json!({"type": "brief", "scope": "Namespace", "format": "text", "content": name});
        let made = make(&server, apiserver::Kind::Document, name, &spec);
        let document: Document = serde_json::from_value(made).expect("a document");
        observer.world.documents.take(Event::Apply(document.clone()));
        Arc::new(document)
    });
    let mut numbers = Vec::new();
    for document in put {
        let (_, siblings, number) = observer.put_document(document).await.expect("an answer");
        assert_eq!(siblings.len(), 2);
        numbers.push(number);
    }
    assert_eq!(numbers, [Some(1), Some(2)]);
}

/// Nothing lies in the API server: whoever asked it would hear that the run is gone.
#[tokio::test]
async fn a_run_that_is_known_to_be_unreadable_is_not_asked_for() {
    let observer = observer(server().client("team"));
    let text = json!({"metadata": {"name": "old", "namespace": "team", "uid": "u"}, "spec": {"input": 7}});
    let stored: Stored<Workflow> = serde_json::from_str(&text.to_string()).expect("an object");
    observer.world.workflows.hear(Event::Apply(stored));
    let of =
        |uid: &str| WorkflowIdentity { name: "old".to_owned(), uid: uid.to_owned(), ..WorkflowIdentity::default() };
    let words = unusable(observer.run_of("team", &of("u")).await);
    assert!(words.starts_with("the run old cannot be read: spec.input: "), "{words}");
    // Another one of the same name may be gone.
    assert!(observer.run_of("team", &of("v")).await.expect("an answer").is_none());
}

/// The watch of Documents tells nothing; the API server is asked once, and again only of what is not published yet.
#[tokio::test]
async fn a_document_that_no_watch_has_told_of_is_asked_for_once() {
    let server = server();
    let observer = observer(server.client("team"));
    let spec = json!({"type": "brief", "scope": "Namespace", "format": "text", "content": "x"});
    make(&server, apiserver::Kind::Document, "plan", &spec);
    let run = json!({"metadata": {"name": "shop", "uid": "u", "namespace": "team"}, "spec": {"steps": []},
        "status": {"definition": {"revisionName": "r", "digest": "d"}, "startedAt": "1970-01-01T00:00:00Z"}});
    let run: Workflow = serde_json::from_value(run).expect("a run");
    let mut step_run = StepRun::new("shop-plan", crate::api::step_run::StepRunSpec::default());
    let done = json!({"phase": "Completed", "completedAt": "1970-01-01T00:00:00Z",
        "result": {"attempt": 1, "digest": "d", "documentName": "plan"}});
    step_run.status = serde_json::from_value(done).expect("a status");
    let mut step_runs = Table::default();
    step_runs.insert_mut("shop-plan".to_owned(), Arc::new(step_run));
    let mut settled = Arc::new(Settled::default());
    let mut documents = Table::default();
    observer.add_committed(&run, &step_runs, &mut settled, &mut documents).await.expect("an answer");
    assert!(documents.size() == 1 && settled.shown.is_empty(), "it is not published yet");

    let published = kube::api::Patch::Merge(json!({"status": {"phase": "Published", "revision": 1}}));
    let api: Api<Document> = Api::namespaced(observer.client.clone(), "team");
    let told = api.patch_status("plan", &kube::api::PatchParams::default(), &published).await.expect("it is written");
    observer.add_committed(&run, &step_runs, &mut settled, &mut documents).await.expect("an answer");
    assert_eq!(settled.shown.keys().collect::<Vec<_>>(), ["plan"]);
    // Whoever asked now would hear that it is gone.
    api.delete("plan", &kube::api::DeleteParams::default()).await.expect("it is deleted");
    let mut documents = Table::default();
    observer.add_committed(&run, &step_runs, &mut settled, &mut documents).await.expect("an answer");
    assert!(documents.values().any(|seen| document::is_published(seen)), "as it was shown");
    assert_eq!(settled.late, ["shop-plan"]);

    observer.world.documents.take(Event::Apply(told));
    observer.add_committed(&run, &step_runs, &mut settled, &mut documents).await.expect("an answer");
    assert!(settled.shown.is_empty() && settled.late.is_empty(), "the cache has it now");
}
