//! Reads a story and plays it. A line is a step; indented lines under it are its YAML; `#` is prose; `|` begins a line of
//! the plan, which is what followed from the step before it. After each step the operator looks until it has nothing left
//! to do; with `unseen` before a step it does not look yet, and with `soon` before what a person does it is done when the
//! mailbox is emptied next; what is `undated` bears no date of the API server's; `status of` a run shows what its status
//! holds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use lockstep::api::document::{Document, DocumentSpec, OUTPUT_TYPE, Scope};
use lockstep::api::name::{self, ACTION, ANSWER, COMMENT, DECIDED_BY, DECISION, REVIEW};
use lockstep::api::step::{Format, Produces, WiderScope};
use lockstep::api::step_run::{AgentQuestion, AgentReport, Binding, Claim, Report, ReportClass};
use lockstep::api::{Agent, StepRun, StepRunSpec, Workflow, WorkflowSpec, WorkflowTemplate};
use lockstep::cluster::slots::Slots;
use lockstep::decide::approval::{self, GatedAction, PermissionState};
use lockstep::decide::build;
use lockstep::decide::gate::Guard;
use lockstep::decide::question;
use lockstep::decide::seen;
use lockstep::decide::step_run::PodSeen;
use serde_json::{Map, Value, json};

use super::invariants::Invariants;
use super::print::{Printer, place, state};
use super::world::{Happened, World};

/// Plays a story; what is returned is the story with the plan under every step. Plans in the text are not read.
pub fn tell(text: &str) -> String {
    play(text, &mut |_| {})
}

/// The same, and `see` is shown the world after every step.
pub fn play(text: &str, see: &mut dyn FnMut(&World)) -> String {
    let mut teller = Teller { world: World::new(), printer: Printer::default(), invariants: Invariants::default() };
    let mut transcript = String::new();
    let mut lines = text.lines().filter(|line| !line.starts_with('|')).peekable();
    while let Some(line) = lines.next() {
        transcript += &format!("{line}\n");
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let mut body = String::new();
        while let Some(more) = lines.next_if(|l| l.starts_with(' ')) {
            transcript += &format!("{more}\n");
            body += &format!("{more}\n");
        }
        for planned in teller.step(line, &body).lines() {
            transcript += &format!("| {planned}\n");
        }
        see(&teller.world);
    }
    transcript
}

struct Teller {
    world: World,
    printer: Printer,
    invariants: Invariants,
}

/// `text` between `before` and `after`.
fn split<'a>(text: &'a str, at: &str) -> (&'a str, &'a str) {
    text.split_once(at).unwrap_or((text, ""))
}

fn quoted(text: &str) -> String {
    serde_json::from_str(text.trim()).unwrap_or_else(|e| panic!("{text} is no string: {e}"))
}

impl Teller {
    fn step(&mut self, line: &str, body: &str) -> String {
        if let Some(run) = line.strip_prefix("status of ") {
            return state(&self.world.workflows[run]);
        }
        let mut log = Vec::new();
        if let Some(line) = line.strip_prefix("unseen ") {
            self.act(line, body, &mut log);
            return String::new();
        }
        self.act(line, body, &mut log);
        self.settle(&mut log);
        self.invariants.check(&self.world, &log);
        self.printer.news(&self.world, &log)
    }

