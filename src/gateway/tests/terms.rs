//! What an attempt is held to is what its Agent said at the launch, whatever became of the Agent since.

use super::*;
use crate::api::Agent;
use crate::decide::terms::{ANNOTATION_TERMS, Terms};

const LAUNCHED: i64 = 60;

fn agent(schema: &str) -> Agent {
    let spec = json!({"template": {}, "outputSchema": {"type": schema}, "timeoutSeconds": LAUNCHED, "progressTimeoutSeconds": 7,
        "repair": {"command": ["mend", schema]}});
    Agent::new("writer", serde_json::from_value(spec).expect("a spec"))
}

impl Scene {
    /// An attempt that an operator launched with that Agent; its pod has these terms.
    fn launched(&self, run: &str, with: &Agent, on_the_pod: Option<&str>) -> Attempt {
        let attempt = self.attempt(run, "_private");
        let text = Terms::of(with, LAUNCHED).text();
        let job = json!({"attempt": 1, "name": "job", "uid": "job", "terms": name::digest_bytes(text.as_bytes())});
        self.set_status(Kind::StepRun, &attempt.who.step_run, &json!({"job": job}));
        let annotations = json!({"metadata": {"annotations": {ANNOTATION_TERMS: on_the_pod.unwrap_or(&text)}}});
        let key = Key::new(Kind::Pod, TEAM, &format!("{run}-pod"));
        self.api.with(|registry| registry.patch(&key, Part::Main, (Format::Merge, &annotations), BY)).expect("written");
        attempt
    }

    fn set_agent(&self, agent: &Agent) {
        let key = Key::new(Kind::Agent, TEAM, "writer");
        let spec = json!({"spec": null});
        let new = json!({"spec": serde_json::to_value(&agent.spec).expect("JSON")});
        for change in [spec, new] {
            self.api.with(|registry| registry.patch(&key, Part::Main, (Format::Merge, &change), BY)).expect("written");
        }
    }
}

#[tokio::test]
async fn an_attempt_is_held_to_the_agent_that_it_was_launched_with() {
    let scene = Scene::new();
    scene.create_agent_once();
    // The Agent changed since, and says that a text is wanted.
    scene.set_agent(&agent("string"));
    let attempt = scene.launched("run", &agent("integer"), None);
    let (code, claimed) = scene.call(&attempt, protocol::CLAIM, &json!({"shimVersion": "0"})).await;
    assert_eq!(code, 200, "{claimed}");
    assert_eq!((&claimed["timeoutSeconds"], &claimed["progressTimeoutSeconds"]), (&json!(LAUNCHED), &json!(7)));
    assert_eq!(claimed["repair"]["command"], json!(["mend", "integer"]));
    for (result, faults) in [("1", 0), ("\"text\"", 1)] {
        let body = json!({"output": {"result": result, "document": null}});
        let (code, checked) = scene.call(&attempt, protocol::CHECK, &body).await;
        assert_eq!((code, checked["faults"].as_array().map(Vec::len)), (200, Some(faults)), "{result}: {checked}");
    }
    assert_eq!(scene.call(&attempt, protocol::REPORT, &report("\"text\"")).await.0, 200);
    assert_eq!(scene.status(&attempt.who.step_run)["agent"]["report"]["class"], "InvalidOutput");
}

#[tokio::test]
async fn terms_that_somebody_wrote_on_a_pod_do_not_count() {
    let scene = Scene::new();
    scene.create_agent_once();
    let launched = agent("integer");
    let forged = Terms::of(&agent("string"), LAUNCHED).text();
    for (run, now, code) in [("changed", agent("string"), 403), ("unchanged", launched.clone(), 200)] {
        scene.set_agent(&now);
        let attempt = scene.launched(run, &launched, Some(&forged));
        // The Agent stands in, if it still says what the digest says; its timeout is the one of the launch then.
        let (answered, answer) = scene.call(&attempt, protocol::CLAIM, &json!({"shimVersion": "0"})).await;
        assert_eq!(answered, code, "{run}: {answer}");
        let told = answer["repair"]["command"][1].as_str();
        assert_eq!(told, (code == 200).then_some("integer"), "{run}: {answer}");
    }
}
