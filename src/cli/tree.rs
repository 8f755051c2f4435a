//! A run as a tree of lines: pure, from objects and a time to text.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::rows::{Row, rows, waits_at_gate, waits_for_answer};
use super::target::label;
use super::text::{self, Style, elapsed, inline, quote, seconds_between};
use crate::api::condition;
use crate::api::name::{ACTION, DECIDED_BY, DECISION, REVIEW};
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow};

/// What the reader's window can take.
#[derive(Clone, Copy, Debug, Default)]
pub struct View {
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub colours: bool,
}

/// Pieces of one line, and whether it may be cut.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pieces: Vec<(String, Style)>,
    whole: bool,
}

impl Line {
    fn of(pieces: Vec<(String, Style)>) -> Self {
        Self {
            pieces,
            whole: false,
        }
    }

    fn plain(text: String) -> Self {
        Self::of(vec![(text, Style::Plain)])
    }

    /// To be copied: never cut.
    fn command(text: &str) -> Self {
        Self {
            pieces: vec![(format!("    {text}"), Style::Plain)],
            whole: true,
        }
    }

    fn text(&self, view: View) -> String {
        let filled = self
            .pieces
            .iter()
            .rposition(|(piece, _)| !piece.trim().is_empty());
        let pieces = &self.pieces[..filled.map_or(0, |at| at + 1)];
        let total = self.width();
        let mut left = match view.width {
            Some(width) if !self.whole && total > width => width.saturating_sub(1),
            _ => usize::MAX,
        };
        let is_cut = left < usize::MAX;
        let mut out = String::new();
        for (at, (piece, style)) in pieces.iter().enumerate() {
            let piece = if at + 1 == pieces.len() {
                piece.trim_end()
            } else {
                piece
            };
            let piece = text::head(piece, left);
            left = left.saturating_sub(text::width(piece));
            if view.colours && !piece.is_empty() {
                out.push_str(&style.paint(piece));
            } else {
                out.push_str(piece);
            }
        }
        if is_cut {
            out.push('…');
        }
        out
    }

    fn width(&self) -> usize {
        self.pieces
            .iter()
            .map(|(piece, _)| text::width(piece))
            .sum()
    }

    /// Rows of the window that it takes.
    fn rows(&self, view: View) -> usize {
        let width = self.width();
        match view.width {
            Some(columns) if self.whole && columns > 0 => width.div_ceil(columns).max(1),
            _ => 1,
        }
    }
}

/// Lines as they are printed, and the rows that they take.
#[derive(Clone, Debug, Default)]
pub struct Drawn {
    pub lines: Vec<String>,
    pub rows: usize,
}

/// The run, its steps, and below them what waits for people.
pub fn draw(run: &Workflow, steps: &[StepRun], now: Timestamp, view: View) -> Drawn {
    let head = run_line(run, now);
    let body = body(run, steps, now);
    let waits: Vec<Vec<Line>> = open(run, steps).into_iter().map(wait).collect();
    let lines = fit(head, body, waits, view);
    Drawn {
        rows: lines.iter().map(|line| line.rows(view)).sum(),
        lines: lines.iter().map(|line| line.text(view)).collect(),
    }
}

/// Leaves lines out, in the middle, where the window is too low: what is redrawn must not scroll.
fn fit(head: Line, mut body: Vec<Line>, waits: Vec<Vec<Line>>, view: View) -> Vec<Line> {
    let taken = |lines: &[Line]| lines.iter().map(|line| line.rows(view)).sum::<usize>();
    let room = view
        .height
        .map_or(usize::MAX, |height| height.saturating_sub(2));
    let mut tail: Vec<Line> = Vec::new();
    let mut left_out = 0;
    for (at, block) in waits.into_iter().enumerate() {
        if at > 0 && taken(&tail) + taken(&block) > room / 2 {
            left_out += 1;
        } else {
            tail.extend(block);
        }
    }
    if left_out > 0 {
        tail.push(Line::plain(format!(
            "… {left_out} more wait: kubectl lockstep inbox"
        )));
    }
    let for_body = room.saturating_sub(1 + taken(&tail)).max(3);
    if body.len() > for_body {
        let hidden = body.len() - for_body + 1;
        let from = (for_body - 1) / 2;
        body.splice(
            from..from + hidden,
            [Line::plain(format!("  … {hidden} more lines"))],
        );
    }
    std::iter::once(head).chain(body).chain(tail).collect()
}

