//! What a run's status repeats of its StepRuns and its steps, so that a reader finds it in one place.

use crate::api::limits::{ITERATIONS_SHOWN, STEPS_WITH_OUTPUTS, SUMMARIES_BYTES, SUMMARY_BYTES};
use crate::api::name;
use crate::api::step_run::StepRun;
use crate::api::workflow::{IterationProgress, Phase, StepStatus, Workflow, WorkflowStatus};
use crate::decide::history;
use crate::decide::observed::StepRuns;

/// What the status says of its steps once more: which have completed, and how far each forEach has come. Only those in no
/// other one have a list that is pinned here.
pub(super) fn progress(status: &mut WorkflowStatus) {
    let completed = status.steps.iter().filter(|s| s.phase == Phase::Completed && !s.path.contains('/'));
    status.completed_steps = completed.map(|s| s.path.clone()).collect();
    let lists = status.steps.iter().filter(|s| s.collection_digest.is_some());
    let counted = lists.filter_map(|s| {
        let counts = s.counts?;
        let path = s.path.clone();
        Some(IterationProgress { path, total: counts.total, done: counts.done, failed: counts.failed })
    });
    status.iteration_progress = counted.take(ITERATIONS_SHOWN).collect();
}

/// The digests and summaries of what the steps gave that have one StepRun. A summary is not made again while its digest
/// stays: outputs are long.
pub fn show_outputs(status: &mut WorkflowStatus, before: &Workflow, step_runs: &StepRuns) {
    let before: &[StepStatus] = before.status.as_ref().map_or(&[], |status| &status.steps);
    if status.steps.len() > STEPS_WITH_OUTPUTS {
        return;
    }
    let bytes = SUMMARY_BYTES.min(SUMMARIES_BYTES / status.steps.len().max(1));
    for (index, step) in status.steps.iter_mut().enumerate() {
        let Some(step_run) = step.step_run.as_ref().and_then(|name| step_runs.get(name)) else { continue };
        step.output_digest = digest(step_run);
        // In both the steps stand in the order of the definition, which is pinned.
        let known = before.get(index).filter(|b| b.path == step.path && b.summary.is_some());
        let known = known.filter(|b| b.output_digest.is_some() && b.output_digest == step.output_digest);
        step.summary = match known {
            Some(known) => known.summary.clone(),
            None => history::summary(&history::output(step_run), bytes),
        };
    }
}

fn digest(step_run: &StepRun) -> Option<String> {
    let status = step_run.status.as_ref()?;
    let answered = || status.answer.as_ref().map(|answer| name::digest_bytes(answer.value.as_bytes()));
    let reused = || step_run.spec.reuse.as_ref().map(|reuse| reuse.digest.clone());
    status.result.as_ref().map(|result| result.digest.clone()).or_else(answered).or_else(reused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use serde_json::{Value, json};

    fn step_run(name: &str, status: &Value) -> StepRun {
        let mut made = StepRun::new(name, crate::api::StepRunSpec::default());
        made.status = serde_json::from_value(status.clone()).expect("a status");
        made
    }

    fn shown(steps: usize, step_run: StepRun, before: Option<StepStatus>) -> StepStatus {
        let listed = StepStatus { path: "a".into(), step_run: Some("s".into()), ..StepStatus::default() };
        let mut status = WorkflowStatus { steps: vec![listed; steps], ..WorkflowStatus::default() };
        let mut run = Workflow::new("w", crate::api::WorkflowSpec::default());
        run.status = Some(WorkflowStatus { steps: before.into_iter().collect(), ..WorkflowStatus::default() });
        let step_runs = [("s".to_owned(), Arc::new(step_run))].into_iter().collect();
        show_outputs(&mut status, &run, &step_runs);
        status.steps.swap_remove(0)
    }

    #[test]
    fn a_step_says_what_it_gave_in_one_line() {
        let long = format!("\"{}\"", "x".repeat(500));
        for (output, expected) in [
            (r#"{"summary": "two epics\nand\tmore", "epics": 2}"#, Some("two epics and more".to_owned())),
            (r#"{"epics": 2}"#, Some(r#"{"epics":2}"#.to_owned())),
            (r#""  done  ""#, Some("done".to_owned())),
            (r#""""#, None),
            ("null", None),
            (long.as_str(), Some(format!("{}…", "x".repeat(SUMMARY_BYTES - 3)))),
        ] {
            let report = json!({"attempt": 1, "class": "Succeeded", "digest": "d", "output": output, "at": "1970-01-01T00:00:00Z"});
            let status = json!({"result": {"attempt": 1, "digest": "d"}, "agent": {"report": report}});
            let step = shown(1, step_run("s", &status), None);
            assert_eq!((step.output_digest.as_deref(), step.summary), (Some("d"), expected), "{output}");
            // The more steps there are, the shorter are their summaries.
            let step = shown(100, step_run("s", &status), None);
            assert!(step.summary.is_none_or(|summary| summary.len() <= SUMMARIES_BYTES / 100));
            let step = shown(101, step_run("s", &status), None);
            assert_eq!((step.output_digest, step.summary), (None, None));
            // Nothing is read again while the digest stays.
            let known = |digest: &str| StepStatus {
                path: "a".into(),
                output_digest: Some(digest.into()),
                summary: Some("known".into()),
                ..StepStatus::default()
            };
            assert_eq!(shown(1, step_run("s", &status), Some(known("d"))).summary.as_deref(), Some("known"));
            assert_ne!(shown(1, step_run("s", &status), Some(known("e"))).summary.as_deref(), Some("known"));
        }
        let answered = json!({"answer": {"value": "7", "by": "ann", "at": "1970-01-01T00:00:00Z"}});
        let step = shown(1, step_run("s", &answered), None);
        assert_eq!((step.output_digest, step.summary.as_deref()), (Some(name::digest_bytes(b"7")), Some("7")));
        assert_eq!(shown(1, step_run("s", &json!({"phase": "Running"})), None).output_digest, None);
    }

    #[test]
    fn what_is_complete_and_how_far_lists_are_stands_in_one_place() {
        let counts = Some(crate::api::workflow::Counts { total: 5, started: 4, done: 2, failed: 1, skipped: 0 });
        let step = |path: &str, phase, list: Option<&str>| StepStatus {
            path: path.into(),
            phase,
            counts,
            collection_digest: list.map(str::to_owned),
            ..StepStatus::default()
        };
        let mut status = WorkflowStatus {
            steps: vec![
                step("done", Phase::Completed, None),
                step("skipped", Phase::Skipped, None),
                step("each", Phase::Running, Some("sha256:l")),
                step("each/inner", Phase::Completed, None),
            ],
            ..WorkflowStatus::default()
        };
        progress(&mut status);
        assert_eq!(status.completed_steps, ["done"]);
        let each = IterationProgress { path: "each".into(), total: 5, done: 2, failed: 1 };
        assert_eq!(status.iteration_progress, [each]);
        status.steps = vec![step("each", Phase::Running, Some("l")); 200];
        progress(&mut status);
        assert_eq!(status.iteration_progress.len(), ITERATIONS_SHOWN);
    }
}
