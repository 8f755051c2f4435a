//! The trace of a run: its ids follow from UIDs, and its spans from what a status has latched, so that nothing is kept in
//! memory and a repeated span is the same span. W3C trace context, version 00.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::history;
use crate::api::condition;
use crate::api::name::{EVENT_ID, LABEL_SESSION, TRACEPARENT, digest, from_hex, to_hex};
use crate::api::step_run::{Attempt, AttemptResult, GateState, GateStatus, StepRun, StepRunStatus};
use crate::api::usage::Usage;
use crate::api::workflow::{Phase, Workflow, WorkflowStatus};

/// Bytes of a trace context; more than version 00 has.
const MOST: usize = 128;

/// Bytes of a span's id.
type SpanId = [u8; 8];

/// The trace that something belongs to, and below which of its spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace: [u8; 16],
    pub parent: Option<SpanId>,
    /// Whether spans are wanted; who began the trace says so.
    pub is_sampled: bool,
}

impl TraceContext {
    /// `00-TRACE-SPAN-FLAGS` of a header; a later version is read as far as it is known. None where it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut next = || parts.next().unwrap_or_default();
        let (version, trace, parent, flags) = (next(), next(), next(), next());
        let [version] = bytes(version)?;
        let [flags] = bytes(flags)?;
        if version == 0xff || version == 0 && text.len() != 55 {
            return None;
        }
        let (trace, parent): ([u8; 16], SpanId) = (bytes(trace)?, bytes(parent)?);
        let named = trace != [0; 16] && parent != [0; 8];
        named.then_some(Self { trace, parent: Some(parent), is_sampled: flags & 1 == 1 })
    }

    /// That of a run: the one that whoever made it named, else one of its own.
    pub fn of_run(uid: &str, told: Option<&str>) -> Self {
        let own = || Self { trace: derived([uid, "trace"]), parent: None, is_sampled: true };
        told.and_then(Self::parse).unwrap_or_else(own)
    }

    /// That of the run of a step.
    pub fn of_step(step_run: &StepRun) -> Self {
        let run = &step_run.spec.workflow;
        Self::of_run(&run.uid, run.traceparent.as_deref())
    }

    /// As a header, and as the environment variable TRACEPARENT, below one of its spans.
    pub fn below(&self, span: SpanId) -> String {
        format!("00-{}-{}-{:02x}", to_hex(&self.trace), to_hex(&span), u8::from(self.is_sampled))
    }

    /// As logs and people name it.
    pub fn id(&self) -> String {
        to_hex(&self.trace)
    }
}

/// What whoever made a run said of its trace, if it is one.
pub fn told(run: &Workflow) -> Option<String> {
    run.annotations().get(TRACEPARENT).filter(|text| text.len() <= MOST && TraceContext::parse(text).is_some()).cloned()
}

/// What a pod's agent, and what it calls, stand below.
pub fn of_attempt(step_run: &StepRun, attempt: i32) -> String {
    TraceContext::of_step(step_run).below(attempt_span(step_run, attempt))
}

/// The span of an attempt.
pub fn attempt_span(step_run: &StepRun, attempt: i32) -> SpanId {
    derived([step_run.metadata.uid.as_deref().unwrap_or_default(), "attempt", &attempt.to_string()])
}

fn step_span(step_run: &StepRun) -> SpanId {
    derived([step_run.metadata.uid.as_deref().unwrap_or_default(), "step"])
}

fn run_span(uid: &str) -> SpanId {
    derived([uid, "run"])
}

/// Never all zeros, which would be no id.
pub fn derived<const N: usize, const BYTES: usize>(of: [&str; N]) -> [u8; BYTES] {
    let text = digest(of.map(str::as_bytes));
    let hex = text.rsplit(':').next().unwrap_or_default();
    let mut id = bytes(&hex[..2 * BYTES]).unwrap_or([1; BYTES]);
    if id == [0; BYTES] {
        id[0] = 1;
    }
    id
}

/// The standard knows small digits only.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    from_hex(text).filter(|_| !text.bytes().any(|byte| byte.is_ascii_uppercase()))
}

/// A call that an agent's pod has made and a gateway has answered; below the attempt, as the pod says. None where it is in no
/// trace.
pub fn of_call(
    call: &str,
    traceparent: &str,
    attempt: (&str, i32),
    code: u16,
    (started, ended): (Time, Time),
) -> Option<Span> {
    let context = TraceContext::parse(traceparent)?;
    let (uid, number) = attempt;
    let began = started.0.as_nanosecond().to_string();
    Some(Span {
        context,
        id: derived([uid, "call", call, &number.to_string(), &began]),
        name: format!("gateway {call}"),
        is_server: true,
        started,
        ended,
        attributes: vec![
            ("http.request.method", "POST".into()),
            ("http.route", format!("/v1/{call}").as_str().into()),
            ("http.response.status_code", Fact::Number(code.into())),
            ("lockstep.attempt.number", Fact::Number(number.into())),
        ],
        fault: (code >= 500).then(|| format!("the gateway answered {code}")),
    })
}