fn run_line(run: &Workflow, now: Timestamp) -> Line {
    let status = run.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    let started = status.started_at.as_ref();
    let until = status.completed_at.as_ref().map_or(now, |at| at.0);
    let took = started.map_or_else(String::new, |at| elapsed(seconds_between(at, until)));
    let mut notes = Vec::new();
    if let Some(waiting) = status.waiting.filter(|w| !w.summary.is_empty()) {
        notes.push(format!("waits for {}", waiting.summary));
    }
    if !status.pending_documents.is_empty() {
        notes.push(format!("lacks {}", status.pending_documents.join(", ")));
    }
    if let Some(succeeded) = condition::get(&status.conditions, "Succeeded")
        && matches!(phase, Phase::Failed | Phase::Cancelled | Phase::Pending)
    {
        notes.push(format!("{}: {}", succeeded.reason, succeeded.message));
    }
    if status.phase.is_none() {
        notes.push("no operator has seen it yet; see kubectl lockstep version".to_owned());
    }
    Line::of(vec![
        (format!("{}  ", run.name_any()), Style::Bold),
        (format!("{phase}  "), style(phase)),
        (format!("{took}  "), Style::Plain),
        (inline(&notes.join("; "), 600), Style::Dim),
    ])
}

fn body(run: &Workflow, steps: &[StepRun], now: Timestamp) -> Vec<Line> {
    let rows = rows(run, steps);
    let name_width = |row: &Row| text::width(&row.name) + 2 * row.depth;
    let names = rows.iter().map(name_width).max().unwrap_or(0).min(40);
    let phases = rows.iter().map(|row| row.phase.to_string().len()).max();
    let widths = (names, phases.unwrap_or(0));
    rows.iter().map(|row| row_line(row, widths, now)).collect()
}

fn row_line(row: &Row, (names, phases): (usize, usize), now: Timestamp) -> Line {
    let until = row.completed.as_ref().map_or(now, |at| at.0);
    let took = row
        .started
        .as_ref()
        .map_or_else(String::new, |at| elapsed(seconds_between(at, until)));
    let mut detail = row.detail.clone();
    if let Some(at) = &row.not_before
        && row.phase == Phase::Pending
        && at.0 > now
    {
        let again = format!("again in {}", elapsed(at.0.duration_since(now).as_secs()));
        detail = if detail.is_empty() {
            again
        } else {
            format!("{again}; {detail}")
        };
    }
    let indent = "  ".repeat(row.depth);
    Line::of(vec![
        (format!("  {indent}{} ", glyph(row.phase)), style(row.phase)),
        (
            format!(
                "{}  ",
                text::pad(&row.name, names.saturating_sub(2 * row.depth))
            ),
            Style::Plain,
        ),
        (
            format!("{}  ", text::pad(&row.phase.to_string(), phases)),
            style(row.phase),
        ),
        (format!("{}  ", text::pad(&took, 6)), Style::Plain),
        (detail, Style::Dim),
    ])
}

fn glyph(phase: Phase) -> char {
    match phase {
        Phase::Pending => '○',
        Phase::Running => '●',
        Phase::WaitingForInput => '?',
        Phase::WaitingForAcceptance => '◆',
        Phase::WaitingForDocuments => '◇',
        Phase::Completed => '✓',
        Phase::Failed => '✗',
        Phase::Cancelled => '⊘',
    }
}

fn style(phase: Phase) -> Style {
    match phase {
        Phase::Pending | Phase::Cancelled => Style::Dim,
        Phase::Running => Style::Busy,
        Phase::Completed => Style::Good,
        Phase::Failed => Style::Bad,
        _ => Style::Wait,
    }
}

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

/// What one step waits for, who may end it, and the commands.
pub fn wait(step: &StepRun) -> Vec<Line> {
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
        lines.extend(message.map(|m| Line::plain(format!("    {}", inline(m, 1024)))));
    } else if let Some(wait) = step.status.as_ref().and_then(|s| s.waiting_for.as_ref()) {
        lines.push(Line::of(vec![
            ("? ".to_owned(), Style::Wait),
            (inline(&name, 600), Style::Bold),
            (" waits for an answer: ".to_owned(), Style::Plain),
            (inline(&wait.question, 600), Style::Plain),
        ]));
    }
    lines.extend(commands(step).iter().map(|c| Line::command(c)));
    lines.extend(
        otherwise(step).map(|o| Line::of(vec![(format!("    {}", inline(&o, 1024)), Style::Dim)])),
    );
    lines
}

