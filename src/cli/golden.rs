//! What the verbs print, from fixed objects at a fixed time: every page as it stands in `golden/VERB.txt`, with each `-o`,
//! wide, narrow and without a terminal. `UPDATE=1 cargo test --lib golden` writes them anew; then read the difference.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::asked::Answers;
use super::history::Part;
use super::line::{RenderOptions, View};
use super::logs::{LogOutput, Prefix};
use super::print::{Format, list_text, object_text};
use super::step_page::Beside;
use super::subject::Subject;
use super::wait::{Signature, Ways};
use super::{history, inbox, list, logs, resolve, retry, retry_plan, review, show, step_page, text, tree, version};
use crate::api::definition::Definition;
use crate::api::step::Order;
use crate::api::{Document, StepRun, Workflow};
use crate::decide::history::step_instances;

/// The pages of one verb.
pub struct Golden {
    verb: &'static str,
    text: String,
}

impl Golden {
    pub fn new(verb: &'static str) -> Self {
        Self { verb, text: String::new() }
    }

    /// One page, below the command that prints it.
    pub fn add(&mut self, command: &str, page: &str) {
        let page = page.replace('\u{1b}', "␛");
        write!(self.text, "$ kubectl lockstep {command}\n{page}\n").expect("a text takes all");
    }

    pub fn check(self) {
        let file = folder().join(format!("{}.txt", self.verb));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &self.text).expect("it can be written");
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            golden == self.text,
            "{} says otherwise than this; UPDATE=1 writes it anew:\n{}",
            file.display(),
            self.text
        );
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/golden")
}

const NONE: RenderOptions = RenderOptions { window: None, colours: false };
const WIDE: RenderOptions = RenderOptions { window: Some(120), colours: true };
const NARROW: RenderOptions = RenderOptions { window: Some(48), colours: false };
const LOOKS: [(&str, RenderOptions); 3] = [("", NONE), (", 120 columns in colours", WIDE), (", 48 columns", NARROW)];
const FORMATS: [(&str, Format); 3] = [("json", Format::Json), ("yaml", Format::Yaml), ("name", Format::Name)];

fn now() -> Timestamp {
    "2026-11-21T10:30:00Z".parse().expect("a time")
}

fn at(minute: u32) -> String {
    format!("2026-11-21T10:{minute:02}:00Z")
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at(5)})
}

fn run(name: &str, spec: &Value, status: &Value) -> Workflow {
    serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
        "metadata": {"name": name, "namespace": "team-a", "uid": name, "creationTimestamp": at(0)},
        "spec": spec, "status": status}))
    .expect("a run")
}

fn step(path: &str, key: Option<(&str, i32)>, more: &Value, status: &Value) -> StepRun {
    let mut spec = json!({"workflow": {"name": "shop", "uid": "shop"}, "definition": {"revisionName": "r", "digest": "d"},
        "path": path, "agentId": path, "parameters": "{\"depth\":2}", "inputDigest": "d",
        "item": key.map(|(key, index)| json!({"key": key, "index": index, "value": null}))});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let name = format!("shop-{path}{}-0011223344556677", key.map_or_else(String::new, |(key, _)| format!("-{key}")));
    serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
        "metadata": {"name": name.to_lowercase(), "namespace": "team-a", "uid": name, "creationTimestamp": at(1)},
        "spec": spec, "status": status}))
    .expect("a step")
}

fn accepted(by: &str, comment: &str) -> Value {
    json!({"documentType": "discovery", "scopeId": "shop", "accepted": true, "decidedBy": by, "decidedAt": at(4),
        "digest": "sha256:00ff", "round": 1, "comment": comment})
}

fn gate(state: &str, decisions: &Value) -> Value {
    json!({"state": state, "round": 1, "outputDigest": format!("sha256:{}", "0f".repeat(32)), "openedAt": at(3), "policy": "p",
        "decisions": decisions})
}

