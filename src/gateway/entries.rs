//! What a StepRun tells of itself to agents: pure, from its spec and its status. Of the attempt's own step everything, of
//! another step of the session what was asked, what was given, and what people said.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::step_run::{
    Action, Answer, ApprovalRequest, AskedQuestion, Attempt, AttemptResult, Decision, Guidance, StepRun, StepRunStatus,
};
use crate::decide::history;
use crate::protocol::context::{Entry, EntryKind, EntryStep};

/// Bytes. What was asked and given in another step, in one line.
const LINE_BYTES: usize = 240;

/// What this step's attempts before `attempt` came to, and what people said: oldest first.
pub fn own(status: &StepRunStatus, attempt: i32) -> Vec<Entry> {
    let faults = failed(status, attempt).map(|(failed, text)| Entry {
        attempt: Some(failed.number),
        round: Some(failed.round),
        at: Some(time(&failed.completed_at)),
        ..entry(EntryKind::Fault, text)
    });
    in_order(faults.chain(said(status)).collect())
}

/// Another step of the session: nothing of one that neither gave anything nor was spoken about.
pub fn of_another(step_run: &StepRun) -> Vec<Entry> {
    let Some(status) = &step_run.status else { return Vec::new() };
    let mut entries: Vec<Entry> = said(status).collect();
    entries.extend(gave(step_run, status));
    if entries.is_empty() {
        return entries;
    }
    let mut all = vec![asked(step_run, status)];
    all.append(&mut in_order(entries));
    let of = place(step_run);
    for entry in &mut all {
        entry.of = Some(of.clone());
    }
    all
}

/// A question of the run and what a person answered; nothing before that.
pub fn answered(step_run: &StepRun) -> Vec<Entry> {
    let (Some(ask), Some(status)) = (&step_run.spec.ask, &step_run.status) else { return Vec::new() };
    let Some(answer) = &status.answer else { return Vec::new() };
    let of = Some(place(step_run));
    let at = status.started_at.as_ref().map(time);
    let question = Entry { of: of.clone(), at, ..entry(EntryKind::Question, ask.question.clone()) };
    let (by, at) = (Some(answer.by.clone()), Some(time(&answer.at)));
    vec![question, Entry { of, by, at, ..entry(EntryKind::Answer, words(answer)) }]
}

fn place(step_run: &StepRun) -> EntryStep {
    EntryStep {
        workflow: step_run.spec.workflow.name.clone(),
        path: history::label(step_run),
        step_run: step_run.metadata.name.clone().unwrap_or_default(),
    }
}

/// The attempts that failed before this one, each with what went wrong.
pub fn failed(status: &StepRunStatus, attempt: i32) -> impl Iterator<Item = (&Attempt, String)> {
    // Where somebody held the name of the Job nothing ran: no news for an agent. That it asked is no fault.
    let failed = move |of: &&Attempt| {
        let none = matches!(of.result, AttemptResult::Succeeded | AttemptResult::Asked | AttemptResult::NameConflict);
        of.number < attempt && !none
    };
    status.attempts.iter().filter(failed).map(|attempt| {
        let text = attempt.message.clone().filter(|text| !text.is_empty());
        let text = text.unwrap_or_else(|| match attempt.exit_code {
            Some(code) => format!("{}: exit code {code}", attempt.result),
            None => attempt.result.to_string(),
        });
        (attempt, text)
    })
}

/// All that people said, and what the agent had asked them.
fn said(status: &StepRunStatus) -> impl Iterator<Item = Entry> {
    let decisions = status.gate.iter().flat_map(|gate| &gate.decisions);
    let comments = decisions.filter_map(|decision| comment(status, decision));
    let actions = status.actions.iter().map(|act| action(status, act));
    // Comments of rejections are kept as guidance, too.
    let repeats = |guidance: &Guidance| {
        let mut decisions = status.gate.iter().flat_map(|gate| &gate.decisions);
        decisions.any(|d| d.decided_by == guidance.by && d.comment.as_ref() == Some(&guidance.text))
    };
    let guidance = status.guidance.iter().filter(move |guidance| !repeats(guidance)).map(|said| Entry {
        attempt: Some(said.attempt),
        round: round_of(status, said.attempt),
        by: Some(said.by.clone()),
        at: said.at.as_ref().map(time),
        ..entry(EntryKind::Guidance, said.text.clone())
    });
    let replies = status.questions.iter().flat_map(move |question| replied(status, question));
    let approvals = status.approval_requests.iter().flat_map(move |request| approvals(status, request));
    comments.chain(actions).chain(guidance).chain(replies).chain(approvals)
}

