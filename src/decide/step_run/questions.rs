//! Waits for input: what an attempt leaves to a person, and steps that are a question. An answer is for the wait that is
//! open, and for no other.

use serde_json::Value;

use super::{
    ACTION, ANSWER, ATTEMPTS_KEPT, Act, Action, Answer, AttemptCounts, AttemptResult, COMMENT, DECIDED_BY, DECISION,
    Effect, GUARD_AGAIN, GateState, Guard, Guidance, MESSAGE_BYTES, Pass, Phase, REVIEW, ResultRef, StepRunAsk,
    TOO_LATE, Time, WaitKind, WaitingFor, after, clip, name,
};
use crate::api::limits::OUTPUT_INLINE_BYTES;
use crate::decide::mail::{Arrival, Deadline};
use crate::definition::expression::Evaluate;
use crate::definition::free_value;
use crate::definition::schema::Schema;

const QUESTION_BYTES: usize = 4096;

impl Pass<'_> {
    // ---- asking

    /// The step is a question: it is asked at once.
    pub(super) fn put_question(&mut self, ask: &StepRunAsk) {
        self.status.started_at.get_or_insert_with(|| self.o.now.clone());
        self.ask(WaitKind::Question, &ask.question);
        self.wake_at_answer_deadline();
    }

    pub(super) fn ask(&mut self, kind: WaitKind, why: &str) {
        let question = self.question(kind, why);
        let gated = self.o.step_run.spec.gate.is_some();
        let options: &[&str] = match kind {
            WaitKind::Question | WaitKind::BudgetSpent => &[],
            _ if gated => &["retry", "fail"],
            _ => &["retry", "skip", "fail"],
        };
        self.plan.warn("WaitingForInput", clip(&question, 400));
        let seconds = self.answer_seconds().filter(|_| kind == WaitKind::Question);
        self.status.waiting_for = Some(WaitingFor {
            id: format!("{}-{}", self.status.attempt, self.status.counts.answers),
            kind,
            question,
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            schema: None,
            since: self.o.now.clone(),
            deadline: seconds.map(|seconds| after(&self.o.now, seconds)),
            commands: self.commands(kind),
            policy: self.stamp(),
            of_run: false,
            agent_waits_until: None,
        });
        self.status.phase = Some(Phase::WaitingForInput);
    }

    fn question(&self, kind: WaitKind, why: &str) -> String {
        let (counts, round) = (self.status.counts, self.status.round);
        let question = match kind {
            WaitKind::Question => return clip(why, QUESTION_BYTES),
            WaitKind::BudgetSpent => format!("{why}; no further attempt starts until it is raised"),
            WaitKind::RetriesSpent if counts.retryable == 1 => format!("the only attempt failed: {why}"),
            WaitKind::RetriesSpent => format!("all {} attempts failed, the last with: {why}", counts.retryable),
            WaitKind::OutcomeUnknown => format!(
                "attempt {} may or may not have had its effects ({why}); may it run again?",
                self.status.attempt
            ),
            WaitKind::RoundsSpent if round == 1 => format!("the only output to be reviewed was {why}"),
            WaitKind::RoundsSpent => format!("all {round} outputs were reviewed and none accepted, the last was {why}"),
            WaitKind::InfrastructureSpent if self.never_starts() => why.to_owned(),
            WaitKind::InfrastructureSpent => {
                format!("the cluster lost {} attempts, the last with: {why}", counts.infrastructure)
            }
        };
        clip(&question, MESSAGE_BYTES)
    }

    /// Ready to paste: kubectl, and the plugin.
    fn commands(&self, kind: WaitKind) -> Vec<String> {
        let (meta, spec) = (&self.o.step_run.metadata, &self.o.step_run.spec);
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let own = meta.name.as_deref().unwrap_or_default();
        let annotate = format!("kubectl -n {namespace} annotate steprun {own}");
        let plugin = format!("kubectl lockstep -n {namespace} answer");
        let signed = self.signature();
        if kind == WaitKind::BudgetSpent {
            let budget = "'{\"tokens\": BUDGET}'";
            return vec![format!("{annotate} {ANSWER}={budget}{signed}"), format!("{plugin} {own} {budget}")];
        }
        if kind == WaitKind::Question {
            let place =
                if spec.item.is_some() { own.to_owned() } else { format!("{}/{}", spec.workflow.name, spec.path) };
            return vec![format!("{annotate} {ANSWER}='ANSWER'{signed}"), format!("{plugin} {place} 'ANSWER'")];
        }
        vec![
            format!("{annotate} {ACTION}=retry {COMMENT}='WHAT TO DO BETTER'{signed}"),
            format!("{plugin} {own} retry -m 'WHAT TO DO BETTER'"),
        ]
    }

    // ---- answering

    pub(super) fn answer(&mut self) {
        let deadline = self.answer_deadline();
        if let (Some(deadline), Some(wait)) = (&deadline, &mut self.status.waiting_for) {
            wait.deadline = Some(deadline.at.clone());
        }
        let Some(wait) = self.status.waiting_for.clone() else {
            return;
        };
        let annotations = self.o.step_run.metadata.annotations.clone().unwrap_or_default();
        let (action, text) = (annotations.get(ACTION), annotations.get(ANSWER));
        if action.is_none() && text.is_none() {
            if wait.policy.is_empty() {
                self.stamp_wait();
            }
            return self.watch_answer_deadline();
        }
        let by = annotations.get(DECIDED_BY).filter(|by| !by.is_empty());
        let by = match self.proven(&wait, by) {
            Ok(by) => by,
            Err(why) => {
                self.stamp_wait();
                return self.refuse_answer(&format!("the answer was not recorded: {why}"));
            }
        };
        let Arrival::InTime(at) = self.arrival(&wait.since, deadline.as_ref()) else {
            self.refuse_answer(&format!("the answer of {} was not recorded: {TOO_LATE}", clip(&by, 256)));
            return self.question_is_over();
        };
        let comment = annotations.get(COMMENT);
        let act = action.and_then(|word| Act::parse(word)).filter(|_| text.is_none());
        if wait.agent_waits_until.is_some() {
            self.end_waiting(act.filter(|act| wait.options.iter().any(|o| o == act.word())), &by);
        }
        match (wait.kind, act, text) {
            (WaitKind::Question, None, Some(text)) if action.is_none() => match self.o.step_run.spec.ask {
                Some(_) => self.take_answer((&by, at), text),
                None => self.take_reply(&wait, (&by, at), text),
            },
            (WaitKind::BudgetSpent, None, Some(text)) if action.is_none() => self.take_raise(&wait, (&by, at), text),
            (WaitKind::Question, Some(Act::Fail), _) => {
                self.keep_action(Act::Fail, &wait, (&by, at), comment);
                self.status.waiting_for = None;
                self.fail(AttemptResult::Unrecoverable, &failed_by(&by, comment));
            }
            (_, Some(act), _) if wait.options.iter().any(|o| o == act.word()) => {
                if let Some(text) = comment {
                    let at = Some(at.clone());
                    self.guide(Guidance { attempt: self.status.attempt, by: by.clone(), text: clip(text, 4096), at });
                }
                self.plan.notice("Answered", format!("{} by {by}", act.word()));
                self.keep_action(act, &wait, (&by, at), comment);
                self.act(act, &wait, &failed_by(&by, comment));
            }
            _ => {
                let word = action.map_or("a text", |a| a);
                self.refuse_answer(&format!("{} is no answer to this question", clip(word, 40)));
            }
        }
    }

    /// Who answered, if the policies under which the question was asked prove it.
    fn proven(&mut self, wait: &WaitingFor, by: Option<&String>) -> Result<String, String> {
        match (self.policies(), by) {
            (Guard::Missing(why), _) => Err(format!("the admission policies do not stand: {why}, then answer again")),
            (Guard::Proven(stamp), Some(by)) if *stamp == wait.policy => Ok(clip(by, 512)),
            (Guard::Proven(_), Some(_)) if wait.policy.is_empty() => {
                Err("the admission policies did not stand when the question was asked; answer again".to_owned())
            }
            (Guard::Proven(_), Some(_)) => {
                Err("the admission policies changed since the question was asked; answer again".to_owned())
            }
            _ => Err("who gave it is not proven; answer again".to_owned()),
        }
    }

    /// Latched in this pass, taken out of the mailbox in the next: a crash in between loses nothing.
    fn act(&mut self, act: Act, wait: &WaitingFor, failed_by: &str) {
        self.status.waiting_for = None;
        let answers = self.status.counts.answers + 1;
        match act {
            Act::Retry if wait.kind == WaitKind::RoundsSpent => self.next_round(),
            Act::Retry => {
                self.status.counts = AttemptCounts { answers, ..AttemptCounts::default() };
                self.next_attempt(None);
            }
            Act::Skip => {
                self.status.counts.answers = answers;
                self.status.error = None;
                self.conclude(Phase::Completed);
            }
            Act::Fail => {
                // The class stays that of the failure that the person was asked about.
                if let Some(error) = &mut self.status.error {
                    let why = clip(&error.message, MESSAGE_BYTES / 2);
                    error.message = clip(&format!("{failed_by}; before that: {why}"), MESSAGE_BYTES);
                }
                self.conclude(Phase::Failed);
            }
        }
    }

    /// Who ordered what, and when, for good: an Event is gone after an hour.
    fn keep_action(&mut self, action: Act, wait: &WaitingFor, (by, at): (&str, Time), comment: Option<&String>) {
        self.status.actions.push(Action {
            action,
            wait: wait.kind,
            attempt: self.status.attempt,
            by: by.to_owned(),
            at,
            comment: comment.filter(|c| !c.trim().is_empty()).map(|c| clip(c, 4096)),
        });
        let surplus = self.status.actions.len().saturating_sub(ATTEMPTS_KEPT);
        self.status.actions.drain(..surplus);
    }

    fn take_answer(&mut self, (by, at): (&str, Time), text: &str) {
        // Without the definition nobody knows the schema.
        let Some(step) = self.step else { return self.plan.look_again(GUARD_AGAIN) };
        let wanted = step.ask().and_then(|a| a.schema.as_ref()).map(Schema::as_object);
        let value = match read(text, wanted, self.o.evaluator.as_ref()) {
            Ok(value) => value,
            Err(fault) => return self.refuse_answer(&format!("the answer was not recorded: {fault}; answer again")),
        };
        self.plan.notice("Answered", format!("answered by {by}"));
        self.status.waiting_for = None;
        self.status.counts.answers += 1;
        let digest = name::digest_bytes(value.as_bytes());
        self.status.answer = Some(Answer { value, by: by.to_owned(), at });
        self.status.result = Some(ResultRef { attempt: self.status.attempt, digest, ..ResultRef::default() });
        self.open_gate();
    }

    pub(super) fn refuse_answer(&mut self, why: &str) {
        self.plan.refuse("AnswerRefused", clip(why, 900));
        self.wake_at_answer_deadline();
        self.empty_mailbox(vec![ACTION, ANSWER, COMMENT, DECIDED_BY]);
    }

    /// How long a step that is a question waits for its answer.
    fn answer_seconds(&self) -> Option<i64> {
        self.o.step_run.spec.ask.as_ref()?.deadline_seconds
    }

    /// By when the question must be answered. One that an older version asked has it not in its status.
    fn answer_deadline(&self) -> Option<Deadline> {
        let wait = self.status.waiting_for.as_ref().filter(|w| w.kind == WaitKind::Question)?;
        let seconds = self.answer_seconds()?;
        let is_enforced = wait.deadline.is_some();
        Some(Deadline { at: wait.deadline.clone().unwrap_or_else(|| after(&wait.since, seconds)), is_enforced })
    }

    fn wake_at_answer_deadline(&mut self) {
        if let Some(deadline) = self.answer_deadline() {
            self.wake_at(&deadline.at);
        }
    }

    fn watch_answer_deadline(&mut self) {
        match self.answer_deadline() {
            Some(deadline) if self.has_passed(&deadline.at) => self.question_is_over(),
            _ => self.wake_at_answer_deadline(),
        }
    }

    fn question_is_over(&mut self) {
        let seconds = self.answer_seconds().unwrap_or_default();
        self.status.waiting_for = None;
        self.fail(AttemptResult::Timeout, &format!("the question was not answered within {seconds} s"));
    }

    // ---- the mailbox

    /// What nobody waits for must meet neither the next question nor the next round.
    pub(super) fn drop_stray_mail(&mut self) {
        let annotations = self.o.step_run.metadata.annotations.as_ref();
        let there = |key| annotations.is_some_and(|a| a.contains_key(key));
        let answers = self.status.waiting_for.is_none() && (there(ACTION) || there(ANSWER));
        let decides = self.gate_is(GateState::Waiting) || self.gate_is(GateState::Accepted) || self.decides_request();
        let decisions = !decides && there(DECISION);
        if decisions && self.decides_withdrawn_request() {
            let why = "the attempt that requested it had ended";
            self.plan.refuse(
                "DecisionRefused",
                format!("the decision was not recorded: {why}; decide again where it is requested again"),
            );
        }
        if answers && let Some(late) = self.late_answer() {
            self.plan.refuse("AnswerRefused", late);
        }
        if answers || decisions {
            self.empty_mailbox(vec![ACTION, ANSWER, DECISION, COMMENT, REVIEW, DECIDED_BY]);
        }
    }

    /// Why an answer that lies there is not taken: nothing waits for it. Nothing where it is the one that was taken last.
    fn late_answer(&self) -> Option<String> {
        let by = self.o.step_run.metadata.annotations.as_ref()?.get(DECIDED_BY)?;
        let status = &self.status;
        let answers = status.answer.iter().chain(status.questions.iter().filter_map(|asked| asked.answer.as_ref()));
        let answers = answers.map(|answer| (answer.at.0, &answer.by));
        let actions = status.actions.iter().map(|action| (action.at.0, &action.by));
        let raises = status.budget_raises.iter().map(|raise| (raise.at.0, &raise.by));
        let last = answers.chain(actions).chain(raises).max_by_key(|(at, _)| *at);
        let late = format!("the answer of {} was not recorded", clip(by, 256));
        match last {
            Some((_, other)) if other == by => None,
            Some((_, other)) => Some(format!("{late}: {} had answered before", clip(other, 256))),
            None => Some(format!("{late}: nothing waits for an answer")),
        }
    }

    pub(super) fn empty_mailbox(&mut self, keys: Vec<&'static str>) {
        let meta = &self.o.step_run.metadata;
        self.plan.effects.push(Effect::EmptyMailbox {
            step_run: meta.name.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            keys,
        });
    }
}

