//! Calls to the gateway, with retries.

#![expect(
    clippy::disallowed_methods,
    reason = "how long an outage is waited for; the id of a claim, which nobody else may know"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use ureq::tls::TlsConfig;

use crate::api::name::to_hex;
use crate::protocol::{self, AttemptRef, CheckRequest, Output, Refusal, TRACEPARENT, trust};

const CONNECT: Duration = Duration::from_secs(5);
pub const CALL: Duration = Duration::from_secs(45);
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(15);
/// A projected token is renewed in place, and the gateway's own view of a new pod may lag.
const DENIED: Duration = Duration::from_secs(30);
/// Beyond the largest answer: the context with its inputs.
const ANSWER_BYTES: u64 = 16 * 1024 * 1024;

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// 409: the attempt is another pod's, or over.
    NotOurs(Refusal),
    /// The request or its body is too large.
    TooLarge(String),
    /// Any other refusal that a repetition does not change.
    Refused(String),
    /// No answer within the time allowed, or the signal to stop came.
    Unreachable(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotOurs(refusal) => write!(f, "{}: {}", refusal.reason, refusal.message),
            Self::TooLarge(message) | Self::Refused(message) | Self::Unreachable(message) => f.write_str(message),
        }
    }
}

/// What to make of a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// It may pass.
    Down,
    /// The token was not accepted (yet).
    Denied,
    Final,
}

fn trouble(status: u16) -> Trouble {
    match status {
        408 | 429 | 500 | 502 | 503 | 504 => Trouble::Down,
        401 | 403 => Trouble::Denied,
        _ => Trouble::Final,
    }
}

/// Decides on the next try; reads no clock.
#[derive(Debug)]
struct Schedule {
    patience: Duration,
    denied_since: Option<Duration>,
    tries: u32,
}

impl Schedule {
    fn new(patience: Duration) -> Self {
        Self { patience, denied_since: None, tries: 0 }
    }

    /// The delay before the next try, `None` to give up. `random` spreads the pods of one outage.
    fn next(&mut self, elapsed: Duration, trouble: Trouble, random: u8) -> Option<Duration> {
        let longest = FIRST_DELAY * 2u32.pow(self.tries.min(16));
        let half = longest.min(LONGEST_DELAY) / 2;
        let delay = half + half * u32::from(random) / 255;
        self.tries += 1;
        let until = match trouble {
            Trouble::Final => return None,
            Trouble::Down => {
                self.denied_since = None;
                self.patience
            }
            Trouble::Denied => {
                let since = *self.denied_since.get_or_insert(elapsed);
                self.patience.min(since + DENIED)
            }
        };
        (elapsed + delay <= until).then_some(delay)
    }
}

pub struct Gateway {
    agent: ureq::Agent,
    base: String,
    token: PathBuf,
    attempt: AttemptRef,
    /// That of the attempt; without it the gateway's calls are in no trace.
    traceparent: Option<String>,
}