    /// Looks at everything until a whole round decides nothing: quiescence.
    fn settle(&mut self, log: &mut Vec<Happened>) {
        for _ in 0..100 {
            let mut moved = false;
            for key in self.world.keys() {
                moved |= self.world.pass(&key, log);
            }
            if !moved {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Time passes; the operator looks again only where and when it asked for it.
    fn after(&mut self, seconds: i64, log: &mut Vec<Happened>) {
        let end = self.world.now + SignedDuration::from_secs(seconds);
        for _ in 0..10_000 {
            let due = self.world.due.iter().min_by_key(|(_, at)| **at);
            let Some((key, at)) = due.map(|(k, at)| (k.clone(), *at)) else {
                break;
            };
            if at > end {
                break;
            }
            self.world.now = self.world.now.max(at);
            if self.world.pass(&key, log) {
                self.settle(log);
            }
        }
        self.world.now = self.world.now.max(end);
        let mut missed = Vec::new();
        for key in self.world.keys() {
            assert!(!self.world.pass(&key, &mut missed), "{key:?} had something to do and did not ask to be woken");
        }
    }

    fn act(&mut self, line: &str, body: &str, log: &mut Vec<Happened>) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["agent", name, "disappears"] => {
                self.world.agents.remove(*name);
            }
            ["agent", names @ ..] => names.iter().for_each(|n| self.agent(n, body)),
            ["template", name, ..] => self.template(name, body),
            ["workflow", name, "deleted"] => {
                let now = self.world.time();
                let found = self.world.workflows.get_mut(*name).expect("a run");
                found.metadata.deletion_timestamp = Some(now);
            }
            ["workflow", name, act @ ("suspended" | "resumed" | "cancelled")] => {
                self.change(name, |spec| match *act {
                    "cancelled" => spec.cancel = Some(true),
                    act => spec.suspend = Some(act == "suspended"),
                });
            }
            ["workflow", name, "kept", "for", seconds] => {
                let seconds = seconds.trim_end_matches('s').parse().expect("a number");
                self.change(name, |spec| spec.ttl_seconds_after_finished = Some(seconds));
            }
            ["workflow", name] => self.workflow(name, body),
            ["workflow", name, "by", who] => {
                self.workflow(name, body);
                let meta = &mut self.world.workflows.get_mut(*name).expect("a run").metadata;
                meta.annotations = Some([(name::CREATED_BY.to_owned(), (*who).to_owned())].into());
            }
            ["steprun", "of", run, "made"] => self.made(run, body),
            ["limit", number] => self.world.slots = Slots::new(number.parse().expect("a number")),
            ["quota", "lifted"] => self.world.quota = None,
            ["quota:", ..] => self.world.quota = Some(split(line, ": ").1.to_owned()),
            ["document", kind, "scope", scope, ..] => self.document(kind, scope, line),
            ["document", kind, "of", of, "deleted"] => {
                let report = self.report_of(of).expect("a report");
                let name = report.document_name.expect("a document");
                let gone = self.world.documents.remove(&name);
                assert!(gone.is_some_and(|d| d.spec.document_type == *kind));
            }
            // Deleted, and made again under its name: what the digests know nothing of.
            ["document", kind, "of", of, "exchanged", ..] => {
                let name = self.report_of(of).and_then(|r| r.document_name).expect("a document");
                let mut forged = self.world.documents.remove(&name).expect("it is there");
                assert_eq!(forged.spec.document_type, *kind);
                forged.spec.content = quoted(split(line, " for ").1);
                forged.status = None;
                self.world.put_document(forged);
            }
            ["settle"] => {}
            ["after", time] => {
                let (number, unit) = time.split_at(time.len() - 1);
                let number: i64 = number.parse().expect("a number");
                let unit = if unit == "m" { 60 } else { 1 };
                self.after(number * unit, log);
            }
            ["policies", "missing"] => {
                self.world.guard = Guard::Missing("lockstep-gate is not installed; reinstall the chart".into());
            }
            ["policies", "stand"] => self.world.guard = Guard::Proven("policies-1".into()),
            ["policies", "change"] => self.world.guard = Guard::Proven("policies-2".into()),
            _ => self.act_of_agent(&words, line),
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm a line of a story")]
    fn act_of_agent(&mut self, words: &[&str], line: &str) {
        match words {
            ["claim", of] => self.claim(of),
            ["uses", of, ..] => {
                let said = serde_json::from_str(split(line, ": ").1).expect("a usage");
                self.status(of.trim_end_matches(':')).agent.as_mut().expect("a claim").usage = Some(said);
            }
            ["reads", of, ..] => {
                let read = serde_json::from_value(yaml(split(line, ": ").1)).expect("documents");
                self.status(of.trim_end_matches(':')).agent.as_mut().expect("a claim").documents_read = read;
            }
            ["succeeds", of, ..] => self.succeeds(of, line),
            ["fails", of, "exit", code] => {
                let code = Some(code.parse().expect("a code"));
                self.ends(of, ReportClass::Exited, code, None);
            }
            ["asks", of, "questions", number] => {
                let number: usize = number.parse().expect("a number");
                let known = self.status(of).questions.len();
                self.asks(of, &(known..known + number).map(|n| json!({"question": format!("{n}?")})).collect());
            }
            ["waits", of, "for", time, ..] => {
                let seconds = time.trim_end_matches(':').trim_end_matches('s').parse().expect("a number");
                self.waits(of, seconds, &yaml(split(line, ": ").1));
            }
            ["requests", of, ..] => self.requests(of.trim_end_matches(':'), &yaml(split(line, ": ").1)),
            ["is", word @ ("allowed" | "denied" | "waiting"), of, "call", call, ..] => {
                let call = call.trim_end_matches(':');
                self.is_told(of, word, call, &yaml(split(line, ": ").1));
            }
            ["gives", "up", "waiting", of] => {
                let report = self.report(of, ReportClass::Asked);
                self.write(of, report);
            }
            ["asks", of, ..] => self.asks(of.trim_end_matches(':'), &yaml(split(line, ": ").1)),
            ["cannot", "ask", of, ..] => {
                let more = AgentQuestion { question: "One more?".into(), ..AgentQuestion::default() };
                let refused =
                    question::sort(self.status(of.trim_end_matches(':')), vec![more]).expect_err("it may not ask");
                assert!(refused.contains(split(line, ": ").1), "{refused}");
            }
            ["reports", of, class, ..] => {
                let class = serde_json::from_value(json!(class.trim_end_matches(':')));
                let message = line.split_once(": ").map(|(_, m)| m.to_owned());
                self.ends(of, class.expect("a class"), None, message);
            }
            ["late", "report", "of", "attempt", attempt, "of", of] => {
                let attempt = attempt.parse().expect("a number");
                let report = self.report(of, ReportClass::Succeeded);
                let status = self.status(of);
                let agent = status.agent.get_or_insert_default();
                agent.report = Some(Report { attempt, ..report });
            }
            ["late", "claim", "of", "attempt", attempt, "of", of] => {
                let attempt = attempt.parse().expect("a number");
                self.claim(of);
                let agent = self.status(of).agent.as_mut().expect("a claim");
                agent.claim.as_mut().expect("a claim").attempt = attempt;
            }
            ["pod", "of", of, "vanishes"] => {
                self.work(of).pod = None;
                self.work(of).ended = true;
            }
            ["pod", "of", of, "ends", "saying", ..] => {
                let termination = quoted(split(line, "saying ").1);
                let work = self.work(of);
                work.ended = true;
                work.pod = Some(PodSeen { ended: true, termination, ..work.pod.clone().unwrap_or_default() });
            }
            ["pod", "of", of, "is", "deleted"] => {
                let by = self.world.now + SignedDuration::from_secs(30);
                let pod = self.work(of).pod.as_mut().expect("a pod");
                pod.disrupted = true;
                pod.gone_by = Some(Time(by));
            }
            ["pod", "of", of, "waits:", ..] => {
                let obstacle = split(line, "waits: ").1.to_owned();
                let pod = self.work(of).pod.as_mut().expect("a pod");
                pod.obstacle = Some(obstacle);
            }
            ["pod", "of", of, "is", "slow", "to", "end"] => {
                let work = self.work(of);
                work.ended = false;
                work.pod.as_mut().expect("a pod").ended = false;
            }
            ["pods", "of", of, "end"] => {
                let name = self.find(of);
                self.world.leaving.retain(|of| *of != name);
                for work in self.world.jobs.values_mut().filter(|j| j.step_run.as_ref() == Some(&name)) {
                    work.pod.iter_mut().for_each(|p| p.ended = true);
                }
            }
            ["job", "of", of, "deleted"] => {
                let job = self.job(of);
                self.world.jobs.remove(&job);
            }
            ["job", "of", of, "is", "slow", "to", "end"] => self.work(of).ended = false,
            ["foreign", "job", "at", of] => {
                let (job, work) = (self.job(of), self.world.work());
                self.world.jobs.insert(job, work);
            }
            ["steprun", "of", of, "deleted"] => {
                let name = self.find(of);
                self.world.step_runs.remove(&name);
                self.world.jobs.retain(|_, j| j.step_run.as_ref() != Some(&name));
            }
            _ => self.act_of_person(words, line),
        }
    }

    fn act_of_person(&mut self, words: &[&str], line: &str) {
        let comment = line.split_once(": ").map(|(_, c)| c.to_owned());
        // It comes when the mailbox is emptied next, before anybody looks again.
        let (soon, words) = match words {
            ["soon", rest @ ..] => (true, rest),
            _ => (false, words),
        };
        let (is_dated, words) = match words {
            ["undated", rest @ ..] => (false, rest),
            _ => (true, words),
        };
        let mut letter: Vec<(&str, String)> = Vec::new();
        let of = match words {
            ["accepts", of, "another", "output", "by", by] => {
                letter.push((REVIEW, "sha256:another".into()));
                letter.push((DECISION, "accepted".into()));
                letter.push((DECIDED_BY, (*by).into()));
                of
            }
            [verb @ ("accepts" | "rejects"), of, "by", by, ..] => {
                let decision = if *verb == "accepts" { "accepted" } else { "rejected" };
                letter.push((DECISION, decision.into()));
                letter.push((DECIDED_BY, by.trim_end_matches(':').into()));
                of
            }
            [verb @ ("accepts" | "rejects"), of, "reviewed", "by", by, ..] => {
                let digest = self.status(of).gate.as_ref().expect("a gate").output_digest.clone();
                letter.push((REVIEW, digest));
                letter.push((DECISION, if *verb == "accepts" { "accepted" } else { "rejected" }.into()));
                letter.push((DECIDED_BY, by.trim_end_matches(':').into()));
                of
            }
            [verb @ ("accepts" | "rejects"), of, "action", number, "by", by, ..] => {
                let number: usize = number.parse().expect("a number");
                let digest = self.status(of).approval_requests[number].gate.output_digest.clone();
                letter.push((REVIEW, digest));
                letter.push((DECISION, if *verb == "accepts" { "accepted" } else { "rejected" }.into()));
                letter.push((DECIDED_BY, by.trim_end_matches(':').into()));
                of
            }
            ["replies", "to", of, "by", by, ..] => {
                let (_, text) = split(line, ": ");
                letter.push((ANSWER, text.into()));
                letter.push((DECIDED_BY, by.trim_end_matches(':').into()));
                of
            }
            ["unsigned", "decision", "on", of] => {
                letter.push((DECISION, "accepted".into()));
                of
            }
            ["unsigned", "answer", "to", of] => {
                letter.push((ACTION, "retry".into()));
                of
            }
            ["answers", of, action, "by", by, ..] => {
                letter.push((ACTION, (*action).into()));
                letter.push((DECIDED_BY, by.trim_end_matches(':').into()));
                of
            }
            _ => panic!("{line:?} is no step that a story knows"),
        };
        let answered = letter.iter().any(|(key, _)| *key == ANSWER);
        letter.extend(comment.filter(|_| !answered).map(|c| (COMMENT, c)));
        let name = self.find(of);
        let letter = letter.into_iter().map(|(key, text)| (key.to_owned(), text)).collect();
        if soon {
            self.world.next_letters.insert(name, letter);
        } else {
            self.world.write_letter(&name, letter, is_dated);
        }
    }

    // ---- objects

    fn agent(&mut self, name: &str, body: &str) {
        if name == "appears" || name == "changes" {
            return;
        }
        let mut spec: Map<String, Value> = yaml(body);
        spec.entry("template")
            .or_insert_with(|| json!({"spec": {"containers": [{"name": "agent", "image": "i", "command": ["run"]}]}}));
        let spec = serde_json::from_value(Value::Object(spec)).expect("an Agent");
        let mut agent = Agent::new(name, spec);
        self.world.admit(&mut agent.metadata, name);
        if let Some(old) = self.world.agents.get(name) {
            agent.metadata.generation = old.metadata.generation.map(|g| g + 1);
        }
        self.world.agents.insert(name.to_owned(), agent);
    }

    fn template(&mut self, name: &str, body: &str) {
        let mut template = WorkflowTemplate::new(name, yaml(body));
        self.world.admit(&mut template.metadata, name);
        self.world.templates.insert(name.to_owned(), template);
    }

    fn workflow(&mut self, name: &str, body: &str) {
        let mut workflow = Workflow::new(name, yaml(body));
        self.world.admit(&mut workflow.metadata, name);
        self.world.workflows.insert(name.to_owned(), workflow);
    }

    /// What a person may change of a run: its generation moves.
    fn change(&mut self, name: &str, change: impl FnOnce(&mut WorkflowSpec)) {
        let run = self.world.workflows.get_mut(name).expect("a run");
        change(&mut run.spec);
        run.metadata.generation = run.metadata.generation.map(|g| g + 1);
    }

    /// A StepRun as the operator makes it, of a `step` that is written into the pinned definition with it.
    fn made(&mut self, run: &str, body: &str) {
        let run = self.world.workflows[run].clone();
        let status = run.status.clone().expect("a run that began");
        let mut spec: Map<String, Value> = yaml(body);
        if let Some(mut step) = spec.remove("step") {
            if let (Some(agent), Some(step)) = (spec.get("agentId"), step.as_object_mut()) {
                step.insert("agentId".to_owned(), agent.clone());
            }
            self.world.pin_step(&run, serde_json::from_value(step).expect("a step"));
        }
        let uid = run.metadata.uid.clone().unwrap_or_default();
        for (key, value) in [
            ("workflow", json!({"name": run.metadata.name, "uid": uid})),
            ("definition", serde_json::to_value(status.definition).expect("it serializes")),
            ("scopeChain", json!([{"scope": "workflow", "scopeId": uid}])),
            ("parameters", json!("{}")),
            ("inputDigest", json!("")),
        ] {
            spec.entry(key).or_insert(value);
        }
        let spec: StepRunSpec = serde_json::from_value(Value::Object(spec)).expect("a spec");
        let mut step_run = build::step_run(&run, "session", spec, &[]);
        let name = step_run.metadata.name.clone().expect("a name");
        self.world.admit(&mut step_run.metadata, &name);
        self.world.step_runs.insert(name, step_run);
    }

    fn document(&mut self, kind: &str, scope: &str, line: &str) {
        let scope = serde_json::from_value(json!(scope.trim_end_matches(':'))).expect("a scope");
        let (head, content) = split(line, ": ");
        let whose = head.split_whitespace().last().map(str::to_owned);
        let spec = DocumentSpec {
            document_type: kind.to_owned(),
            scope,
            session: whose.clone().filter(|_| scope == Scope::Session),
            project: whose.filter(|_| scope == Scope::Project),
            format: if content.starts_with('"') {
                lockstep::api::step::Format::Markdown
            } else {
                lockstep::api::step::Format::Json
            },
            content: if content.starts_with('"') { quoted(content) } else { content.to_owned() },
            ..DocumentSpec::default()
        };
        let name = format!("{kind}-{}", self.world.documents.len());
        self.world.put_document(Document::new(&name, spec));
    }

    // ---- what agents and pods do

    /// The StepRun that a story means: `[RUN:]STEP[/KEY]`.
    fn find(&self, of: &str) -> String {
        let (run, wanted) = of.split_once(':').map_or((None, of), |(r, w)| (Some(r), w));
        let mut found = self
            .world
            .step_runs
            .iter()
            .filter(|(_, s)| run.is_none_or(|run| s.spec.workflow.name == run) && place(s) == wanted);
        let name = found.next().unwrap_or_else(|| panic!("no StepRun {of}")).0;
        assert!(found.next().is_none(), "{of} means several StepRuns");
        name.clone()
    }

    fn status(&mut self, of: &str) -> &mut lockstep::api::StepRunStatus {
        let name = self.find(of);
        self.world.touch(&name).status.get_or_insert_default()
    }

    fn job(&self, of: &str) -> String {
        let name = self.find(of);
        let found = &self.world.step_runs[&name];
        let attempt = found.status.as_ref().map_or(1, |s| s.attempt);
        seen::job_name(found, attempt)
    }

    fn work(&mut self, of: &str) -> &mut super::world::Work {
        let job = self.job(of);
        let found = self.world.jobs.get_mut(&job);
        found.unwrap_or_else(|| panic!("{of} has no Job"))
    }

    fn claim(&mut self, of: &str) {
        let pod = self.work(of).pod.clone().expect("a pod that can claim");
        let at = self.world.time();
        let status = self.status(of);
        status.agent = Some(AgentReport {
            claim: Some(Claim {
                attempt: status.attempt,
                id: "id".into(),
                pod_name: format!("pod-{}", status.attempt),
                pod_uid: pod.uid,
                at,
            }),
            ..AgentReport::default()
        });
    }

    fn report_of(&self, of: &str) -> Option<Report> {
        let status = self.world.step_runs[&self.find(of)].status.clone();
        status?.agent?.report
    }

    fn report(&mut self, of: &str, class: ReportClass) -> Report {
        let at = self.world.time();
        Report {
            attempt: self.status(of).attempt,
            exit_code: None,
            class,
            digest: name::digest_bytes(b""),
            output: None,
            output_document: None,
            output_binding: None,
            document_name: None,
            document_binding: None,
            questions: Vec::new(),
            message: None,
            log_tail: None,
            interrupted: false,
            at,
        }
    }

    /// What the gateway writes once the agent has ended; the pod ends by itself.
    fn write(&mut self, of: &str, report: Report) {
        let status = self.status(of);
        let attempt = status.attempt;
        let claimed = status.agent.as_ref().and_then(|a| a.claim.as_ref());
        if claimed.is_none_or(|c| c.attempt != attempt) {
            self.claim(of);
        }
        self.status(of).agent.as_mut().expect("a claim").report = Some(report);
        let work = self.work(of);
        work.ended = true;
        work.pod.as_mut().expect("a pod").ended = true;
    }

    fn ends(&mut self, of: &str, class: ReportClass, code: Option<i32>, message: Option<String>) {
        let report = self.report(of, class);
        let report = Report { exit_code: code, message, ..report };
        self.write(of, report);
    }

    /// What nobody has answered is what the gateway writes.
    fn asks(&mut self, of: &str, questions: &Value) {
        let questions = serde_json::from_value(questions.clone()).expect("questions");
        let open = question::sort(self.status(of), questions).expect("it may ask").open;
        assert!(!open.is_empty(), "all of it is answered, and the agent goes on");
        let report = Report { questions: open, ..self.report(of, ReportClass::Asked) };
        self.write(of, report);
    }

    /// What the gateway writes where the agent waits in its pod: the attempt goes on.
    fn waits(&mut self, of: &str, seconds: i64, questions: &Value) {
        let at = self.world.time();
        let until = Time(self.world.now + SignedDuration::from_secs(seconds));
        let questions = serde_json::from_value(questions.clone()).expect("questions");
        let status = self.status(of);
        let open = question::sort(status, questions).expect("it may ask").open;
        let asking = question::wait_for(status, &open, &at, &until).expect("it waits for none of it yet");
        status.agent.as_mut().expect("a claim").asking = Some(asking);
    }

    fn action(&self, of: &str, said: &Value) -> GatedAction {
        let text = |key: &str| said[key].as_str();
        let gates = &self.world.step_runs[&self.find(of)].spec.action_gates;
        let gate = approval::gate(gates, text("gate")).expect("a gate that the step declares");
        approval::wanted(gate, text("action").expect("an action"), text("payload")).expect("it can be requested")
    }

    fn standing(&self, of: &str, wanted: &GatedAction, call: &str) -> PermissionState {
        approval::standing(&self.world.step_runs[&self.find(of)], wanted, call).expect("it can be requested")
    }

    /// What the gateway writes of a call that is new; the agent waits for five minutes.
    fn requests(&mut self, of: &str, said: &Value) {
        let wanted = self.action(of, said);
        let PermissionState::New { repeats } = self.standing(of, &wanted, "new") else {
            panic!("it was requested before")
        };
        let (at, until) = (self.world.time(), Time(self.world.now + SignedDuration::from_secs(300)));
        let step_run = &self.world.step_runs[&self.find(of)];
        let all = approval::requested(step_run, &wanted, repeats, &at, &until);
        self.status(of).agent.as_mut().expect("a claim").approval_requests = all;
    }

    /// What the gateway tells a call, and writes before it does.
    fn is_told(&mut self, of: &str, word: &str, call: &str, said: &Value) {
        let wanted = self.action(of, said);
        let found = match self.standing(of, &wanted, call) {
            PermissionState::Allowed { digest, .. } => {
                let at = self.world.time();
                let all = approval::using(self.status(of), &digest, call, &at);
                self.status(of).agent.as_mut().expect("a claim").used_approvals = all;
                "allowed"
            }
            PermissionState::AllowedAgain { .. } => "allowed",
            PermissionState::Denied { .. } => "denied",
            PermissionState::Waits { .. } => "waiting",
            PermissionState::New { .. } => "new",
        };
        assert_eq!(found, word, "{call} of {of}");
    }

    /// `succeeds STEP [with JSON] [apart with JSON] [document JSON]`; apart in an internal Document, as what is large.
    fn succeeds(&mut self, of: &str, line: &str) {
        let (head, content) = split(line, " document ");
        let (head, apart) = split(head, " apart with ");
        let output = split(head, " with ").1;
        let output = Some(output.to_owned()).filter(|o| !o.is_empty());
        let content = if content.starts_with('"') { quoted(content) } else { content.to_owned() };
        let document_name = (!content.is_empty()).then(|| self.draft(of, &content));
        let output_document = (!apart.is_empty()).then(|| {
            let internal = Produces { document_type: OUTPUT_TYPE.into(), format: Format::Json, scope: None };
            self.put_up(of, apart, &internal)
        });
        let bound = |world: &World, name: &String, content: &str| Binding {
            uid: world.documents[name].metadata.uid.clone(),
            digest: name::digest_bytes(content.as_bytes()),
        };
        let report = Report {
            digest: name::digest([output.as_deref().unwrap_or(apart).as_bytes(), content.as_bytes()]),
            output,
            output_binding: output_document.as_ref().map(|name| bound(&self.world, name, apart)),
            output_document,
            document_binding: document_name.as_ref().map(|name| bound(&self.world, name, &content)),
            document_name,
            exit_code: Some(0),
            ..self.report(of, ReportClass::Succeeded)
        };
        self.write(of, report);
    }

    /// The document as the gateway makes it.
    fn draft(&mut self, of: &str, content: &str) -> String {
        let step_run_name = self.find(of);
        let step_run: StepRun = self.world.step_runs[&step_run_name].clone();
        let run = self.world.run_of(&step_run).expect("its run");
        let definition = self.world.definition(run).expect("its definition");
        let step = definition.step(&step_run.spec.path).expect("its step");
        let produces = step.produces.clone().expect("a step that makes a document");
        self.put_up(of, content, &produces)
    }

    fn put_up(&mut self, of: &str, content: &str, produces: &Produces) -> String {
        let step_run_name = self.find(of);
        let step_run: StepRun = self.world.step_runs[&step_run_name].clone();
        let definition = self.world.definition(self.world.run_of(&step_run).expect("its run")).expect("its definition");
        let attempt = step_run.status.as_ref().map_or(1, |s| s.attempt);
        let uid = step_run.metadata.uid.clone().unwrap_or_default();
        let name = name::document(&step_run_name, &uid, attempt, &produces.document_type);
        let spec = DocumentSpec {
            document_type: produces.document_type.clone(),
            scope: match produces.scope {
                Some(WiderScope::Session) => Scope::Session,
                Some(WiderScope::Project) => Scope::Project,
                None if step_run.spec.item.is_some() => Scope::Item,
                None => Scope::Workflow,
            },
            scope_id: step_run.spec.scope_chain.last().map(|l| l.scope_id.clone()),
            session: Some(definition.session.clone()),
            project: definition.project.clone(),
            workflow: Some(step_run.spec.workflow.name.clone()),
            path: Some(step_run.spec.path.clone()),
            attempt: Some(attempt),
            format: produces.format,
            content: content.to_owned(),
        };
        self.world.put_document(Document::new(&name, spec));
        name
    }
}

fn yaml<T: serde::de::DeserializeOwned + Default>(body: &str) -> T {
    if body.trim().is_empty() {
        return T::default();
    }
    serde_saphyr::from_str(body).unwrap_or_else(|e| panic!("{e}\n{body}"))
}
