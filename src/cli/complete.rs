//! Completion in the shell: kubectl runs the executable `kubectl_complete-lockstep`, which is this program under another name,
//! with the words of the line. Names come from the cluster that the line means, within two seconds or not at all.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, complete};
use kube::ResourceExt;
use kube::api::{ListParams, PartialObjectMeta};

use super::Cli;
use super::connect::{Connection, Global};
use super::fault::Fault;
use super::print::put;
use super::target::label;
use super::text::inline;
use crate::api::step::{Gate, Step};
use crate::api::workflow::Phase;
use crate::api::{Agent, Document, StepRun, Trigger, Workflow, WorkflowTemplate};
use crate::cluster::stored;

/// Under this name kubectl looks for it.
const NAME: &str = "kubectl_complete-lockstep";
/// How long names are waited for: somebody sits before the line.
const PATIENCE: Duration = Duration::from_secs(2);
/// Objects that are asked for.
const LIMIT: u32 = 500;
/// What the shell is told behind the words: no file names in their place; and no blank behind a word that goes on.
const NO_FILES: u8 = 4;
const NO_SPACE: u8 = 2;

/// The cluster that the line means.
static LINE: OnceLock<Global> = OnceLock::new();

/// Whether kubectl asks for the words that could follow.
pub fn is_asked(program: Option<&OsStr>) -> bool {
    program.and_then(|program| Path::new(program).file_name()).is_some_and(|name| name == NAME)
}

/// Prints what could follow the line, as kubectl reads it: a word and what it is, and behind all of them what the shell may add.
pub fn main(words: Vec<OsString>) -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().ok();
    match put(&answer(words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fault.code.into(),
    }
}

fn answer(mut words: Vec<OsString>) -> String {
    words.insert(0, "kubectl-lockstep".into());
    if words.len() == 1 {
        words.push(OsString::new());
    }
    let read = Cli::command().ignore_errors(true).try_get_matches_from(&words[..words.len() - 1]);
    if let Some(global) = read.ok().and_then(|matches| Global::from_arg_matches(&matches).ok()) {
        LINE.set(global).ok();
    }
    let last = words.len() - 1;
    let is_option = words[last].to_string_lossy().starts_with('-');
    let mut found = complete(&mut Cli::command(), words, last, None).unwrap_or_default();
    // Options stand in the way of names until one is asked for.
    found.retain(|candidate| is_option || !candidate.get_value().to_string_lossy().starts_with('-'));
    told(&found)
}

fn told(found: &[CompletionCandidate]) -> String {
    let mut text = String::new();
    let shown: Vec<&CompletionCandidate> = found.iter().filter(|candidate| !candidate.is_hide_set()).collect();
    for candidate in &shown {
        let word = candidate.get_value().to_string_lossy();
        // What a terminal would obey is no word to complete with.
        if inline(&word, usize::MAX) != word {
            continue;
        }
        text.push_str(&word);
        if let Some(help) = candidate.get_help() {
            text.push_str(&format!("\t{}", inline(&help.to_string(), 120)));
        }
        text.push('\n');
    }
    let goes_on = |candidate: &&CompletionCandidate| candidate.get_value().to_string_lossy().ends_with(['/', '=']);
    let open = !shown.is_empty() && shown.iter().all(goes_on);
    text.push_str(&format!(":{}\n", if open { NO_FILES | NO_SPACE } else { NO_FILES }));
    text
}

/// A completion, and what it is.
type Candidate = (String, String);

/// The completer of an argument whose words come from the cluster; each is given what was typed of it so far.
pub fn by<F>(words: F) -> ArgValueCompleter
where
    F: AsyncFn(&Connection, &str) -> Result<Vec<Candidate>, Fault> + Send + Sync + 'static,
{
    ArgValueCompleter::new(move |typed: &OsStr| {
        let typed = typed.to_string_lossy();
        let found = asked(&words, &typed).unwrap_or_default();
        let fits = found.into_iter().filter(|(word, _)| word.starts_with(typed.as_ref()));
        fits.map(|(word, what)| CompletionCandidate::new(word).help((!what.is_empty()).then(|| what.into()))).collect()
    })
}

