//! Report: the end of an attempt, written once. Check: the same judgement, written nowhere.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::attempt::Asked;
use super::auth::{self, Act, Caller};
use super::cluster::{add, patch_status};
use super::document::{self, Origin};
use super::judge::{self, Contract, Judgement};
use super::metrics::Class;
use super::refusal::{Reason, Refusal, Result};
use super::{Gateway, attempt, claim, cluster, definitions};
use crate::api::limits::{LOG_TAIL_BYTES, MESSAGE_BYTES};
use crate::api::step_run::{Report, ReportClass, StepRunSpec};
use crate::api::{StepRun, name};
use crate::decide::claim::{self as rules, Answer};
use crate::definition::expression::{Evaluate, Trouble};
use crate::definition::program::Program;
use crate::protocol::{AttemptRef, CheckRequest, Checked, Ending, Fault, Output, ReportRequest};

const ROUNDS: usize = 5;
/// How long a call waits, its output in memory, for a schema that takes long. Then it is to come again: the answer is
/// remembered meanwhile.
const JUDGE: Duration = Duration::from_millis(500);

/// Judges what there is so far.
pub async fn check(gateway: &Gateway, caller: &Caller, request: Asked<CheckRequest>) -> Result<Checked> {
    let who = &request.attempt;
    let step_run = attempt::read(gateway, who).await?;
    attempt::stands(&step_run, who)?;
    attempt::holds(&step_run, who, caller)?;
    let judgement = judged(gateway, who, &step_run.spec, request.body.output).await?;
    Ok(Checked { faults: judgement.faults })
}

/// Commits the attempt's end; a repeated report gets the answer of the first.
pub async fn report(gateway: &Gateway, caller: &Caller, request: Asked<ReportRequest>) -> Result<Checked> {
    let who = &request.attempt;
    let job = auth::pod(&gateway.client, caller, who, Act::Report).await?;
    let id = attempt::id_digest(who);
    let asker = attempt::asker(who, caller, &id);
    let mut made: Option<(Report, Checked)> = None;
    for _ in 0..ROUNDS {
        let step_run = attempt::read(gateway, who).await?;
        match rules::accept(&step_run, &asker) {
            Answer::Free => {}
            Answer::Again => return Ok(earlier(&step_run, who.attempt)),
            Answer::Refused(why) => return Err(why.into()),
        }
        auth::of_the_job(&job, &step_run, who.attempt, Act::Report)?;
        let (report, checked) = match made.take() {
            Some(made) => made,
            None => compose(gateway, &request, &step_run.spec).await?,
        };
        match write(gateway, who, &report).await {
            Ok(()) => {
                log(gateway, who, &step_run, &report);
                return Ok(checked);
            }
            Err(failure) if failure.is_outrun() => {
                gateway.metrics.conflicts.inc();
                made = Some((report, checked));
            }
            Err(failure) => return Err(failure.into()),
        }
    }
    Err(Refusal::unavailable("the report could not be written"))
}

fn earlier(step_run: &StepRun, attempt: i32) -> Checked {
    step_run.status.as_ref().and_then(|s| rules::report_of(s, attempt)).map(verdict).unwrap_or_default()
}

/// What a report that is already there says.
fn verdict(report: &Report) -> Checked {
    let judged = matches!(report.class, ReportClass::InvalidOutput | ReportClass::OutputTooLarge);
    let faults = report.message.iter().filter(|_| judged).flat_map(|message| message.lines()).map(fault).collect();
    Checked { faults }
}

/// Reads a line back that `Fault` displays.
fn fault(line: &str) -> Fault {
    let (pointer, message) = match line.split_once(": ") {
        Some((pointer, message)) if pointer.starts_with('/') => (pointer, message),
        _ => ("", line),
    };
    Fault { pointer: if pointer == "/" { "" } else { pointer }.to_owned(), message: message.to_owned() }
}

