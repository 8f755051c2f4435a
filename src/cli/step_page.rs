//! The page of one step.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use std::fmt::Write as _;

use super::asked::{self, Answers};
use super::connect::Connection;
use super::fault::{Code, Fault};
use super::held;
use super::line::{Line, RenderOptions, View, of_phase};
use super::mailbox;
use super::print::{self, put};
use super::rows::so_far;
use super::spread::pretty;
use super::subject::{self, Subject, Trouble};
use super::table::{Cell, table};
use super::target::{label, waits_at_gate, waits_at_own_gate, waits_for_answer};
use super::text::{
    Style, block, clock, elapsed, framed, hanging, indent, inline, quote, seconds_between, short_digest,
};
use super::wait::{self, Signature, Ways};
use crate::api::step_run::{
    Action, ApprovalRequest, AskedQuestion, Attempt, AttemptResult, Decision, GateState, GateStatus,
};
use crate::api::{StepRun, StepRunStatus};
use crate::decide::{budget, claim, gate, output};

/// What a page says of a step that does not stand in its StepRun.
#[derive(Default)]
pub struct Beside {
    pub subject: Subject,
    pub answers: Answers,
    /// Why the last decision or answer was not taken, and when.
    pub refused: Option<String>,
    pub signature: Option<Signature>,
}

pub async fn show(on: &Connection, step: &StepRun) -> Result<Code, Fault> {
    if !on.output.is_text() {
        print::object(on.output, "StepRun", step)?;
        return Ok(Code::Done);
    }
    let mut beside = Beside { subject: subject::load(on, step).await?, ..Beside::default() };
    if waits_at_gate(step) || waits_for_answer(step) {
        beside.refused = mailbox::last_refusal(on, step).await;
        beside.signature = match Signature::told(step) {
            Some(known) => Some(known),
            None => Some(Signature::probable(on).await),
        };
    }
    if wait::is_question(step) {
        beside.answers = asked::of(on, step).await;
    }
    put(&page(step, &beside, Timestamp::now(), RenderOptions::for_stdout()))?;
    match &beside.subject.trouble {
        Some(trouble @ Trouble::Exchanged(_)) => Err(Fault::new(Code::Exchanged, trouble.text())),
        Some(trouble @ Trouble::Gone(_)) if waits_at_own_gate(step) => Err(Fault::new(Code::Exchanged, trouble.text())),
        _ => Ok(Code::Done),
    }
}

pub fn page(step: &StepRun, beside: &Beside, now: Timestamp, options: RenderOptions) -> String {
    let status = step.status.clone().unwrap_or_default();
    let framed = |text: String| framed(&text, "  ", options.window);
    let mut text = head(step, &status, now, options);
    let by_agent = status.waiting_for.as_ref().filter(|_| wait::is_question(step)).map(|wait| &wait.question);
    let question = step.spec.ask.as_ref().map(|ask| &ask.question).or(by_agent);
    let question = question.map(|question| block(question, 4096));
    section((&mut text, options), "QUESTION", &framed(question.unwrap_or_default()));
    if (step.spec.ask.is_some() && status.answer.is_none()) || by_agent.is_some() {
        let title = if matches!(beside.answers, Answers::Perhaps(_)) {
            "WHAT IT TAKES (as the template has it now)"
        } else {
            "WHAT IT TAKES"
        };
        section((&mut text, options), title, &framed(takes(step, &beside.answers)));
    }
    let answer =
        status.answer.as_ref().map(|a| format!("{}\nby {} at {}", pretty(&a.value), inline(&a.by, 256), clock(a.at.0)));
    section((&mut text, options), "ANSWER", &framed(answer.unwrap_or_default()));
    let replies = status.questions.iter().filter_map(replied).collect::<String>();
    section((&mut text, options), "ASKED BY THE AGENT", &hanging(&replies, options.window));
    let requests = status.approval_requests.iter().map(requested).collect::<String>();
    section((&mut text, options), "ACTIONS REQUESTED BY THE AGENT", &hanging(&requests, options.window));
    section((&mut text, options), "PARAMETERS", &framed(parameters(step)));
    section((&mut text, options), "DOCUMENTS READ", &documents(step, &status, options));
    section((&mut text, options), "ATTEMPTS", &attempts(&status, options));
    section(
        (&mut text, options),
        "ORDERED",
        &hanging(&status.actions.iter().map(action).collect::<String>(), options.window),
    );
    let exchanged = matches!(beside.subject.trouble, Some(Trouble::Exchanged(_)));
    let reported = step.status.as_ref().is_some_and(|s| output::committed_report(s).is_some());
    let given = reported || step.spec.reuse.is_some();
    if let Some(output) = beside.subject.output.as_deref().filter(|_| given && !exchanged) {
        section((&mut text, options), "OUTPUT", &framed(pretty(output)));
    }
    text.push_str(&produced(&beside.subject, options));
    section((&mut text, options), "GATE", &hanging(&gate_facts(step, &status), options.window));
    section((&mut text, options), "ERROR", &error(&status, options));
    let refused = beside.refused.as_ref().map(|why| hanging(&format!("  {why}\n"), options.window));
    section((&mut text, options), "REFUSED LAST", &refused.unwrap_or_default());
    section((&mut text, options), "WAITS FOR YOU", &waits(step, beside.signature, options));
    text
}

