//! Senders of events without a token of Kubernetes: GitHub, Slack, Alertmanager. They send to one Trigger, and prove
//! who they are by the secret that the Trigger names. What they start is started by the API's own account, where a
//! RoleBinding lets it.

#![expect(clippy::disallowed_methods, reason = "how long a secret counts")]

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use ring::hmac;
use tokio::time::Instant;

use super::Http;
use super::caller::read_known;
use super::problem::{Problem, Result};
use crate::api::Trigger;
use crate::api::name::from_hex;
use crate::api::trigger::{BearerAuth, HmacAuth, HmacScheme, SecretKeyRef, SenderAuth};
use crate::cluster::fair::Fair;
use crate::cluster::sinks;
use crate::cluster::ttl_cache::TtlCache;
use crate::server::body;

/// How long a secret counts that was read, and that there is none.
const KEEP: Duration = Duration::from_secs(30);
const KEEP_MISSING: Duration = Duration::from_secs(2);
const KEPT: usize = 1024;
/// Bytes. A shorter secret can be guessed.
const SHORTEST: usize = 16;
/// Bodies that are read at once of senders who have not proven who they are yet, and those of one Trigger that wait.
const UNPROVEN: usize = 8;
const QUEUED: usize = 64;
/// Seconds that the time of a signature may be off.
const REPLAY_SECONDS: i64 = 300;
const SLACK_TIME: &str = "x-slack-request-timestamp";
const STANDARD_TIME: &str = "webhook-timestamp";
const STANDARD_ID: &str = "webhook-id";
/// Signatures of one request that are looked at.
const MOST_TAGS: usize = 8;

/// Secrets that were read, and bodies whose signatures are about to be checked.
pub struct Senders {
    known: TtlCache<Arc<[u8]>>,
    missing: TtlCache<()>,
    unproven: Fair,
}

impl Default for Senders {
    fn default() -> Self {
        Self {
            known: TtlCache::new(KEEP, KEPT),
            missing: TtlCache::new(KEEP_MISSING, KEPT),
            unproven: Fair::new(UNPROVEN, QUEUED),
        }
    }
}

/// Who sends, as far as the Trigger's own secret says it.
pub enum Proof {
    /// They bring nothing that the Trigger asks for: perhaps a token of Kubernetes.
    None(Request),
    /// The secret itself; the body is not read yet.
    Secret(Request),
    /// A signature of this body.
    Signed(HeaderMap, Vec<u8>),
}

/// Whether a request brings what its Trigger asks of senders without a token.
pub fn applies(auth: &SenderAuth, headers: &HeaderMap) -> bool {
    let has = |name: &str| headers.contains_key(name);
    match (&auth.hmac, &auth.bearer) {
        (Some(hmac), _) => has(signature_header(hmac)),
        (None, Some(bearer)) => has(secret_header(bearer)),
        (None, None) => false,
    }
}

/// The proof that a request brings. A wrong one is an error; a bearer token that is not the secret may be one of
/// Kubernetes.
pub async fn prove(http: &Http, trigger: &Trigger, request: Request, most: usize) -> Result<Proof> {
    let auth = trigger.spec.auth.as_ref().filter(|auth| applies(auth, request.headers()));
    match auth.map(|auth| (&auth.hmac, &auth.bearer)) {
        Some((Some(hmac), _)) => prove_signature(http, (trigger, hmac), request, most).await,
        Some((None, Some(bearer))) => {
            let secret = secret(http, trigger, &bearer.secret_ref).await;
            let given = given_secret(bearer, request.headers());
            if secret.zip(given).is_some_and(|(secret, given)| is_same(&secret, given.as_bytes())) {
                return Ok(Proof::Secret(request));
            }
            let may_be_token = secret_header(bearer).eq_ignore_ascii_case("authorization");
            if may_be_token { Ok(Proof::None(request)) } else { Err(unproven()) }
        }
        _ => Ok(Proof::None(request)),
    }
}