async fn write(gateway: &Gateway, who: &AttemptRef, report: &Report) -> std::result::Result<(), cluster::Failure> {
    let mut operations = attempt::tests(rules::held_still(&who.uid, who.attempt, &attempt::id_digest(who)));
    operations.push(add("/status/agent/report", report));
    patch_status(&attempt::api(gateway, who), &who.step_run, &operations).await
}

fn log(gateway: &Gateway, who: &AttemptRef, step_run: &StepRun, report: &Report) {
    tell(who, &step_run.spec, report);
    gateway.metrics.reports.get_or_create(&Class { class: format!("{:?}", report.class) }).inc();
}

/// A failure with all that is known of it, so that the log alone explains it; the shim has masked what was secret.
fn tell(who: &AttemptRef, spec: &StepRunSpec, report: &Report) {
    let class = format!("{:?}", report.class);
    if report.class == ReportClass::Succeeded {
        tracing::info!(
            namespace = who.namespace,
            workflow = spec.workflow.name,
            step = spec.path,
            agent = spec.agent_id,
            attempt = who.attempt,
            stepRun = who.step_run,
            class,
            exitCode = report.exit_code,
            "reported"
        );
        return;
    }
    tracing::error!(
        namespace = who.namespace,
        workflow = spec.workflow.name,
        step = spec.path,
        agent = spec.agent_id,
        attempt = who.attempt,
        stepRun = who.step_run,
        class,
        exitCode = report.exit_code,
        cause = report.message,
        logTail = report.log_tail,
        "the attempt failed"
    );
}

/// The report and the answer to it; makes the document first, so that a report never names one that is not there.
async fn compose(gateway: &Gateway, request: &Asked<ReportRequest>, spec: &StepRunSpec) -> Result<(Report, Checked)> {
    let who = &request.attempt;
    let mut report = ended(request, gateway.clock.now());
    if report.class != ReportClass::Succeeded {
        return Ok((report, Checked::default()));
    }
    let mut judgement = judged(gateway, who, spec, request.body.output.clone()).await?;
    if judgement.class == ReportClass::Succeeded {
        let content = judgement.document.as_deref().unwrap_or_default();
        report.digest = digest(judgement.output.as_deref(), content, request);
        if let Err(why) = put_up(gateway, who, spec, &mut judgement, &mut report).await? {
            judgement = refused(why);
        }
    }
    report.class = judgement.class;
    report.message = judge::message(&judgement.faults);
    report.output = judgement.output;
    let faults = judgement.faults;
    Ok((report, Checked { faults }))
}