/// Which answers a question takes, and until when.
fn takes(step: &StepRun, answers: &Answers) -> String {
    let mut text = match answers.schema() {
        Some(schema) => match asked::choices(schema).as_slice() {
            [] => format!("a value of this schema:\n{}", pretty(&serde_json::to_string(schema).unwrap_or_default())),
            choices => {
                let choices: Vec<String> = choices.iter().map(|choice| quote(choice)).collect();
                format!("one of {}", choices.join(", "))
            }
        },
        None if *answers == Answers::Free => "any text, or JSON".to_owned(),
        None => String::new(),
    };
    let wait = step.status.as_ref().and_then(|s| s.waiting_for.as_ref());
    let seconds = step.spec.ask.as_ref().and_then(|ask| ask.deadline_seconds);
    if let (Some(wait), Some(seconds)) = (wait, seconds)
        && let Ok(end) = wait.since.0.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(seconds))
    {
        text.push_str(&format!("\nuntil {}; then the step fails", clock(end)));
    }
    text.trim_start().to_owned()
}

/// What it waits for; commands stay whole, to be copied.
fn waits(step: &StepRun, signature: Option<Signature>, options: RenderOptions) -> String {
    if !(waits_at_gate(step) || waits_for_answer(step)) {
        return String::new();
    }
    let ways = signature.map_or(Ways::Asked, Ways::Kubectl);
    // The question stands above, and what it takes.
    let asked = step.status.as_ref().and_then(|s| s.waiting_for.as_ref());
    let asked = asked.filter(|_| wait::is_question(step) && !waits_at_gate(step));
    let said = asked.map_or(0, |wait| 1 + usize::from(wait.schema.is_some()));
    let mut text: String = wait::lines(step, ways).iter().skip(said).map(|line| line.folded(options)).collect();
    if let Some(line) = wait::unattended(step) {
        let line = Line::whole(format!("    {line}"), Style::Plain);
        text.push_str(&line.text(View { colours: options.colours, ..View::default() }));
        text.push('\n');
    }
    text
}

/// The document, or why there is none to be shown.
pub fn produced(subject: &Subject, options: RenderOptions) -> String {
    let mut text = String::new();
    match (&subject.trouble, &subject.document) {
        (Some(trouble), _) => {
            section(
                (&mut text, options),
                "DOCUMENT",
                &hanging(&format!("  {}\n", inline(trouble.text(), 600)), options.window),
            );
        }
        (None, Some(document)) => {
            let digest = document.status.as_ref().and_then(|s| s.digest.as_deref());
            let title = format!(
                "DOCUMENT {} ({}, {}{})",
                inline(&document.spec.document_type, 63),
                document.name_any(),
                document.status.as_ref().and_then(|s| s.phase).map_or_else(|| "new".to_owned(), |p| format!("{p:?}")),
                digest.map_or_else(String::new, |d| format!(", {}", short_digest(&inline(d, 80))))
            );
            let content = block(&document.spec.content, usize::MAX);
            let title = hanging(&title, options.window);
            section((&mut text, options), title.trim_end(), &framed(&content, "  | ", options.window));
        }
        (None, None) => {}
    }
    text
}

/// Whose work it was, and who accepted it there.
pub fn taken_over(step: &StepRun) -> Option<String> {
    let reuse = step.spec.reuse.as_ref()?;
    let by = match reuse.decided_by.as_slice() {
        [] => "nobody decided on it there".to_owned(),
        names => format!("accepted there by {}", inline(&names.join(", "), 1024)),
    };
    Some(format!("from StepRun {} ({}), {by}", inline(&reuse.step_run, 253), inline(&reuse.uid, 64)))
}

