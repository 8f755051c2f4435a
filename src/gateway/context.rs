//! `context.json` and what goes with it: pure, from the StepRun, the pinned definition and the formats of documents.

#![expect(clippy::disallowed_macros, reason = "context.json, the contract with agents")]

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::judge::document_file;
use crate::api::name;
use crate::api::step::{Format, Produces};
use crate::api::step_run::{Attempt, AttemptResult, DocumentRef, StepRunSpec, StepRunStatus};
use crate::decide::content::{self, Pin};
use crate::definition::program::{AgentStep, DocumentSelector, RunContext};
use crate::protocol::{self, AttemptRef, Claimed, InputFile};

/// All that an attempt's input is made of.
pub struct Parts<'a> {
    pub attempt: &'a AttemptRef,
    pub spec: &'a StepRunSpec,
    pub status: &'a StepRunStatus,
    pub run: &'a RunContext,
    pub step: &'a AgentStep,
    /// Formats by the Document's name.
    pub formats: &'a HashMap<String, Format>,
    /// What was rejected last, where that was a document.
    pub rejected: Option<InputFile>,
    pub timeout_seconds: i64,
    pub progress_timeout_seconds: Option<i64>,
}

/// The answer to a claim; an error where the operator wrote what cannot be read.
pub fn claimed(parts: &Parts<'_>) -> Result<Claimed, serde_json::Error> {
    let (documents, mut files) = documents(parts);
    files.extend(parts.rejected.clone());
    let spec = parts.spec;
    let mut context = json!({
        "version": protocol::VERSION,
        "workflow": {
            "name": spec.workflow.name,
            "uid": spec.workflow.uid,
            "session": parts.run.session,
            "project": parts.run.project,
        },
        "session": parts.run.session,
        "step": {
            "path": spec.path,
            "stepRun": parts.attempt.step_run,
            "agentId": spec.agent_id,
            "attempt": parts.attempt.attempt,
            "round": parts.status.round,
        },
        "scopeChain": spec.scope_chain,
        "item": spec.item,
        "parameters": serde_json::from_str::<Value>(&spec.parameters)?,
        "input": parts.run.input,
        "history": history(parts),
        "documents": documents,
    });
    if let Some(previous) = previous(parts) {
        context["previous"] = previous;
    }
    let produces = parts.step.produces.as_ref();
    Ok(Claimed {
        context,
        documents: files,
        env: environment(parts),
        document_file: produces.map(document_file),
        document_is_json: produces.is_some_and(|produces| produces.format == Format::Json),
        timeout_seconds: parts.timeout_seconds,
        progress_timeout_seconds: parts.progress_timeout_seconds,
    })
}