/// What people decided on an action that the agent requested.
fn approvals(status: &StepRunStatus, request: &ApprovalRequest) -> Vec<Entry> {
    let decided = request.gate.decisions.iter().map(|decision| {
        let comment = decision.comment.as_deref().filter(|text| !text.trim().is_empty());
        let text = comment.map_or_else(|| request.action.clone(), |text| format!("{}: {text}", request.action));
        Entry {
            attempt: Some(request.attempt),
            round: round_of(status, request.attempt),
            by: Some(decision.decided_by.clone()),
            at: Some(time(&decision.decided_at)),
            accepted: Some(decision.accepted),
            ..entry(EntryKind::Approval, text)
        }
    });
    decided.collect()
}

/// A question of the agent and what a person answered; nothing before that.
fn replied(status: &StepRunStatus, asked: &AskedQuestion) -> Vec<Entry> {
    let Some(answer) = &asked.answer else { return Vec::new() };
    let (attempt, round) = (Some(asked.attempt), round_of(status, asked.attempt));
    let at = |at| Some(time(at));
    let question =
        Entry { attempt, round, at: at(&asked.asked_at), ..entry(EntryKind::Question, asked.question.clone()) };
    let (by, at) = (Some(answer.by.clone()), at(&answer.at));
    vec![question, Entry { attempt, round, by, at, ..entry(EntryKind::Answer, words(answer)) }]
}

/// The words as they were said, where they are words.
fn words(answer: &Answer) -> String {
    serde_json::from_str::<String>(&answer.value).unwrap_or_else(|_| answer.value.clone())
}

fn comment(status: &StepRunStatus, decision: &Decision) -> Option<Entry> {
    let text = decision.comment.clone().filter(|text| !text.trim().is_empty())?;
    let reviewed = |a: &&Attempt| a.round == decision.round && a.result == AttemptResult::Succeeded;
    Some(Entry {
        attempt: status.attempts.iter().rfind(reviewed).map(|a| a.number),
        round: Some(decision.round),
        by: Some(decision.decided_by.clone()),
        at: Some(time(&decision.decided_at)),
        accepted: Some(decision.accepted),
        ..entry(EntryKind::Comment, text)
    })
}

fn action(status: &StepRunStatus, action: &Action) -> Entry {
    Entry {
        attempt: Some(action.attempt),
        round: round_of(status, action.attempt),
        by: Some(action.by.clone()),
        at: Some(time(&action.at)),
        ..entry(EntryKind::Action, action.action.word().to_owned())
    }
}

fn asked(step_run: &StepRun, status: &StepRunStatus) -> Entry {
    let parameters = step_run.spec.parameters.trim();
    let text = match parameters {
        "" | "{}" | "null" => history::label(step_run),
        given => history::one_line(given, LINE_BYTES),
    };
    Entry { at: status.started_at.as_ref().map(time), ..entry(EntryKind::Asked, text) }
}

fn gave(step_run: &StepRun, status: &StepRunStatus) -> Option<Entry> {
    let result = status.result.as_ref()?;
    let made = status.attempts.iter().find(|attempt| attempt.number == result.attempt);
    Some(Entry {
        attempt: Some(result.attempt),
        round: made.map(|attempt| attempt.round),
        at: made.map(|attempt| time(&attempt.completed_at)),
        digest: Some(result.digest.clone()),
        ..entry(EntryKind::Gave, history::summary(&history::output(step_run), LINE_BYTES).unwrap_or_default())
    })
}

/// By attempt; of one attempt how it ended, then what was said of it, then what was ordered, then the advice for the next.
fn in_order(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|entry| {
        let rank = match entry.kind {
            EntryKind::Asked => 0,
            EntryKind::Fault | EntryKind::Gave => 1,
            EntryKind::Comment => 2,
            // Each question is followed by its answer.
            EntryKind::Question | EntryKind::Answer | EntryKind::Approval => 3,
            EntryKind::Action => 4,
            EntryKind::Guidance => 5,
        };
        (entry.attempt, rank)
    });
    entries
}