/// A question of the agent that was answered.
fn replied(asked: &AskedQuestion) -> Option<String> {
    let answer = asked.answer.as_ref()?;
    Some(format!(
        "  {}: {} by {} at {}, asked by attempt {}\n",
        inline(&asked.question, 400),
        inline(&answer.value, 400),
        inline(&answer.by, 256),
        clock(answer.at.0),
        asked.attempt
    ))
}

/// An action that the agent requested, what people decided, and whether it was done.
fn requested(request: &ApprovalRequest) -> String {
    let mut text = format!(
        "  {}: {} at the gate {}, {:?}, review {}\n",
        inline(&request.action, 400),
        inline(request.payload.as_deref().unwrap_or("no payload"), 400),
        inline(&request.gate_name, 63),
        request.gate.state,
        short_digest(&inline(&request.gate.output_digest, 80))
    );
    text.extend(request.gate.decisions.iter().map(decision));
    let used =
        request.used.as_ref().map(|used| format!("  used by attempt {} at {}\n", used.attempt, clock(used.at.0)));
    text.extend(used);
    text
}

fn action(one: &Action) -> String {
    let comment = one.comment.as_deref().map_or_else(String::new, |c| format!(": {}", inline(c, 4096)));
    format!(
        "  {} by {} at {}, after attempt {} ({:?}){comment}\n",
        one.action.past(),
        inline(&one.by, 256),
        clock(one.at.0),
        one.attempt,
        one.wait
    )
}

pub fn section((text, options): (&mut String, RenderOptions), title: &str, body: &str) {
    if !body.is_empty() {
        let title: Vec<String> = title.lines().map(|line| options.paint(Style::Bold, line)).collect();
        write!(text, "\n{}\n{body}", title.join("\n")).ok();
    }
}

fn head(step: &StepRun, status: &StepRunStatus, now: Timestamp, options: RenderOptions) -> String {
    let took = match (&status.started_at, &status.completed_at) {
        (Some(from), Some(to)) => format!(" after {}", elapsed(seconds_between(from, to.0))),
        (Some(from), None) => format!(" for {}", elapsed(seconds_between(from, now))),
        _ => String::new(),
    };
    let name = format!("{}/{}  ", inline(&step.spec.workflow.name, 253), inline(&label(step), 1024));
    let phase = status.phase.unwrap_or_default();
    let title = Line::of(vec![(name, Style::Bold), (phase.to_string(), of_phase(phase)), (took, Style::Plain)]);
    let mut text = title.folded(options) + "\n";
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let name = (format!("{name:<12}"), Style::Bold);
            text.push_str(&Line::of(vec![name, (inline(&value, 1024), Style::Plain)]).folded(options));
        }
    };
    fact("StepRun", Some(step.name_any()));
    let people = if step.spec.ask.is_some() { "a person, who answers" } else { "a person, who accepts" };
    let runs = !step.spec.agent_id.is_empty();
    fact(
        if runs { "Agent" } else { "Done by" },
        Some(if runs { step.spec.agent_id.clone() } else { people.to_owned() }),
    );
    fact("Taken over", taken_over(step));
    fact("Attempt", Some(status.attempt.to_string()).filter(|_| runs));
    fact("Journal", Some(format!("{:?}", claim::journal(status))).filter(|_| runs && step.spec.reuse.is_none()));
    fact("Round", Some(status.round.to_string()).filter(|_| status.round > 1));
    fact("Held up by", held::step(status));
    let agent = status.agent.clone().unwrap_or_default();
    let claimed = agent.claim.filter(|c| c.attempt == status.attempt);
    let progress = agent.progress.filter(|_| status.completed_at.is_none());
    let used = budget::used_by(status);
    fact("Used", Some(used.to_string()).filter(|_| used.is_some()));
    fact("Budget", budget::of_step(step).map(|limit| limit.told(&used)));
    fact("Pod", claimed.map(|c| c.pod_name));
    fact("Progress", progress.map(|p| format!("{}% {} (at {})", p.percent, p.message, clock(p.at.0))));
    text
}

fn parameters(step: &StepRun) -> String {
    match step.spec.parameters.trim() {
        "" | "{}" | "null" => String::new(),
        text => pretty(text),
    }
}

