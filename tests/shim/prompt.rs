//! What a prompt leaves in the cluster: the real program below the real shim, and a gateway over the API server in memory.

use std::time::Duration;

use lockstep::apiserver::Kind;
use lockstep::protocol::env;
use serde_json::{Value, json};

use super::model::{Answer, Model};
use super::{PATIENCE, Scene, ended, text};

const KEY: &str = "sk-never-to-be-seen-0123456789";

fn prompt(model: &Model, case: &str) -> Value {
    let prompt = json!({"system": "Count.", "model": "small", "baseURL": model.url("127.0.0.1", case), "maxTurns": 2,
        "apiKeySecretRef": {"name": "model-keys", "key": "api"}});
    json!({"template": {}, "prompt": prompt})
}

async fn run(scene: &Scene) -> (Value, String) {
    let mut shim = scene.shim(&["run", "--", env!("CARGO_BIN_EXE_lockstep"), "prompt"]);
    shim.env("LOCKSTEP_API_KEY", KEY).env(env::SECRET_NAMES, "LOCKSTEP_API_KEY").env("NO_PROXY", "127.0.0.1");
    let ran = ended(move || shim.output()).await.expect("the shim runs");
    (scene.agent(), text(&ran))
}

/// In no object of the cluster, whatever was told of the attempt.
fn keeps_the_key(scene: &Scene, said: &str) {
    assert!(!said.contains(KEY), "{said}");
    let all: Vec<String> = scene.api.with(|registry| {
        let of =
            |kind| registry.store().list(kind).into_iter().map(|object| object.value.to_string()).collect::<Vec<_>>();
        Kind::ALL.into_iter().flat_map(of).collect()
    });
    assert!(all.len() > 5 && all.iter().all(|object| !object.contains(KEY)), "{all:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_counts_what_it_uses_and_leaves_its_key_nowhere() {
    let memory = Answer::Calls(vec![("memory_set", json!({"key": "seen", "value": [1, 2]}))]);
    let model = Model::start("127.0.0.1", &[("count", vec![memory, Answer::Says("{\"n\": 2}")])]);
    let scene = Scene::open("prompt", &prompt(&model, "count")).await;
    let (agent, said) = run(&scene).await;
    let report = &agent["report"];
    assert_eq!((&report["class"], &report["output"]), (&json!("Succeeded"), &json!("{\"n\": 2}")), "{said}");
    let usage = json!({"tokensIn": 200, "tokensOut": 20, "models": ["small"]});
    assert_eq!(agent["usage"], usage, "{agent}");
    assert!(agent["progress"]["message"].as_str().is_some_and(|told| told.starts_with("turn ")), "{agent}");
    assert_eq!(model.asked("count").iter().filter(|asked| asked.bearer.as_deref() == Some(KEY)).count(), 2);
    assert_eq!(model.shown(), Vec::<String>::new(), "no command line had it");
    keeps_the_key(&scene, &said);
}

/// People see what a model writes while it writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_model_writes_is_shown_as_progress() {
    let model = Model::start("127.0.0.1", &[("writes", vec![Answer::Lingers("{\"n\": 2}")])]);
    let scene = Scene::open("writes", &prompt(&model, "writes")).await;
    let shown = async {
        let is_shown = || scene.agent()["progress"]["message"] == "{\"n\": 2}";
        while !is_shown() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        model.release();
    };
    let shown = tokio::time::timeout(PATIENCE, shown);
    let ((agent, said), shown) = tokio::join!(run(&scene), shown);
    assert!(shown.is_ok(), "{agent} {said}");
    assert_eq!(agent["report"]["class"], "Succeeded", "{agent} {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_says_the_key_back_is_not_repeated() {
    let echo = "{\"error\": {\"message\": \"Incorrect API key: sk-never-to-be-seen-0123456789\"}}";
    let said_back = Answer::Says("{\"n\": \"sk-never-to-be-seen-0123456789\"}");
    let script = [("refused", vec![Answer::Fails(401, None, echo)]), ("said-back", vec![said_back])];
    let model = Model::start("127.0.0.1", &script);
    for (case, class, words) in [
        ("refused", "Unrecoverable", "answered 401: Incorrect API key: ***"),
        ("said-back", "InvalidOutput", "it is \"***\""),
    ] {
        let scene = Scene::open(case, &prompt(&model, case)).await;
        let (agent, said) = run(&scene).await;
        let report = &agent["report"];
        assert_eq!(report["class"], class, "{agent} {said}");
        assert!(report["message"].as_str().is_some_and(|message| message.contains(words)), "{agent}");
        keeps_the_key(&scene, &said);
    }
}
