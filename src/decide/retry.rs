//! A run that goes on from a finished one: what it wishes, and what it is called.

use crate::api::limits::NAME_CHARS;
use crate::api::workflow::{RetryOf, StepStatus};
use crate::api::{StepRun, Workflow, WorkflowSpec};

/// Whether the StepRuns of a run that had some were taken away, in words.
pub fn nothing_left(old: &Workflow, steps: &[StepRun]) -> Option<String> {
    let status = old.status.as_ref()?;
    let begun = |step: &StepStatus| step.step_run.is_some() || step.counts.is_some_and(|counts| counts.started > 0);
    if !steps.is_empty() || !status.steps.iter().any(begun) {
        return None;
    }
    let name = old.metadata.name.clone().unwrap_or_default();
    Some(match old.spec.ttl_seconds_after_finished {
        Some(seconds) => format!(
            "the StepRuns of {name} are gone: its ttlSecondsAfterFinished took them away {} after its end",
            elapsed(seconds)
        ),
        None => format!("the StepRuns of {name} are gone"),
    })
}

/// The path of the step that a path or a bare name means in the finished run.
pub fn path_of(old: &Workflow, wanted: &str) -> Option<String> {
    let mut paths = old.status.iter().flat_map(|status| &status.steps).map(|step| &step.path);
    paths.find(|path| *path == wanted || path.rsplit('/').next() == Some(wanted)).cloned()
}

/// The same wish once more: what was said of the old run's course is left out.
pub fn again(old: &Workflow, from: Option<String>) -> Workflow {
    let retry_of = RetryOf {
        name: old.metadata.name.clone().unwrap_or_default(),
        uid: old.metadata.uid.clone().unwrap_or_default(),
        from,
        keep_results: false,
    };
    Workflow::new("", WorkflowSpec { retry_of: Some(retry_of), suspend: None, cancel: None, ..old.spec.clone() })
}

/// `shop-r3` as `shop` and 3.
pub fn number_of(name: &str) -> Option<(&str, u32)> {
    let (head, digits) = name.rsplit_once("-r")?;
    Some((head, digits.parse().ok()?)).filter(|(head, _)| !head.is_empty())
}

pub fn numbered(name: &str, number: u32) -> String {
    let head = number_of(name).map_or(name, |(head, _)| head);
    let tail = format!("-r{number}");
    let head: String = head.chars().take(NAME_CHARS - tail.len()).collect();
    format!("{}{tail}", head.trim_end_matches(['-', '.']))
}

/// `5s`, `2m03s`, `1h05m`, `3d4h`.
pub fn elapsed(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{}s", seconds.max(0)),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::api::workflow::{TemplateRef, WorkflowStatus};

    /// A run of the steps `a` and `g/b`, which was cancelled and suspended.
    pub fn old() -> Workflow {
        let spec = WorkflowSpec {
            template_ref: Some(TemplateRef { name: "default".into() }),
            input: Some("bikes".into()),
            session: Some("s".into()),
            timeout_seconds: Some(5),
            cancel: Some(true),
            suspend: Some(true),
            ..WorkflowSpec::default()
        };
        let mut run = Workflow::new("shop", spec);
        run.metadata.uid = Some("uid".into());
        let step = |path: &str| StepStatus { path: path.into(), ..StepStatus::default() };
        run.status = Some(WorkflowStatus { steps: vec![step("a"), step("g/b")], ..WorkflowStatus::default() });
        run
    }

    #[test]
    fn a_retry_wishes_the_same_and_names_what_it_goes_on_from() {
        let old = old();
        let new = again(&old, Some("g/b".into()));
        let retry_of =
            RetryOf { name: "shop".into(), uid: "uid".into(), from: Some("g/b".into()), keep_results: false };
        assert_eq!(
            new.spec,
            WorkflowSpec { retry_of: Some(retry_of), cancel: None, suspend: None, ..old.spec.clone() }
        );
        assert!(new.status.is_none());
    }

    #[test]
    fn step_runs_that_are_gone_are_told() {
        let mut old = old();
        assert_eq!(nothing_left(&old, &[]), None, "it never came to a step");
        if let Some(status) = &mut old.status {
            status.steps[0].step_run = Some("shop-a".into());
        }
        assert_eq!(nothing_left(&old, &[]).as_deref(), Some("the StepRuns of shop are gone"));
        old.spec.ttl_seconds_after_finished = Some(3600);
        let why = nothing_left(&old, &[]).unwrap_or_default();
        assert!(why.ends_with("its ttlSecondsAfterFinished took them away 1h00m after its end"), "{why}");
        assert_eq!(nothing_left(&old, &[StepRun::new("shop-a", crate::api::StepRunSpec::default())]), None);
    }

    #[test]
    fn names_are_numbered_and_fit() {
        let long = "x".repeat(52);
        let cut = format!("{}-r10", "x".repeat(48));
        for (name, number, expected) in
            [("shop", 2, "shop-r2"), ("shop-r2", 3, "shop-r3"), ("my-run", 2, "my-run-r2"), (&long, 10, &cut)]
        {
            assert_eq!(numbered(name, number), expected);
        }
        assert_eq!((number_of("shop-r7"), number_of("shop"), number_of("-r7")), (Some(("shop", 7)), None, None));
    }
}