fn asked<F>(words: &F, typed: &str) -> Option<Vec<Candidate>>
where
    F: AsyncFn(&Connection, &str) -> Result<Vec<Candidate>, Fault>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let found = runtime.block_on(async {
        let asked = async {
            let on = Connection::open(LINE.get()?).await.ok()?;
            words(&on, typed).await.ok()
        };
        tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
    });
    // A resolver thread may still hang on a dead network.
    runtime.shutdown_background();
    found
}

fn params() -> ListParams {
    ListParams { limit: Some(LIMIT), ..ListParams::default() }
}

/// Names of runs, with their phases.
pub async fn runs(on: &Connection, _: &str) -> Result<Vec<Candidate>, Fault> {
    let runs = on.call("list the runs", stored::list(on.api::<Workflow>(), &params())).await?.items;
    let word = |run: Workflow| (run.name_any(), run.status.and_then(|s| s.phase).unwrap_or_default().to_string());
    Ok(runs.into_iter().map(word).collect())
}

/// Sessions of runs that have one by name.
pub async fn sessions(on: &Connection, _: &str) -> Result<Vec<Candidate>, Fault> {
    let runs = on.call("list the runs", stored::list(on.api::<Workflow>(), &params())).await?.items;
    Ok(told_once(runs.into_iter().filter_map(|run| run.spec.session)))
}

/// Runs, and behind `RUN/` its steps.
pub async fn targets(on: &Connection, typed: &str) -> Result<Vec<Candidate>, Fault> {
    let Some((run, _)) = typed.split_once('/') else {
        return runs(on, typed).await;
    };
    Ok(on.step_runs(run).await?.iter().map(word_of).collect())
}

/// Steps of the run that is being typed; all that began.
pub async fn waits_at_gate(on: &Connection, _: &str) -> Result<Vec<Candidate>, Fault> {
    in_phase(on, Phase::WaitingForAcceptance).await
}

/// Steps that wait for an answer.
pub async fn waits_for_answer(on: &Connection, _: &str) -> Result<Vec<Candidate>, Fault> {
    in_phase(on, Phase::WaitingForInput).await
}

async fn in_phase(on: &Connection, phase: Phase) -> Result<Vec<Candidate>, Fault> {
    let params = params().fields(&format!("status.phase={phase}"));
    Ok(on.call("list the steps", stored::list(on.api::<StepRun>(), &params)).await?.items.iter().map(word_of).collect())
}

fn word_of(step: &StepRun) -> Candidate {
    let phase = step.status.as_ref().and_then(|s| s.phase).unwrap_or_default();
    (format!("{}/{}", step.spec.workflow.name, label(step)), phase.to_string())
}

/// WorkflowTemplates.
pub async fn templates(on: &Connection, _: &str) -> Result<Vec<Candidate>, Fault> {
    let listed =
        on.call("list the templates", stored::list(on.api::<PartialObjectMeta<WorkflowTemplate>>(), &params())).await?;
    Ok(told_once(listed.items.into_iter().map(|template| template.name_any())))
}

/// Agents.
pub async fn agents(on: &Connection, _: &str) -> Result<Vec<Candidate>, Fault> {
    let listed = on.call("list the Agents", stored::list(on.api::<PartialObjectMeta<Agent>>(), &params())).await?;
    Ok(told_once(listed.items.into_iter().map(|agent| agent.name_any())))
}

/// Triggers that take events.
pub async fn triggers(on: &Connection, _: &str) -> Result<Vec<Candidate>, Fault> {
    let listed = on.call("list the Triggers", stored::list(on.api::<Trigger>(), &params())).await?.items;
    let word = |trigger: Trigger| Some((trigger.name_any(), trigger.spec.event?.event_type().to_owned()));
    Ok(listed.into_iter().filter_map(word).collect())
}

/// Types of documents, and the names of Documents.
pub async fn documents(on: &Connection, _: &str) -> Result<Vec<Candidate>, Fault> {
    // A page of them is large: each has its content.
    let params = ListParams { limit: Some(50), ..ListParams::default() }.fields("status.phase=Published");
    let listed = on.call("list the documents", stored::list(on.api::<Document>(), &params)).await?.items;
    let own: Vec<Document> = listed.into_iter().filter(|d| !d.spec.document_type.starts_with("lockstep-")).collect();
    let mut words = told_once(own.iter().map(|document| document.spec.document_type.clone()));
    words.extend(own.iter().map(|document| (document.name_any(), document.spec.document_type.clone())));
    Ok(words)
}

