//! The page of one step.

#![expect(clippy::disallowed_methods, reason = "ages are shown relative to now")]

use kube::ResourceExt;
use std::fmt::Write as _;

use super::connect::Connection;
use super::difference::{self, Look};
use super::fault::{Code, Fault};
use super::line::{Line, View};
use super::print;
use super::print::put;
use super::rows::so_far;
use super::subject::{self, Subject, Trouble};
use super::target::{label, waits_at_gate, waits_for_answer};
use super::text::{
    age, block, clock, colours, elapsed, framed, hanging, indent, inline, reader, seconds_between, short_digest, table,
};
use super::wait;
use crate::api::limits::DOCUMENT_BYTES;
use crate::api::step_run::{Action, Attempt, Decision, GateState, GateStatus};
use crate::api::{Document, StepRun, StepRunStatus};
use crate::decide::{gate, output};

pub async fn show(on: &Connection, step: &StepRun) -> Result<Code, Fault> {
    if !on.output.is_text() {
        print::object(on.output, "StepRun", step)?;
        return Ok(Code::Done);
    }
    let subject = subject::load(on, step).await?;
    put(&page(step, &subject, Look { window: reader(), colours: colours() }))?;
    match &subject.trouble {
        Some(trouble @ Trouble::Exchanged(_)) => Err(Fault::new(Code::Exchanged, trouble.text())),
        Some(trouble @ Trouble::Gone(_)) if waits_at_gate(step) => Err(Fault::new(Code::Exchanged, trouble.text())),
        _ => Ok(Code::Done),
    }
}

/// What a reviewer decides on, whole: output and document, and what changed since the round before.
pub fn under_review(step: &StepRun, subject: &Subject, before: Option<&Document>, look: Look) -> String {
    let gate = step.spec.gate.as_ref().map_or("", |g| g.name.as_str());
    let status = step.status.clone().unwrap_or_default();
    let open = status.gate.as_ref();
    let mut text = format!(
        "{}/{}  gate {}, round {}\nreview {}\n",
        inline(&step.spec.workflow.name, 253),
        inline(&label(step), 1024),
        inline(gate, 63),
        open.map_or(1, |g| g.round),
        inline(open.map_or("", |g| &g.output_digest), 80),
    );
    let message = step.spec.gate.as_ref().and_then(|g| g.message.as_deref());
    section(&mut text, "ASKED", &framed(&block(message.unwrap_or_default(), 4096), "  ", look.window));
    section(
        &mut text,
        "TAKEN OVER",
        &taken_over(step).map_or_else(String::new, |taken| framed(&taken, "  ", look.window)),
    );
    let alone = step.spec.agent_id.is_empty() && step.spec.ask.is_none() && step.spec.reuse.is_none();
    let title = if alone { "PARAMETERS" } else { "OUTPUT" };
    let output = subject.output.as_deref().map(pretty);
    section(&mut text, title, &framed(&output.unwrap_or_default(), "  ", look.window));
    text.push_str(&produced(subject, look));
    let mut text = hanging(&text, look.window);
    if let (Some(before), Some(now)) = (before, &subject.document) {
        let title = format!(
            "CHANGED SINCE ROUND {} (from {})",
            open.map_or(1, |g| g.round) - 1,
            inline(&before.name_any(), 253)
        );
        let changed = difference::lines(&before.spec.content, &now.spec.content, look);
        section(&mut text, &title, &changed.unwrap_or_else(|| "  nothing\n".to_owned()));
    }
    let decided: String = open.map_or_else(String::new, |g| g.decisions.iter().map(decision).collect());
    section(&mut text, "DECIDED SO FAR", &hanging(&decided, look.window));
    text
}

/// JSON text, a member a line, as it is where it is none. Nothing of it is read and written anew: a name that stands
/// twice is shown twice.
fn pretty(text: &str) -> String {
    let lines = serde_json::from_str::<serde::de::IgnoredAny>(text).ok().and_then(|_| spread(text));
    block(lines.as_deref().unwrap_or(text), usize::MAX)
}

