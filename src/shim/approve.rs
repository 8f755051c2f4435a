//! `request-approval`: the verb that an agent calls before one action, and what the shim makes of the call. What people have
//! decided is told at once; else the call waits, and at the end of the wait the command is ended, as with `ask`.

#![expect(clippy::disallowed_macros, reason = "bodies of the agent's calls")]

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::ask::CallOutcome;
use super::calls::{TROUBLE, expect, park, post_waiting, print};
use super::gateway::{CallError, Gateway, random_hex};
use super::mask::Mask;
use super::wait::Until;
use super::{Stop, files, wait};
use crate::definition::digits;
use crate::protocol::{self, ApprovalCall, ApprovalReply, AwaitRequest, Verdict};

const PATIENCE: Duration = Duration::from_secs(30);
const DENIED: u8 = 1;

pub const HELP: &str = "\
ACTION says in words what is to be done; FILE holds what it is about (a mail, a patch, a command), as JSON or as text. People
who may approve at the gate see both, and allow or deny exactly that. A permission is good for one use: this call. Do what you
were allowed at once, and the same another time only with another permission.

What people have decided is printed as JSON. What they have not ends the attempt, as `ask` does, and the next attempt
hears of it by the same call; with --wait the command runs on and waits for so long before. The wait counts to the attempt's
timeoutSeconds, and ends 5 s before that is over.

The step declares its gates (actionGates); --gate names one of them, and is not needed where there is one.

Exit codes: 0 allowed; 1 denied (by whom and why is in the JSON); 2 it cannot be requested (the reason is on stderr).

Examples:
  lockstep request-approval 'Send the offer to the customer' --payload mail.json --wait 5m && send mail.json
  lockstep request-approval 'Push the branch' --gate push";

#[derive(clap::Args)]
pub struct Args {
    /// What is to be done, as people read it
    action: String,
    /// What the action is about: JSON, or any text
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// The name of one of the step's action gates
    #[arg(long, value_name = "NAME")]
    gate: Option<String>,
    /// Wait so long for the decision before the attempt ends: 90s, 5m, 2h
    #[arg(long, value_name = "DURATION", value_parser = wait::seconds)]
    wait: Option<i64>,
}

/// The verb.
pub fn request(args: &Args) -> Result<u8, Stop> {
    let payload = args.payload.as_deref().map(|file| {
        let fault = |error: std::io::Error| Stop::new(TROUBLE, format!("{}: {error}", file.display()));
        let read = files::read_output(file).map_err(fault)?;
        read.map(|file| file.text).ok_or_else(|| fault(std::io::ErrorKind::NotFound.into()))
    });
    let payload = payload.transpose()?.map(|text| of_text(&text));
    let body = json!({"action": args.action, "payload": payload, "gate": args.gate, "waitSeconds": args.wait});
    let (status, answer) = post_waiting("request-approval", &body, args.wait)?;
    if status == 202 {
        park();
    }
    expect(status, 200, &answer)?;
    let reply: ApprovalReply =
        serde_json::from_str(&answer).map_err(|error| Stop::new(TROUBLE, format!("request-approval: {error}")))?;
    print(&format!("{}\n", answer.trim()))?;
    Ok(if reply.decision == Verdict::Allowed { 0 } else { DENIED })
}

