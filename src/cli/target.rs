//! `RUN/STEP[/KEY]`: which step is meant.

use super::connect::Connection;
use super::fault::Fault;
use super::text::near;
use crate::api::StepRun;
use crate::api::step_run::GateState;
use crate::api::workflow::Phase;
pub use crate::decide::history::{keys, label};

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

/// All that `wanted` may mean: the whole label, a step's bare name, a label without the outer keys or without any.
pub fn matching<'a>(wanted: &str, steps: &'a [StepRun]) -> Vec<&'a StepRun> {
    let exact: Vec<&StepRun> = steps.iter().filter(|s| label(s) == wanted).collect();
    if !exact.is_empty() {
        return exact;
    }
    steps
        .iter()
        .filter(|step| {
            let path = step.spec.path.as_str();
            let bare = path.rsplit('/').next().unwrap_or(path);
            let all = keys(step).join("/");
            let inner = keys(step).last().copied().unwrap_or_default().to_owned();
            [path, bare].into_iter().any(|path| {
                wanted == path
                    || [&all, &inner].into_iter().any(|key| {
                        wanted.strip_prefix(path).and_then(|rest| rest.strip_prefix('/')) == Some(key.as_str())
                    })
            })
        })
        .collect()
}

/// Whether the words named the step, or only led to it: a run with one wait, a step of which one item waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    Step,
    Led,
}

/// The one StepRun that is meant. `wanting` is true for those that the verb is for: where several fit, they win.
pub async fn find(on: &Connection, target: &Target, wanting: impl Fn(&StepRun) -> bool) -> Result<StepRun, Fault> {
    find_named(on, target, wanting).await.map(|(step, _)| step)
}

/// The same, and whether it was named: what nobody named is not decided unseen.
pub async fn find_named(
    on: &Connection,
    target: &Target,
    wanting: impl Fn(&StepRun) -> bool,
) -> Result<(StepRun, Named), Fault> {
    let (run, wanted) = match target {
        Target::Name(name) => {
            let found = on.call(&format!("read the step {name}"), on.api::<StepRun>().get_opt(name)).await?;
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
        [] => {
            let labels: Vec<String> = steps.iter().map(label).collect();
            let close = near(wanted, &labels);
            Err(Fault::missing(match (close.as_slice(), labels.as_slice()) {
                (_, []) => format!("no step of the run {run} has started yet; see kubectl lockstep watch {run}"),
                ([], _) => format!("the run {run} has no started step {wanted}; it has {}", listed(&labels)),
                (close, _) => {
                    format!("the run {run} has no started step {wanted}; did you mean {}?", close.join(" or "))
                }
            }))
        }
        several => {
            let names: Vec<String> = several.iter().map(|s| format!("{run}/{}", label(s))).collect();
            Err(Fault::missing(format!("{run}/{wanted} is more than one step; name one of {}", listed(&names))))
        }
    }
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

fn is_open(step: &StepRun) -> bool {
    let phase = step.status.as_ref().and_then(|s| s.phase);
    !phase.is_some_and(Phase::is_terminal)
}

/// Whether its gate waits for a decision.
pub fn waits_at_gate(step: &StepRun) -> bool {
    let gate = step.status.as_ref().and_then(|s| s.gate.as_ref());
    is_open(step) && gate.is_some_and(|gate| gate.state == GateState::Waiting)
}

/// Whether it waits for an answer.
pub fn waits_for_answer(step: &StepRun) -> bool {
    is_open(step)
        && step.status.as_ref().is_some_and(|s| s.waiting_for.is_some() && s.phase == Some(Phase::WaitingForInput))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::step_run::{Item, ScopeLink};

    fn step(path: &str, keys: &[&str]) -> StepRun {
        let mut step = StepRun::new(
            &format!("shop-{}-{}", path.replace('/', "-"), keys.join("-")),
            crate::api::StepRunSpec::default(),
        );
        step.spec.path = path.to_owned();
        step.spec.workflow.uid = "uid".to_owned();
        step.spec.item = keys.last().map(|key| Item { key: (*key).to_owned(), ..Item::default() });
        step.spec.scope_chain = vec![ScopeLink { scope: "s".to_owned(), scope_id: format!("uid/{}", keys.join("/")) }];
        step
    }

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
    fn steps_are_found_by_path_name_and_key() {
        let steps = [
            step("discovery", &[]),
            step("build/arch", &["E1"]),
            step("build/arch", &["E2"]),
            step("build/arch/story", &["E1", "S1"]),
            step("build/arch/story", &["E2", "S1"]),
        ];
        let table: [(&str, &[usize]); 10] = [
            ("discovery", &[0]),
            ("build/arch/E1", &[1]),
            ("arch/E2", &[2]),
            ("arch", &[1, 2]),
            ("build/arch", &[1, 2]),
            ("build/arch/story/E1/S1", &[3]),
            ("story/E2/S1", &[4]),
            ("story/S1", &[3, 4]),
            ("arch/E3", &[]),
            ("nothing", &[]),
        ];
        for (wanted, expected) in table {
            let found: Vec<usize> =
                matching(wanted, &steps).iter().filter_map(|f| steps.iter().position(|s| s == *f)).collect();
            assert_eq!(found, expected, "{wanted}");
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