/// The body must be read before anybody is proven: few at once, and none that is large.
async fn prove_signature(
    http: &Http,
    (trigger, hmac): (&Trigger, &HmacAuth),
    request: Request,
    most: usize,
) -> Result<Proof> {
    let Some(secret) = secret(http, trigger, &hmac.secret_ref).await else { return Err(unproven()) };
    let meta = &trigger.metadata;
    let key = format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    let _place = http.senders.unproven.acquire(&key).await?;
    let headers = request.headers().clone();
    let bytes = body::read(request, most).await.map_err(|why| Problem::unread(why, most))?;
    signed(hmac, &secret, (&headers, &bytes), http.clock.now().0)?;
    Ok(Proof::Signed(headers, bytes))
}

/// Whoever guesses learns nothing of what is wrong; whoever administers it reads the log.
fn unproven() -> Problem {
    Problem::unauthorized(
        "the sender is not proven: signature, time or secret do not fit the auth of this Trigger, or its Secret cannot be read; the log of lockstep-api says which",
    )
}

fn signature_header(hmac: &HmacAuth) -> &str {
    hmac.header.as_deref().unwrap_or(match hmac.scheme.unwrap_or_default() {
        HmacScheme::GitHub => "x-hub-signature-256",
        HmacScheme::Slack => "x-slack-signature",
        HmacScheme::StandardWebhooks => "webhook-signature",
    })
}

fn secret_header(bearer: &BearerAuth) -> &str {
    bearer.header.as_deref().unwrap_or("authorization")
}

fn given_secret<'h>(bearer: &BearerAuth, headers: &'h HeaderMap) -> Option<&'h str> {
    let value = headers.get(secret_header(bearer))?.to_str().ok()?;
    if bearer.header.is_some() && secret_header(bearer) != header::AUTHORIZATION.as_str() {
        return Some(value.trim());
    }
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

/// Compares in a time that tells nothing of where they differ.
fn is_same(secret: &[u8], given: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, secret);
    hmac::verify(&key, given, tag.as_ref()).is_ok()
}

/// Whether the signature is one of this body, and not too old.
fn signed(auth: &HmacAuth, secret: &[u8], (headers, body): (&HeaderMap, &[u8]), now: Timestamp) -> Result<()> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let tag = text(signature_header(auth)).map(str::trim);
    let is_good = match auth.scheme.unwrap_or_default() {
        HmacScheme::GitHub => {
            let tag = tag.and_then(|tag| from_hex::<32>(tag.strip_prefix("sha256=").unwrap_or(tag)));
            tag.is_some_and(|tag| hmac::verify(&key, body, &tag).is_ok())
        }
        HmacScheme::Slack => {
            let (time, is_recent) = time(text(SLACK_TIME), now);
            let tag = tag.and_then(|tag| from_hex::<32>(tag.strip_prefix("v0=")?));
            let message = [b"v0:", time.as_bytes(), b":", body].concat();
            is_recent && tag.is_some_and(|tag| hmac::verify(&key, &message, &tag).is_ok())
        }
        HmacScheme::StandardWebhooks => {
            let (time, is_recent) = time(text(STANDARD_TIME), now);
            let id = text(STANDARD_ID).filter(|id| !id.is_empty());
            let key = sinks::key(secret);
            let message = [id.unwrap_or_default().as_bytes(), b".", time.as_bytes(), b".", body].concat();
            // While a secret is exchanged there are several, and other versions may stand beside them.
            let tags = tag.unwrap_or_default().split_ascii_whitespace().take(MOST_TAGS);
            let mut tags = tags.filter_map(|tag| STANDARD.decode(tag.strip_prefix("v1,")?).ok());
            is_recent && id.is_some() && tags.any(|tag| hmac::verify(&key, &message, &tag).is_ok())
        }
    };
    if is_good { Ok(()) } else { Err(unproven()) }
}

/// The time as it was sent, and whether it is about now.
fn time(sent: Option<&str>, now: Timestamp) -> (&str, bool) {
    let sent = sent.filter(|sent| sent.len() <= 16).unwrap_or_default();
    let at: Option<i64> = sent.parse().ok();
    (sent, at.is_some_and(|at| now.as_second().abs_diff(at) <= REPLAY_SECONDS.unsigned_abs()))
}

