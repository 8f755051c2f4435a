//! Agents that are only a prompt, as operator, gateway, shim and the prompt's own program run them, against an endpoint in this
//! process: what the model is told, what becomes of what it answers, and where the endpoint's key is not.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::model::{Answer, Asked, Model};
use super::place::{PROGRAM, Place, Ran, root};

const KEY: &str = "sk-never-to-be-seen-0123456789";
const HERE: &str = "127.0.0.1";
const SCHEMA: &str = "{type: object, required: [parts], properties: {parts: {type: integer, maximum: 4}}}";

/// An Agent, named as its case.
fn agent(model: &Model, case: &str, more: &str) -> String {
    format!(
        "apiVersion: lockstep.dev/v1alpha1
kind: Agent
metadata: {{name: {case}}}
spec:
  outputSchema: {SCHEMA}
  retry: {{maxAttempts: 1}}
  prompt:
    system: Plan the work.
    model: small
    baseURL: {}
    apiKeySecretRef: {{name: model-keys, key: api}}
{more}---
",
        model.url(HERE, case)
    )
}

fn secret() -> String {
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: model-keys}}\nstringData: {{api: {KEY}}}\n---\n")
}

/// A proxy of whoever runs the tests is not asked for this machine.
pub fn go(place: &Place, words: &[&str]) -> Ran {
    let ended = place.command(words).env("NO_PROXY", HERE).env("no_proxy", HERE).output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Ran { code: ended.status.code(), out: text(ended.stdout), err: text(ended.stderr) }
}

/// The key is where the Secret is, and nowhere else: in no file but the state, in no command line, in nothing that was said.
fn keeps_the_key(place: &Place, model: &Model, ran: &Ran) {
    assert!(!ran.out.contains(KEY) && !ran.err.contains(KEY), "{}\n{}", ran.out, ran.err);
    assert_eq!(model.shown(), Vec::<String>::new());
    let mut looked = 0;
    look(&place.folder.join(".lockstep"), &mut looked);
    assert!(looked > 0, "no log was looked at");
}

fn look(folder: &Path, looked: &mut usize) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            look(&path, looked);
        } else if !path.is_symlink() && path.file_name().is_some_and(|name| name != "state.redb") {
            *looked += 1;
            let content = std::fs::read(&path).expect("a file");
            let is_there = content.windows(KEY.len()).any(|window| window == KEY.as_bytes());
            assert!(!is_there, "the key is in {}", path.display());
        }
    }
}

fn messages(asked: &Asked) -> Vec<(&str, &str)> {
    let all = asked.body["messages"].as_array().expect("messages");
    all.iter().map(|m| (m["role"].as_str().unwrap_or_default(), m["content"].as_str().unwrap_or_default())).collect()
}