/// A run in which everything happens at once.
fn shop() -> (Workflow, Vec<StepRun>) {
    let counts = json!({"total": 4, "started": 3, "done": 0, "failed": 1});
    let listed = |path: &str, phase: &str| json!({"path": path, "phase": phase, "startedAt": at(1)});
    let mut parts = listed("architecture", "Running");
    parts["counts"] = counts;
    let steps = json!([listed("discovery", "Completed"), listed("backlog", "WaitingForAcceptance"),
        listed("budget", "WaitingForInput"), parts, {"path": "report", "phase": "Pending"}]);
    let of_run = run(
        "shop",
        &json!({"templateRef": {"name": "default"}, "input": "A shop for used bikes"}),
        &json!({"phase": "Running", "startedAt": at(1), "currentStep": "backlog", "creator": "carol", "steps": steps,
            "session": {"id": "_shop-1", "phase": "Busy"}, "usage": {"tokensIn": 1200, "tokensOut": 300, "cost": "0.04", "models": ["small"]}, "waiting": {"gates": 1, "questions": 2, "summary": "1 gate, 2 questions"},
            "conditions": [condition("Succeeded", "Unknown", "Running", ""), condition("Waiting", "True", "Running", "1 gate, 2 questions"),
                condition("Reconciling", "True", "Running", "")]}),
    );
    let attempt = |number: i32, result: &str, message: &str| {
        json!({"number": number, "round": 1, "result": result, "exitCode": 3,
        "startedAt": at(2), "completedAt": at(3), "message": message})
    };
    let both = json!([accepted("ann", "good"), accepted("bob", "fine \u{1b}[31mred")]);
    let discovery = json!({"phase": "Completed", "startedAt": at(1), "completedAt": at(2), "attempt": 1,
        "attempts": [attempt(1, "Succeeded", "")], "gate": gate("Accepted", &both), "result": {"attempt": 1, "digest": "d"}});
    let waiting = json!({"phase": "WaitingForAcceptance", "startedAt": at(2), "gate": gate("Waiting", &json!([accepted("ann", "ok")]))});
    let message = "Are these the right epics? They are what all the architects will work on next.";
    let question = json!({"phase": "WaitingForInput", "startedAt": at(3), "waitingFor": {"id": "1-0", "kind": "Question",
        "question": "How much may it cost?", "options": [], "since": at(3)}});
    let image = "ImagePullBackOff: Back-off pulling image \"registry.example/architect:1\"";
    let stuck = json!({"phase": "Running", "startedAt": at(4), "conditions": [condition("Started", "False", "PodNotReady", image)]});
    let spent = json!({"phase": "WaitingForInput", "startedAt": at(4), "attempt": 3,
        "attempts": [attempt(1, "Retryable", "no such epic"), attempt(2, "Timeout", "silent"), attempt(3, "Retryable", "no such epic")],
        "error": {"class": "Retryable", "message": "no such epic", "attempt": 3, "exitCode": 3, "logTail": "looking\nno such epic\n"},
        "waitingFor": {"id": "3-0", "kind": "RetriesSpent", "question": "all 3 attempts failed, the last with: no such epic",
            "options": ["retry", "skip", "fail"], "since": at(9)}});
    let works = json!({"phase": "Running", "startedAt": at(5), "attempt": 2,
        "usage": {"tokensIn": 1200, "tokensOut": 300, "cost": "0.04", "models": ["small"]},
        "agent": {"progress": {"percent": 40, "message": "writing", "at": at(6)}}});
    let steps = vec![
        step("discovery", None, &json!({"gate": {"name": "discovery", "approvals": 2}}), &discovery),
        step(
            "backlog",
            None,
            &json!({"gate": {"name": "backlog", "approvals": 2, "notBy": "carol", "message": message,
            "acceptors": {"users": ["dora"], "groups": ["product"]}}}),
            &waiting,
        ),
        step(
            "budget",
            None,
            &json!({"agentId": "", "ask": {"name": "budget", "question": "How much may it cost?", "deadlineSeconds": 3600}}),
            &question,
        ),
        step("architecture", Some(("E1", 0)), &json!({}), &stuck),
        step("architecture", Some(("E2", 1)), &json!({}), &spent),
        step("architecture", Some(("E3", 2)), &json!({}), &works),
    ];
    (of_run, steps)
}