/// Gates of templates and of runs; agents and questions have the same place on the line of `can-i`, and so have templates.
pub async fn permissions(on: &Connection, _: &str) -> Result<Vec<Candidate>, Fault> {
    let mut words: Vec<Candidate> = Vec::new();
    let listed = on.call("list the templates", stored::list(on.api::<WorkflowTemplate>(), &params())).await?.items;
    words.extend(told_once(listed.iter().flat_map(|template| gates(&template.spec.steps))).into_iter().map(gate));
    words.extend(listed.iter().map(|template| (template.name_any(), "template".to_owned())));
    let agents = agents(on, "").await?;
    words.extend(agents.into_iter().map(|(name, _)| (name, "agent".to_owned())));
    Ok(words)
}

fn gate((name, _): Candidate) -> Candidate {
    (name, "gate".to_owned())
}

/// The names of the gates of steps, as RBAC knows them.
fn gates(steps: &[Step]) -> Vec<String> {
    let named = |step: &Step, gate: &Gate| {
        let made = step.produces.as_ref().map(|made| made.document_type.clone());
        gate.name.clone().or(made).unwrap_or_else(|| step.name.clone())
    };
    let mut all = Vec::new();
    for step in steps {
        all.extend(step.gate.iter().map(|gate| named(step, gate)));
        all.extend(step.action_gates.iter().map(|gate| gate.name.clone()));
        all.extend(gates(&step.steps));
    }
    all
}

fn told_once(words: impl Iterator<Item = String>) -> Vec<Candidate> {
    let mut words: Vec<String> = words.collect();
    words.sort();
    words.dedup();
    words.into_iter().map(|word| (word, String::new())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(line: &str) -> String {
        answer(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn verbs_and_options_are_completed_without_a_cluster() {
        let verbs = after("sh");
        assert!(verbs.starts_with("show\tShow a run, or one step of it"), "{verbs}");
        assert!(verbs.ends_with("\n:4\n"), "{verbs}");
        let verbs = after("doc ");
        assert!(["put\t", "get\t", "list\t"].iter().all(|verb| verbs.contains(verb)), "{verbs}");
        let options = after("-n team run --pa");
        assert!(options.contains("--param\t"), "{options}");
        let formats = after("list -o js");
        assert!(formats.starts_with("json"), "{formats}");
        // Nothing hidden is told, and nothing of a cluster that cannot be reached.
        assert_eq!(after("--kubeconfig /nowhere show x"), ":4\n");
    }

    #[test]
    fn kubectl_is_told_of_words_that_go_on() {
        let candidate = |word: &str| CompletionCandidate::new(word);
        assert_eq!(told(&[candidate("shop/"), candidate("shed/")]), "shop/\nshed/\n:6\n");
        assert_eq!(told(&[candidate("shop/"), candidate("shed")]), "shop/\nshed\n:4\n");
        assert_eq!(told(&[candidate("a\u{1b}[2J").help(None)]), ":4\n");
    }

    #[test]
    fn gates_have_the_names_of_rbac() {
        let steps: Vec<Step> = serde_json::from_value(serde_json::json!([
            {"name": "a", "agentId": "x", "gate": {"name": "own"}},
            {"name": "b", "agentId": "x", "produces": {"type": "plan", "format": "markdown"}, "gate": {}},
            {"name": "c", "steps": [{"name": "d", "gate": {}}]},
        ]))
        .expect("steps");
        assert_eq!(gates(&steps), ["own", "plan", "d"]);
    }

    #[test]
    fn the_program_is_known_by_its_name() {
        assert!(is_asked(Some(OsStr::new("/usr/local/bin/kubectl_complete-lockstep"))));
        assert!(!is_asked(Some(OsStr::new("/usr/local/bin/kubectl-lockstep"))));
        assert!(!is_asked(None));
    }
}