#[test]
fn a_prompt_works_with_documents_tools_and_what_is_wrong() {
    let place = Place::new("prompt");
    let model = Model::start(
        HERE,
        &[(
            "planner",
            vec![
                Answer::Calls(vec![
                    ("memory_set", json!({"key": "plan", "value": {"chapters": 3}})),
                    ("memory_get", json!({"key": "plan"})),
                    ("fly", json!({})),
                    ("progress", json!({"percent": "half"})),
                ]),
                Answer::Calls(vec![("write_document", json!({"content": "# Plan\n\nThree \"parts\".\n"}))]),
                Answer::Says("Here it is: {\"parts\": 3}"),
                Answer::Says("{\"parts\": \"three\"}"),
                Answer::Ends("{\"parts\":", "length"),
                Answer::Whole("```json\n{\"parts\": 3}\n```"),
            ],
        )],
    );
    place.write(
        "agent.yaml",
        &format!("{}{}", agent(&model, "planner", "    temperature: 0\n    maxTurns: 6\n"), secret()),
    );
    place.write("brief.md", "# A shop for used bikes\n");
    let words = ["-f", "agent.yaml", "--doc", "brief=brief.md", "--input", "Plan a shop", "--produces", "plan.md"];
    let made = go(&place, &words).expect(0);
    let (document, output) = made.out.rsplit_once("\n{").expect("a document and the output");
    assert_eq!((document, output), ("# Plan\n\nThree \"parts\".", "\"parts\":3}\n"), "{}", made.err);

    let asked = model.asked("planner");
    assert_eq!(asked.len(), 6, "{}", made.err);
    let first = &asked[0].body;
    let fixed = json!({"model": first["model"], "temperature": first["temperature"], "stream": first["stream"], "format": first["response_format"]["type"]});
    assert_eq!(fixed, json!({"model": "small", "temperature": 0.0, "stream": true, "format": "json_schema"}));
    let schema = &first["response_format"]["json_schema"]["schema"];
    assert_eq!(schema["properties"]["parts"], json!({"type": "integer", "maximum": 4}), "{schema}");
    assert!(asked.iter().all(|asked| asked.bearer.as_deref() == Some(KEY)));
    let told = messages(&asked[0]);
    assert_eq!(told.iter().map(|(role, _)| *role).collect::<Vec<_>>(), ["system", "user"]);
    assert!(told[0].1.starts_with("Plan the work.\n") && told[0].1.contains("`write_document`"), "{}", told[0].1);
    for words in [
        "\"input\":\"Plan a shop\"",
        "\"agentId\":\"planner\"",
        "<document path=\"documents/brief.md\">\n# A shop for used bikes\n",
    ] {
        assert!(told[1].1.contains(words), "{words}: {}", told[1].1);
    }
    let tools: Vec<&str> =
        first["tools"].as_array().into_iter().flatten().filter_map(|tool| tool["function"]["name"].as_str()).collect();
    for name in [
        "progress",
        "history",
        "memory_get",
        "memory_set",
        "document_get",
        "ask",
        "request_approval",
        "fail",
        "write_document",
    ] {
        assert!(tools.contains(&name), "{name}: {tools:?}");
    }
    for name in ["usage", "result", "journal", "permission_prompt"] {
        assert!(!tools.contains(&name), "{name}: {tools:?}");
    }
    // What the tools gave, each under the id of its call.
    let second = asked[1].body["messages"].as_array().expect("messages");
    assert_eq!(second[2]["tool_calls"].as_array().map(Vec::len), Some(4));
    let gave = |at: usize| (second[at]["tool_call_id"].as_str(), second[at]["content"].as_str().unwrap_or_default());
    assert_eq!(gave(3).0, Some("call-0"));
    assert!(gave(4).1.contains("{\"value\":{\"chapters\":3}"), "{:?}", gave(4));
    assert!(gave(5).1.contains("there is no tool fly; there are progress"), "{:?}", gave(5));
    assert!(gave(6).1.contains("error"), "{:?}", gave(6));
    // What was wrong with each output.
    let faults = |at: usize| messages(&asked[at]).last().map(|(_, text)| (*text).to_owned()).unwrap_or_default();
    for (at, words) in [
        (3, "result.json is not JSON"),
        (4, "/parts: value is not of type \"integer\"; it is \"three\""),
        (5, "cut off at its limit of tokens"),
    ] {
        assert!(faults(at).contains(words), "{words}: {}", faults(at));
    }
    keeps_the_key(&place, &model, &made);
}

