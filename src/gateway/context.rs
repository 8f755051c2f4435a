//! `context.json` and what goes with it: pure, from the StepRun, the pinned definition and the formats of documents.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::judge::document_file;
use super::{ask, entries};
use crate::api::agent::Prompt;
use crate::api::limits::MAX_TURNS;
use crate::api::name;
use crate::api::step::{Format, Produces};
use crate::api::step_run::{self, DocumentRef, ScopeLink, StepRunSpec, StepRunStatus};
use crate::decide::content::{self, Pin};
use crate::definition::program::{AgentStep, DocumentSelector, RunContext};
use crate::definition::schema::Schema;
use crate::protocol::context::{
    self, Context, DocumentFile, Documents, HistoryPage, Item, ItemDocument, MemoryPlace, Previous, RejectedDocument,
    Run, Scope, Step,
};
use crate::protocol::{self, AttemptRef, Claimed, FileNames, InputFile, Repair, file_name};

/// All that an attempt's input is made of.
pub struct Parts<'a> {
    pub attempt: &'a AttemptRef,
    pub spec: &'a StepRunSpec,
    pub status: &'a StepRunStatus,
    pub run: &'a RunContext,
    pub step: &'a AgentStep,
    /// What was said before, as `history::newest` gives it.
    pub history: HistoryPage,
    /// Formats by the Document's name.
    pub formats: &'a HashMap<String, Format>,
    /// What was rejected last, where that was a document.
    pub rejected: Option<InputFile>,
    pub timeout_seconds: i64,
    pub progress_timeout_seconds: Option<i64>,
    pub repair: Option<Repair>,
    /// The Agent's own; the step may have another.
    pub output_schema: Option<Map<String, Value>>,
    /// Of an Agent that is only a prompt.
    pub prompt: Option<Prompt>,
}

/// The answer to a claim; an error where the operator wrote what cannot be read.
pub fn claimed(parts: &Parts<'_>) -> Result<Claimed, serde_json::Error> {
    let (documents, mut files) = documents(parts);
    files.extend(parts.rejected.clone());
    let produces = parts.step.produces.as_ref();
    Ok(Claimed {
        context: serde_json::to_value(context(parts, documents)?)?,
        documents: files,
        env: environment(parts),
        document_file: produces.map(document_file),
        document_is_json: produces.is_some_and(|produces| produces.format == Format::Json),
        timeout_seconds: parts.timeout_seconds,
        progress_timeout_seconds: parts.progress_timeout_seconds,
        repair: parts.repair.clone(),
    })
}

fn context(parts: &Parts<'_>, documents: BTreeMap<String, Documents>) -> Result<Context, serde_json::Error> {
    let (spec, session) = (parts.spec, &parts.run.session);
    let scope =
        |link: &ScopeLink| Scope { scope: link.scope.clone(), scope_id: link.scope_id.clone(), index: link.index };
    let item = |item: &step_run::Item| Item { key: item.key.clone(), index: item.index, value: item.value.clone() };
    Ok(Context {
        version: protocol::VERSION,
        workflow: Run {
            name: spec.workflow.name.clone(),
            uid: spec.workflow.uid.clone(),
            session: session.clone(),
            project: parts.run.project.clone(),
        },
        session: session.clone(),
        step: Step {
            path: spec.path.clone(),
            step_run: parts.attempt.step_run.clone(),
            agent_id: spec.agent_id.clone(),
            attempt: parts.attempt.attempt,
            round: parts.status.round,
        },
        scope_chain: spec.scope_chain.iter().map(scope).collect(),
        item: spec.item.as_ref().map(item),
        parameters: serde_json::from_str(&spec.parameters)?,
        input: parts.run.input.clone(),
        history: parts.history.entries.clone(),
        history_cursor: parts.history.cursor.clone(),
        answers: ask::answers(parts.status),
        documents,
        output: context::Output {
            schema: schema(parts.output_schema.as_ref(), parts.step.output_schema.as_ref().map(Schema::as_object)),
            document: parts.step.produces.as_ref().map(document_file),
            format: parts.step.produces.as_ref().and_then(|produces| word(produces.format)),
        },
        prompt: parts.prompt.as_ref().map(prompt),
        memory: MemoryPlace {
            name: name::memory(&spec.agent_id, session),
            verb: "lockstep memory".to_owned(),
            call: "memory".to_owned(),
        },
        previous: previous(parts),
    })
}