fn environment(parts: &Parts<'_>) -> Vec<(String, String)> {
    use protocol::env;
    let round = parts.status.round.to_string();
    let key = name::digest([parts.attempt.uid.as_bytes(), round.as_bytes()]);
    [
        (env::SESSION_ID, parts.run.session.clone()),
        (env::WORKFLOW, parts.spec.workflow.name.clone()),
        (env::STEP_ID, parts.spec.path.clone()),
        (env::AGENT_ID, parts.spec.agent_id.clone()),
        (env::ATTEMPT, parts.attempt.attempt.to_string()),
        (env::IDEMPOTENCY_KEY, key.trim_start_matches("sha256:").to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// Faults of earlier attempts, each followed by what a person said to it.
fn history(parts: &Parts<'_>) -> Vec<Value> {
    let faults =
        earlier(parts).map(|(attempt, text)| (attempt, json!({"kind": "fault", "attempt": attempt, "text": text})));
    let guidance = parts.status.guidance.iter().map(|g| {
        let said = json!({"kind": "guidance", "attempt": g.attempt, "by": g.by, "text": g.text});
        (g.attempt, said)
    });
    let mut history: Vec<(i32, Value)> = faults.chain(guidance).collect();
    history.sort_by_key(|(attempt, _)| *attempt);
    history.into_iter().map(|(_, entry)| entry).collect()
}

/// The attempt before this one; from the second round on with what people said of all rounds, and the last document.
fn previous(parts: &Parts<'_>) -> Option<Value> {
    let last = parts.status.attempts.iter().rfind(|attempt| attempt.number < parts.attempt.attempt)?;
    let text = earlier(parts).last().filter(|(number, _)| *number == last.number).map(|(_, text)| text);
    let faults: Vec<&str> = text.as_deref().unwrap_or_default().lines().collect();
    let mut previous = json!({"attempt": last.number, "faults": faults});
    if parts.status.round > 1 {
        let decisions = parts.status.gate.iter().flat_map(|gate| &gate.decisions);
        let of_rounds = decisions.filter(|decision| decision.round < parts.status.round);
        let comments: Vec<&str> = of_rounds.filter_map(|decision| decision.comment.as_deref()).collect();
        previous["comments"] = json!(comments);
    }
    if let Some(file) = &parts.rejected {
        previous["document"] = json!({"path": file.path, "digest": file.digest});
    }
    Some(previous)
}

/// The Document that was rejected last.
pub fn rejected(attempt: &AttemptRef, status: &StepRunStatus, step: &AgentStep) -> Option<Pin> {
    let produces = step.produces.as_ref()?;
    content::rejected((&attempt.step_run, &attempt.uid), status, &produces.document_type)
}

/// Where an agent finds it.
pub fn rejected_path(produces: &Produces) -> String {
    format!("previous/{}.{}", file_name(&produces.document_type), produces.format.extension())
}

fn earlier<'a>(parts: &'a Parts<'_>) -> impl Iterator<Item = (i32, String)> + use<'a> {
    // Where somebody held the name of the Job nothing ran: no news for an agent.
    let failed = |attempt: &&Attempt| {
        let none = matches!(attempt.result, AttemptResult::Succeeded | AttemptResult::NameConflict);
        attempt.number < parts.attempt.attempt && !none
    };
    parts.status.attempts.iter().filter(failed).map(|attempt| {
        let text = attempt.message.clone().filter(|text| !text.is_empty());
        let text = text.unwrap_or_else(|| match attempt.exit_code {
            Some(code) => format!("{}: exit code {code}", attempt.result),
            None => attempt.result.to_string(),
        });
        (attempt.number, text)
    })
}

fn documents(parts: &Parts<'_>) -> (Map<String, Value>, Vec<InputFile>) {
    let mut listed = Map::new();
    let mut members: HashMap<&str, Vec<Value>> = HashMap::new();
    let mut files = Vec::new();
    let mut names = Names::default();
    for document in &parts.spec.documents {
        let path = path(parts, document, &mut names);
        match &document.key {
            None => {
                listed.insert(
                    document.document_type.clone(),
                    json!({"path": path, "digest": document.digest, "scopeId": document.scope_id}),
                );
            }
            Some(key) => members
                .entry(document.document_type.as_str())
                .or_default()
                .push(json!({"key": key, "path": path, "digest": document.digest})),
        }
        files.push(InputFile { name: document.name.clone(), path, digest: document.digest.clone() });
    }
    // A fan-in over no items is an empty list, not an absent one.
    for wanted in &parts.step.documents {
        if let DocumentSelector::OfAllItems(document_type) = wanted {
            members.entry(document_type).or_default();
        }
    }
    let mut members: Vec<_> = members.into_iter().collect();
    members.sort_by_key(|(document_type, _)| *document_type);
    for (document_type, list) in members {
        let key =
            if listed.contains_key(document_type) { format!("{document_type}/*") } else { document_type.to_owned() };
        listed.insert(key, Value::Array(list));
    }
    (listed, files)
}

fn path(parts: &Parts<'_>, document: &DocumentRef, names: &mut Names) -> String {
    let format = parts.formats.get(&document.name).copied();
    let extension = format.unwrap_or_default().extension();
    let document_type = file_name(&document.document_type);
    let base = match &document.key {
        None => format!("documents/{document_type}"),
        Some(key) => format!("documents/{document_type}/{}", file_name(key)),
    };
    format!("{}.{extension}", names.unique(base))
}

/// A name that leads nowhere else, whatever the key.
fn file_name(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .take(100)
        .collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "x".to_owned() } else { name.to_owned() }
}

/// Paths handed out so far; upper and lower case are one, for those who copy them to other file systems.
#[derive(Default)]
struct Names {
    taken: HashSet<String>,
    counts: HashMap<String, u32>,
}

impl Names {
    fn unique(&mut self, base: String) -> String {
        if self.taken.insert(base.to_ascii_lowercase()) {
            return base;
        }
        loop {
            let count = self.counts.entry(base.to_ascii_lowercase()).or_insert(1);
            *count += 1;
            let name = format!("{base}-{count}");
            if self.taken.insert(name.to_ascii_lowercase()) {
                return name;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::definition::Definition;
    use crate::definition::program::{Program, Step};

    fn reference(document_type: &str, name: &str, key: Option<&str>) -> Value {
        json!({"type": document_type, "name": name, "digest": format!("sha256:{name}"), "scopeId": "w", "key": key})
    }

    #[expect(clippy::needless_pass_by_value, reason = "tables give literals")]
    fn context(documents: Value, status: Value) -> Claimed {
        let attempt = AttemptRef {
            namespace: "team".to_owned(),
            step_run: "shop-plan-0123456789abcdef".to_owned(),
            uid: "u".to_owned(),
            attempt: 3,
            id: String::new(),
        };
        let spec: StepRunSpec = serde_json::from_value(json!({
            "workflow": {"name": "shop", "uid": "w"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "group/plan", "agentId": "planner", "parameters": "{\"depth\":2}", "inputDigest": "i",
            "item": {"key": "e1", "index": 0, "value": {"id": "e1"}},
            "scopeChain": [{"scope": "workflow", "scopeId": "w"}, {"scope": "epic", "scopeId": "w/e1"}],
            "documents": documents,
        }))
        .expect("a spec");
        let definition: Definition = serde_json::from_value(json!({
            "workflow": "shop", "workflowUid": "w", "session": "ses", "input": "A shop", "steps": [
                {"name": "plan", "agentId": "planner", "documents": ["brief", "none/*"],
                 "produces": {"type": "plan", "format": "json"}}]}))
        .expect("a definition");
        let program = Program::compile(&definition).expect("a program");
        let step = program.step("plan").and_then(Step::agent).expect("an agent's step");
        let status: StepRunStatus = serde_json::from_value(status).expect("a status");
        let formats = HashMap::from([("b".to_owned(), Format::Markdown), ("k1".to_owned(), Format::Json)]);
        let rejected = rejected(&attempt, &status, step).map(|pin| InputFile {
            name: pin.name,
            path: rejected_path(step.produces.as_ref().expect("it produces")),
            digest: "sha256:p".to_owned(),
        });
        claimed(&Parts {
            rejected,
            attempt: &attempt,
            spec: &spec,
            status: &status,
            run: &program.run,
            step,
            formats: &formats,
            timeout_seconds: 60,
            progress_timeout_seconds: Some(5),
        })
        .expect("an answer")
    }

    #[test]
    fn the_context_says_all_that_an_agent_may_know() {
        let claimed = context(json!([reference("brief", "b", None)]), json!({"attempt": 3, "round": 2}));
        let context = &claimed.context;
        for (pointer, value) in [
            ("/version", json!(1)),
            ("/workflow", json!({"name": "shop", "uid": "w", "session": "ses", "project": null})),
            ("/session", json!("ses")),
            (
                "/step",
                json!({"path": "group/plan", "stepRun": "shop-plan-0123456789abcdef",
                "agentId": "planner", "attempt": 3, "round": 2}),
            ),
            ("/item/value/id", json!("e1")),
            ("/scopeChain/1/scopeId", json!("w/e1")),
            ("/parameters", json!({"depth": 2})),
            ("/input", json!("A shop")),
            ("/history", json!([])),
            ("/documents/brief", json!({"path": "documents/brief.md", "digest": "sha256:b", "scopeId": "w"})),
            ("/documents/none", json!([])),
        ] {
            assert_eq!(context.pointer(pointer), Some(&value), "{pointer}");
        }
        assert_eq!(context.get("previous"), None);
        assert_eq!(claimed.document_file.as_deref(), Some("plan.json"));
        assert!(claimed.document_is_json);
        assert_eq!((claimed.timeout_seconds, claimed.progress_timeout_seconds), (60, Some(5)));
        let env: HashMap<_, _> = claimed.env.into_iter().collect();
        assert_eq!((env["SESSION_ID"].as_str(), env["WORKFLOW"].as_str()), ("ses", "shop"));
        assert_eq!(env["STEP_ID"], "group/plan");
        assert_eq!(env["ATTEMPT"], "3");
        assert_eq!(env["IDEMPOTENCY_KEY"].len(), 64);
    }

    #[test]
    fn earlier_attempts_are_told() {
        let attempt = |number: i32, result: &str, message: Value| {
            json!({"number": number, "round": 1, "result": result, "message": message, "exitCode": 7,
                "completedAt": "2026-01-01T00:00:00Z"})
        };
        let claimed = context(
            json!([]),
            json!({"attempt": 3, "round": 1, "attempts": [
            attempt(1, "Retryable", json!(null)), attempt(2, "InvalidOutput", json!("/a: one\n/b: two"))],
            "guidance": [{"attempt": 1, "by": "ann", "text": "use short titles"}]}),
        );
        assert_eq!(
            claimed.context["history"],
            json!([
            {"kind": "fault", "attempt": 1, "text": "Retryable: exit code 7"},
            {"kind": "guidance", "attempt": 1, "by": "ann", "text": "use short titles"},
            {"kind": "fault", "attempt": 2, "text": "/a: one\n/b: two"}])
        );
        assert_eq!(claimed.context["previous"], json!({"attempt": 2, "faults": ["/a: one", "/b: two"]}));
    }

    #[test]
    fn a_round_is_told_what_was_rejected_and_why() {
        let attempt = |number: i32, round: i32, result: &str| json!({"number": number, "round": round, "result": result, "completedAt": "2026-01-01T00:00:00Z"});
        let decision = |round: i32, accepted: bool, comment: Value| {
            json!({"documentType": "plan", "scopeId": "w", "accepted": accepted, "comment": comment, "decidedBy": "ann",
                "decidedAt": "2026-01-01T00:00:00Z", "digest": "d", "round": round})
        };
        let gate = json!({"state": "Rejected", "round": 2, "outputDigest": "d", "openedAt": "2026-01-01T00:00:00Z",
            "policy": "p", "decisions": [decision(1, false, json!("too short")), decision(2, true, json!("nearly")),
            decision(2, false, json!("dull")), decision(2, true, Value::Null)]});
        let name = |number| name::document("shop-plan-0123456789abcdef", "u", number, "plan");
        let told = |attempts: Value| {
            context(json!([]), json!({"attempt": 3, "round": 3, "gate": gate.clone(), "attempts": attempts}))
        };
        let claimed = told(json!([attempt(1, 1, "Succeeded"), attempt(2, 2, "Succeeded")]));
        assert_eq!(
            claimed.context["previous"],
            json!({"attempt": 2, "faults": [], "comments": ["too short", "nearly", "dull"],
                "document": {"path": "previous/plan.json", "digest": "sha256:p"}})
        );
        assert_eq!(claimed.context["history"], json!([]), "a success is no fault");
        let rejected = claimed.documents.last().expect("a file");
        assert_eq!((&rejected.name, rejected.path.as_str()), (&name(2), "previous/plan.json"));
        // An attempt of this round that failed comes after what was rejected.
        let claimed = told(json!([attempt(1, 2, "Succeeded"), attempt(2, 3, "Retryable")]));
        assert_eq!(claimed.context["previous"]["faults"], json!(["Retryable"]));
        assert_eq!(claimed.documents.last().map(|f| f.name.clone()), Some(name(1)));
        // What succeeded in this round was never rejected.
        let claimed = told(json!([attempt(2, 3, "Succeeded")]));
        assert!(claimed.documents.is_empty());
    }

    #[test]
    fn keys_of_a_fan_in_become_unique_names_that_lead_nowhere_else() {
        let claimed = context(
            json!([
                reference("a", "k1", Some("../../etc")),
                reference("a", "k2", Some("x/y")),
                reference("a", "k3", Some("X-y")),
                reference("a", "k4", Some("x-y-2")),
                reference("a", "k5", Some("x y")),
                reference("a", "k6", Some("")),
                reference("a", "b", None)
            ]),
            json!({"attempt": 3}),
        );
        let paths: Vec<&str> = claimed.documents.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "documents/a/etc.json",
                "documents/a/x-y.md",
                "documents/a/X-y-2.md",
                "documents/a/x-y-2-2.md",
                "documents/a/x-y-3.md",
                "documents/a/x.md",
                "documents/a.md"
            ]
        );
        assert_eq!(claimed.context["documents"]["a"]["path"], "documents/a.md");
        assert_eq!(claimed.context["documents"]["a/*"][0]["key"], "../../etc");
    }
}
