//! `RUN/STEP[/KEY]`: which step is meant.

use super::connect::Connection;
use super::fault::Fault;
use super::text::near;
use crate::api::StepRun;
pub use crate::decide::history::{keys, label};
pub use crate::decide::target::{matching, waits_at_gate, waits_at_own_gate, waits_for_answer};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A run, or a StepRun by its own name.
    Name(String),
    /// A run, and what follows it.
    Step(String, String),
}

impl Target {
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let text = text.trim_end_matches('/');
        let wrong =
            || Fault::usage(format!("{text:?} names no step; write RUN/STEP, RUN/STEP/KEY or the name of a StepRun"));
        // What kubectl prints with -o name is taken too.
        for kind in ["workflow.lockstep.dev/", "steprun.lockstep.dev/"] {
            if let Some(name) = text.strip_prefix(kind) {
                return Self::parse(name);
            }
        }
        match text.split_once('/') {
            None if text.is_empty() => Err(wrong()),
            None => Ok(Self::Name(text.to_owned())),
            Some((run, step)) if run.is_empty() || step.is_empty() || step.starts_with('/') => Err(wrong()),
            Some((run, step)) => Ok(Self::Step(run.to_owned(), step.to_owned())),
        }
    }
}

/// Whether the words named the step, or only led to it: a run with one wait, a step of which one item waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    Step,
    Led,
}

/// The one StepRun that is meant, and whether it was named: what nobody named is not decided unseen. `wanting` is true for
/// those that the verb is for: where several fit, they win.
pub async fn find_named(
    on: &Connection,
    target: &Target,
    wanting: impl Fn(&StepRun) -> bool,
) -> Result<(StepRun, Named), Fault> {
    let (run, wanted) = match target {
        Target::Name(name) => {
            let found = on.read::<StepRun>(&format!("read the step {name}"), name).await?;
            if let Some(step) = found {
                return Ok((step, Named::Step));
            }
            let run = on.workflow(name).await?;
            let mut steps = on.step_runs(name).await?;
            steps.retain(|step| run.metadata.uid.as_deref() == Some(&step.spec.workflow.uid));
            return whole_run(name, &steps, wanting).map(|step| (step, Named::Led));
        }
        Target::Step(run, wanted) => (run, wanted),
    };
    let steps = on.step_runs(run).await?;
    if steps.is_empty() {
        on.workflow(run).await?;
    }
    one(run, wanted, &steps, wanting)
}

fn one(
    run: &str,
    wanted: &str,
    steps: &[StepRun],
    wanting: impl Fn(&StepRun) -> bool,
) -> Result<(StepRun, Named), Fault> {
    let mut found = matching(wanted, steps);
    let mut how = Named::Step;
    if found.len() > 1 && found.iter().filter(|s| wanting(s)).count() == 1 {
        found.retain(|s| wanting(s));
        how = Named::Led;
    }
    match found.as_slice() {
        [step] => Ok(((*step).clone(), how)),
        _ => Err(unclear(run, wanted, steps)),
    }
}

/// Why the words name no single step of the run.
pub fn unclear(run: &str, wanted: &str, steps: &[StepRun]) -> Fault {
    let several = matching(wanted, steps);
    if !several.is_empty() {
        let names: Vec<String> = several.iter().map(|s| format!("{run}/{}", label(s))).collect();
        return Fault::missing(format!("{run}/{wanted} is more than one step; name one of {}", listed(&names)));
    }
    let labels: Vec<String> = steps.iter().map(label).collect();
    Fault::missing(match (near(wanted, &labels).as_slice(), labels.as_slice()) {
        (_, []) => format!("no step of the run {run} has started yet; see kubectl lockstep watch {run}"),
        ([], _) => format!("the run {run} has no started step {wanted}; it has {}", listed(&labels)),
        (close, _) => format!("the run {run} has no started step {wanted}; did you mean {}?", close.join(" or ")),
    })
}