/// Valid JSON with its line ends; none where indenting would make it far too long.
fn spread(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() * 2);
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    let mut chars = text.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(c) = chars.next() {
        if out.len() > 4 * DOCUMENT_BYTES {
            return None;
        }
        if quoted {
            out.push(c);
            quoted = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            ' ' | '\n' | '\r' | '\t' => {}
            '"' => {
                quoted = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = chars.next_if(|c| matches!(c, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => out.push(c),
        }
    }
    Some(out)
}

fn page(step: &StepRun, subject: &Subject, look: Look) -> String {
    let status = step.status.clone().unwrap_or_default();
    let framed = |text: String| framed(&text, "  ", look.window);
    let mut text = head(step, &status);
    let question = step.spec.ask.as_ref().map(|ask| block(&ask.question, 4096));
    section(&mut text, "QUESTION", &framed(question.unwrap_or_default()));
    let answer =
        status.answer.as_ref().map(|a| format!("{}\nby {} at {}", pretty(&a.value), inline(&a.by, 256), clock(a.at.0)));
    section(&mut text, "ANSWER", &framed(answer.unwrap_or_default()));
    section(&mut text, "PARAMETERS", &framed(parameters(step)));
    section(&mut text, "DOCUMENTS READ", &documents(step));
    section(&mut text, "ATTEMPTS", &attempts(&status.attempts));
    section(&mut text, "ORDERED", &status.actions.iter().map(action).collect::<String>());
    let exchanged = matches!(subject.trouble, Some(Trouble::Exchanged(_)));
    let reported = step.status.as_ref().is_some_and(|s| output::committed_report(s).is_some());
    let given = reported || step.spec.reuse.is_some();
    if let Some(output) = subject.output.as_deref().filter(|_| given && !exchanged) {
        section(&mut text, "OUTPUT", &framed(pretty(output)));
    }
    text.push_str(&produced(subject, look));
    section(&mut text, "GATE", &gate_facts(step, &status));
    section(&mut text, "ERROR", &error(&status, look));
    let mut text = hanging(&text, look.window);
    if waits_at_gate(step) || waits_for_answer(step) {
        let unattended = wait::unattended(step).map_or_else(String::new, |line| format!("    {line}\n"));
        section(&mut text, "WAITS FOR YOU", &format!("{}{unattended}", waits(step, look)));
    }
    text
}

/// What it waits for; commands stay whole, to be copied.
fn waits(step: &StepRun, look: Look) -> String {
    let view = View { colours: look.colours, ..View::default() };
    let row = |line: &Line| {
        if look.window.is_none_or(|window| !line.is_wider(window)) {
            return line.text(view) + "\n";
        }
        let text = line.text(View::default());
        match text.strip_prefix(wait::MARGIN) {
            Some(words) => framed(words, wait::MARGIN, look.window),
            None => hanging(&text, look.window),
        }
    };
    wait::lines(step).iter().map(row).collect()
}

/// The document, or why there is none to be shown.
fn produced(subject: &Subject, look: Look) -> String {
    let mut text = String::new();
    match (&subject.trouble, &subject.document) {
        (Some(trouble), _) => section(&mut text, "DOCUMENT", &format!("  {}\n", inline(trouble.text(), 600))),
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
            section(&mut text, &title, &framed(&content, "  | ", look.window));
        }
        (None, None) => {}
    }
    text
}

/// Whose work it was, and who accepted it there.
fn taken_over(step: &StepRun) -> Option<String> {
    let reuse = step.spec.reuse.as_ref()?;
    let by = match reuse.decided_by.as_slice() {
        [] => "nobody decided on it there".to_owned(),
        names => format!("accepted there by {}", inline(&names.join(", "), 1024)),
    };
    Some(format!("from StepRun {} ({}), {by}", inline(&reuse.step_run, 253), inline(&reuse.uid, 64)))
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

fn section(text: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        write!(text, "\n{title}\n{body}").ok();
    }
}

fn head(step: &StepRun, status: &StepRunStatus) -> String {
    let took = match (&status.started_at, &status.completed_at) {
        (Some(from), Some(to)) => format!(" after {}", elapsed(seconds_between(from, to.0))),
        (Some(from), None) => format!(" for {}", age(Some(from), k8s_openapi::jiff::Timestamp::now())),
        _ => String::new(),
    };
    let mut text = format!(
        "{}/{}  {}{took}\n\n",
        inline(&step.spec.workflow.name, 253),
        inline(&label(step), 1024),
        status.phase.unwrap_or_default()
    );
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            writeln!(text, "{name:<12}{}", inline(&value, 600)).ok();
        }
    };
    fact("StepRun", Some(step.name_any()));
    let people = if step.spec.ask.is_some() { "nobody but who answers" } else { "nobody but who accepts" };
    let runs = !step.spec.agent_id.is_empty();
    fact("Agent", Some(if runs { step.spec.agent_id.clone() } else { people.to_owned() }));
    fact("Taken over", taken_over(step));
    fact("Attempt", Some(status.attempt.to_string()).filter(|_| runs));
    fact("Round", Some(status.round.to_string()).filter(|_| status.round > 1));
    let agent = status.agent.clone().unwrap_or_default();
    let claim = agent.claim.filter(|c| c.attempt == status.attempt);
    fact("Pod", claim.map(|c| c.pod_name));
    let progress = agent.progress.filter(|_| status.completed_at.is_none());
    fact("Progress", progress.map(|p| format!("{}% {} (at {})", p.percent, p.message, clock(p.at.0))));
    text
}

fn parameters(step: &StepRun) -> String {
    match step.spec.parameters.trim() {
        "" | "{}" | "null" => String::new(),
        text => pretty(text),
    }
}