/// What the step requires, and what its agent has asked for in the current attempt.
fn documents(step: &StepRun, status: &StepRunStatus, options: RenderOptions) -> String {
    let asked_for = status.agent.as_ref().map(|agent| agent.documents_read.as_slice()).unwrap_or_default();
    if step.spec.documents.is_empty() && asked_for.is_empty() {
        return String::new();
    }
    let row = |kind: &str, name: &str, digest: &str| -> Vec<Cell> {
        vec![inline(kind, 300).into(), inline(name, 253).into(), short_digest(&inline(digest, 80)).into()]
    };
    let required = step.spec.documents.iter().take(100).map(|d| {
        let key = d.key.as_deref().map_or_else(String::new, |k| format!(" ({k})"));
        row(&format!("{}{key}", d.document_type), &d.name, &d.digest)
    });
    let asked_for = asked_for.iter().map(|d| row(&format!("{} (asked for)", d.document_type), &d.name, &d.digest));
    let rows: Vec<Vec<Cell>> = required.chain(asked_for).collect();
    let mut text = indent(&table(&["TYPE", "NAME", "DIGEST"], &rows, options.within(2)), "  ");
    if step.spec.documents.len() > 100 {
        writeln!(text, "  … {} more", step.spec.documents.len() - 100).ok();
    }
    text
}