#[test]
fn a_link_is_written_by_its_tool_and_checked_with_the_output() {
    let place = Place::new("prompt-link");
    let link = |digits: usize| json!({"uri": "s3://models/one.bin", "sha256": "a".repeat(digits), "bytes": 7_000_000});
    let write = |link: Value| Answer::Calls(vec![("write_document", link)]);
    let output = || Answer::Says("{\"parts\": 3}");
    let cases = [
        ("planner", vec![write(json!({"content": "# Model"})), write(link(63)), output(), write(link(64)), output()]),
        ("talker", vec![Answer::Says("It lies there."), write(link(64)), Answer::Says("It lies there.")]),
    ];
    let model = Model::start(HERE, &cases);
    let talker = agent(&model, "talker", "").replace(&format!("  outputSchema: {SCHEMA}\n"), "");
    let step = |agent: &str, kind: &str| {
        format!("  - {{name: {agent}, agentId: {agent}, produces: {{type: {kind}, format: link}}}}\n")
    };
    let run = format!(
        "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {{name: links}}\nspec:\n  output: \"[steps.planner.output, steps.talker.output]\"\n  steps:\n{}{}",
        step("planner", "model"),
        step("talker", "weights")
    );
    place.write("all.yaml", &format!("{}{talker}{}{run}", agent(&model, "planner", ""), secret()));
    let ran = go(&place, &["-f", "all.yaml"]).expect(0);
    assert_eq!(place.read(".lockstep/links/output.json"), "[{\"parts\":3},\"It lies there.\"]\n", "{}", ran.err);
    for file in ["model.json", "weights.json"] {
        let made = place.read(&format!(".lockstep/links/documents/{file}"));
        assert_eq!(serde_json::from_str::<Value>(&made).ok(), Some(link(64)), "{file}: {made}");
    }
    let asked = model.asked("planner");
    assert_eq!((asked.len(), model.asked("talker").len()), (5, 3), "{}", ran.err);
    let tools = asked[0].body["tools"].as_array().expect("tools");
    let tool = tools.iter().find(|tool| tool["function"]["name"] == "write_document").expect("the tool");
    assert_eq!(tool["function"]["parameters"]["required"], json!(["uri", "sha256", "bytes"]), "{tool}");
    // What was wrong with each: with the call, with the link, and that there was none.
    let last = |asked: &Asked| messages(asked).last().map(|(_, text)| (*text).to_owned()).unwrap_or_default();
    for (asked, words) in [
        (&asked[1], "takes no `content` here, but `uri`, `sha256` and `bytes`"),
        (&asked[3], "/sha256: is needed: 64 hexadecimal digits"),
        (&model.asked("talker")[1], "no weights.json, which the step produces"),
    ] {
        assert!(last(asked).contains(words), "{words}: {}", last(asked));
    }
    assert!(
        last(&asked[3]).contains("with model.json is mended with the tool `write_document`"),
        "{}",
        last(&asked[3])
    );
    keeps_the_key(&place, &model, &ran);
}