/// Runs at their end, and runs that do not begin.
fn others() -> Vec<Workflow> {
    let failed = |steps: Value| {
        json!({"phase": "Failed", "startedAt": at(1), "completedAt": at(6), "steps": steps,
        "conditions": [condition("Succeeded", "False", "Unrecoverable", "discovery: no such epic"),
            condition("Stalled", "True", "Unrecoverable", "discovery: no such epic")]})
    };
    let steps = json!([{"path": "discovery", "phase": "Failed"}, {"path": "report", "phase": "Skipped"}]);
    let missing = "missing: brief; put them with kubectl apply (kind Document)";
    vec![
        run("broken", &json!({"templateRef": {"name": "default"}}), &failed(steps)),
        run(
            "early",
            &json!({"templateRef": {"name": "defualt"}}),
            &json!({"phase": "Pending", "conditions": [
            condition("Succeeded", "Unknown", "TemplateNotFound", "spec.templateRef.name: WorkflowTemplate defualt does not exist in this namespace; the run starts when it does")]}),
        ),
        run(
            "lacks",
            &json!({"templateRef": {"name": "default"}}),
            &json!({"phase": "WaitingForDocuments", "pendingDocuments": ["brief"],
            "conditions": [condition("Succeeded", "Unknown", "WaitingForDocuments", missing), condition("Waiting", "True", "WaitingForDocuments", missing)]}),
        ),
    ]
}

/// A step whose agent asks, after it has asked before.
fn asking() -> StepRun {
    let asked = |question: &str, answer: Value| {
        json!({"question": question, "attempt": 1, "askedAt": at(3), "schema": "{\"enum\":[\"north\",\"very far south\"]}",
            "answer": answer})
    };
    let ended = json!([{"number": 1, "round": 1, "result": "Asked", "startedAt": at(2), "completedAt": at(3)}]);
    step(
        "estimate",
        None,
        &json!({}),
        &json!({"phase": "WaitingForInput", "startedAt": at(1), "attempt": 2, "attempts": ended,
            "questions": [asked("What is the budget?", json!({"value": "20000", "by": "ann", "at": at(4)})),
                asked("Which shop is it for?", Value::Null)],
            "waitingFor": {"id": "2-1", "kind": "Question", "question": "Which shop is it for?", "options": ["skip", "fail"],
                "schema": "{\"enum\":[\"north\",\"very far south\"]}", "since": at(5)}}),
    )
}

#[test]
fn list_prints_this() {
    let (shop, steps) = shop();
    let mut runs = others();
    runs.push(shop);
    let mut golden = Golden::new("list");
    for (words, options) in LOOKS {
        for (option, which) in [
            ("", list::Which::default()),
            (" -A", list::Which { namespaces: true, wide: false }),
            (" -o wide", list::Which { namespaces: false, wide: true }),
        ] {
            golden.add(&format!("list{option}{words}"), &list::text(&runs, &steps, which, now(), options));
        }
    }
    for (word, format) in FORMATS {
        golden.add(&format!("list -o {word}"), &list_text(format, "Workflow", &runs[..1]).expect("a text"));
    }
    golden.check();
}

#[test]
fn inbox_prints_this() {
    let (_, steps) = shop();
    let part = |wanted: &[usize]| wanted.iter().map(|n| steps[*n].clone()).collect::<Vec<_>>();
    let all = inbox::Waiting { steps: part(&[1, 2, 4]), stuck: part(&[3]), runs: others().split_off(1) };
    let mut golden = Golden::new("inbox");
    for (words, options) in LOOKS {
        golden.add(&format!("inbox{words}"), &inbox::text(&all, None, now(), options));
    }
    for (words, signature) in [("", Signature::Stamped), (", before Kubernetes 1.36", Signature::Typed)] {
        golden.add(&format!("inbox -o wide{words}"), &inbox::text(&all, Some(signature), now(), NONE));
    }
    let asks = inbox::Waiting { steps: vec![asking()], ..inbox::Waiting::default() };
    for (words, options) in LOOKS {
        golden.add(&format!("inbox, an agent asks{words}"), &inbox::text(&asks, None, now(), options));
    }
    golden.add("inbox -o wide, an agent asks", &inbox::text(&asks, Some(Signature::Stamped), now(), NONE));
    golden.add(
        "inbox, nobody is asked for anything",
        &inbox::text(&inbox::Waiting { steps: Vec::new(), ..all }, None, now(), NONE),
    );
    for (word, format) in FORMATS {
        golden.add(&format!("inbox -o {word}"), &list_text(format, "StepRun", &part(&[2])).expect("a text"));
    }
    golden.check();
}