fn attempts(status: &StepRunStatus, options: RenderOptions) -> String {
    if status.attempts.is_empty() {
        return String::new();
    }
    // The newest failure stands below, with the end of its log.
    let told = |a: &Attempt| status.error.as_ref().filter(|e| e.attempt == a.number).map(|e| e.message.as_str());
    let row = |a: &Attempt| {
        let message = a.message.as_deref().filter(|message| told(a) != Some(message)).unwrap_or_default();
        let style = match a.result {
            AttemptResult::Succeeded => Style::Good,
            AttemptResult::Asked => Style::Wait,
            _ => Style::Bad,
        };
        let took = |from: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| {
            elapsed(seconds_between(from, a.completed_at.0))
        };
        vec![
            a.number.to_string().into(),
            Cell::of(a.result.to_string(), style),
            a.exit_code.map_or_else(|| "-".to_owned(), |c| c.to_string()).into(),
            a.started_at.as_ref().map_or_else(|| "-".to_owned(), |t| clock(t.0)).into(),
            a.started_at.as_ref().map_or_else(|| "-".to_owned(), took).into(),
            inline(message, 400).into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = status.attempts.iter().map(row).collect();
    let heads = ["NO", "RESULT", "EXIT", "STARTED", "TOOK", "MESSAGE"];
    indent(&table(&heads, &rows, options.within(2)), "  ")
}

fn gate_facts(step: &StepRun, status: &StepRunStatus) -> String {
    let Some(spec) = &step.spec.gate else {
        return String::new();
    };
    let Some(gate) = &status.gate else {
        return format!("  {}: not open yet\n", inline(&spec.name, 63));
    };
    let so_far = so_far(step).map_or_else(String::new, |so_far| format!(", {so_far} accepted"));
    let mut text = format!(
        "  {}: {:?}, round {}{so_far}, since {}\n  review {}\n",
        inline(&spec.name, 63),
        gate.state,
        gate.round,
        clock(gate.opened_at.0),
        inline(&gate.output_digest, 80)
    );
    text.extend(settled(gate));
    text.extend(gate.decisions.iter().map(decision));
    text
}

/// All who made the gate what it is, in one line; one alone is told with what they said.
fn settled(open: &GateStatus) -> Option<String> {
    let word = match open.state {
        GateState::Accepted => "accepted",
        GateState::Rejected => "rejected",
        GateState::Waiting | GateState::Closed | GateState::NotRequired => return None,
    };
    let by = gate::decided_by(open).unwrap_or_else(|| "nobody: its time ran out".to_owned());
    let alone = matches!(open.decisions.as_slice(), [one] if one.decided_by == by);
    (!alone).then(|| format!("  {word} by {}\n", inline(&by, 1024)))
}

pub fn decision(one: &Decision) -> String {
    let word = if one.accepted { "accepted" } else { "rejected" };
    let comment = one
        .comment
        .as_deref()
        .filter(|c| !c.trim().is_empty())
        .map_or_else(String::new, |c| format!(": {}", inline(c, 4096)));
    format!(
        "  {word} by {} at {}, round {}{comment}\n",
        inline(&one.decided_by, 256),
        clock(one.decided_at.0),
        one.round
    )
}

fn error(status: &StepRunStatus, options: RenderOptions) -> String {
    let Some(error) = &status.error else {
        return String::new();
    };
    let code = error.exit_code.map_or_else(String::new, |c| format!(", exit {c}"));
    let line = format!("  {} in attempt {}{code}: {}\n", error.class, error.attempt, inline(&error.message, 1024));
    let mut text = hanging(&line, options.window);
    if let Some(tail) = &error.log_tail {
        text.push_str(&framed(&block(tail, 8192), "  | ", options.window));
    }
    text
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "objects are built in place")]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn step(more: Value, status: Value) -> StepRun {
        let mut spec = json!({"workflow": {"name": "shop", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "plan", "agentId": "planner", "parameters": "{}", "inputDigest": "d"});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": "shop-plan-1", "namespace": "n", "uid": "s"}, "spec": spec, "status": status}))
        .expect("a step")
    }

    const AT: &str = "2026-11-21T10:00:00Z";

    fn now() -> Timestamp {
        "2026-11-21T10:01:00Z".parse().expect("a time")
    }

    #[test]
    fn the_page_says_who_did_what() {
        let decision = |by: &str| {
            json!({"documentType": "plan", "scopeId": "u", "accepted": true, "decidedBy": by,
            "decidedAt": AT, "digest": "sha256:r", "round": 1})
        };
        let status = json!({"phase": "Completed",
            "gate": {"state": "Accepted", "round": 1, "outputDigest": "sha256:review", "openedAt": AT, "policy": "p",
                "decisions": [decision("ann"), decision("bob")]},
            "actions": [{"action": "retry", "wait": "RetriesSpent", "attempt": 3, "by": "eve", "at": AT, "comment": "try \u{202e}v2"}]});
        let spec = json!({"gate": {"name": "plan", "approvals": 2},
            "reuse": {"stepRun": "old-plan-1", "uid": "o", "digest": "d", "decidedBy": ["carl", "dora"]}});
        let page = page(&step(spec, status), &Beside::default(), now(), RenderOptions::default());
        for line in [
            "Taken over  from StepRun old-plan-1 (o), accepted there by carl, dora",
            "  retried by eve at 2026-11-21T10:00:00Z, after attempt 3 (RetriesSpent): try \\u{202e}v2",
            "  review sha256:review",
            "  accepted by ann, bob",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }

    #[test]
    fn a_question_says_what_it_takes_and_what_was_refused() {
        let wait = json!({"id": "1", "kind": "Question", "question": "How much?", "options": [], "since": AT});
        let spec = json!({"agentId": "", "ask": {"name": "plan", "question": "How much?", "deadlineSeconds": 60}});
        let step = step(spec, json!({"phase": "WaitingForInput", "waitingFor": wait}));
        let schema = |text: Value| Answers::Of(text.as_object().cloned().unwrap_or_default());
        let told = |answers: Answers, refused: Option<&str>| {
            let refused = refused.map(str::to_owned);
            let beside = Beside { answers, refused, signature: Some(Signature::Stamped), ..Beside::default() };
            page(&step, &beside, now(), RenderOptions::default())
        };
        let number = told(schema(json!({"type": "integer", "minimum": 1})), Some("2026-11-21T10:00:30Z: less than 1"));
        for line in [
            "Done by     a person, who answers",
            "  a value of this schema:",
            "    \"minimum\": 1",
            "  until 2026-11-21T10:01:00Z; then the step fails",
            "  2026-11-21T10:00:30Z: less than 1",
            "    kubectl lockstep -n n answer shop/plan ANSWER",
            "    kubectl -n n annotate steprun shop-plan-1 lockstep.dev/answer=ANSWER",
        ] {
            assert!(number.lines().any(|l| l == line), "{line}\n{number}");
        }
        assert_eq!(number.matches("How much?").count(), 1, "{number}");
        assert!(told(schema(json!({"enum": ["a b", "c"]})), None).contains("  one of 'a b', c\n"));
        assert!(told(Answers::Free, None).contains("  any text, or JSON\n"));
        assert!(!told(Answers::Unknown, None).contains("schema"));
    }

    #[test]
    fn what_holds_a_step_up_stands_at_its_head() {
        let started = json!({"type": "Started", "status": "False", "reason": "PodNotReady",
            "message": "ErrImagePull: no such image", "lastTransitionTime": AT});
        let step = step(json!({}), json!({"phase": "Running", "startedAt": AT, "conditions": [started]}));
        let page = page(&step, &Beside::default(), now(), RenderOptions::default());
        assert!(page.starts_with("shop/plan  Running for 1m00s\n"), "{page}");
        assert!(page.lines().any(|l| l == "Held up by  PodNotReady: ErrImagePull: no such image"), "{page}");
    }
}