impl Gateway {
    /// `ca` is PEM. Plain HTTP is for a gateway in the same machine only.
    pub fn new(base: &str, ca: Option<&str>, token: PathBuf, attempt: AttemptRef) -> Result<Self, String> {
        let tls = match ca {
            Some(pem) => trust::only(pem.as_bytes()).map_err(|fault| format!("its CA {fault}"))?,
            None if base.starts_with("http://127.0.0.1:") => TlsConfig::builder().build(),
            None => return Err("there is no CA for it".to_owned()),
        };
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .https_only(ca.is_some())
            // What the agent's template sets is for the agent.
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .user_agent(format!("lockstep-shim/{}", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { agent, base: base.trim_end_matches('/').to_owned(), token, attempt, traceparent: None })
    }

    /// In the trace that the operator named.
    #[must_use]
    pub fn within(self, traceparent: Option<String>) -> Self {
        Self { traceparent, ..self }
    }

    /// `pause` sleeps and says whether to go on.
    pub fn call(
        &self,
        path: &str,
        request: &impl Serialize,
        patience: Duration,
        pause: impl Fn(Duration) -> bool,
    ) -> Result<Vec<u8>, CallError> {
        self.call_within(|| CALL, path, request, patience, pause)
    }

    /// What the gateway finds wrong with an output. A gateway of an earlier version does not know that something was masked.
    pub fn check(
        &self,
        output: Output,
        patience: Duration,
        pause: impl Fn(Duration) -> bool,
    ) -> Result<Vec<u8>, CallError> {
        let mut request = CheckRequest { output };
        match self.call(protocol::CHECK, &request, patience, &pause) {
            Err(CallError::Refused(_)) if request.output.masked => {
                request.output.masked = false;
                self.call(protocol::CHECK, &request, patience, pause)
            }
            answer => answer,
        }
    }

    /// `timeout` is asked before each try.
    pub fn call_within(
        &self,
        timeout: impl Fn() -> Duration,
        path: &str,
        request: &impl Serialize,
        patience: Duration,
        pause: impl Fn(Duration) -> bool,
    ) -> Result<Vec<u8>, CallError> {
        let body = written(request)?;
        Self::repeated(path, || self.once(path, &body, timeout()), patience, pause)
    }

    /// `request` is asked before each try, so that what is repeated is never older than what is known.
    pub fn call_newest<T: Serialize>(
        &self,
        path: &str,
        mut request: impl FnMut() -> T,
        patience: Duration,
        pause: impl Fn(Duration) -> bool,
    ) -> Result<Vec<u8>, CallError> {
        let once = || {
            let body = written(&request()).map_err(|error| (Trouble::Final, error))?;
            self.once(path, &body, CALL)
        };
        Self::repeated(path, once, patience, pause)
    }

    fn repeated(
        path: &str,
        mut once: impl FnMut() -> Result<Vec<u8>, (Trouble, CallError)>,
        patience: Duration,
        pause: impl Fn(Duration) -> bool,
    ) -> Result<Vec<u8>, CallError> {
        let begin = Instant::now();
        let mut schedule = Schedule::new(patience);
        loop {
            let (trouble, error) = match once() {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let Some(delay) = schedule.next(begin.elapsed(), trouble, random_byte()) else {
                return Err(error);
            };
            if schedule.tries == 1 || schedule.tries.is_multiple_of(10) {
                super::say(&format!("{path}: {error}; trying again"));
            }
            if !pause(delay) {
                return Err(error);
            }
        }
    }

    fn once(&self, path: &str, body: &[u8], timeout: Duration) -> Result<Vec<u8>, (Trouble, CallError)> {
        let down = |message: String| (Trouble::Down, CallError::Unreachable(message));
        let token = std::fs::read_to_string(&self.token)
            .map_err(|error| down(format!("token {}: {error}", self.token.display())))?;
        let mut call = self
            .agent
            .post(format!("{}{path}", self.base))
            .config()
            .timeout_global(Some(timeout))
            .build()
            .header("Authorization", format!("Bearer {}", token.trim()))
            .header("Content-Type", "application/json");
        for (name, value) in self.attempt.headers() {
            call = call.header(name, value);
        }
        if let Some(traceparent) = &self.traceparent {
            call = call.header(TRACEPARENT, traceparent);
        }
        let mut response = call.send(body).map_err(|error| down(format!("gateway {}: {error}", self.base)))?;
        let status = response.status().as_u16();
        let answer = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES)
            .read_to_vec()
            .map_err(|error| down(format!("gateway {}: {error}", self.base)))?;
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        Err(refused(status, &answer))
    }
}

fn written(request: &impl Serialize) -> Result<Vec<u8>, CallError> {
    serde_json::to_vec(request).map_err(|error| CallError::Refused(error.to_string()))
}

fn refused(status: u16, answer: &[u8]) -> (Trouble, CallError) {
    let refusal = serde_json::from_slice::<Refusal>(answer).unwrap_or_else(|_| Refusal {
        reason: format!("HTTP{status}"),
        message: super::mask::first_bytes(&String::from_utf8_lossy(answer), 200).to_owned(),
    });
    let message = format!("the gateway answers {status} {}: {}", refusal.reason, refusal.message);
    let trouble = trouble(status);
    let error = match (status, trouble) {
        (409, _) => CallError::NotOurs(refusal),
        (413, _) => CallError::TooLarge(message),
        (_, Trouble::Down) => CallError::Unreachable(message),
        _ => CallError::Refused(message),
    };
    (trouble, error)
}

/// Random bytes as hex.
pub fn random_hex() -> Option<String> {
    let mut bytes = [0u8; 16];
    fill(&mut bytes).then(|| to_hex(&bytes))
}

fn random_byte() -> u8 {
    let mut byte = [128];
    fill(&mut byte);
    byte[0]
}

fn fill(bytes: &mut [u8]) -> bool {
    getrandom::fill(bytes).is_ok()
}

#[cfg(test)]
pub mod tests {
    use serde_json::Value;
    use tiny_http::{Response, Server};

    use super::*;

    fn attempt() -> AttemptRef {
        AttemptRef {
            namespace: "n".to_owned(),
            step_run: "s".to_owned(),
            uid: "u".to_owned(),
            attempt: 1,
            id: "i".to_owned(),
        }
    }