#[test]
fn show_prints_this_of_runs() {
    let (shop, steps) = shop();
    let mut golden = Golden::new("show-run");
    for (words, options) in LOOKS {
        golden.add(&format!("show shop{words}"), &show::text(&shop, &steps, Format::Table, now(), options));
    }
    golden.add("show shop -o wide", &show::text(&shop, &steps, Format::Wide, now(), NONE));
    for run in others() {
        let name = run.metadata.name.clone().unwrap_or_default();
        golden.add(&format!("show {name}"), &show::text(&run, &[], Format::Table, now(), NONE));
    }
    for (word, format) in FORMATS {
        golden.add(&format!("show broken -o {word}"), &object_text(format, "Workflow", &others()[0]).expect("a text"));
    }
    golden.check();
}

#[test]
fn show_prints_this_of_steps() {
    let (shop, steps) = shop();
    let mut golden = Golden::new("show-step");
    let document: Document = serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Document",
        "metadata": {"name": "shop-backlog-1"}, "spec": {"type": "backlog", "scope": "Workflow", "content": "# Backlog\n\n- search\n- pay\n"}}))
    .expect("a document");
    let schema = json!({"type": "integer", "minimum": 1}).as_object().cloned().unwrap_or_default();
    let beside = |n: usize, signature: Signature| {
        let subject = match n {
            0 => Subject { output: Some("{\"epics\":7}".to_owned()), ..Subject::default() },
            1 => Subject { document: Some(document.clone()), ..Subject::default() },
            _ => Subject::default(),
        };
        let answers = if n == 2 { Answers::Of(schema.clone()) } else { Answers::Unknown };
        let refused = (n == 2).then(|| {
            "2026-11-21T10:10:00Z: the answer was not recorded: 0 is less than the minimum of 1; answer again"
                .to_owned()
        });
        Beside { subject, answers, refused, signature: Some(signature) }
    };
    for (n, step) in steps.iter().enumerate() {
        let name = super::target::label(step);
        golden.add(&format!("show shop/{name}"), &step_page::page(step, &beside(n, Signature::Stamped), now(), NONE));
    }
    let answers = super::asked::by_agent(&asking()).unwrap_or_default();
    let asks = Beside { answers, signature: Some(Signature::Stamped), ..Beside::default() };
    golden.add("show shop/estimate, its agent asks", &step_page::page(&asking(), &asks, now(), NONE));
    golden.add(
        "show shop/backlog, 120 columns in colours",
        &step_page::page(&steps[1], &beside(1, Signature::Stamped), now(), WIDE),
    );
    golden.add(
        "show shop/backlog, 48 columns",
        &step_page::page(&steps[1], &beside(1, Signature::Stamped), now(), NARROW),
    );
    golden.add(
        "show shop/backlog, before Kubernetes 1.36",
        &step_page::page(&steps[1], &beside(1, Signature::Typed), now(), NONE),
    );
    golden.add(
        "show shop/architecture/E2, 48 columns",
        &step_page::page(&steps[4], &beside(4, Signature::Stamped), now(), NARROW),
    );
    for (words, options) in LOOKS {
        let found = resolve::find(&shop, &steps, "architecture").expect("it is there");
        golden.add(&format!("show shop/architecture{words}"), &resolve::page(&shop, &steps, &found, now(), options));
    }
    let found = resolve::find(&shop, &steps, "report").expect("it is listed");
    golden.add("show shop/report", &resolve::page(&shop, &steps, &found, now(), NONE));
    for (word, format) in FORMATS {
        golden.add(&format!("show shop/budget -o {word}"), &object_text(format, "StepRun", &steps[2]).expect("a text"));
    }
    golden.check();
}