/// What the output must meet. Each of two keeps its own references, which lead to the root of the schema that they stand in.
fn schema(agent: Option<&Map<String, Value>>, step: Option<&Map<String, Value>>) -> Option<Value> {
    let (Some(agent), Some(step)) = (agent, step) else {
        return agent.or(step).cloned().map(Value::Object);
    };
    let rooted = |whose: &str, own: &Map<String, Value>| {
        let mut root = Map::from_iter([("$id".to_owned(), Value::from(format!("lockstep:{whose}")))]);
        root.extend(own.clone());
        Value::Object(root)
    };
    let both = vec![rooted("agent", agent), rooted("step", step)];
    Some(if agent == step { Value::Object(step.clone()) } else { Value::from_iter([("allOf", both)]) })
}

/// As the definition writes it.
fn word(format: Format) -> Option<String> {
    serde_json::to_value(format).ok()?.as_str().map(str::to_owned)
}

fn prompt(prompt: &Prompt) -> context::Prompt {
    context::Prompt {
        system: prompt.system.clone(),
        model: prompt.model.clone(),
        base_url: prompt.base_url.clone(),
        temperature: prompt.temperature,
        max_turns: prompt.max_turns.unwrap_or(MAX_TURNS).unsigned_abs(),
    }
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

/// The attempt before this one; from the second round on with what people said of all rounds, and the last document.
fn previous(parts: &Parts<'_>) -> Option<Previous> {
    let attempt = parts.attempt.attempt;
    let last = parts.status.attempts.iter().rfind(|earlier| earlier.number < attempt)?;
    let failed = entries::failed(parts.status, attempt).last().filter(|(failed, _)| failed.number == last.number);
    let faults = failed.map(|(_, text)| text.lines().map(str::to_owned).collect()).unwrap_or_default();
    let decisions = parts.status.gate.iter().flat_map(|gate| &gate.decisions);
    let of_rounds = decisions.filter(|decision| decision.round < parts.status.round);
    let comments = of_rounds.filter_map(|decision| decision.comment.clone()).collect();
    Some(Previous {
        attempt: last.number,
        faults,
        comments: Some(comments).filter(|_| parts.status.round > 1),
        document: parts
            .rejected
            .as_ref()
            .map(|file| RejectedDocument { path: file.path.clone(), digest: file.digest.clone() }),
    })
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

fn documents(parts: &Parts<'_>) -> (BTreeMap<String, Documents>, Vec<InputFile>) {
    let mut listed = BTreeMap::new();
    let mut members: BTreeMap<&str, Vec<ItemDocument>> = BTreeMap::new();
    let mut files = Vec::new();
    let mut names = FileNames::default();
    for document in &parts.spec.documents {
        let (path, digest) = (path(parts, document, &mut names), document.digest.clone());
        files.push(InputFile { name: document.name.clone(), path: path.clone(), digest: digest.clone() });
        match &document.key {
            None => {
                let file = DocumentFile { path, digest, scope_id: document.scope_id.clone() };
                listed.insert(document.document_type.clone(), Documents::One(file));
            }
            Some(key) => members.entry(document.document_type.as_str()).or_default().push(ItemDocument {
                key: key.clone(),
                index: document.index,
                path,
                digest,
            }),
        }
    }
    // A fan-in over no items is an empty list, not an absent one.
    for wanted in &parts.step.documents {
        if let DocumentSelector::OfAllItems(document_type) = wanted {
            members.entry(document_type).or_default();
        }
    }
    for (document_type, list) in members {
        let key =
            if listed.contains_key(document_type) { format!("{document_type}/*") } else { document_type.to_owned() };
        listed.insert(key, Documents::OfAllItems(list));
    }
    (listed, files)
}

fn path(parts: &Parts<'_>, document: &DocumentRef, names: &mut FileNames) -> String {
    let format = parts.formats.get(&document.name).copied();
    let extension = format.unwrap_or_default().extension();
    let document_type = file_name(&document.document_type);
    let base = match &document.key {
        None => format!("documents/{document_type}"),
        Some(key) => format!("documents/{document_type}/{}", file_name(key)),
    };
    format!("{}.{extension}", names.unique(base))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::definition::Definition;
    use crate::definition::program::{Program, Step as ProgramStep};

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
        let step = program.step("plan").and_then(ProgramStep::agent).expect("an agent's step");
        let status: StepRunStatus = serde_json::from_value(status).expect("a status");
        let formats = HashMap::from([("b".to_owned(), Format::Markdown), ("k1".to_owned(), Format::Json)]);
        let rejected = rejected(&attempt, &status, step).map(|pin| InputFile {
            name: pin.name,
            path: rejected_path(step.produces.as_ref().expect("it produces")),
            digest: "sha256:p".to_owned(),
        });
        let claimed = claimed(&Parts {
            rejected,
            attempt: &attempt,
            history: HistoryPage { entries: entries::own(&status, 3), cursor: Some("1.s.0".to_owned()) },
            spec: &spec,
            status: &status,
            run: &program.run,
            step,
            formats: &formats,
            timeout_seconds: 60,
            progress_timeout_seconds: Some(5),
            repair: None,
            output_schema: None,
            prompt: None,
        })
        .expect("an answer");
        // Whatever the table, it keeps the contract that is published.
        let schema = protocol::context::schema();
        let faults: Vec<String> = jsonschema::validator_for(&schema)
            .expect("a schema")
            .iter_errors(&claimed.context)
            .map(|fault| format!("{}: {fault}", fault.instance_path()))
            .collect();
        assert_eq!(faults, Vec::<String>::new(), "{}", claimed.context);
        claimed
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
            ("/answers", json!([])),
            ("/historyCursor", json!("1.s.0")),
            ("/documents/brief", json!({"path": "documents/brief.md", "digest": "sha256:b", "scopeId": "w"})),
            ("/documents/none", json!([])),
            ("/output", json!({"schema": null, "document": "plan.json", "format": "json"})),
            ("/memory", json!({"name": name::memory("planner", "ses"), "verb": "lockstep memory", "call": "memory"})),
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
    fn what_the_output_must_meet_is_told_as_one_schema() {
        let object = |schema: Value| schema.as_object().cloned().expect("an object");
        let agent = object(json!({"$defs": {"id": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/id"}}}));
        let step = object(json!({"$defs": {"id": {"type": "string"}}, "properties": {"s": {"$ref": "#/$defs/id"}}}));
        assert_eq!(schema(None, None), None);
        assert_eq!(schema(Some(&agent), None), Some(Value::Object(agent.clone())));
        assert_eq!(schema(None, Some(&step)), Some(Value::Object(step.clone())));
        assert_eq!(schema(Some(&step), Some(&step)), Some(Value::Object(step.clone())));
        let both = schema(Some(&agent), Some(&step)).expect("both");
        let validator = jsonschema::validator_for(&both).expect("a schema");
        for (output, is_valid) in
            [(json!({"n": 1, "s": "a"}), true), (json!({"n": "1", "s": "a"}), false), (json!({"n": 1, "s": 1}), false)]
        {
            assert_eq!(validator.is_valid(&output), is_valid, "each has definitions of its own: {output}");
        }
    }

    #[test]
    fn a_prompt_is_told_with_what_the_author_left_out() {
        let own: Prompt = serde_json::from_value(json!({"system": "s", "model": "m", "baseURL": "https://x/v1",
            "apiKeySecretRef": {"name": "keys", "key": "api"}}))
        .expect("a prompt");
        let told = serde_json::to_value(prompt(&own)).expect("JSON");
        let expected =
            json!({"system": "s", "model": "m", "baseURL": "https://x/v1", "temperature": null, "maxTurns": 20});
        assert_eq!(told, expected, "and nothing of its key");
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
        let history = claimed.context["history"].as_array().expect("a history");
        let told: Vec<_> = history.iter().map(|e| (e["kind"].as_str(), e["text"].as_str())).collect();
        assert_eq!(
            told,
            [
                (Some("fault"), Some("Retryable: exit code 7")),
                (Some("guidance"), Some("use short titles")),
                (Some("fault"), Some("/a: one\n/b: two"))
            ]
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
        let kinds = |claimed: &Claimed| -> Vec<String> {
            let history = claimed.context["history"].as_array().expect("a history");
            history.iter().filter_map(|entry| entry["kind"].as_str()).map(str::to_owned).collect()
        };
        assert_eq!(kinds(&claimed), ["comment", "comment", "comment"], "a success is no fault");
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