/// The same as text, for pages.
pub fn wait_text(step: &StepRun, view: View) -> String {
    wait(step)
        .iter()
        .flat_map(|line| [line.text(view), "\n".to_owned()])
        .collect()
}

fn who(step: &StepRun) -> String {
    let gate = step.spec.gate.as_ref();
    let right = format!(
        "who may approve gates/{}",
        gate.map_or("", |g| g.name.as_str())
    );
    let acceptors = gate.and_then(|g| g.acceptors.clone()).unwrap_or_default();
    let list = |kind: &str, names: &[String]| match names {
        [] => None,
        [one] => Some(format!("{kind} {one}")),
        several => Some(format!("{kind}s {}", several.join(", "))),
    };
    let named: Vec<String> = list("user", &acceptors.users)
        .into_iter()
        .chain(list("group", &acceptors.groups))
        .collect();
    if named.is_empty() {
        format!("all {right}")
    } else {
        format!("{}, {right}", named.join(" and "))
    }
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
        let digest = status
            .gate
            .as_ref()
            .map_or("", |g| g.output_digest.as_str());
        return vec![
            format!(
                "{plain} {DECISION}=accepted {REVIEW}={} {DECIDED_BY}={WHOAMI}",
                quote(digest)
            ),
            format!("{own} approve {target}"),
        ];
    }
    let Some(wait) = &status.waiting_for else {
        return Vec::new();
    };
    let first = quote(wait.options.first().map_or("retry", String::as_str));
    let mut commands: Vec<String> = wait.commands.iter().map(|c| inline(c, 1024)).collect();
    if commands.is_empty() {
        commands.push(format!("{plain} {ACTION}={first} {DECIDED_BY}={WHOAMI}"));
    }
    if !commands.iter().any(|c| c.starts_with("kubectl lockstep")) {
        commands.push(format!("{own} answer {target} {first}"));
    }
    commands
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
        format!(
            "kubectl -n {namespace} annotate steprun {}",
            step.name_any()
        ),
        format!("kubectl lockstep -n {namespace}"),
        quote(&format!("{}/{}", step.spec.workflow.name, label(step))),
    )
}

#[cfg(test)]
#[allow(clippy::expect_used)]
pub mod sample {
    use super::*;
    use serde_json::json;