#[test]
fn watch_prints_this() {
    let (shop, steps) = shop();
    let mut golden = Golden::new("watch");
    for (words, view) in [
        ("120 columns in colours", View { width: Some(120), height: Some(40), colours: true }),
        ("48 columns, 60 lines", View { width: Some(48), height: Some(60), colours: false }),
        ("48 columns, 30 lines", View { width: Some(48), height: Some(30), colours: false }),
        ("48 columns, 12 lines", View { width: Some(48), height: Some(12), colours: false }),
    ] {
        let drawn = tree::draw(&shop, &steps, now(), (view, Ways::Asked));
        golden.add(&format!("watch shop, {words}"), &(drawn.lines.join("\n") + "\n"));
    }
    let (mut said, mut waits) = (std::collections::BTreeMap::new(), BTreeSet::new());
    let lines = super::watch::changes(&mut said, &shop, &steps).join("\n") + "\n";
    let opened = super::watch::opened(&mut waits, &shop, &steps, Ways::Unasked).concat();
    golden.add("watch shop, without a terminal", &(lines + &opened));
    for run in others() {
        let name = run.metadata.name.clone().unwrap_or_default();
        let lines = super::watch::changes(&mut std::collections::BTreeMap::new(), &run, &[]).join("\n") + "\n";
        golden.add(&format!("watch {name}, without a terminal"), &lines);
    }
    golden.check();
}

#[test]
fn logs_print_this() {
    let (_, steps) = shop();
    let mut golden = Golden::new("logs");
    let page = |told: &[LogOutput], prefix: Prefix| -> String {
        let one = |said: &LogOutput| match said {
            LogOutput::Line(label, line) => logs::printed(label, line, prefix),
            LogOutput::Note(word) => format!("(stderr) {word}\n"),
        };
        told.iter().map(one).collect()
    };
    let line = |label: &str, text: &str| LogOutput::Line(label.to_owned(), text.to_owned());
    let written = [
        line("discovery", "claimed team-a/shop-discovery attempt 1, 60 s"),
        line("backlog", "{\"epics\": 7}"),
        line("architecture/E1", "\u{1b}[31mred\u{1b}[0m"),
        line("discovery", ""),
    ];
    golden.add("logs shop", &page(&written, Prefix::Step));
    golden.add("logs shop/discovery", &page(&written[..1], Prefix::Nothing));
    let sources: Vec<logs::Source> = steps.iter().filter_map(|step| logs::source(step, logs::Which::Newest)).collect();
    let gone = |source: &logs::Source, tail| logs::instead("shop", source, &logs::LogUnavailable::Gone, tail);
    let all: Vec<LogOutput> = sources.iter().flat_map(|source| gone(source, None)).collect();
    golden.add("logs shop, when the pods are gone", &page(&all, Prefix::Step));
    let failed = sources.iter().find(|source| source.label == "architecture/E2").expect("it failed");
    golden.add(
        "logs shop/architecture/E2 --tail 1, when the pod is gone",
        &page(&gone(failed, Some(1)), Prefix::Nothing),
    );
    let words = "pods \"shop-architecture-e2-3-x\" is forbidden: User \"ann\" cannot get resource \"pods/log\"";
    let forbidden = logs::instead("shop", failed, &logs::LogUnavailable::Forbidden(words.to_owned()), None);
    golden.add("logs shop/architecture/E2, without the permission", &page(&forbidden, Prefix::Nothing));
    let previous = logs::source(&steps[4], logs::Which::Previous).expect("there was one");
    golden.add("logs shop/architecture/E2 --previous", &page(&gone(&previous, None), Prefix::Nothing));
    golden.check();
}

#[test]
fn history_prints_this() {
    let (shop, steps) = shop();
    let instances = step_instances(&shop, &steps);
    let mut golden = Golden::new("history");
    let text = |part, format, options| history::text(&shop, &instances, part, format, options).expect("a text");
    for (words, options) in LOOKS {
        golden.add(&format!("history shop{words}"), &text(Part::Steps, Format::Table, options));
        golden.add(&format!("history shop --decisions{words}"), &text(Part::Decisions, Format::Table, options));
    }
    golden.add("history shop -o wide", &text(Part::Steps, Format::Wide, NONE));
    for (word, format) in FORMATS {
        golden.add(&format!("history shop --decisions -o {word}"), &text(Part::Decisions, format, NONE));
    }
    golden.add("history shop -o json", &text(Part::Steps, Format::Json, NONE));
    golden.check();
}