/// What an endpoint does, and whether the prompt gets over it.
#[test]
fn an_endpoint_that_fails_is_asked_again_where_that_may_help() {
    let place = Place::new("endpoint");
    let good = || Answer::Says("{\"parts\": 3}");
    let call = || Answer::Calls(vec![("memory_list", json!({}))]);
    let slow_down = "{\"error\": {\"message\": \"slow down\", \"type\": \"rate_limit\"}}";
    let no_schema = "{\"error\": {\"message\": \"response_format is not supported\"}}";
    let wrong_key = "{\"error\": {\"message\": \"Incorrect API key provided: sk-never-to-be-seen-0123456789\"}}";
    let no_quota = "{\"error\": {\"message\": \"no money\", \"code\": \"insufficient_quota\"}}";
    // Case, answers, requests, and the words of its end where it fails.
    let cases: Vec<(&str, Vec<Answer>, usize, &str)> = vec![
        ("right", vec![good()], 1, ""),
        ("waits", vec![Answer::Fails(429, Some("1"), slow_down), good()], 2, ""),
        ("down", vec![Answer::Fails(500, None, "<html>"), Answer::Fails(503, Some("0"), ""), good()], 3, ""),
        ("cut-off", vec![Answer::CutOff, good()], 2, ""),
        ("garbled", vec![Answer::Garbled, Answer::Breaks, good()], 3, ""),
        ("no-schema", vec![Answer::Fails(400, None, no_schema), good()], 2, ""),
        (
            "busy",
            vec![Answer::Fails(429, Some("0"), slow_down)],
            5,
            "busy: Retryable: the endpoint answered 429: slow down (5 tries)",
        ),
        (
            "far-off",
            vec![Answer::Fails(503, Some("3600"), "{}")],
            1,
            "far-off: Retryable: the endpoint answered 503: {}; it asks for 3600 s",
        ),
        (
            "quota",
            vec![Answer::Fails(429, Some("0"), no_quota)],
            1,
            "quota: Unrecoverable: the endpoint answered 429: no money",
        ),
        (
            "stranger",
            vec![Answer::Fails(401, None, wrong_key)],
            1,
            "stranger: Unrecoverable: the endpoint answered 401: Incorrect API key provided: ***",
        ),
        (
            "no-model",
            vec![Answer::Fails(404, None, "{\"error\": \"model 'small' not found\"}")],
            1,
            "no-model: Unrecoverable: the endpoint answered 404: model 'small' not found",
        ),
        (
            "unfit",
            vec![Answer::Fails(400, None, "{\"error\": {\"message\": \"too long\"}}")],
            2,
            "unfit: Unrecoverable: the endpoint answered 400: too long",
        ),
        (
            "refuses",
            vec![Answer::Refuses("I cannot help with that.")],
            1,
            "refuses: Unrecoverable: the model refused: I cannot help with that.",
        ),
        (
            "filtered",
            vec![Answer::Ends("", "content_filter")],
            1,
            "filtered: Unrecoverable: the model refused: the endpoint's filter",
        ),
        (
            "talkative",
            vec![call()],
            3,
            "talkative: Retryable: the model has given no output, and its turns are over (maxTurns: 3)",
        ),
        (
            "wrong",
            vec![Answer::Says("{\"parts\": 9}")],
            3,
            "wrong: InvalidOutput: /parts: value is greater than the maximum of 4; it is 9",
        ),
        ("silent", vec![Answer::Says("")], 3, "silent: Retryable: the model has given no output"),
        (
            "gives-up",
            vec![Answer::Calls(vec![("fail", json!({"retryable": false, "message": "no plan is possible"}))])],
            1,
            "gives-up: Unrecoverable: no plan is possible",
        ),
    ];
    let script: Vec<(&str, Vec<Answer>)> = cases.iter().map(|(case, answers, ..)| (*case, answers.clone())).collect();
    let model = Model::start(HERE, &script);
    let agents: String = cases.iter().map(|(case, ..)| agent(&model, case, "    maxTurns: 3\n")).collect();
    let step = |case: &str| format!("  - {{name: {case}, agentId: {case}, onFailure: Continue}}\n");
    let steps: String = cases.iter().map(|(case, ..)| step(case)).collect();
    let good: Vec<&str> = cases.iter().filter(|(.., words)| words.is_empty()).map(|(case, ..)| *case).collect();
    let outputs: Vec<String> = good.iter().map(|case| format!("steps['{case}'].output.parts")).collect();
    let run = format!(
        "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {{name: all}}\nspec:\n  order: Graph\n  output: \"[{}]\"\n  steps:\n{steps}",
        outputs.join(", ")
    );
    place.write("all.yaml", &format!("{agents}{}{run}", secret()));
    let ran = go(&place, &["-f", "all.yaml", "--jobs", "18"]).expect(0);
    for (case, _, requests, words) in &cases {
        assert!(ran.err.contains(words), "{case}: {words}\n{}", ran.err);
        assert_eq!(model.asked(case).len(), *requests, "{case}\n{}", ran.err);
    }
    assert_eq!(place.read(".lockstep/all/output.json"), "[3,3,3,3,3,3]\n");
    let waited = model.asked("waits");
    assert!(waited[1].at.duration_since(waited[0].at) >= Duration::from_secs(1), "it asked to be left alone");
    let again = &model.asked("no-schema")[1];
    let told = messages(again)[1].1;
    let schema =
        told.rsplit_once("must meet this JSON Schema:\n").map(|(_, schema)| schema.trim()).expect("the schema");
    let schema: Value = serde_json::from_str(schema).expect("JSON");
    assert_eq!((&again.body["response_format"], &schema["required"]), (&Value::Null, &json!(["parts"])));
    keeps_the_key(&place, &model, &ran);
}

#[test]
fn a_model_asks_people_and_hears_what_they_say() {
    let place = Place::new("prompt-asks");
    let ask = || Answer::Calls(vec![("ask", json!({"questions": [{"question": "How many parts?", "key": "parts"}]}))]);
    let model =
        Model::start(HERE, &[("planner", vec![ask(), Answer::Says("{\"parts\": 4}"), Answer::Says("{\"parts\": 2}")])]);
    place.write("agent.yaml", &format!("{}{}", agent(&model, "planner", ""), secret()));
    let waits = go(&place, &["-f", "agent.yaml", "--comment", "fewer, please"]).expect(3);
    assert!(waits.err.contains("? planner/planner asks: How many parts?"), "{}", waits.err);
    let made = go(&place, &["-f", "agent.yaml", "--comment", "fewer, please", "--answer", "planner=four"]).expect(0);
    assert_eq!(made.out, "{\"parts\":2}\n", "{}", made.err);
    let asked = model.asked("planner");
    assert_eq!(asked.len(), 3, "{}", made.err);
    let told = |at: usize| messages(&asked[at])[1].1.to_owned();
    assert!(!told(0).contains("four") && told(1).contains("\"answer\":\"four\""), "{}", told(1));
    assert!(!told(1).contains("fewer") && told(2).contains("\"comments\":[\"fewer, please\"]"), "{}", told(2));
    keeps_the_key(&place, &model, &made);
}

