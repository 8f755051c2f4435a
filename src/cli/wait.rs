//! What a step waits for, as people read it: who may end the wait, and the commands, ready to paste.

use kube::ResourceExt;

use super::line::{Line, View};
use super::target::{label, waits_at_gate, waits_for_answer};
use super::text::{Style, inline, quote};
use crate::api::name::{ACTION, ANSWER, DECIDED_BY, DECISION, REVIEW};
use crate::api::step_run::WaitKind;
use crate::api::{StepRun, Workflow};

/// Before what the author of the run says: it stands among commands, and is none.
pub const MARGIN: &str = "    | ";

/// The steps of this run that wait for people.
pub fn open<'a>(run: &Workflow, steps: &'a [StepRun]) -> Vec<&'a StepRun> {
    let uid = run.uid().unwrap_or_default();
    let mut open: Vec<&StepRun> = steps
        .iter()
        .filter(|s| uid.is_empty() || s.spec.workflow.uid == uid)
        .filter(|s| waits_at_gate(s) || waits_for_answer(s))
        .collect();
    let listed = run.status.as_ref().map_or(&[][..], |s| &s.steps);
    open.sort_by_key(|step| {
        let place = listed.iter().position(|l| l.path == step.spec.path);
        let index = step.spec.item.as_ref().map_or(-1, |item| item.index);
        (place.unwrap_or(usize::MAX), index)
    });
    open
}

/// Whether it asks a question of its own, not what becomes of it.
pub fn is_question(step: &StepRun) -> bool {
    let kind = step.status.as_ref().and_then(|s| s.waiting_for.as_ref()).map(|w| w.kind);
    step.spec.ask.is_some() && kind == Some(WaitKind::Question)
}

/// What one step waits for, who may end it, and the commands.
pub fn lines(step: &StepRun) -> Vec<Line> {
    let name = format!("{}/{}", step.spec.workflow.name, label(step));
    let mut lines = Vec::new();
    if waits_at_gate(step) {
        lines.push(Line::of(vec![
            ("◆ ".to_owned(), Style::Wait),
            (inline(&name, 600), Style::Bold),
            (" waits for acceptance by ".to_owned(), Style::Plain),
            (inline(&who(step), 600), Style::Plain),
        ]));
        let message = step.spec.gate.as_ref().and_then(|g| g.message.as_deref());
        lines.extend(message.map(|m| Line::plain(format!("{MARGIN}{}", inline(m, 1024)))));
    } else if let Some(wait) = step.status.as_ref().and_then(|s| s.waiting_for.as_ref()) {
        lines.push(Line::of(vec![
            ("? ".to_owned(), Style::Wait),
            (inline(&name, 600), Style::Bold),
            (" waits for an answer: ".to_owned(), Style::Plain),
            (inline(&wait.question, 600), Style::Plain),
        ]));
    }
    lines.extend(commands(step).iter().map(|c| Line::whole(format!("    {c}"), Style::Plain)));
    lines.extend(otherwise(step).map(|o| Line::whole(format!("    {}", inline(&o, 1024)), Style::Dim)));
    lines
}

/// The same as text, for pages.
pub fn text(step: &StepRun, view: View) -> String {
    lines(step).iter().flat_map(|line| [line.text(view), "\n".to_owned()]).collect()
}

fn who(step: &StepRun) -> String {
    let gate = step.spec.gate.as_ref();
    let right = format!("who may approve gates/{}", gate.map_or("", |g| g.name.as_str()));
    let acceptors = gate.and_then(|g| g.acceptors.clone()).unwrap_or_default();
    let list = |kind: &str, names: &[String]| match names {
        [] => None,
        [one] => Some(format!("{kind} {one}")),
        several => Some(format!("{kind}s {}", several.join(", "))),
    };
    let named: Vec<String> =
        list("user", &acceptors.users).into_iter().chain(list("group", &acceptors.groups)).collect();
    if named.is_empty() { format!("all {right}") } else { format!("{}, {right}", named.join(" and ")) }
}

/// The person's own name, for clusters that do not stamp it.
const WHOAMI: &str = "\"$(kubectl auth whoami -o jsonpath='{.status.userInfo.username}')\"";

/// Plain kubectl first, then this plugin.
fn commands(step: &StepRun) -> Vec<String> {
    let Some(status) = &step.status else {
        return Vec::new();
    };
    let (plain, own, target) = callers(step);
    if waits_at_gate(step) {
        let digest = status.gate.as_ref().map_or("", |g| g.output_digest.as_str());
        return vec![
            format!("{plain} {DECISION}=accepted {REVIEW}={} {DECIDED_BY}={WHOAMI}", quote(digest)),
            format!("{own} approve {target}"),
        ];
    }
    let Some(wait) = &status.waiting_for else {
        return Vec::new();
    };
    let question = is_question(step);
    let (key, unless_told) = if question { (ANSWER, "ANSWER") } else { (ACTION, "retry") };
    let first = quote(wait.options.first().map_or(unless_told, String::as_str));
    let mut commands: Vec<String> = wait.commands.iter().map(|c| inline(c, 1024)).collect();
    if commands.is_empty() {
        commands.push(format!("{plain} {key}={first} {DECIDED_BY}={WHOAMI}"));
    }
    if !commands.iter().any(|c| c.starts_with("kubectl lockstep")) {
        commands.push(format!("{own} answer {target} {first}"));
    }
    commands
}

/// How to accept where nobody can be asked: with the digest of what was read.
pub fn unattended(step: &StepRun) -> Option<String> {
    let gate = step.status.as_ref()?.gate.as_ref().filter(|_| waits_at_gate(step))?;
    let (_, own, target) = callers(step);
    Some(format!("where nobody can be asked: {own} approve {target} --review {}", quote(&gate.output_digest)))
}

/// What else may be said, in words: shells differ in whether a pasted comment is one.
fn otherwise(step: &StepRun) -> Option<String> {
    let (_, own, target) = callers(step);
    if waits_at_gate(step) {
        return Some(format!("to reject: {own} reject {target} -m WHY"));
    }
    let wait = step.status.as_ref()?.waiting_for.as_ref()?;
    let (first, others) = wait.options.split_first()?;
    (!others.is_empty() && wait.commands.is_empty())
        .then(|| format!("or {} in the place of {first}", others.join(", ")))
}

/// The beginnings of the commands, and the target as a word of the shell.
fn callers(step: &StepRun) -> (String, String, String) {
    let namespace = step.namespace().unwrap_or_default();
    (
        format!("kubectl -n {namespace} annotate steprun {}", step.name_any()),
        format!("kubectl lockstep -n {namespace}"),
        quote(&format!("{}/{}", step.spec.workflow.name, label(step))),
    )
}