/// What happened, from when to when.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub context: TraceContext,
    pub id: SpanId,
    pub name: String,
    /// Whether a call of somebody else is answered.
    pub is_server: bool,
    pub started: Time,
    pub ended: Time,
    pub attributes: Vec<(&'static str, Fact)>,
    /// Why it is an error.
    pub fault: Option<String>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    Text(String),
    Number(i64),
    Texts(Vec<String>),
}

impl From<&str> for Fact {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The run, once it is over in this pass.
pub fn of_run(run: &Workflow, next: Option<&WorkflowStatus>) -> Vec<Span> {
    let was_over = run.status.as_ref().is_some_and(|status| status.completed_at.is_some());
    let ended = next.and_then(|next| Some((next, next.completed_at.clone()?))).filter(|_| !was_over);
    let Some((next, ended)) = ended else { return Vec::new() };
    let uid = run.uid().unwrap_or_default();
    let context = TraceContext::of_run(&uid, told(run).as_deref());
    let phase = next.phase.unwrap_or_default();
    let succeeded = condition::get(&next.conditions, "Succeeded");
    let mut attributes: Vec<(&'static str, Fact)> = vec![
        ("k8s.namespace.name", run.namespace().unwrap_or_default().as_str().into()),
        ("lockstep.run.name", run.name_any().as_str().into()),
        ("lockstep.run.uid", uid.as_str().into()),
        ("lockstep.run.phase", phase.to_string().as_str().into()),
        ("lockstep.session.id", next.session.as_ref().map_or("", |session| &session.id).into()),
        ("cloudevents.event_id", run.annotations().get(EVENT_ID).map_or("", String::as_str).into()),
        ("lockstep.template.name", run.spec.template_ref.as_ref().map_or("", |template| &template.name).into()),
    ];
    attributes.extend(usage(next.usage.as_ref()));
    let why = || succeeded.map_or_else(|| phase.to_string(), |why| format!("{}: {}", why.reason, why.message));
    vec![Span {
        id: run_span(&uid),
        name: format!("run {}", run.spec.template_ref.as_ref().map_or("of steps", |template| &template.name)),
        is_server: false,
        started: next.started_at.clone().unwrap_or_else(|| ended.clone()),
        fault: (phase == Phase::Failed).then(why),
        context,
        ended,
        attributes: saying(attributes),
    }]
}

/// What of a step is over in this pass: attempts, a round of its gate, itself.
pub fn of_step_run(step_run: &StepRun, next: Option<&StepRunStatus>, now: &Time) -> Vec<Span> {
    let Some(next) = next else { return Vec::new() };
    let before = step_run.status.as_ref();
    let known = |a: &Attempt| before.is_some_and(|b| b.attempts.iter().any(|old| old.number == a.number));
    let mut spans: Vec<Span> = next.attempts.iter().filter(|a| !known(a)).map(|a| attempt(step_run, a)).collect();
    let open = before.and_then(|before| before.gate.as_ref()).filter(|gate| gate.state == GateState::Waiting);
    let is_open = |gate: &GateStatus| {
        next.gate.as_ref().is_some_and(|now| now.state == GateState::Waiting && now.round == gate.round)
    };
    spans.extend(open.filter(|gate| !is_open(gate)).map(|gate| gate_of(step_run, gate, next, now)));
    let was_over = before.is_some_and(|before| before.completed_at.is_some());
    spans.extend(next.completed_at.clone().filter(|_| !was_over).map(|ended| step(step_run, next, ended)));
    spans
}

fn of(step_run: &StepRun) -> Vec<(&'static str, Fact)> {
    let session = step_run.labels().get(LABEL_SESSION).map_or("", String::as_str);
    vec![
        ("k8s.namespace.name", step_run.namespace().unwrap_or_default().as_str().into()),
        ("lockstep.run.name", step_run.spec.workflow.name.as_str().into()),
        ("lockstep.session.id", session.into()),
        ("lockstep.step.path", history::label(step_run).as_str().into()),
        ("lockstep.step_run.name", step_run.name_any().as_str().into()),
    ]
}

fn step(step_run: &StepRun, next: &StepRunStatus, ended: Time) -> Span {
    let phase = next.phase.unwrap_or_default();
    let error = next.error.as_ref().filter(|_| phase == Phase::Failed);
    let mut attributes = of(step_run);
    attributes.push(("lockstep.step.phase", phase.to_string().as_str().into()));
    Span {
        context: below(step_run, run_span(&step_run.spec.workflow.uid)),
        id: step_span(step_run),
        name: format!("step {}", step_run.spec.path),
        is_server: false,
        started: next.started_at.clone().unwrap_or_else(|| ended.clone()),
        ended,
        attributes: saying(attributes),
        fault: error.map(|error| format!("{}: {}", error.class, error.message)),
    }
}

fn attempt(step_run: &StepRun, of_it: &Attempt) -> Span {
    let agent = step_run.spec.agent_id.as_str();
    let mut attributes = of(step_run);
    attributes.extend([
        ("gen_ai.operation.name", "invoke_agent".into()),
        ("gen_ai.agent.name", agent.into()),
        ("gen_ai.conversation.id", step_run.labels().get(LABEL_SESSION).map_or("", String::as_str).into()),
        ("lockstep.attempt.number", Fact::Number(of_it.number.into())),
        ("lockstep.attempt.round", Fact::Number(of_it.round.into())),
        ("lockstep.attempt.result", of_it.result.to_string().as_str().into()),
    ]);
    attributes.extend(of_it.exit_code.map(|code| ("process.exit.code", Fact::Number(code.into()))));
    attributes.extend(usage(of_it.usage.as_ref()));
    let is_good = matches!(of_it.result, AttemptResult::Succeeded | AttemptResult::Asked);
    let why = of_it.message.clone().unwrap_or_default();
    if !is_good {
        attributes.push(("error.type", of_it.result.to_string().as_str().into()));
    }
    Span {
        context: below(step_run, step_span(step_run)),
        id: attempt_span(step_run, of_it.number),
        name: format!("invoke_agent {agent}"),
        is_server: false,
        started: of_it.started_at.clone().unwrap_or_else(|| of_it.completed_at.clone()),
        ended: of_it.completed_at.clone(),
        attributes: saying(attributes),
        fault: (!is_good).then(|| format!("{}: {why}", of_it.result)),
    }
}

/// A round of a gate, from its opening to the last decision in it.
fn gate_of(step_run: &StepRun, open: &GateStatus, next: &StepRunStatus, now: &Time) -> Span {
    let decisions = next.gate.iter().flat_map(|gate| &gate.decisions).filter(|d| d.round == open.round);
    let last = decisions.clone().next_back();
    let name = step_run.spec.gate.as_ref().map(|gate| gate.name.clone()).unwrap_or_default();
    let state = match last {
        Some(last) if last.accepted => "accepted",
        Some(_) => "rejected",
        None => "closed",
    };
    let by: Vec<String> = decisions.map(|decision| decision.decided_by.clone()).collect();
    let mut attributes = of(step_run);
    attributes.extend([
        ("lockstep.gate.name", name.as_str().into()),
        ("lockstep.gate.round", Fact::Number(open.round.into())),
        ("lockstep.gate.outcome", state.into()),
        ("lockstep.gate.decided_by", Fact::Texts(by)),
    ]);
    let uid = step_run.metadata.uid.as_deref().unwrap_or_default();
    Span {
        context: below(step_run, step_span(step_run)),
        id: derived([uid, "gate", &open.round.to_string()]),
        name: format!("gate {name}"),
        is_server: false,
        started: open.opened_at.clone(),
        ended: last.map_or_else(|| next.completed_at.clone().unwrap_or_else(|| now.clone()), |d| d.decided_at.clone()),
        attributes: saying(attributes),
        fault: None,
    }
}

/// The trace of the step's run, below that span.
fn below(step_run: &StepRun, parent: SpanId) -> TraceContext {
    TraceContext { parent: Some(parent), ..TraceContext::of_step(step_run) }
}

fn usage(of: Option<&Usage>) -> Vec<(&'static str, Fact)> {
    let Some(of) = of else { return Vec::new() };
    let mut all = vec![
        ("gen_ai.usage.input_tokens", Fact::Number(of.tokens_in)),
        ("gen_ai.usage.output_tokens", Fact::Number(of.tokens_out)),
    ];
    all.extend(of.cost.as_deref().map(|cost| ("lockstep.usage.cost", cost.into())));
    match of.models.as_slice() {
        [] => {}
        [one] => all.push(("gen_ai.request.model", one.as_str().into())),
        several => all.push(("lockstep.usage.models", Fact::Texts(several.to_vec()))),
    }
    all
}

/// Those that say something.
fn saying(mut attributes: Vec<(&'static str, Fact)>) -> Vec<(&'static str, Fact)> {
    attributes.retain(|(_, fact)| match fact {
        Fact::Text(text) => !text.is_empty(),
        Fact::Texts(texts) => !texts.is_empty(),
        Fact::Number(_) => true,
    });
    attributes
}

#[cfg(test)]
mod tests;