    /// A run with one accepted step, one at its gate, and a forEach.
    pub fn shop() -> (Workflow, Vec<StepRun>) {
        let at = |minute: u32| format!("2026-11-21T10:{minute:02}:00Z");
        let run = json!({
            "apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow",
            "metadata": {"name": "shop", "namespace": "team-a", "uid": "uid"},
            "spec": {"templateRef": {"name": "default"}},
            "status": {
                "phase": "Running", "startedAt": at(0),
                "waiting": {"gates": 1, "questions": 0, "summary": "1 gate"},
                "steps": [
                    {"path": "discovery", "phase": "Completed", "startedAt": at(0), "completedAt": at(2), "stepRun": "shop-discovery-1"},
                    {"path": "backlog", "phase": "WaitingForAcceptance", "startedAt": at(2), "stepRun": "shop-backlog-1"},
                    {"path": "architecture", "phase": "Running", "startedAt": at(3), "counts": {"total": 3, "started": 2, "done": 0, "failed": 1}},
                    {"path": "report", "phase": "Pending"}
                ]
            }
        });
        let step = |name: &str, path: &str, key: Option<(&str, i32)>, status: serde_json::Value| {
            json!({
                "apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
                "metadata": {"name": name, "namespace": "team-a"},
                "spec": {
                    "workflow": {"name": "shop", "uid": "uid"}, "definition": {"revisionName": "r", "digest": "d"},
                    "path": path, "agentId": "a", "parameters": "{}", "inputDigest": "d",
                    "item": key.map(|(key, index)| json!({"key": key, "index": index, "value": null})),
                    "gate": {"name": path, "acceptors": {"groups": ["product"]}},
                },
                "status": status,
            })
        };
        let gate = |state: &str, decisions: serde_json::Value| json!({"state": state, "round": 1, "outputDigest": "sha256:00ff", "openedAt": at(3), "policy": "p", "decisions": decisions});
        let accepted = json!([{"documentType": "discovery", "scopeID": "uid", "accepted": true, "comment": "good\u{1b}[31m",
            "decidedBy": "alice", "decidedAt": at(2), "digest": "sha256:00ff", "round": 1}]);
        let steps = [
            step(
                "shop-discovery-1",
                "discovery",
                None,
                json!({"phase": "Completed", "startedAt": at(0), "completedAt": at(2), "gate": gate("Accepted", accepted)}),
            ),
            step(
                "shop-backlog-1",
                "backlog",
                None,
                json!({"phase": "WaitingForAcceptance", "startedAt": at(2), "gate": gate("Waiting", json!([]))}),
            ),
            step(
                "shop-arch-2",
                "architecture",
                Some(("E2", 1)),
                json!({"phase": "Running", "attempt": 2, "startedAt": at(3),
                "agent": {"progress": {"percent": 40, "message": "writing", "at": at(4)}}}),
            ),
            step(
                "shop-arch-1",
                "architecture",
                Some(("E1", 0)),
                json!({"phase": "Failed", "startedAt": at(3), "completedAt": at(4),
                "error": {"class": "Unrecoverable", "message": "no such\u{202e} epic", "attempt": 1, "exitCode": 3}}),
            ),
        ];
        (
            serde_json::from_value(run).expect("a run"),
            steps
                .into_iter()
                .map(|s| serde_json::from_value(s).expect("a step"))
                .collect(),
        )
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests {
    use super::*;

    fn drawn(view: View) -> Drawn {
        let (run, steps) = sample::shop();
        let now: Timestamp = "2026-11-21T10:05:03Z".parse().expect("a time");
        draw(&run, &steps, now, view)
    }

    #[test]
    fn a_run_is_a_tree() {
        let golden = "\
shop  Running  5m03s  waits for 1 gate
  ✓ discovery     Completed             2m00s   accepted by alice: good\u{fffd}[31m
  ◆ backlog       WaitingForAcceptance  3m03s   gate backlog, round 1
  ● architecture  Running               2m03s   0/3 done, 1 failed, 1 under way
    ✗ E1          Failed                1m00s   Unrecoverable (exit 3): no such\u{fffd} epic
    ● E2          Running               2m03s   attempt 2; 40% writing
  ○ report        Pending
◆ shop/backlog waits for acceptance by group product, who may approve gates/backlog
    kubectl -n team-a annotate steprun shop-backlog-1 lockstep.dev/decision=accepted lockstep.dev/review=sha256:00ff lockstep.dev/decided-by=\"$(kubectl auth whoami -o jsonpath='{.status.userInfo.username}')\"
    kubectl lockstep -n team-a approve shop/backlog
    to reject: kubectl lockstep -n team-a reject shop/backlog -m WHY";
        let drawn = drawn(View::default());
        assert_eq!(drawn.lines.join("\n"), golden);
    }

    #[test]
    fn lines_are_cut_to_the_window_and_commands_are_not() {
        let drawn = drawn(View {
            width: Some(40),
            height: None,
            colours: false,
        });
        assert_eq!(drawn.lines[1], "  ✓ discovery     Completed            …");
        assert!(drawn.lines[8].ends_with("username}')\""));
        // Nine lines of one row; commands of 206 and 51 columns.
        assert_eq!(drawn.rows, 9 + 6 + 2);
    }

    #[test]
    fn a_low_window_leaves_lines_out() {
        let drawn = drawn(View {
            width: Some(250),
            height: Some(9),
            colours: false,
        });
        assert!(drawn.lines.iter().any(|l| l.contains("more lines")));
        assert!(drawn.rows < 9, "{:#?}", drawn.lines);
    }

    #[test]
    fn an_unseen_run_says_so() {
        let run = Workflow::new("new", crate::api::WorkflowSpec::default());
        let drawn = draw(&run, &[], Timestamp::UNIX_EPOCH, View::default());
        assert_eq!(
            drawn.lines,
            ["new  Pending    no operator has seen it yet; see kubectl lockstep version"]
        );
    }
}
