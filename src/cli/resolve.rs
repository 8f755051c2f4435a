//! Resolves `RUN/STEP` within a run: to one StepRun, the items of a forEach, the steps of a group, or a step that has not
//! begun. Also prints the pages of those that are no StepRun.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::fault::Fault;
use super::held;
use super::line::{Line, RenderOptions, of_phase};
use super::rows::{Row, rows, step_row};
use super::table::{Cell, table};
use super::target::{keys, label, matching, unclear, waits_at_gate, waits_for_answer};
use super::text::{Style, elapsed, inline, quote, seconds_between};
use super::tree;
use super::wait::{self, Ways};
use crate::api::workflow::StepStatus;
use crate::api::{StepRun, Workflow};

/// Waits that are listed with their commands below a table, at most.
const WAITS: usize = 5;

/// What a name within a run resolves to.
#[derive(Debug)]
pub enum ResolvedStep<'a> {
    Step(&'a StepRun),
    /// Items of the step with this path: all, or those below an outer item.
    Items(String, Vec<&'a StepRun>),
    /// The group with this path.
    Group(String),
    /// A step that has no StepRun yet.
    NotBegun(&'a StepStatus),
}

impl<'a> ResolvedStep<'a> {
    /// The StepRuns that it stands for.
    pub fn step_runs(&self, run: &Workflow, steps: &'a [StepRun]) -> Result<Vec<&'a StepRun>, Fault> {
        match self {
            Self::Step(step) => Ok(vec![step]),
            Self::Items(_, items) => Ok(items.clone()),
            Self::Group(path) => Ok(steps.iter().filter(|s| is_below(&s.spec.path, path)).collect()),
            Self::NotBegun(listed) => Err(Fault::missing(format!(
                "{}/{} has no StepRun: it has not begun; see kubectl lockstep show {}",
                run.name_any(),
                listed.path,
                quote(&run.name_any())
            ))),
        }
    }
}

/// Resolves a name: the path of a step or its last part, alone or with the keys of items behind it.
pub fn find<'a>(run: &'a Workflow, steps: &'a [StepRun], wanted: &str) -> Result<ResolvedStep<'a>, Fault> {
    let is_named = |path: &str| path == wanted || last(path) == wanted;
    let found = matching(wanted, steps);
    let path = found.first().map(|step| step.spec.path.clone()).unwrap_or_default();
    let of_one_path = found.iter().all(|step| step.spec.path == path);
    match found.as_slice() {
        // Without a key a forEach is named, however many items it has.
        [first, ..] if of_one_path && first.spec.item.is_some() && is_named(&path) => return Ok(items(path, found)),
        [step] => return Ok(ResolvedStep::Step(step)),
        [] => {}
        _ => return Err(unclear(&run.name_any(), wanted, steps)),
    }
    let below: Vec<&StepRun> = steps.iter().filter(|step| is_under(step, wanted)).collect();
    if let Some(first) = below.first() {
        return Ok(items(first.spec.path.clone(), below));
    }
    let listed = run.status.as_ref().map_or(&[][..], |status| &status.steps);
    match listed.iter().find(|step| step.path == wanted).or_else(|| listed.iter().find(|step| is_named(&step.path))) {
        Some(step) if listed.iter().any(|other| is_below(&other.path, &step.path)) => {
            Ok(ResolvedStep::Group(step.path.clone()))
        }
        Some(step) if step.counts.is_some() => Ok(ResolvedStep::Items(step.path.clone(), Vec::new())),
        Some(step) => Ok(ResolvedStep::NotBegun(step)),
        None => Err(unclear(&run.name_any(), wanted, steps)),
    }
}

fn items(path: String, mut items: Vec<&StepRun>) -> ResolvedStep<'_> {
    items.sort_by_cached_key(|step| (step.spec.item.as_ref().map_or(-1, |item| item.index), label(step)));
    ResolvedStep::Items(path, items)
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_below(path: &str, group: &str) -> bool {
    path.strip_prefix(group).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether the words name an outer item of this step's.
fn is_under(step: &StepRun, wanted: &str) -> bool {
    let (path, all) = (step.spec.path.as_str(), keys(step).join("/"));
    [path, last(path)].into_iter().any(|path| {
        let outer = wanted.strip_prefix(path).and_then(|rest| rest.strip_prefix('/'));
        outer.is_some_and(|outer| is_below(&all, outer))
    })
}

/// The page of what is no single StepRun.
pub fn page(
    run: &Workflow,
    steps: &[StepRun],
    found: &ResolvedStep<'_>,
    now: Timestamp,
    options: RenderOptions,
) -> String {
    let all = rows(run, steps);
    match found {
        ResolvedStep::Step(step) => head(run, &step_row(step), now, options),
        ResolvedStep::Items(path, items) => {
            let own = all.into_iter().find(|row| row.label == *path);
            own.map_or_else(String::new, |row| head(run, &row, now, options))
                + &of_items(run, path, items, now, options)
        }
        ResolvedStep::Group(path) => {
            let own = all.iter().find(|row| row.label == *path).map(|row| head(run, row, now, options));
            let below: Vec<Row> = all.into_iter().filter(|row| is_below(&row.label, path)).collect();
            let open: Vec<&StepRun> = steps.iter().filter(|step| is_below(&step.spec.path, path)).collect();
            format!("{}\n{}{}", own.unwrap_or_default(), tree::part(&below, now, options), waits(&open, options))
        }
        ResolvedStep::NotBegun(listed) => {
            let row = all.iter().find(|row| row.label == listed.path);
            row.map_or_else(String::new, |row| head(run, row, now, options)) + &not_begun(run, row, options)
        }
    }
}

fn head(run: &Workflow, row: &Row, now: Timestamp, options: RenderOptions) -> String {
    Line::of(vec![
        (format!("{}/{}  ", run.name_any(), row.label), Style::Bold),
        (format!("{}  ", row.phase), of_phase(row.phase)),
        (format!("{}  ", took(row, now)), Style::Plain),
        (row.told(), Style::Dim),
    ])
    .folded(options)
}

fn took(row: &Row, now: Timestamp) -> String {
    let until = row.completed.as_ref().map_or(now, |Time(at)| *at);
    row.started.as_ref().map_or_else(String::new, |at| elapsed(seconds_between(at, until)))
}

fn of_items(run: &Workflow, path: &str, items: &[&StepRun], now: Timestamp, options: RenderOptions) -> String {
    let row = |step: &&StepRun| -> Vec<Cell> {
        let row = step_row(step);
        let attempt = if row.attempt > 0 { row.attempt.to_string() } else { String::new() };
        let key = inline(&keys(step).join("/"), 300);
        vec![
            key.into(),
            Cell::phase(row.phase),
            attempt.into(),
            took(&row, now).into(),
            Cell::of(row.detail, Style::Dim),
        ]
    };
    let table_rows: Vec<Vec<Cell>> = items.iter().map(row).collect();
    let mut text = String::from("\n");
    if !items.is_empty() {
        text.push_str(&table(&["KEY", "PHASE", "ATTEMPT", "TIME", "DETAIL"], &table_rows, options));
    }
    let listed = run.status.as_ref().and_then(|s| s.steps.iter().find(|step| step.path == path));
    let total = listed.and_then(|step| step.counts).map_or(0, |counts| usize::try_from(counts.total).unwrap_or(0));
    let outer = items.iter().all(|step| keys(step).len() == 1);
    if outer && total > items.len() {
        text.push_str(&format!("{} of {total} items have not begun\n", total - items.len()));
    }
    let open: Vec<String> = items.iter().filter(|step| is_open(step)).map(|step| wait::command(step)).collect();
    if !open.is_empty() {
        let shown = open.iter().take(WAITS).map(|command| format!("  {command}\n"));
        text.push('\n');
        text.extend(shown);
    }
    if open.len() > WAITS {
        text.push_str(&format!("  … {} more wait: kubectl lockstep inbox\n", open.len() - WAITS));
    }
    if let Some(first) = items.first() {
        let namespace = run.namespace().unwrap_or_default();
        let target = quote(&format!("{}/{}", run.name_any(), label(first)));
        text.push_str(&format!("\none of them: kubectl lockstep -n {namespace} show {target}\n"));
    }
    text
}

fn is_open(step: &StepRun) -> bool {
    waits_at_gate(step) || waits_for_answer(step)
}

fn waits(of: &[&StepRun], options: RenderOptions) -> String {
    let open: Vec<&&StepRun> = of.iter().filter(|step| is_open(step)).collect();
    let mut text = String::new();
    for step in open.iter().take(WAITS) {
        text.push('\n');
        text.push_str(&wait::text(step, Ways::Asked, options));
    }
    if open.len() > WAITS {
        text.push_str(&format!("\n… {} more wait: kubectl lockstep inbox\n", open.len() - WAITS));
    }
    text
}

/// Why a step has no StepRun, as far as its own line has not said it.
fn not_begun(run: &Workflow, row: Option<&Row>, options: RenderOptions) -> String {
    let status = run.status.clone().unwrap_or_default();
    let why = match status.phase.filter(|phase| phase.is_terminal()) {
        Some(_) => tree::ending(run).map(|why| format!("the run: {why}")),
        None if row.is_some_and(|row| row.phase.is_terminal()) => None,
        None => Some(held::run(run).unwrap_or_else(|| {
            let current = status.current_step.filter(|step| row.is_some_and(|row| row.label != *step));
            let now = current.map_or_else(String::new, |step| format!("; the run is at {step}"));
            format!("it has not begun: what it needs has not ended yet{now}")
        })),
    };
    why.map_or_else(String::new, |why| format!("\n{}", Line::plain(inline(&why, 1024)).folded(options)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tree::sample;

    fn now() -> Timestamp {
        "2026-11-21T10:05:03Z".parse().expect("a time")
    }

    #[test]
    fn a_for_each_is_a_table_of_its_items() {
        let (run, steps) = sample::shop();
        let found = find(&run, &steps, "architecture").expect("it is there");
        assert!(
            matches!(&found, ResolvedStep::Items(path, items) if path == "architecture" && items.len() == 2),
            "{found:?}"
        );
        let expected = "\
shop/architecture  Running  2m03s  0/3 done, 1 failed, 1 under way, 1 queued

KEY   PHASE     ATTEMPT   TIME    DETAIL
E1    Failed    1         1m00s   Unrecoverable (exit 3): no such\\u{202e} epic
E2    Running   2         2m03s   40% writing
1 of 3 items have not begun

one of them: kubectl lockstep -n team-a show shop/architecture/E1
";
        assert_eq!(page(&run, &steps, &found, now(), RenderOptions::default()), expected);
        assert!(
            matches!(find(&run, &steps, "architecture/E2"), Ok(ResolvedStep::Step(step)) if label(step) == "architecture/E2")
        );
        assert!(find(&run, &steps, "architecture/E9").is_err());
        // One item is still an item.
        let one = [steps[2].clone()];
        assert!(matches!(find(&run, &one, "architecture"), Ok(ResolvedStep::Items(_, items)) if items.len() == 1));
    }

    #[test]
    fn a_step_that_has_not_begun_says_so() {
        let (mut run, steps) = sample::shop();
        let told = |run: &Workflow| {
            let found = find(run, &steps, "report").expect("it is listed");
            assert!(found.step_runs(run, &steps).is_err());
            page(run, &steps, &found, now(), RenderOptions::default())
        };
        assert!(told(&run).starts_with("shop/report  Pending\n\nit has not begun"), "{}", told(&run));
        if let Some(status) = &mut run.status {
            status.phase = Some(crate::api::workflow::Phase::Failed);
        }
        assert_eq!(told(&run), "shop/report  Skipped    not started: the run failed before\n");
    }

    #[test]
    fn groups_and_outer_items_are_named_too() {
        let (mut run, mut steps) = sample::shop();
        let listed = |path: &str| StepStatus { path: path.to_owned(), ..StepStatus::default() };
        if let Some(status) = &mut run.status {
            status.steps.extend([listed("build"), listed("build/compile")]);
        }
        steps[0].spec.path = "build/compile".to_owned();
        let found = find(&run, &steps, "build").expect("it is listed");
        assert!(matches!(&found, ResolvedStep::Group(path) if path == "build"), "{found:?}");
        assert!(page(&run, &steps, &found, now(), RenderOptions::default()).contains("compile"));
        let inner = |step: &mut StepRun, all: &str, key: &str| {
            step.spec.item = Some(crate::api::step_run::Item { key: key.to_owned(), ..Default::default() });
            step.spec.scope_chain = vec![crate::api::step_run::ScopeLink {
                scope: "s".into(),
                scope_id: format!("uid/{all}"),
                index: None,
            }];
        };
        inner(&mut steps[2], "E1/S1", "S1");
        inner(&mut steps[3], "E2/S1", "S1");
        let found = find(&run, &steps, "architecture/E1").expect("an outer item");
        assert!(matches!(&found, ResolvedStep::Items(_, items) if items.len() == 1), "{found:?}");
        assert!(find(&run, &steps, "architecture/S1").is_err(), "two items have that key");
    }
}
