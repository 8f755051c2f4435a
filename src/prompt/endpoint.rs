//! Who answers for the model: an endpoint over HTTP that fails now and then. What passes is tried again here, a few times and no
//! sooner than the endpoint says; for all else the attempt ends, and the operator decides whether there is another one.

#![expect(clippy::disallowed_methods, reason = "pauses between two tries")]

use std::io::{Cursor, Read};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use rustls::CertificateError;
use serde_json::Value;
use sse_stream::SseStream;
use ureq::tls::TlsConfig;

use super::chat::{Part, Reply, Request};
use crate::cluster::sinks::BROWSERS;
use crate::protocol::trust;

/// Requests for one reply.
const TRIES: u32 = 5;
/// Between two of them, doubled each time; and what an endpoint may ask for.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);
/// Until the answer begins, and between two parts of it: models think.
const SILENCE: Duration = Duration::from_secs(600);
/// Of an answer that is one, and of one that says what is wrong.
const ANSWER_BYTES: u64 = 8 << 20;
const WORDS_BYTES: u64 = 64 << 10;
const CHUNK: usize = 16 << 10;
/// Of what an endpoint says of a failure.
const SHOWN: usize = 400;
/// Answers 400 to 499 that say nothing of what was sent: too slow, in the way of another, too early, too much.
const PASSING: [u16; 4] = [408, 409, 425, 429];
/// Of a 429 that no waiting mends.
const NO_QUOTA: &str = "insufficient_quota";
/// Where an Agent says whom it trusts.
const CA_FIELD: &str = "spec.prompt.caConfigMapRef";
/// What ends a stream.
const DONE: &str = "[DONE]";

pub struct Endpoint {
    agent: ureq::Agent,
    url: String,
    bearer: Option<String>,
    trusts: Trusts,
}

/// Whose certificates are good.
#[derive(Clone, Copy)]
enum Trusts {
    Browsers,
    ConfigMap,
}

/// Why there is no reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Another try may go well, no sooner than asked for.
    Passing { why: String, asked: Option<Duration> },
    /// No try will.
    Lasting(String),
    /// It does not take this request: status 400 or 422.
    Unfit(String),
}

impl Endpoint {
    /// With a file of the authorities that are trusted in the place of those that browsers trust: the endpoint is one host, and
    /// nobody else should be able to prove that it is the one.
    pub fn new(base: &str, key: Option<String>, authorities: Option<&Path>) -> Result<Self, String> {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // The key is for nobody else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("lockstep/", env!("CARGO_PKG_VERSION")));
        if base.starts_with("https://") {
            let tls = authorities.map_or_else(|| Ok(BROWSERS.clone()), trusted)?;
            config = config.tls_config(tls);
        }
        let url = format!("{}/chat/completions", base.trim_end_matches('/'));
        let bearer = key.map(|key| format!("Bearer {key}"));
        let trusts = authorities.map_or(Trusts::Browsers, |_| Trusts::ConfigMap);
        Ok(Self { agent: config.build().new_agent(), url, bearer, trusts })
    }

    /// The reply of the model. `tell` hears the text so far, and `note` of each failure that is tried again.
    pub fn reply(
        &self,
        request: &Request<'_>,
        tell: &mut dyn FnMut(&str),
        note: &dyn Fn(&str),
    ) -> Result<Reply, Trouble> {
        let body = serde_json::to_vec(request).map_err(|error| Trouble::Lasting(error.to_string()))?;
        let (mut pause, mut left) = (FIRST_PAUSE, TRIES - 1);
        loop {
            match self.once(&body, tell) {
                Err(Trouble::Passing { why, asked }) => {
                    let wait = asked.unwrap_or(pause);
                    if left == 0 || wait > LONGEST_PAUSE {
                        return Err(given_up(&why, left, asked));
                    }
                    note(&format!("{why}; again in {} ms", wait.as_millis()));
                    std::thread::sleep(wait);
                    pause *= 2;
                    left -= 1;
                }
                answered => return answered,
            }
        }
    }

    fn once(&self, body: &[u8], tell: &mut dyn FnMut(&str)) -> Result<Reply, Trouble> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        request = request.header("accept", "text/event-stream, application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", bearer);
        }
        let answer = request.send(body).map_err(|error| unreached(&error, self.trusts))?;
        let status = answer.status().as_u16();
        let text_of = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (asked, kind) = (text_of("retry-after").and_then(|text| seconds(&text)), text_of("content-type"));
        let body = answer.into_body().into_reader();
        if !(200..300).contains(&status) {
            let mut words = Vec::new();
            // What could be read of it is told.
            let _ = body.take(WORDS_BYTES).read_to_end(&mut words);
            return Err(refused(status, &String::from_utf8_lossy(&words), asked));
        }
        if kind.is_some_and(|kind| kind.trim_start().starts_with("text/event-stream")) {
            return streamed(body.take(ANSWER_BYTES), tell);
        }
        let part: Part = serde_json::from_reader(body.take(ANSWER_BYTES)).map_err(|error| broken(&error))?;
        let mut reply = Reply::default();
        take(&mut reply, part)?;
        tell(&reply.text);
        whole(reply)
    }
}

