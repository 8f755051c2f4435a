//! A run as a tree of lines: pure, from objects and a time to text.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::held;
use super::line::{Line, RenderOptions, View, of_phase};
use super::rows::{Row, rows};
use super::text::{self, Style, elapsed, inline, seconds_between};
use super::wait::{self, Ways};
use crate::api::condition;
use crate::api::workflow::Phase;
use crate::api::{StepRun, Workflow};

/// Lines as they are printed, and the rows that they take.
#[derive(Clone, Debug, Default)]
pub struct Drawn {
    pub lines: Vec<String>,
    pub rows: usize,
}

/// The run and its steps, whole: what does not fit a line goes on below it.
pub fn page(run: &Workflow, steps: &[StepRun], now: Timestamp, options: RenderOptions) -> String {
    let all = std::iter::once(run_line(run, steps, now)).chain(body(&rows(run, steps), now));
    all.map(|line| line.folded(options)).collect()
}

/// Rows as they stand in the page of a run.
pub fn part(rows: &[Row], now: Timestamp, options: RenderOptions) -> String {
    body(rows, now).iter().map(|line| line.folded(options)).collect()
}

/// The run, its steps, and below them what waits for people: fit for a window in which it is drawn again and again.
pub fn draw(run: &Workflow, steps: &[StepRun], now: Timestamp, (view, ways): (View, Ways)) -> Drawn {
    let head = run_line(run, steps, now);
    let body = body(&rows(run, steps), now);
    let waits: Vec<Vec<Line>> = wait::open(run, steps).into_iter().map(|step| wait::lines(step, ways)).collect();
    // Whole, where the window is high enough for that.
    let all = || std::iter::once(&head).chain(&body).chain(waits.iter().flatten());
    let rows = all().map(|line| line.folded_rows(view)).sum();
    if view.height.is_none_or(|height| rows + 2 <= height) {
        let options = RenderOptions { window: view.width, colours: view.colours };
        let lines =
            all().flat_map(|line| line.folded(options).lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        return Drawn { lines, rows };
    }
    let lines = fit(head, body, waits, (view, ways));
    Drawn {
        rows: lines.iter().map(|line| line.rows(view)).sum(),
        lines: lines.iter().map(|line| line.text(view)).collect(),
    }
}

/// Leaves lines out, in the middle, where the window is too low: what is redrawn must not scroll.
fn fit(head: Line, mut body: Vec<Line>, waits: Vec<Vec<Line>>, (view, ways): (View, Ways)) -> Vec<Line> {
    let taken = |lines: &[Line]| lines.iter().map(|line| line.rows(view)).sum::<usize>();
    let room = view.height.map_or(usize::MAX, |height| height.saturating_sub(2));
    let mut tail: Vec<Line> = Vec::new();
    let mut left_out = 0;
    for (at, block) in waits.into_iter().enumerate() {
        if at > 0 && taken(&tail) + taken(&block) > room / 2 {
            left_out += 1;
        } else if taken(&block) > room.saturating_sub(6) {
            tail.extend(block.into_iter().take(1));
            tail.extend(
                (ways != Ways::Dev).then(|| Line::plain("    the commands: kubectl lockstep inbox".to_owned())),
            );
        } else {
            tail.extend(block);
        }
    }
    if left_out > 0 {
        let where_else = if ways == Ways::Dev { "" } else { ": kubectl lockstep inbox" };
        tail.push(Line::plain(format!("… {left_out} more wait{where_else}")));
    }
    let for_body = room.saturating_sub(1 + taken(&tail)).max(3);
    if body.len() > for_body {
        let hidden = body.len() - for_body + 1;
        let from = (for_body - 1) / 2;
        body.splice(from..from + hidden, [Line::plain(format!("  … {hidden} more lines"))]);
    }
    std::iter::once(head).chain(body).chain(tail).collect()
}

fn run_line(run: &Workflow, steps: &[StepRun], now: Timestamp) -> Line {
    let status = run.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    let started = status.started_at.as_ref();
    let until = status.completed_at.as_ref().map_or(now, |at| at.0);
    let took = started.map_or_else(String::new, |at| elapsed(seconds_between(at, until)));
    let mut notes = course(run, phase);
    if let Some(waiting) = status.waiting.filter(|w| !phase.is_terminal() && !w.summary.is_empty()) {
        notes.push(format!("waits for {}", waiting.summary));
    }
    let why = held::beside(run, steps);
    if held::run(run).is_none() && !status.pending_documents.is_empty() {
        notes.push(format!("waits for {}", documents(&status.pending_documents)));
    }
    notes.extend(why);
    if matches!(phase, Phase::Failed | Phase::Cancelled) {
        notes.extend(ending(run));
    }
    if status.phase.is_none() {
        notes.push("no operator has seen it yet; see kubectl lockstep version".to_owned());
    }
    Line::of(vec![
        (format!("{}  ", run.name_any()), Style::Bold),
        (format!("{phase}  "), of_phase(phase)),
        (format!("{took}  "), Style::Plain),
        (inline(&notes.join("; "), 600), Style::Dim),
    ])
}

/// Why a run came to no good end; what says nothing new is left out.
pub fn ending(run: &Workflow) -> Option<String> {
    let status = run.status.as_ref()?;
    let succeeded = condition::get(&status.conditions, "Succeeded")?;
    let (reason, message) = (&succeeded.reason, succeeded.message.trim());
    let phase = status.phase.unwrap_or_default().to_string();
    let known = |text: &str| text.is_empty() || text.eq_ignore_ascii_case(&phase);
    match (known(reason), known(message)) {
        (true, true) => None,
        (true, false) => Some(message.to_owned()),
        (false, true) => Some(reason.clone()),
        (false, false) => Some(format!("{reason}: {message}")),
    }
}

/// Types of documents that are missing, in words.
pub fn documents(missing: &[String]) -> String {
    match missing {
        [one] => format!("the document {one}"),
        several => format!("the documents {}", several.join(", ")),
    }
}

/// What people wished of the run's course, and what it goes on from.
fn course(run: &Workflow, phase: Phase) -> Vec<String> {
    let open = !phase.is_terminal();
    let mut notes = Vec::new();
    if open && run.spec.cancel == Some(true) {
        notes.push("is being cancelled".to_owned());
    } else if open && run.spec.suspend == Some(true) {
        let (namespace, name) = (run.namespace().unwrap_or_default(), text::quote(&run.name_any()));
        notes.push(format!("suspended, nothing new starts until kubectl lockstep -n {namespace} resume {name}"));
    }
    if let Some(old) = &run.spec.retry_of {
        let from = old.from.as_ref().map_or_else(String::new, |step| format!(" from {step}"));
        notes.push(format!("retry of {}{from}", old.name));
    }
    notes
}

fn body(rows: &[Row], now: Timestamp) -> Vec<Line> {
    let name_width = |row: &Row| text::width(&row.name) + 2 * row.depth;
    let names = rows.iter().map(name_width).max().unwrap_or(0).min(40);
    let phases = rows.iter().map(|row| row.phase.to_string().len()).max();
    let widths = (names, phases.unwrap_or(0));
    rows.iter().map(|row| row_line(row, widths, now)).collect()
}

fn row_line(row: &Row, (names, phases): (usize, usize), now: Timestamp) -> Line {
    let until = row.completed.as_ref().map_or(now, |at| at.0);
    let took = row.started.as_ref().map_or_else(String::new, |at| elapsed(seconds_between(at, until)));
    let mut detail = row.told();
    if let Some(at) = &row.not_before
        && row.phase == Phase::Pending
        && at.0 > now
    {
        let again = format!("again in {}", elapsed(at.0.duration_since(now).as_secs()));
        detail = if detail.is_empty() { again } else { format!("{again}; {detail}") };
    }
    let indent = "  ".repeat(row.depth);
    Line::of(vec![
        (format!("  {indent}{} ", glyph(row.phase)), of_phase(row.phase)),
        (format!("{}  ", text::pad(&row.name, names.saturating_sub(2 * row.depth))), Style::Plain),
        (format!("{}  ", text::pad(&row.phase.to_string(), phases)), of_phase(row.phase)),
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
        Phase::Suspended => '⏸',
        Phase::Skipped => '↷',
    }
}

#[cfg(test)]
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
        let accepted = json!([{"documentType": "discovery", "scopeId": "uid", "accepted": true, "comment": "good\u{1b}[31m",
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
            steps.into_iter().map(|s| serde_json::from_value(s).expect("a step")).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(view: View) -> Drawn {
        let (run, steps) = sample::shop();
        let now: Timestamp = "2026-11-21T10:05:03Z".parse().expect("a time");
        draw(&run, &steps, now, (view, Ways::Asked))
    }

    #[test]
    fn a_run_is_a_tree() {
        let golden = "\
shop  Running  5m03s  waits for 1 gate
  ✓ discovery     Completed             2m00s   accepted by alice: good\\u{1b}[31m
  ◆ backlog       WaitingForAcceptance  3m03s   gate backlog, round 1
  ● architecture  Running               2m03s   0/3 done, 1 failed, 1 under way, 1 queued
    ✗ E1          Failed                1m00s   Unrecoverable (exit 3): no such\\u{202e} epic
    ● E2          Running               2m03s   attempt 2; 40% writing
  ○ report        Pending
◆ shop/backlog waits for acceptance by a member of product, with the permission approve on gates/backlog
    kubectl lockstep -n team-a approve shop/backlog
    kubectl lockstep -n team-a reject shop/backlog -m WHY";
        let drawn = drawn(View::default());
        assert_eq!(drawn.lines.join("\n"), golden);
    }

    #[test]
    fn lines_are_folded_where_the_window_is_high_enough_else_cut_and_commands_never() {
        let high = drawn(View { width: Some(40), height: Some(60), colours: false });
        let text = high.lines.join("\n");
        assert!(text.contains("\n      2m00s   accepted by alice:\n"), "{text}");
        assert!(high.lines.iter().all(|line| text::width(line) <= 40 || line.contains("kubectl")), "{text}");
        assert!(!text.contains('…') && text.contains("reject shop/backlog -m WHY"), "{text}");
        let low = drawn(View { width: Some(40), height: Some(17), colours: false });
        assert_eq!(low.lines[1], "  ✓ discovery     Completed            …");
        assert!(low.lines.iter().any(|line| line.ends_with("reject shop/backlog -m WHY")), "{:?}", low.lines);
        // Eight lines of one row; commands of 51 and 57 columns.
        assert_eq!(low.rows, 8 + 2 + 2);
    }

    #[test]
    fn a_low_window_leaves_lines_out() {
        let drawn = drawn(View { width: Some(250), height: Some(9), colours: false });
        assert!(drawn.lines.iter().any(|l| l.contains("more lines")));
        assert!(drawn.rows < 9, "{:#?}", drawn.lines);
    }

    #[test]
    fn commands_that_do_not_fit_are_named() {
        let drawn = drawn(View { width: Some(60), height: Some(8), colours: false });
        assert!(drawn.rows < 8, "{:#?}", drawn.lines);
        assert!(drawn.lines.iter().any(|l| l.contains("kubectl lockstep inbox")));
    }

    #[test]
    fn the_course_of_a_run_is_told() {
        let (mut run, _) = sample::shop();
        let old = crate::api::workflow::RetryOf {
            name: "old".into(),
            uid: "u".into(),
            from: Some("b".into()),
            ..Default::default()
        };
        run.spec = crate::api::WorkflowSpec { suspend: Some(true), retry_of: Some(old), ..Default::default() };
        let open = course(&run, Phase::Suspended);
        assert_eq!(
            open,
            ["suspended, nothing new starts until kubectl lockstep -n team-a resume shop", "retry of old from b"]
        );
        run.spec.cancel = Some(true);
        assert_eq!(course(&run, Phase::Running), ["is being cancelled", "retry of old from b"]);
        assert_eq!(course(&run, Phase::Cancelled), ["retry of old from b"]);
    }

    #[test]
    fn an_unseen_run_says_so() {
        let run = Workflow::new("new", crate::api::WorkflowSpec::default());
        let drawn = draw(&run, &[], Timestamp::UNIX_EPOCH, (View::default(), Ways::Asked));
        assert_eq!(drawn.lines, ["new  Pending    no operator has seen it yet; see kubectl lockstep version"]);
    }
}