fn round_of(status: &StepRunStatus, attempt: i32) -> Option<i32> {
    status.attempts.iter().find(|a| a.number == attempt).map(|a| a.round)
}

fn entry(kind: EntryKind, text: String) -> Entry {
    Entry { kind, of: None, attempt: None, round: None, by: None, at: None, text, accepted: None, digest: None }
}

fn time(at: &Time) -> String {
    at.0.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const AT: &str = "2026-01-01T00:00:00Z";

    fn attempt(number: i32, round: i32, result: &str, message: &Value) -> Value {
        json!({"number": number, "round": round, "result": result, "message": message, "exitCode": 7, "completedAt": AT})
    }

    #[expect(clippy::fn_params_excessive_bools, reason = "a column of the tables")]
    fn decision(round: i32, accepted: bool, comment: &Value) -> Value {
        json!({"documentType": "plan", "scopeId": "w", "accepted": accepted, "comment": comment, "decidedBy": "ann",
            "decidedAt": AT, "digest": "d", "round": round})
    }

    fn told(entries: Vec<Entry>) -> Vec<Value> {
        entries.into_iter().map(|entry| serde_json::to_value(entry).expect("JSON")).collect()
    }

    #[test]
    fn everything_of_the_own_step_is_told_in_the_order_in_which_it_was() {
        let status: StepRunStatus = serde_json::from_value(json!({"attempt": 6, "round": 2,
            "attempts": [attempt(1, 1, "Retryable", &Value::Null), attempt(2, 1, "InvalidOutput", &json!("/a: one\n/b: two")),
                attempt(3, 1, "Succeeded", &Value::Null), attempt(4, 2, "NameConflict", &json!("held")),
                attempt(5, 2, "Timeout", &json!("late"))],
            "actions": [{"action": "retry", "wait": "RetriesSpent", "attempt": 2, "by": "bob", "at": AT, "comment": "be brief"}],
            "guidance": [{"attempt": 2, "by": "bob", "text": "be brief", "at": AT}, {"attempt": 3, "by": "ann", "text": "too long"}],
            "gate": {"state": "Rejected", "round": 1, "outputDigest": "d", "openedAt": AT, "policy": "p",
                "decisions": [decision(1, true, &Value::Null), decision(1, true, &json!("nearly")), decision(1, false, &json!("too long"))]},
        }))
        .expect("a status");
        assert_eq!(
            told(own(&status, 6)),
            [
                json!({"kind": "fault", "attempt": 1, "round": 1, "at": AT, "text": "Retryable: exit code 7"}),
                json!({"kind": "fault", "attempt": 2, "round": 1, "at": AT, "text": "/a: one\n/b: two"}),
                json!({"kind": "action", "attempt": 2, "round": 1, "by": "bob", "at": AT, "text": "retry"}),
                json!({"kind": "guidance", "attempt": 2, "round": 1, "by": "bob", "at": AT, "text": "be brief"}),
                json!({"kind": "comment", "attempt": 3, "round": 1, "by": "ann", "at": AT, "text": "nearly", "accepted": true}),
                json!({"kind": "comment", "attempt": 3, "round": 1, "by": "ann", "at": AT, "text": "too long", "accepted": false}),
                json!({"kind": "fault", "attempt": 5, "round": 2, "at": AT, "text": "late"}),
            ]
        );
        // An attempt is told nothing of itself.
        assert_eq!(own(&status, 5).iter().filter(|entry| entry.kind == EntryKind::Fault).count(), 2);
        // What was said before its time was recorded.
        let old = json!({"guidance": [{"attempt": 1, "by": "ann", "text": "use short titles"}]});
        let old: StepRunStatus = serde_json::from_value(old).expect("a status");
        let said = json!({"kind": "guidance", "attempt": 1, "by": "ann", "text": "use short titles"});
        assert_eq!(told(own(&old, 2)), [said]);
    }

    #[test]
    fn what_the_agent_asked_is_told_with_the_answer_and_is_no_fault() {
        let question = |question: &str, answer: Value| json!({"question": question, "attempt": 1, "askedAt": AT, "answer": answer});
        let answer = |value: &str| json!({"value": value, "by": "ann", "at": AT});
        let status: StepRunStatus = serde_json::from_value(json!({"attempt": 2, "round": 1,
            "attempts": [attempt(1, 1, "Asked", &Value::Null)],
            "questions": [question("How much?", answer("5")), question("Who?", answer("\"bob\"")), question("When?", Value::Null)]}))
        .expect("a status");
        assert_eq!(
            told(own(&status, 2)),
            [
                json!({"kind": "question", "attempt": 1, "round": 1, "at": AT, "text": "How much?"}),
                json!({"kind": "answer", "attempt": 1, "round": 1, "by": "ann", "at": AT, "text": "5"}),
                json!({"kind": "question", "attempt": 1, "round": 1, "at": AT, "text": "Who?"}),
                json!({"kind": "answer", "attempt": 1, "round": 1, "by": "ann", "at": AT, "text": "bob"}),
            ]
        );
    }

    #[test]
    fn a_question_of_the_run_is_told_with_its_answer() {
        let told_of = |value: &str| {
            let answer = json!({"value": value, "by": "ann", "at": AT});
            let step_run: StepRun =
                serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
                "metadata": {"name": "s"}, "spec": {"workflow": {"name": "shop", "uid": "w"}, "path": "budget",
                "ask": {"name": "budget", "question": "How much?"}, "definition": {"revisionName": "r", "digest": "d"},
                "parameters": "{}", "inputDigest": "i"}, "status": {"startedAt": AT, "answer": answer}}))
                .expect("a StepRun");
            told(answered(&step_run))
        };
        let of = json!({"workflow": "shop", "path": "budget", "stepRun": "s"});
        let question = json!({"kind": "question", "of": of, "at": AT, "text": "How much?"});
        for (value, text) in
            [("500", "500"), ("\"as \\\"little\\\" as can be\"", "as \"little\" as can be"), ("[1]", "[1]")]
        {
            let answer = json!({"kind": "answer", "of": of, "by": "ann", "at": AT, "text": text});
            assert_eq!(told_of(value), [question.clone(), answer]);
        }
        assert!(answered(&StepRun::new("s", crate::api::StepRunSpec::default())).is_empty());
    }

    fn another(parameters: &str, status: &Value) -> Vec<Value> {
        let step_run: StepRun = serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": "s"}, "spec": {"workflow": {"name": "shop", "uid": "w"}, "path": "plan", "agentId": "planner",
            "definition": {"revisionName": "r", "digest": "d"}, "parameters": parameters, "inputDigest": "i"}, "status": status}))
        .expect("a StepRun");
        told(of_another(&step_run))
    }

    #[test]
    fn of_other_steps_the_question_and_the_answer_are_told_in_one_line() {
        let report = json!({"attempt": 2, "class": "Succeeded", "digest": "sha256:d", "output": r#"{"summary": "two\nepics"}"#, "at": AT});
        let status = json!({"startedAt": AT, "attempt": 2, "result": {"attempt": 2, "digest": "sha256:d"}, "agent": {"report": report},
            "attempts": [attempt(1, 1, "Retryable", &Value::Null), attempt(2, 1, "Succeeded", &Value::Null)],
            "gate": {"state": "Accepted", "round": 1, "outputDigest": "d", "openedAt": AT, "policy": "p",
                "decisions": [decision(1, true, &json!("good"))]}});
        let of = json!({"workflow": "shop", "path": "plan", "stepRun": "s"});
        assert_eq!(
            another("{\"depth\":\n 2}", &status),
            [
                json!({"kind": "asked", "of": of, "at": AT, "text": "{\"depth\": 2}"}),
                json!({"kind": "gave", "of": of, "attempt": 2, "round": 1, "at": AT, "text": "two epics", "digest": "sha256:d"}),
                json!({"kind": "comment", "of": of, "attempt": 2, "round": 1, "by": "ann", "at": AT, "text": "good", "accepted": true}),
            ]
        );
        assert_eq!(another("{}", &status)[0]["text"], "plan", "where there are no parameters, the place");
        let long = format!("\"{}\"", "x".repeat(2000));
        assert!(another(&long, &status)[0]["text"].as_str().is_some_and(|text| text.len() <= LINE_BYTES));
        // What runs, or failed without a word, tells nothing.
        assert_eq!(another("{}", &Value::Null), Vec::<Value>::new());
        let failed =
            json!({"attempt": 1, "phase": "Failed", "attempts": [attempt(1, 1, "Unrecoverable", &Value::Null)]});
        assert_eq!(another("{}", &failed), Vec::<Value>::new());
    }
}
