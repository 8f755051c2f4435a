//! Report: the end of an attempt, written once. Check: the same judgement, written nowhere.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::attempt::Asked;
use super::auth::{self, AttemptCall, AttemptPod, Caller};
use super::cluster::{add, patch_status};
use super::document::{self, Origin};
use super::judge::{self, Contract, Judgement};
use super::metrics::ClassLabels;
use super::refusal::{Refusal, Result};
use super::{Gateway, ask, attempt, attended, cluster, definitions, evaluate, terms, usage};
use crate::api::limits::{LOG_TAIL_BYTES, MESSAGE_BYTES};
use crate::api::step_run::{Report, ReportClass, StepRunSpec, Stopped};
use crate::api::usage::Usage;
use crate::api::{StepRun, name};
use crate::decide::claim::{self as rules, Answer};
use crate::decide::trace::TraceContext;
use crate::definition::program::Program;
use crate::protocol::{AttemptRef, CheckRequest, Checked, Ending, Fault, Output, ReportRequest};

const ROUNDS: usize = 5;
const STOPPED_EMPTY: &str = "its pod was taken away, and the agent ended with neither result nor document";
/// Of what a shim says of its node.
const CAUSE_CHARS: usize = 200;

/// Judges what there is so far.
pub async fn check(gateway: &Gateway, caller: &Caller, request: Asked<CheckRequest>) -> Result<Checked> {
    let who = &request.attempt;
    let step_run = attempt::read(gateway, who).await?;
    attempt::stands(&step_run, who)?;
    attempt::holds(&step_run, who, caller)?;
    let pod = auth::pod(&gateway.client, caller, who, AttemptCall::Report).await?;
    let judgement = judged(gateway, who, &step_run, &pod, request.body.output).await?;
    Ok(Checked { faults: judgement.faults })
}