/// Makes the documents of a good attempt: the one that the step produces, and the one that carries a large output.
async fn put_up(
    gateway: &Gateway,
    who: &AttemptRef,
    spec: &StepRunSpec,
    judgement: &mut Judgement,
    report: &mut Report,
) -> Result<std::result::Result<(), String>> {
    let (document, apart) = (judgement.document.take(), judgement.apart.take());
    if document.is_none() && apart.is_none() {
        return Ok(Ok(()));
    }
    let definition = definition(gateway, who, spec).await?;
    let (_, step) = definitions::step(&definition, spec)?;
    let internal = document::internal();
    let origin = |produces| Origin { attempt: who, spec, run: &definition.run, produces };
    if let (Some(content), Some(produces)) = (document, &step.produces) {
        match document::create(gateway, &origin(produces), content).await? {
            Ok((name, bound)) => {
                report.document_name = Some(name);
                report.document_binding = Some(bound);
            }
            Err(why) => return Ok(Err(why)),
        }
    }
    if let Some(content) = apart {
        match document::create(gateway, &origin(&internal), content).await? {
            Ok((name, bound)) => {
                report.output_document = Some(name);
                report.output_binding = Some(bound);
            }
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(()))
}

fn refused(why: String) -> Judgement {
    Judgement::fault(ReportClass::InvalidOutput, vec![Fault { pointer: String::new(), message: why }])
}

/// Over the bytes that the verdict commits: output, then document.
fn digest(output: Option<&str>, document: &str, request: &Asked<ReportRequest>) -> String {
    let output = output.or(request.body.output.result.as_deref());
    name::digest([output.unwrap_or_default().as_bytes(), document.as_bytes()])
}

/// What the ending alone says. `fail` beats the exit code, the exit code beats the files.
fn ended(request: &Asked<ReportRequest>, at: Time) -> Report {
    let (class, exit_code, message) = match &request.body.ending {
        Ending::Exited { code: 0 } => (ReportClass::Succeeded, Some(0), None),
        Ending::Exited { code } => (ReportClass::Exited, Some(*code), None),
        Ending::Failed { retryable, message, code } => {
            let class = if *retryable { ReportClass::Retryable } else { ReportClass::Unrecoverable };
            let message = judge::clean(message, MESSAGE_BYTES);
            (class, Some(*code), Some(message))
        }
        Ending::TimedOut => (ReportClass::Timeout, None, None),
        Ending::Silent { seconds } => {
            let message = format!("no call for {seconds} s (progressTimeoutSeconds)");
            (ReportClass::Timeout, None, Some(message))
        }
    };
    let output = request.body.output.result.as_deref().unwrap_or_default();
    let document = request.body.output.document.as_deref().unwrap_or_default();
    let log_tail = judge::clean_tail(&request.body.log_tail, LOG_TAIL_BYTES);
    Report {
        attempt: request.attempt.attempt,
        exit_code,
        class,
        digest: name::digest([output.as_bytes(), document.as_bytes()]),
        output: None,
        output_document: None,
        output_binding: None,
        document_name: None,
        document_binding: None,
        message,
        log_tail: Some(log_tail).filter(|text| !text.is_empty()),
        at,
    }
}

async fn definition(gateway: &Gateway, who: &AttemptRef, spec: &StepRunSpec) -> Result<Arc<Program>> {
    gateway.definitions.get(&gateway.client, &who.namespace, spec).await
}

async fn judged(gateway: &Gateway, who: &AttemptRef, spec: &StepRunSpec, output: Output) -> Result<Judgement> {
    let definition = definition(gateway, who, spec).await?;
    let (_, step) = definitions::step(&definition, spec)?;
    let Some(agent) = claim::agent(gateway, who, spec).await? else {
        let why = format!("Agent {} is gone, and its outputSchema with it", spec.agent_id);
        return Ok(refused(why));
    };
    let own = step.output_schema.as_ref().map(|schema| schema.as_object().clone());
    let schemas = [("step", own), ("Agent", agent.spec.output_schema)];
    let contract = Contract {
        produces: step.produces.clone(),
        schemas: schemas.into_iter().filter_map(|(whose, schema)| Some((whose, schema?))).collect(),
    };
    judge_against(gateway, who, contract, output).await
}

/// Judges off the async threads, a few at a time. A place is not held while an answer of the evaluator is waited for.
async fn judge_against(gateway: &Gateway, who: &AttemptRef, contract: Contract, output: Output) -> Result<Judgement> {
    let judged = Arc::new((contract, output));
    // Each schema may take long once.
    for _ in 0..=judged.0.schemas.len() {
        let evaluator = gateway.evaluator.for_namespace(&who.namespace);
        let permit = gateway.judges.acquire(&who.namespace).await?;
        let (asked, judged) = (Arc::clone(&evaluator), Arc::clone(&judged));
        let work = move || {
            // Held until the work ends, not until somebody stops waiting for it.
            let _permit = permit;
            judge::judge(&judged.0, &judged.1, asked.as_ref())
        };
        if !gateway.evaluator.blocks() {
            return Ok(work());
        }
        let judgement = tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, stepRun = who.step_run, "an output could not be judged");
            Refusal::new(Reason::Internal, "the output could not be judged")
        })?;
        match evaluator.trouble() {
            None => return Ok(judgement),
            Some(Trouble::Broken(why)) => {
                tracing::warn!(why, stepRun = who.step_run, "an output could not be judged yet");
                break;
            }
            Some(Trouble::Waits) if tokio::time::timeout(JUDGE, evaluator.answered()).await.is_err() => break,
            Some(Trouble::Waits) => {}
        }
    }
    Err(Refusal::unavailable("the output could not be checked against the schema yet; try again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(ending: Ending) -> Asked<ReportRequest> {
        Asked {
            attempt: AttemptRef {
                namespace: "team".to_owned(),
                step_run: "s".to_owned(),
                uid: "u".to_owned(),
                attempt: 2,
                id: String::new(),
            },
            body: ReportRequest {
                ending,
                output: Output { result: Some("1".to_owned()), document: None },
                log_tail: format!("{}\u{1b}end", "x".repeat(5000)),
            },
        }
    }

    fn epoch() -> Time {
        Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn fail_beats_the_exit_code_and_the_exit_code_beats_the_files() {
        let failed = |retryable| Ending::Failed { retryable, message: "no \u{7}quota".to_owned(), code: 0 };
        for (ending, class, code) in [
            (Ending::Exited { code: 0 }, ReportClass::Succeeded, Some(0)),
            (Ending::Exited { code: 7 }, ReportClass::Exited, Some(7)),
            (Ending::Exited { code: 137 }, ReportClass::Exited, Some(137)),
            (failed(true), ReportClass::Retryable, Some(0)),
            (failed(false), ReportClass::Unrecoverable, Some(0)),
            (Ending::TimedOut, ReportClass::Timeout, None),
        ] {
            let message = matches!(ending, Ending::Failed { .. }).then(|| "no quota".to_owned());
            let report = ended(&request(ending), epoch());
            assert_eq!((report.class, report.exit_code), (class, code));
            assert_eq!(report.message, message);
            assert_eq!(report.output, None);
            let tail = report.log_tail.expect("a tail");
            assert!(tail.len() == 4096 && tail.ends_with("xend"));
        }
    }

    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("a lock").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failure_is_logged_with_all_that_is_known() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        let mut spec =
            StepRunSpec { path: "group/plan".to_owned(), agent_id: "planner".to_owned(), ..Default::default() };
        spec.workflow.name = "shop".to_owned();
        let failed = Ending::Failed { retryable: false, message: "no brief".to_owned(), code: 3 };
        let request = request(failed);
        tracing::subscriber::with_default(subscriber, || tell(&request.attempt, &spec, &ended(&request, epoch())));
        let text = String::from_utf8(lines.0.lock().expect("a lock").clone()).expect("text");
        let line: serde_json::Value = serde_json::from_str(&text).expect("one line of JSON");
        for (field, value) in [
            ("level", "ERROR"),
            ("namespace", "team"),
            ("workflow", "shop"),
            ("step", "group/plan"),
            ("agent", "planner"),
            ("stepRun", "s"),
            ("class", "Unrecoverable"),
            ("cause", "no brief"),
        ] {
            assert_eq!(line[field], value, "{field}: {line}");
        }
        assert_eq!((line["attempt"].as_i64(), line["exitCode"].as_i64()), (Some(2), Some(3)), "{line}");
        assert!(line["logTail"].as_str().is_some_and(|tail| tail.ends_with("xend")), "{line}");
    }

    #[test]
    fn silence_is_a_timeout_that_says_so() {
        let report = ended(&request(Ending::Silent { seconds: 5 }), epoch());
        assert_eq!(report.class, ReportClass::Timeout);
        assert_eq!(report.message.as_deref(), Some("no call for 5 s (progressTimeoutSeconds)"));
    }

    #[test]
    fn a_repeated_report_gets_the_faults_of_the_first() {
        let faults = vec![
            Fault { pointer: "/a".to_owned(), message: "is: wrong".to_owned() },
            Fault { pointer: String::new(), message: "no result.json".to_owned() },
        ];
        let mut report = ended(&request(Ending::Exited { code: 0 }), epoch());
        assert_eq!(verdict(&report), Checked::default());
        report.class = ReportClass::InvalidOutput;
        report.message = judge::message(&faults);
        assert_eq!(verdict(&report).faults, faults);
        report.class = ReportClass::Retryable;
        assert_eq!(verdict(&report), Checked::default());
    }
}