/// A run's name where a step is expected: good enough where one wait is all that there is, of whatever kind.
fn whole_run(run: &str, steps: &[StepRun], wanting: impl Fn(&StepRun) -> bool) -> Result<StepRun, Fault> {
    let open: Vec<&StepRun> = steps.iter().filter(|s| waits_at_gate(s) || waits_for_answer(s)).collect();
    match open.as_slice() {
        [step] if wanting(step) => Ok((*step).clone()),
        [] | [_] => {
            Err(Fault::missing(format!("no step of the run {run} waits for this; see kubectl lockstep show {run}")))
        }
        several => {
            let what = |s: &StepRun| if waits_at_gate(s) { "at its gate" } else { "for an answer" };
            let names: Vec<String> =
                several.iter().map(|s| format!("{run}/{} (waits {})", label(s), what(s))).collect();
            Err(Fault::missing(format!("several steps of the run {run} wait; name one of {}", listed(&names))))
        }
    }
}

fn listed(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(10).map(|n| super::text::inline(n, 300)).collect();
    match names.len() {
        0..=10 => shown.join(", "),
        more => format!("{} and {} more", shown.join(", "), more - 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::target::tests::step;

    #[test]
    fn targets_are_parsed() {
        let two = |a: &str, b: &str| Some(Target::Step(a.to_owned(), b.to_owned()));
        let table = [
            ("shop", Some(Target::Name("shop".to_owned()))),
            ("shop/", Some(Target::Name("shop".to_owned()))),
            ("workflow.lockstep.dev/shop", Some(Target::Name("shop".to_owned()))),
            ("shop/discovery", two("shop", "discovery")),
            ("shop/arch/E1", two("shop", "arch/E1")),
            ("shop/group/arch/E1/", two("shop", "group/arch/E1")),
            ("", None),
            ("/", None),
            ("/x", None),
            ("shop//x", None),
        ];
        for (text, expected) in table {
            assert_eq!(Target::parse(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn faults_name_the_candidates() {
        let steps = [step("discovery", &[]), step("arch", &["E1"]), step("arch", &["E2"])];
        let text = |wanted: &str| one("shop", wanted, &steps, |_| false).err().map(|f| f.text).unwrap_or_default();
        assert_eq!(text("arch"), "shop/arch is more than one step; name one of shop/arch/E1, shop/arch/E2");
        assert_eq!(text("discvery"), "the run shop has no started step discvery; did you mean discovery?");
        assert_eq!(text("zzz"), "the run shop has no started step zzz; it has discovery, arch/E1, arch/E2");
        let found = |wanted: &str| one("shop", wanted, &steps, |s| label(s) == "arch/E2").ok();
        let found = |wanted: &str| found(wanted).map(|(step, named)| (label(&step), named));
        assert_eq!(found("arch"), Some(("arch/E2".to_owned(), Named::Led)));
        assert_eq!(found("arch/E2"), Some(("arch/E2".to_owned(), Named::Step)));
        assert_eq!(found("discovery"), Some(("discovery".to_owned(), Named::Step)));
    }

    #[test]
    fn a_run_stands_for_its_only_wait() {
        let waits = |path: &str, status: serde_json::Value| StepRun {
            status: serde_json::from_value(status).expect("a status"),
            ..step(path, &[])
        };
        let at = "2026-01-01T00:00:00Z";
        let gate = |path: &str| {
            let open =
                serde_json::json!({"state": "Waiting", "round": 1, "outputDigest": "d", "openedAt": at, "policy": "p"});
            waits(path, serde_json::json!({"phase": "WaitingForAcceptance", "gate": open}))
        };
        let question = waits(
            "budget",
            serde_json::json!({"phase": "WaitingForInput",
                "waitingFor": {"id": "1", "kind": "Question", "question": "How much?", "options": [], "since": at}}),
        );
        let told = |steps: &[StepRun]| match whole_run("shop", steps, waits_at_gate) {
            Ok(step) => label(&step),
            Err(fault) => fault.text,
        };
        assert_eq!(told(&[step("a", &[]), gate("b")]), "b");
        assert_eq!(
            told(&[gate("b"), question.clone()]),
            "several steps of the run shop wait; name one of shop/b (waits at its gate), shop/budget (waits for an answer)"
        );
        assert!(told(&[gate("b"), gate("c")]).starts_with("several steps"));
        assert!(told(&[question]).starts_with("no step of the run shop waits for this"));
        assert!(told(&[]).starts_with("no step of the run shop waits for this"));
    }
}