/// An answer that comes in parts.
fn streamed(mut body: impl Read, tell: &mut dyn FnMut(&str)) -> Result<Reply, Trouble> {
    let chunks = std::iter::from_fn(move || {
        let mut chunk = vec![0; CHUNK];
        loop {
            return match body.read(&mut chunk) {
                Ok(0) => None,
                Ok(count) => {
                    chunk.truncate(count);
                    Some(Ok(Cursor::new(chunk)))
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Some(Err(error)),
            };
        }
    });
    let mut events = pin!(SseStream::from_bytes_stream(futures::stream::iter(chunks)));
    let mut reply = Reply::default();
    // Each chunk is waited for where it is read, so the next event is always there.
    while let Some(Some(event)) = events.next().now_or_never() {
        let data = event.map_err(|error| broken(&error))?.data.unwrap_or_default();
        if data.trim() == DONE {
            // Some say no reason.
            reply.finish.get_or_insert_with(|| "stop".to_owned());
            break;
        }
        take(&mut reply, serde_json::from_str(&data).map_err(|error| broken(&error))?)?;
        tell(&reply.text);
    }
    whole(reply)
}

fn take(reply: &mut Reply, mut part: Part) -> Result<(), Trouble> {
    if let Some(error) = part.error.take().filter(|error| !error.is_null()) {
        let why = format!("the endpoint failed while it answered: {}", shown(&said(&error)));
        return Err(Trouble::Passing { why, asked: None });
    }
    reply.add(part);
    Ok(())
}

fn whole(reply: Reply) -> Result<Reply, Trouble> {
    if reply.finish.is_some() {
        return Ok(reply);
    }
    let why = "the endpoint's answer was cut off".to_owned();
    Err(Trouble::Passing { why, asked: None })
}

fn broken(error: &dyn std::fmt::Display) -> Trouble {
    Trouble::Passing {
        why: format!("the endpoint's answer cannot be read: {}", shown(&error.to_string())),
        asked: None,
    }
}

/// What the file holds, which comes from the Agent's ConfigMap.
fn trusted(file: &Path) -> Result<TlsConfig, String> {
    let pem = std::fs::read(file).map_err(|error| format!("{CA_FIELD}: {}: {error}", file.display()))?;
    trust::only(&pem).map_err(|fault| {
        format!(
            "{CA_FIELD}: what the ConfigMap has under that key {fault}; put the certificate of the endpoint's authority there as PEM, which begins with -----BEGIN CERTIFICATE-----"
        )
    })
}

fn unreached(error: &ureq::Error, trusts: Trusts) -> Trouble {
    if let Some(fault) = certificate_fault(error) {
        return Trouble::Lasting(untrusted(fault, trusts));
    }
    let why = format!("the endpoint cannot be reached: {}", shown(&error.to_string()));
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => Trouble::Lasting(why),
        _ => Trouble::Passing { why, asked: None },
    }
}

/// What is wrong with the endpoint's certificate, where that is why there is no connection.
fn certificate_fault(error: &ureq::Error) -> Option<&CertificateError> {
    let of_tls = match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref::<rustls::Error>(),
        _ => None,
    };
    match of_tls? {
        rustls::Error::InvalidCertificate(fault) => Some(fault),
        _ => None,
    }
}

/// No attempt mends a certificate: people do.
fn untrusted(fault: &CertificateError, trusts: Trusts) -> String {
    use CertificateError as C;
    let what = match (fault, trusts) {
        // An authority that was made anew has the same name and another key.
        (C::UnknownIssuer | C::BadSignature, Trusts::ConfigMap) => {
            return format!(
                "the endpoint's certificate is signed by no authority that {CA_FIELD} names; put the certificate of its authority into that ConfigMap"
            );
        }
        (C::UnknownIssuer | C::BadSignature, Trusts::Browsers) => {
            return format!(
                "the endpoint's certificate is signed by no authority that browsers trust; name a ConfigMap with the certificate of its authority in {CA_FIELD}"
            );
        }
        (C::Expired | C::ExpiredContext { .. }, _) => "has expired; renew it there",
        (C::NotValidYet | C::NotValidYetContext { .. }, _) => "is not valid yet; look at the clocks",
        (C::NotValidForName | C::NotValidForNameContext { .. }, _) => {
            "is for another name; use a name of the certificate in spec.prompt.baseURL, or have one issued for this one"
        }
        _ => "cannot be accepted; replace it there",
    };
    format!("the endpoint's certificate {what} ({})", shown(&fault.to_string()))
}