fn documents(step: &StepRun) -> String {
    if step.spec.documents.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = step
        .spec
        .documents
        .iter()
        .take(100)
        .map(|d| {
            let key = d.key.as_deref().map_or_else(String::new, |k| format!(" ({k})"));
            vec![
                inline(&format!("{}{key}", d.document_type), 300),
                inline(&d.name, 253),
                short_digest(&inline(&d.digest, 80)),
            ]
        })
        .collect();
    let mut text = indent(&table(&["TYPE", "NAME", "DIGEST"], &rows), "  ");
    if step.spec.documents.len() > 100 {
        writeln!(text, "  … {} more", step.spec.documents.len() - 100).ok();
    }
    text
}

fn attempts(all: &[Attempt]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|a| {
            vec![
                a.number.to_string(),
                a.result.to_string(),
                a.exit_code.map_or_else(|| "-".to_owned(), |c| c.to_string()),
                a.started_at.as_ref().map_or_else(|| "-".to_owned(), |t| clock(t.0)),
                a.started_at.as_ref().map_or_else(|| "-".to_owned(), |t| elapsed(seconds_between(t, a.completed_at.0))),
                inline(a.message.as_deref().unwrap_or_default(), 400),
            ]
        })
        .collect();
    let heads = ["NO", "RESULT", "EXIT", "STARTED", "TOOK", "MESSAGE"];
    indent(&table(&heads, &rows), "  ")
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

/// All who made the gate what it is, in one line.
fn settled(open: &GateStatus) -> Option<String> {
    let word = match open.state {
        GateState::Accepted => "accepted",
        GateState::Rejected => "rejected",
        GateState::Waiting | GateState::Closed | GateState::NotRequired => return None,
    };
    let by = gate::decided_by(open).unwrap_or_else(|| "nobody: its time ran out".to_owned());
    Some(format!("  {word} by {}\n", inline(&by, 1024)))
}

fn decision(one: &Decision) -> String {
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

fn error(status: &StepRunStatus, look: Look) -> String {
    let Some(error) = &status.error else {
        return String::new();
    };
    let code = error.exit_code.map_or_else(String::new, |c| format!(", exit {c}"));
    let mut text = format!("  {} in attempt {}{code}: {}\n", error.class, error.attempt, inline(&error.message, 1024));
    if let Some(tail) = &error.log_tail {
        text.push_str(&framed(&block(tail, 8192), "  | ", look.window));
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

    fn document(content: &str) -> Document {
        let spec = json!({"type": "plan", "scope": "Workflow", "content": content});
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Document",
            "metadata": {"name": "doc"}, "spec": spec}))
        .expect("a document")
    }

    const AT: &str = "2026-11-21T10:00:00Z";

    #[test]
    fn json_is_spread_and_nothing_of_it_lost() {
        for (text, expected) in [
            (r#"{"a":1,"a":[2,{}],"b":[ ]}"#, "{\n  \"a\": 1,\n  \"a\": [\n    2,\n    {}\n  ],\n  \"b\": []\n}"),
            (
                r#"{"a, {b":"\",[","n":12345678901234567890123}"#,
                "{\n  \"a, {b\": \"\\\",[\",\n  \"n\": 12345678901234567890123\n}",
            ),
            ("not JSON, {", "not JSON, {"),
            ("\"\u{202e}x\"", "\"\\u{202e}x\""),
            ("7", "7"),
        ] {
            assert_eq!(pretty(text), expected);
        }
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert!(pretty(&deep).lines().count() > 100);
        let wide = format!("{}{}{}", "[".repeat(100), vec!["1"; 200_000].join(","), "]".repeat(100));
        assert_eq!(pretty(&wide), wide, "indented it would be a hundred times as long");
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
        let page = page(&step(spec, status), &Subject::default(), Look::default());
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
    fn what_is_under_review_is_shown_whole_and_what_was_exchanged_is_not() {
        let gate =
            json!({"state": "Waiting", "round": 2, "outputDigest": "sha256:review", "openedAt": AT, "policy": "p"});
        let step = step(
            json!({"gate": {"name": "plan", "message": "Is it right?"}}),
            json!({"phase": "WaitingForAcceptance", "gate": gate}),
        );
        let long = (0..2000).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n") + "\n";
        let mut subject =
            Subject { output: Some("{\"a\":1}".to_owned()), document: Some(document(&long)), trouble: None };
        let before = document(&long.replace("line 7\n", "line seven\n"));
        let text = under_review(&step, &subject, Some(&before), Look { window: Some(40), colours: false });
        for line in [
            "shop/plan  gate plan, round 2",
            "review sha256:review",
            "  Is it right?",
            "    \"a\": 1",
            "  | line 0",
            "  | line 1999",
            "CHANGED SINCE ROUND 1 (from doc)",
            "  - line seven",
            "  + line 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}");
        }
        subject.trouble = Some(Trouble::Exchanged("it was exchanged".to_owned()));
        for text in [page(&step, &subject, Look::default()), under_review(&step, &subject, None, Look::default())] {
            assert!(text.contains("it was exchanged") && !text.contains("line 1999"));
        }
    }
}