    /// What a call gives, and the calls that the gateway heard (path and body), if that answers them so one after the other.
    pub fn with_answers<T>(answers: &[(u16, Value)], call: impl FnOnce(&Gateway) -> T) -> (T, Vec<(String, Value)>) {
        let server = Server::http("127.0.0.1:0").expect("a server");
        let port = server.server_addr().to_ip().expect("an address").port();
        let answers = answers.to_vec();
        let heard = std::thread::spawn(move || {
            let mut heard = Vec::new();
            for (status, answer) in answers {
                let mut request = server.recv().expect("a call");
                let body: Value = serde_json::from_reader(request.as_reader()).expect("JSON");
                heard.push((request.url().to_owned(), body));
                let response = Response::from_string(answer.to_string()).with_status_code(status);
                request.respond(response).expect("an answer");
            }
            heard
        });
        // Any file is a token.
        let token = PathBuf::from("/proc/self/comm");
        let gateway = Gateway::new(&format!("http://127.0.0.1:{port}"), None, token, attempt()).expect("a gateway");
        let given = call(&gateway);
        (given, heard.join().expect("what it heard"))
    }

    const MINUTE: Duration = Duration::from_secs(60);

    /// Times of all tries until it gives up.
    fn tries(patience: Duration, trouble: Trouble, random: u8) -> Vec<Duration> {
        let mut schedule = Schedule::new(patience);
        let mut at = vec![Duration::ZERO];
        while let Some(delay) = schedule.next(at[at.len() - 1], trouble, random) {
            at.push(at[at.len() - 1] + delay);
        }
        at
    }

    #[test]
    fn an_outage_is_waited_for_with_growing_delays() {
        let at = tries(5 * MINUTE, Trouble::Down, 255);
        assert_eq!(at[1], Duration::from_millis(250));
        assert_eq!(at[2].checked_sub(at[1]).unwrap(), Duration::from_millis(500));
        assert!(at.windows(2).all(|two| two[1].checked_sub(two[0]).unwrap() <= LONGEST_DELAY));
        assert!(at[at.len() - 1] > 4 * MINUTE);
        assert!((20..40).contains(&at.len()));
        assert!(tries(5 * MINUTE, Trouble::Down, 0)[1] == Duration::from_millis(125));
    }

    #[test]
    fn a_denied_token_gets_half_a_minute() {
        let at = tries(5 * MINUTE, Trouble::Denied, 128);
        assert!(at.len() > 4);
        assert!(at[at.len() - 1] <= DENIED);
    }

    #[test]
    fn denial_is_counted_from_its_begin() {
        let mut schedule = Schedule::new(5 * MINUTE);
        assert!(schedule.next(2 * MINUTE, Trouble::Denied, 0).is_some());
        assert!(schedule.next(3 * MINUTE, Trouble::Denied, 0).is_none());
    }

    #[test]
    fn refusals_are_final() {
        assert!(Schedule::new(MINUTE).next(Duration::ZERO, Trouble::Final, 0).is_none());
        let body = br#"{"reason":"Fenced","message":"attempt 2 runs"}"#;
        let (kind, error) = refused(409, body);
        assert_eq!(kind, Trouble::Final);
        assert_eq!(error.to_string(), "Fenced: attempt 2 runs");
        assert!(matches!(refused(413, b"").1, CallError::TooLarge(_)));
        assert!(matches!(refused(400, b"").1, CallError::Refused(_)));
        assert_eq!(refused(503, b"<html>").0, Trouble::Down);
        assert_eq!(refused(401, b"").0, Trouble::Denied);
    }

    #[test]
    fn what_is_repeated_is_the_newest() {
        let mut number = 0;
        let newest = || {
            number += 10;
            serde_json::json!({"percent": number})
        };
        let answers = [(503, Value::Null), (503, Value::Null), (204, Value::Null)];
        let (answer, heard) =
            with_answers(&answers, |gateway| gateway.call_newest("/x", newest, MINUTE, |_| true).is_ok());
        let said: Vec<&Value> = heard.iter().map(|(_, body)| &body["percent"]).collect();
        assert_eq!((answer, said), (true, vec![&Value::from(10), &Value::from(20), &Value::from(30)]));
    }

    #[test]
    fn a_gateway_elsewhere_needs_a_ca() {
        let new = |base: &str, ca: Option<&str>| Gateway::new(base, ca, PathBuf::from("/t"), attempt()).is_ok();
        assert!(new("http://127.0.0.1:80", None));
        assert!(!new("http://gateway:80", None));
        assert!(!new("https://gateway", None));
        assert!(!new("https://gateway", Some("nonsense")));
        assert_eq!(random_hex().unwrap().len(), 32);
    }
}