/// What a status says.
fn refused(status: u16, words: &str, asked: Option<Duration>) -> Trouble {
    let error = serde_json::from_str::<Value>(words).map(|answer| answer.get("error").cloned().unwrap_or(answer));
    let words = error.as_ref().map_or_else(|_| words.to_owned(), said);
    let why = format!("the endpoint answered {status}: {}", shown(&words));
    let is_quota = error.is_ok_and(|error| error["type"] == NO_QUOTA || error["code"] == NO_QUOTA);
    match status {
        429 if is_quota => Trouble::Lasting(why),
        500.. => Trouble::Passing { why, asked },
        status if PASSING.contains(&status) => Trouble::Passing { why, asked },
        400 | 422 => Trouble::Unfit(why),
        _ => Trouble::Lasting(why),
    }
}

fn given_up(why: &str, left: u32, asked: Option<Duration>) -> Trouble {
    let why = match asked {
        Some(asked) if left > 0 => format!("{why}; it asks for {} s, which is too long to wait here", asked.as_secs()),
        _ => format!("{why} ({TRIES} tries)"),
    };
    Trouble::Passing { why, asked }
}

/// What an endpoint says of its failure, in whatever form.
fn said(error: &Value) -> String {
    let message = error.get("message").or_else(|| error.get("detail")).unwrap_or(error);
    message.as_str().map_or_else(|| message.to_string(), str::to_owned)
}

fn shown(words: &str) -> String {
    let line: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    crate::api::condition::clip(line.trim(), SHOWN)
}

/// `Retry-After` as seconds, which may have a fraction; as a date it is as good as absent.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.trim().parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_endpoint_answers_passes_or_lasts() {
        let quota = r#"{"error": {"message": "You exceeded\nyour quota", "type": "insufficient_quota", "code": "insufficient_quota"}}"#;
        let (passing, lasting, unfit) = ("Passing", "Lasting", "Unfit");
        for (status, words, kind, told) in [
            (429, r#"{"error": {"message": "slow down"}}"#, passing, "answered 429: slow down"),
            (429, quota, lasting, "answered 429: You exceeded your quota"),
            (503, "<html>busy</html>", passing, "answered 503: <html>busy</html>"),
            (500, "", passing, "answered 500: "),
            (408, "", passing, "408"),
            (401, r#"{"error": {"message": "bad key"}}"#, lasting, "answered 401: bad key"),
            (404, r#"{"object": "error", "message": "no model x", "code": 404}"#, lasting, "answered 404: no model x"),
            (404, r#"{"detail": "Not Found"}"#, lasting, "Not Found"),
            (404, r#"{"error": "model 'x' not found"}"#, lasting, "answered 404: model 'x' not found"),
            (307, "", lasting, "307"),
            (400, r#"{"error": {"message": "no response_format here"}}"#, unfit, "no response_format"),
        ] {
            let trouble = format!("{:?}", refused(status, words, None));
            assert!(trouble.starts_with(kind) && trouble.contains(told), "{status} {words}: {trouble}");
        }
        let long = refused(500, &"x".repeat(10_000), None);
        assert!(format!("{long:?}").len() < 2 * SHOWN, "{long:?}");
    }

    #[test]
    fn an_endpoint_says_how_long_it_wants_to_be_left_alone() {
        for (text, expected) in [
            ("2", Some(2_000)),
            (" 0.25 ", Some(250)),
            ("0", Some(0)),
            ("-1", None),
            ("Wed, 21 Oct 2026 07:28:00 GMT", None),
            ("1e300", None),
        ] {
            assert_eq!(seconds(text).map(|time| time.as_millis()), expected, "{text}");
        }
    }

    #[test]
    fn a_stream_is_read_to_its_end_or_was_cut_off() {
        let text = |text: &str| format!(r#"data: {{"choices":[{{"delta":{{"content":"{text}"}}}}]}}{}"#, "\n\n");
        let end = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
        let read = |stream: String| {
            let mut told = Vec::new();
            let reply = streamed(Cursor::new(stream), &mut |text| told.push(text.to_owned()));
            (reply.map(|reply| reply.text), told)
        };
        let (reply, told) = read(format!(": hello\r\n\r\n{}{}{end}data: [DONE]\n\n", text("one"), text(" two")));
        assert_eq!((reply, told.len()), (Ok("one two".to_owned()), 3));
        assert_eq!(read(format!("{}data: [DONE]\n\n", text("one"))).0, Ok("one".to_owned()), "without a reason");
        for (stream, words) in [
            (text("one"), "cut off"),
            (String::new(), "cut off"),
            (format!("{}data: {{\"choi\n\n{end}", text("one")), "cannot be read"),
            (
                format!("{}data: {{\"error\": {{\"message\": \"out of memory\"}}}}\n\n{end}", text("one")),
                "out of memory",
            ),
        ] {
            let trouble = read(stream.clone()).0.expect_err(words);
            assert!(matches!(&trouble, Trouble::Passing { why, .. } if why.contains(words)), "{stream}: {trouble:?}");
        }
    }
}