/// Short enough to leave room for what failed before.
fn failed_by(by: &str, comment: Option<&String>) -> String {
    let words = comment.map(|c| format!(": {}", clip(c, MESSAGE_BYTES / 4))).unwrap_or_default();
    format!("{} answered that the step fails{words}", clip(by, MESSAGE_BYTES / 8))
}

/// An answer as JSON text: as it stands where it is JSON that the schema takes, else the words as a string.
pub(super) fn read(
    text: &str,
    wanted: Option<&serde_json::Map<String, Value>>,
    evaluator: &dyn Evaluate,
) -> Result<String, String> {
    if let Some(fault) = free_value::nesting_of_text(text) {
        return Err(format!("it {fault}"));
    }
    let words = Value::String(text.to_owned());
    let faults = |value: &Value| match wanted.map(|wanted| evaluator.faults(wanted, value)) {
        None => Ok(()),
        Some(Ok(faults)) if faults.is_empty() => Ok(()),
        Some(Ok(faults)) => Err(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        Some(Err(fault)) => Err(fault),
    };
    let value = match serde_json::from_str::<Value>(text) {
        Ok(json) => match faults(&json) {
            Ok(()) => text.trim().to_owned(),
            // "42" where a text is wanted.
            Err(_) if faults(&words).is_ok() => words.to_string(),
            Err(fault) => return Err(fault),
        },
        Err(_) => faults(&words).map(|()| words.to_string())?,
    };
    if value.len() > OUTPUT_INLINE_BYTES {
        return Err(format!("it is {} bytes long, at most {OUTPUT_INLINE_BYTES} are allowed", value.len()));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::expression::InProcess;

    #[test]
    fn an_answer_is_json_or_words() {
        let schema = |text: &str| serde_json::from_str::<serde_json::Map<String, Value>>(text).expect("a schema");
        let string = schema(r#"{"type": "string", "maxLength": 5}"#);
        let number = schema(r#"{"type": "integer", "minimum": 3}"#);
        let object = schema(r#"{"type": "object", "required": ["budget"]}"#);
        for (text, wanted, expected) in [
            ("yes", None, Ok("\"yes\"")),
            ("42", None, Ok("42")),
            (" {\"a\": 1} ", None, Ok("{\"a\": 1}")),
            ("say \"it\"", None, Ok("\"say \\\"it\\\"\"")),
            ("", None, Ok("\"\"")),
            ("42", Some(&string), Ok("\"42\"")),
            ("\"42\"", Some(&string), Ok("\"42\"")),
            ("true", Some(&string), Ok("\"true\"")),
            ("too long", Some(&string), Err("longer")),
            ("42", Some(&number), Ok("42")),
            ("2", Some(&number), Err("minimum")),
            ("many", Some(&number), Err("integer")),
            ("{\"budget\": 1}", Some(&object), Ok("{\"budget\": 1}")),
            ("{}", Some(&object), Err("budget")),
        ] {
            match (read(text, wanted, &InProcess), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(words)) => assert!(found.contains(words), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(read(&nested(64), None, &InProcess).is_ok());
        assert!(read(&nested(200), None, &InProcess).is_err_and(|fault| fault.starts_with("it nests 200 levels")));
        assert!(read(&"x".repeat(OUTPUT_INLINE_BYTES), None, &InProcess).is_err(), "the quotes count");
        assert!(read(&"x".repeat(OUTPUT_INLINE_BYTES - 2), None, &InProcess).is_ok());
    }
}