/// Commits the attempt's end; a repeated report gets the answer of the first.
pub async fn report(gateway: &Gateway, caller: &Caller, request: Asked<ReportRequest>) -> Result<Checked> {
    let Asked { attempt: who, body } = request;
    let pod = auth::pod(&gateway.client, caller, &who, AttemptCall::Report).await?;
    let body = attended::settled(body, &pod)?;
    let request = Asked { attempt: who, body };
    let who = &request.attempt;
    let id = attempt::id_digest(who);
    let claimant = attempt::claimant(who, caller, &id);
    let used = request.body.usage.as_ref().map(usage::read).transpose()?;
    let mut made: Option<(Report, Checked)> = None;
    for _ in 0..ROUNDS {
        let step_run = attempt::read(gateway, who).await?;
        match rules::accept(&step_run, &claimant) {
            Answer::Free => {}
            Answer::Again => return Ok(earlier(&step_run, who.attempt)),
            Answer::Refused(why) => {
                keep_log_of_stopped(gateway, &request, &step_run, &claimant).await;
                return Err(why.into());
            }
        }
        auth::of_the_job(&pod.job, &step_run, who.attempt, AttemptCall::Report)?;
        let (report, checked) = match made.take() {
            Some(made) => made,
            None => compose(gateway, &request, &step_run, &pod).await?,
        };
        match write(gateway, who, &report, used.as_ref()).await {
            Ok(()) => {
                if let Some(used) = &used {
                    gateway.metrics.used(used, usage::known(&attempt::status(&step_run)).as_ref());
                }
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

/// Whether the agent ended after its shim was told to stop.
fn was_signalled(ending: &Ending) -> bool {
    matches!(ending, Ending::Exited { signal: Some(_), .. })
}

/// The log of an attempt that was stopped: its pod is about to go. Whoever reads it can do without it, so it is tried once.
async fn keep_log_of_stopped(
    gateway: &Gateway,
    request: &Asked<ReportRequest>,
    step_run: &StepRun,
    claimant: &rules::Claimant<'_>,
) {
    if !rules::may_report_after_stop(step_run, claimant) {
        return;
    }
    let who = &request.attempt;
    let report = ended(request, gateway.clock.now());
    let Report { attempt, exit_code, log_tail, at, .. } = report;
    let mut operations = attempt::tests(rules::log_preconditions(&who.uid, who.attempt, claimant.id));
    operations.push(add("/status/agent/stopped", &Stopped { attempt, exit_code, log_tail, at }));
    let written = patch_status(&attempt::api(gateway, who), &who.step_run, &operations).await;
    if let Err(failure) = written {
        tracing::info!(stepRun = who.step_run, attempt, %failure, "the log of a stopped attempt was not kept");
    }
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

/// The report, and in the same write what follows from it: all that was used, and the end of the journal.
async fn write(
    gateway: &Gateway,
    who: &AttemptRef,
    report: &Report,
    used: Option<&Usage>,
) -> std::result::Result<(), cluster::Failure> {
    let mut operations = attempt::tests(rules::report_preconditions(&who.uid, who.attempt, &attempt::id_digest(who)));
    operations.push(add("/status/agent/report", report));
    operations.push(add("/status/agent/journal", &rules::journalled(report)));
    operations.extend(used.map(|used| add("/status/agent/usage", used)));
    patch_status(&attempt::api(gateway, who), &who.step_run, &operations).await
}

fn log(gateway: &Gateway, who: &AttemptRef, step_run: &StepRun, report: &Report) {
    tell(who, &step_run.spec, report);
    gateway.metrics.reports.get_or_create(&ClassLabels { class: format!("{:?}", report.class) }).inc();
}

/// A failure with all that is known of it, so that the log alone explains it; the shim has masked what was secret.
fn tell(who: &AttemptRef, spec: &StepRunSpec, report: &Report) {
    let trace_id = TraceContext::of_run(&spec.workflow.uid, spec.workflow.traceparent.as_deref()).id();
    let class = format!("{:?}", report.class);
    if matches!(report.class, ReportClass::Succeeded | ReportClass::Asked) {
        tracing::info!(
            namespace = who.namespace,
            workflow = spec.workflow.name,
            step = spec.path,
            agent = spec.agent_id,
            attempt = who.attempt,
            stepRun = who.step_run,
            class,
            exitCode = report.exit_code,
            traceId = trace_id,
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
        traceId = trace_id,
        "the attempt failed"
    );
}

/// The report and the answer to it; makes the document first, so that a report never names one that is not there.
async fn compose(
    gateway: &Gateway,
    request: &Asked<ReportRequest>,
    step_run: &StepRun,
    pod: &AttemptPod,
) -> Result<(Report, Checked)> {
    let (who, spec) = (&request.attempt, &step_run.spec);
    let mut report = ended(request, gateway.clock.now());
    report.interrupted = pod.pod_disrupted && was_signalled(&request.body.ending);
    if let Ending::Asked { questions } = &request.body.ending {
        report.questions = ask::open(gateway, who, step_run, questions).await?;
        report.digest = name::digest_bytes(&serde_json::to_vec(&report.questions).unwrap_or_default());
    }
    if report.class != ReportClass::Succeeded {
        return Ok((report, Checked::default()));
    }
    let output = &request.body.output;
    // Told to go, it may end with 0 before it is through: only what it has written says that its work is done.
    let nothing = report.interrupted && output.result.is_none() && output.document.is_none();
    let mut judgement = if nothing {
        refused(STOPPED_EMPTY.to_owned())
    } else {
        judged(gateway, who, step_run, pod, output.clone()).await?
    };
    if judgement.class == ReportClass::Succeeded {
        let content = judgement.document.as_deref().unwrap_or_default();
        report.digest = digest(judgement.output.as_deref(), content, request);
        if let Err(why) = store_document(gateway, who, spec, &mut judgement, &mut report).await? {
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
async fn store_document(
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
        Ending::Exited { code: 0, .. } => (ReportClass::Succeeded, Some(0), None),
        Ending::Exited { code, cause, .. } => {
            let why = |cause: &String| format!("{}; the agent exited with {code}", judge::line(cause, CAUSE_CHARS));
            (ReportClass::Exited, Some(*code), cause.as_ref().map(why))
        }
        Ending::Failed { retryable, message, code } => {
            let class = if *retryable { ReportClass::Retryable } else { ReportClass::Unrecoverable };
            let message = judge::clean(message, MESSAGE_BYTES);
            (class, Some(*code), Some(message))
        }
        Ending::TimedOut { code } => (ReportClass::Timeout, *code, None),
        Ending::Silent { seconds, code } => {
            let message = format!("no call for {seconds} s (progressTimeoutSeconds)");
            (ReportClass::Timeout, *code, Some(message))
        }
        Ending::Asked { .. } => (ReportClass::Asked, None, None),
        // What is settled is none any more.
        Ending::Attended { .. } => (ReportClass::Exited, None, None),
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
        questions: Vec::new(),
        message,
        log_tail: Some(log_tail).filter(|text| !text.is_empty()),
        interrupted: false,
        at,
    }
}

async fn definition(gateway: &Gateway, who: &AttemptRef, spec: &StepRunSpec) -> Result<Arc<Program>> {
    gateway.definitions.get(&gateway.client, &who.namespace, spec).await
}

async fn judged(
    gateway: &Gateway,
    who: &AttemptRef,
    step_run: &StepRun,
    pod: &AttemptPod,
    output: Output,
) -> Result<Judgement> {
    let spec = &step_run.spec;
    let definition = definition(gateway, who, spec).await?;
    let (whole, step) = definitions::step(&definition, spec)?;
    let Some(terms) = terms::of(gateway, who, step_run, whole, pod).await? else {
        let why = format!("Agent {} is gone, and its outputSchema with it", spec.agent_id);
        return Ok(refused(why));
    };
    let own = step.output_schema.as_ref().map(|schema| schema.as_object().clone());
    let schemas = [("step", own), ("Agent", terms.output_schema)];
    let contract = Contract {
        produces: step.produces.clone(),
        schemas: schemas.into_iter().filter_map(|(whose, schema)| Some((whose, schema?))).collect(),
    };
    let schemas = contract.schemas.len();
    evaluate::steadily(gateway, who, schemas, (contract, output), |(contract, output), evaluator| {
        judge::judge(contract, output, evaluator)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::super::tests::log::Log;
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
                output: Output { result: Some("1".to_owned()), ..Output::default() },
                log_tail: format!("{}\u{1b}end", "x".repeat(5000)),
                usage: None,
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
            (Ending::exited(0), ReportClass::Succeeded, Some(0)),
            (Ending::exited(7), ReportClass::Exited, Some(7)),
            (Ending::exited(137), ReportClass::Exited, Some(137)),
            (failed(true), ReportClass::Retryable, Some(0)),
            (failed(false), ReportClass::Unrecoverable, Some(0)),
            (Ending::TimedOut { code: Some(137) }, ReportClass::Timeout, Some(137)),
            (Ending::TimedOut { code: None }, ReportClass::Timeout, None),
            (Ending::Asked { questions: Vec::new() }, ReportClass::Asked, None),
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

    #[test]
    fn a_failure_is_logged_with_all_that_is_known() {
        let log = Log::default();
        let mut spec =
            StepRunSpec { path: "group/plan".to_owned(), agent_id: "planner".to_owned(), ..Default::default() };
        spec.workflow.name = "shop".to_owned();
        let failed = Ending::Failed { retryable: false, message: "no brief".to_owned(), code: 3 };
        let request = request(failed);
        tracing::subscriber::with_default(log.subscriber(), || {
            tell(&request.attempt, &spec, &ended(&request, epoch()));
        });
        let lines = log.lines();
        let [line] = &lines[..] else { panic!("one line: {lines:?}") };
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
        let report = ended(&request(Ending::Silent { seconds: 5, code: Some(143) }), epoch());
        assert_eq!((report.class, report.exit_code), (ReportClass::Timeout, Some(143)));
        assert_eq!(report.message.as_deref(), Some("no call for 5 s (progressTimeoutSeconds)"));
    }

    #[test]
    fn a_repeated_report_gets_the_faults_of_the_first() {
        let faults = vec![
            Fault { pointer: "/a".to_owned(), message: "is: wrong".to_owned() },
            Fault { pointer: String::new(), message: "no result.json".to_owned() },
        ];
        let mut report = ended(&request(Ending::exited(0)), epoch());
        assert_eq!(verdict(&report), Checked::default());
        report.class = ReportClass::InvalidOutput;
        report.message = judge::message(&faults);
        assert_eq!(verdict(&report).faults, faults);
        report.class = ReportClass::Retryable;
        assert_eq!(verdict(&report), Checked::default());
    }
}