/// JSON with all digits of its integers, or any text.
fn of_text(text: &str) -> Value {
    digits::read(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// The call of an agent.
#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalRequest {
    pub action: String,
    /// Any JSON value.
    #[serde(default)]
    pub payload: Option<Value>,
    #[serde(default)]
    pub gate: Option<String>,
    #[serde(default)]
    pub wait_seconds: Option<i64>,
}

/// What the agent requests; it waits for people until then. `pause` sleeps and says whether to go on.
pub fn call(
    gateway: &Gateway,
    mask: &Mask,
    request: &ApprovalRequest,
    until: Until,
    pause: impl Fn(Duration) -> bool,
) -> CallOutcome {
    let Some(id) = random_hex() else { return CallOutcome::Answer(500, json!({"error": "no random numbers here"})) };
    // People read it, in a status that more may read than the agent's log.
    let masked = |text: &str| mask.text(text);
    let call = ApprovalCall {
        gate: request.gate.clone(),
        action: masked(&request.action),
        payload: request.payload.as_ref().map(|payload| mask.json(&payload.to_string())),
        id,
        wait_seconds: None,
    };
    loop {
        let wait_seconds = until.left();
        let asked = ApprovalCall { wait_seconds, ..call.clone() };
        let reply = gateway.call(protocol::APPROVAL, &asked, PATIENCE, &pause).and_then(|answer| {
            serde_json::from_slice::<ApprovalReply>(&answer).map_err(|error| CallError::Unreachable(error.to_string()))
        });
        let reply = match reply {
            Ok(reply) if reply.decision != Verdict::Waiting => return CallOutcome::Answer(200, json!(reply)),
            Ok(reply) => reply,
            Err(CallError::Refused(message) | CallError::TooLarge(message)) => {
                return CallOutcome::Answer(422, json!({"error": message}));
            }
            Err(CallError::Unreachable(_)) if wait_seconds.is_some() => continue,
            Err(error) => return CallOutcome::Lost(error),
        };
        let Some(seconds) = wait_seconds else { return CallOutcome::Ends(Vec::new(), json!(reply)) };
        let wanted = AwaitRequest { approvals: vec![reply.digest], seconds, ..AwaitRequest::default() };
        if let Err(error) = wait::hold(gateway, wanted, &pause) {
            return CallOutcome::Lost(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::gateway::tests::with_answers;

    /// What becomes of a call, and what the gateway heard, if that answers so.
    fn requested(answers: &[(u16, Value)], seconds: Option<i64>) -> (CallOutcome, Vec<(String, Value)>) {
        let mask = Mask::new([b"hunter2".to_vec()]);
        let until = Until::of(seconds, std::time::Instant::now() + Duration::from_secs(100));
        let request = ApprovalRequest {
            action: "Log in".to_owned(),
            payload: Some(json!({"password": "hunter2"})),
            ..ApprovalRequest::default()
        };
        with_answers(answers, |gateway| call(gateway, &mask, &request, until, |_| true))
    }

    #[test]
    fn people_read_every_digit_of_what_is_requested() {
        for (text, payload) in [
            ("{\"order\": 12345678901234567890123}", json!({"order": "12345678901234567890123"})),
            ("{\"order\": 7}", json!({"order": 7})),
            ("order 12345678901234567890123", json!("order 12345678901234567890123")),
        ] {
            assert_eq!(of_text(text), payload, "{text}");
        }
    }

    #[test]
    fn a_call_keeps_its_id_until_it_is_told() {
        let reply = |decision: &str| json!({"decision": decision, "digest": "sha256:d"});
        let (outcome, heard) = requested(
            &[
                (200, reply("waiting")),
                (200, json!({"done": true})),
                (503, json!({"reason": "Unavailable", "message": "later"})),
                (200, reply("allowed")),
            ],
            Some(60),
        );
        assert_eq!(outcome, CallOutcome::Answer(200, reply("allowed")));
        let ids: Vec<&str> = heard.iter().filter_map(|(_, body)| body["id"].as_str()).collect();
        assert!(ids.len() == 3 && ids[0].len() == 32 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(heard[0].1["payload"], "{\"password\":\"***\"}", "secrets stay here");
        assert_eq!(heard[1].1, json!({"approvals": ["sha256:d"], "seconds": 20}));

        let (outcome, _) = requested(&[(200, reply("denied"))], None);
        assert_eq!(outcome, CallOutcome::Answer(200, reply("denied")));
        let (outcome, heard) = requested(&[(200, reply("waiting"))], None);
        assert_eq!(outcome, CallOutcome::Ends(Vec::new(), reply("waiting")), "without a wait the attempt ends");
        assert_eq!(heard[0].1.get("waitSeconds"), None);
        let (outcome, _) = requested(&[(400, json!({"reason": "BadRequest", "message": "gate: ..."}))], Some(60));
        assert!(matches!(outcome, CallOutcome::Answer(422, _)), "{outcome:?}");
        let (outcome, _) = requested(&[(409, json!({"reason": "Fenced", "message": "attempt 2 runs"}))], Some(60));
        assert!(matches!(outcome, CallOutcome::Lost(CallError::NotOurs(_))), "{outcome:?}");
    }
}