#[test]
fn version_prints_this() {
    let operator = "0.1.0 (registry.example/lockstep:0.1.0), platform/lockstep-operator, 1 of 1 ready";
    let lines = [
        ("client", "0.1.0"),
        ("kubernetes", "v1.36.3"),
        ("kinds", "lockstep.dev/v1alpha1: agents, workflows"),
        ("operator", operator),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    let mut golden = Golden::new("version");
    for (words, options) in LOOKS {
        golden.add(&format!("version{words}"), &version::text(Format::Table, &lines, options).expect("a text"));
    }
    for (word, format) in FORMATS {
        golden.add(&format!("version -o {word}"), &version::text(format, &lines, NONE).expect("a text"));
    }
    golden.check();
}

#[test]
fn decisions_and_retries_print_this() {
    let (shop, steps) = shop();
    let mut golden = Golden::new("decide");
    let subject = Subject { output: Some("{\"epics\":7}".to_owned()), ..Subject::default() };
    for (words, options) in LOOKS {
        golden.add(
            &format!("approve shop/backlog{words}, before it asks"),
            &review::under_review(&steps[1], &subject, None, options),
        );
    }
    let listed = json!([{"name": "discovery", "agentId": "discovery"}, {"name": "backlog", "agentId": "backlog"},
        {"name": "budget", "ask": {"question": "How much?"}}, {"name": "architecture", "agentId": "architecture",
        "forEach": {"in": "[]", "as": "epic"}}, {"name": "report", "agentId": "report"}]);
    let definition = Definition { steps: serde_json::from_value(listed).expect("steps"), ..Definition::default() };
    let plan = retry_plan::plan(&retry_plan::RetryInput {
        old: &shop,
        step_runs: &steps,
        steps: &definition.steps,
        order: Order::Chain,
        then: Some(&definition),
        agents: None,
        from: None,
        keep_results: false,
        by: Some("ann"),
    });
    for (words, options) in LOOKS {
        golden.add(&format!("retry shop{words}, on standard error"), &retry::text("shop", &plan, options));
    }
    golden.check();
}

/// Of all that stands in the golden texts: nothing that a terminal obeys but our colours, no line wider than the window but what
/// is to be copied, no row of what others say without its margin, and no word said of nothing.
#[test]
fn pages_hold_to_their_width_and_say_nothing_of_nothing() {
    let mut seen = 0;
    for entry in std::fs::read_dir(folder()).expect("the golden texts") {
        let file = entry.expect("an entry").path();
        let all = std::fs::read_to_string(&file).expect("a text");
        let (mut width, mut said) = (None, false);
        for line in all.lines() {
            if let Some(command) = line.strip_prefix("$ kubectl lockstep ") {
                let columns = command.split(", ").find_map(|part| part.split_once(" columns"));
                width = columns.and_then(|(number, _)| number.parse::<usize>().ok());
                seen += 1;
            }
            let bare = ["0", "1", "2", "31", "32", "33", "36"]
                .iter()
                .fold(line.to_owned(), |line, code| line.replace(&format!("␛[{code}m"), ""));
            assert!(!bare.contains('␛'), "{}: {line}", file.display());
            let copied = bare.starts_with('$')
                || bare.trim_start().starts_with("kubectl ")
                || bare.contains(": kubectl lockstep");
            let ours = [" ", "◆", "?", "$", "…"].iter().any(|start| bare.starts_with(start)) || bare.is_empty();
            assert!(!said || ours, "{}: without its margin: {line}", file.display());
            said = bare.starts_with("    | ");
            assert!(copied || width.is_none_or(|width| text::width(&bare) <= width), "{}: {line}", file.display());
            for nothing in ["groups: )", "users: )", "by ;", ": ;", "  ;", "()", "None", "null null"] {
                assert!(!bare.contains(nothing), "{}: {nothing:?} in {line}", file.display());
            }
        }
    }
    assert!(seen > 60, "{seen} pages");
}