#[test]
fn a_command_may_stand_in_for_a_prompt_and_a_wrong_one_is_told_before_anything_runs() {
    let place = Place::new("prompt-stub");
    let model = Model::start(HERE, &[]);
    place.write("agent.yaml", &agent(&model, "planner", ""));
    let script = "test \"$(lockstep context /prompt/model)\" = small && test -z \"$LOCKSTEP_API_KEY\" && lockstep context /output/schema > \"$LOCKSTEP_OUT/seen.json\" && echo '{\"parts\": 1}' > \"$LOCKSTEP_OUT/result.json\"";
    let keyless = agent(&model, "planner", "").replace("    apiKeySecretRef: {name: model-keys, key: api}\n", "");
    place.write("keyless.yaml", &keyless);
    let made = go(&place, &["-f", "keyless.yaml", "--", "sh", "-c", script]).expect(0);
    assert_eq!(made.out, "{\"parts\":1}\n");
    for (what, words) in [
        (keyless.replace("http://", "ftp://"), "spec.prompt.baseURL: "),
        (format!("{}  template: {{}}\n", keyless.trim_end_matches("---\n")), "exactly one of template and prompt"),
        (
            "apiVersion: lockstep.dev/v1alpha1\nkind: Agent\nmetadata: {name: x}\nspec: {}\n".to_owned(),
            "exactly one of template and prompt",
        ),
        (
            keyless.replace("  retry: {maxAttempts: 1}\n", "  repair: {command: [mend]}\n"),
            "spec.repair: a prompt mends its output itself",
        ),
    ] {
        place.write("wrong.yaml", &what);
        let told = go(&place, &["-f", "wrong.yaml"]).expect(2).err;
        assert!(told.contains(words), "{words}: {told}");
    }
}

/// As its page says, but for the endpoint.
#[test]
fn the_example_plans_and_plans_again_after_a_rejection() {
    let place = Place::new("prompt-example");
    let plan = |text: &str| Answer::Calls(vec![("write_document", json!({"content": text}))]);
    let output = || Answer::Says("{\"title\": \"Second Spin\", \"parts\": [\"A page of bikes\", \"Checks\"]}");
    let model = Model::start(HERE, &[("planner", vec![plan("# One"), output(), plan("# Two"), output()])]);
    let examples = root().join("examples/prompt");
    let of = |file: &str| std::fs::read_to_string(examples.join(file)).expect("the example");
    place.write("agents.yaml", &of("agents.yaml").replace("https://models.example/v1", &model.url(HERE, "planner")));
    place.write("workflow.yaml", &of("workflow.yaml"));
    place.write("model-keys.yaml", &secret());
    let files = ["-f", "agents.yaml", "-f", "workflow.yaml", "-f", "model-keys.yaml"];
    let made = go(&place, &[&files[..], &["--reject", "plan=name the costs", "--approve-all"]].concat()).expect(0);
    assert_eq!(place.read(".lockstep/prompt/documents/plan.md"), "# Two", "{}", made.err);
    let output: Value = serde_json::from_str(&place.read(".lockstep/prompt/output.json")).expect("JSON");
    assert_eq!(output["title"], "Second Spin");
    let asked = model.asked("planner");
    let second = messages(&asked[2])[1].1;
    for words in [
        "\"comments\":[\"name the costs\"]",
        "<document path=\"previous/plan.md\">\n# One\n</document>",
        "# Second Spin",
    ] {
        assert!(second.contains(words), "{words}: {second}");
    }
    keeps_the_key(&place, &model, &made);
    // What its page says where there is no model.
    let page = of("README.md").replace("\\\n", " ");
    let stub = page.lines().find(|line| line.contains("--agent planner=")).expect("the line with a command");
    let stub = stub.replace("kubectl lockstep", PROGRAM).replace("examples/prompt", &examples.display().to_string());
    let ran =
        std::process::Command::new("sh").args(["-c", &stub]).current_dir(&place.folder).output().expect("a shell");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}