/// What the Secret holds, read with the API's own account.
async fn secret(http: &Http, trigger: &Trigger, of: &SecretKeyRef) -> Option<Arc<[u8]>> {
    let namespace = trigger.metadata.namespace.as_deref().unwrap_or_default();
    let kept = format!("{namespace}/{}/{}", of.name, of.key);
    if let Some(known) = http.senders.known.get(&kept) {
        return Some(known);
    }
    if http.senders.missing.get(&kept).is_some() {
        return None;
    }
    let asked_at = Instant::now();
    let api: Api<Secret> = Api::namespaced(http.own.clone(), namespace);
    let found = read_known(&api, &of.name).await;
    let value = match found {
        Ok(mut secret) => secret.data.as_mut().and_then(|data| data.remove(&of.key)).map(|bytes| bytes.0),
        Err(problem) => {
            tracing::warn!(
                namespace,
                secret = of.name,
                why = problem.refusal.detail,
                "the secret of a Trigger's senders cannot be read: docs/triggers.md says which Role it takes"
            );
            http.senders.missing.insert(kept, (), asked_at);
            return None;
        }
    };
    let long = value.filter(|bytes| bytes.len() >= SHORTEST);
    let Some(bytes) = long else {
        tracing::warn!(
            namespace,
            secret = of.name,
            key = of.key,
            "the secret of a Trigger's senders is missing under this key, or has less than {SHORTEST} bytes"
        );
        http.senders.missing.insert(kept, (), asked_at);
        return None;
    };
    let bytes: Arc<[u8]> = bytes.into();
    http.senders.known.insert(kept, Arc::clone(&bytes), asked_at);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"It's a Secret to Everybody";

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let parse = |value: &str| value.parse().unwrap_or_else(|_| panic!("{value:?} is no header"));
        all.iter().map(|(name, value)| (http::HeaderName::from_static(name), parse(value))).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    /// The example of GitHub's own documentation.
    #[test]
    fn a_body_is_signed_as_github_does_it() {
        let good = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let auth = HmacAuth::default();
        let is_good = |auth: &HmacAuth, header: &'static str, tag: &str, body: &[u8], secret: &[u8]| {
            signed(auth, secret, (&headers(&[(header, tag)]), body), at(0)).is_ok()
        };
        let standard = "x-hub-signature-256";
        let prefixed = format!("sha256={good}");
        assert!(is_good(&auth, standard, &prefixed, b"Hello, World!", SECRET));
        assert!(is_good(&auth, standard, &good.to_uppercase(), b"Hello, World!", SECRET));
        let own = HmacAuth { header: Some("x-gitea-signature".into()), ..HmacAuth::default() };
        assert!(is_good(&own, "x-gitea-signature", good, b"Hello, World!", SECRET));
        for (tag, body, secret) in [
            (prefixed.as_str(), &b"Hello, World"[..], SECRET),
            (prefixed.as_str(), b"Hello, World!", b"another secret of somebody".as_slice()),
            ("sha256=", b"Hello, World!", SECRET),
            (&prefixed[..70], b"Hello, World!", SECRET),
            (&format!("{prefixed}00"), b"Hello, World!", SECRET),
            (&prefixed.replace('7', "8"), b"Hello, World!", SECRET),
            (&prefixed.replace("sha256=", "sha1="), b"Hello, World!", SECRET),
            ("sha256=zz", b"Hello, World!", SECRET),
        ] {
            assert!(!is_good(&auth, standard, tag, body, secret), "{tag}");
        }
        assert!(!is_good(&auth, "x-other", &prefixed, b"Hello, World!", SECRET), "no signature at all");
    }

    /// The example of Slack's own documentation.
    #[test]
    fn a_body_is_signed_as_slack_does_it_and_only_now() {
        let secret = b"8f742231b10e8888abcd99yyyzzz85a5";
        let body = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
        let tag = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
        let auth = HmacAuth { scheme: Some(HmacScheme::Slack), ..HmacAuth::default() };
        let is_good = |time: &str, now: i64, body: &[u8]| {
            signed(&auth, secret, (&headers(&[("x-slack-signature", tag), (SLACK_TIME, time)]), body), at(now)).is_ok()
        };
        let then = 1_531_420_618;
        assert!(is_good("1531420618", then, body));
        assert!(is_good("1531420618", then + 300, body) && is_good("1531420618", then - 300, body));
        assert!(!is_good("1531420618", then + 301, body), "too old");
        assert!(!is_good("1531420618", then - 301, body), "from the future");
        assert!(!is_good("1531420619", then, body), "another time than was signed");
        assert!(!is_good("1531420618", then, b"token=x"), "another body");
        for time in ["", "now", "99999999999999999999", "-1", "9223372036854775807"] {
            assert!(!is_good(time, then, body), "{time}");
        }
    }

    /// The example of the specification; what Lockstep sends itself is signed so, too.
    #[test]
    fn a_body_is_signed_as_standard_webhooks_says() {
        let secret = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let (id, then, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#.as_slice());
        let good = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let auth = HmacAuth { scheme: Some(HmacScheme::StandardWebhooks), ..HmacAuth::default() };
        let is_good = |(secret, id, time): (&[u8], &str, &str), tag: &str, now: i64, body: &[u8]| {
            let headers = headers(&[("webhook-signature", tag), (STANDARD_TIME, time), (STANDARD_ID, id)]);
            applies(&SenderAuth { hmac: Some(auth.clone()), bearer: None }, &headers)
                && signed(&auth, secret, (&headers, body), at(now)).is_ok()
        };
        let sent = (secret.as_slice(), id, "1614265330");
        assert!(is_good(sent, good, then, body));
        assert!(is_good(sent, good, then + 300, body) && is_good(sent, good, then - 300, body));
        assert!(is_good(sent, &format!("v1a,AAAA v1,AAAA {good}"), then, body), "one of several");
        for (sent, tag, now, body) in [
            (sent, good, then + 301, body),
            (sent, good, then - 301, body),
            (sent, good, then, br#"{"test": 2432232315}"#.as_slice()),
            ((secret.as_slice(), "msg_other", "1614265330"), good, then, body),
            ((secret.as_slice(), "", "1614265330"), good, then, body),
            ((secret.as_slice(), id, "1614265331"), good, then, body),
            ((secret.as_slice(), id, ""), good, then, body),
            ((b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".as_slice(), id, "1614265330"), good, then, body),
            (sent, good.trim_start_matches("v1,"), then, body),
            (sent, &good.replace("v1,", "v2,"), then, body),
            (sent, &good[..40], then, body),
            (sent, "v1,", then, body),
            (sent, &format!("{}{good}", "v1,AAAA ".repeat(MOST_TAGS)), then, body),
        ] {
            assert!(!is_good(sent, tag, now, body), "{sent:?} {tag} {now}");
        }
        for secret in [secret.as_slice(), SECRET] {
            let own = sinks::sign(secret, "7.5.a.gate1", then, body);
            assert!(is_good((secret, "7.5.a.gate1", "1614265330"), &own, then, body), "of a notification");
        }
    }

    #[test]
    fn a_secret_is_compared_as_a_whole() {
        assert!(is_same(SECRET, SECRET));
        for given in
            [&b""[..], &SECRET[..SECRET.len() - 1], b"It's a Secret to Everybody ", b"it's a secret to everybody"]
        {
            assert!(!is_same(SECRET, given));
        }
        let standard = BearerAuth::default();
        let own = BearerAuth { header: Some("X-Gitlab-Token".into()), ..BearerAuth::default() };
        let of = |auth: &BearerAuth, name: &'static str, value: &str| {
            given_secret(auth, &headers(&[(name, value)])).map(str::to_owned)
        };
        assert_eq!(of(&standard, "authorization", "Bearer s3cr3t").as_deref(), Some("s3cr3t"));
        assert_eq!(of(&standard, "authorization", "Basic s3cr3t"), None);
        assert_eq!(of(&standard, "x-gitlab-token", "s3cr3t"), None);
        assert_eq!(of(&own, "x-gitlab-token", "s3cr3t").as_deref(), Some("s3cr3t"));
        let auth = SenderAuth { bearer: Some(own), hmac: None };
        assert!(
            applies(&auth, &headers(&[("x-gitlab-token", "x")]))
                && !applies(&auth, &headers(&[("authorization", "x")]))
        );
    }
}
