//! Receivers outside of the cluster: CloudEvents by HTTP, signed as Standard Webhooks are. Holds nothing that a restart could
//! lose: what was delivered is latched in status, and what is delivered twice has the same id.

#![expect(clippy::disallowed_methods, reason = "how long a receiver that fails is left alone")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use ring::hmac;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::ttl_cache::TtlCache;
use crate::decide::notification::{CloudEvent, Sink, Trouble};
use crate::protocol::trust;

/// Where secrets of receivers lie, a folder for each: `url`, `secret` and `ca.crt`, each where the administrator names one.
pub const FOLDER: &str = "/etc/lockstep/notifications";
/// Receivers in all.
const MOST: usize = 16;
/// Requests to one receiver at once.
const AT_ONCE: usize = 4;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses after failures that follow each other, doubled each time; and what a receiver may ask for.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// While all places are taken.
const BUSY: Duration = Duration::from_secs(1);
/// Notifications that failed and are remembered each, and for how long after the last failure.
const TROUBLES: usize = 4096;
const REMEMBERED: Duration = Duration::from_secs(3600);
/// What is shown of an answer in the log.
const SHOWN: usize = 200;
/// Answers 400 to 499 that say nothing of what was sent: too slow, too early, too much.
const OF_THE_RECEIVER: [u16; 3] = [408, 425, 429];
/// Bytes of an answer that are looked at.
const ANSWER_BYTES: u64 = 1024;
/// How long, and how many, what was delivered is remembered: until its status is written, which somebody else may hinder.
const KEEP: Duration = Duration::from_secs(300);
const KEPT: usize = 4096;
/// How secrets of Standard Webhooks begin, whose other characters are Base64.
const SECRET_PREFIX: &str = "whsec_";

/// How the operator is told of receivers.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct SinkOptions {
    /// The receivers of notifications, as JSON: a list of `{name, url?, signed?, private_ca?, events?, default?, namespaces?}`. The chart
    /// writes it.
    #[arg(long, env = "LOCKSTEP_NOTIFICATIONS", default_value = "")]
    pub notifications: String,
    /// Where the secrets of receivers lie: NAME/url, NAME/secret, NAME/ca.crt.
    #[arg(long, env = "LOCKSTEP_NOTIFICATIONS_FOLDER", default_value = FOLDER)]
    pub notifications_folder: PathBuf,
}

#[derive(Deserialize)]
struct Setting {
    #[serde(default)]
    url: Option<String>,
    /// Whether a secret is there to sign with, and a CA of its own: nothing is sent while their files are missing.
    #[serde(default)]
    signed: bool,
    #[serde(default)]
    private_ca: bool,
    #[serde(flatten)]
    sink: Sink,
}

/// All receivers.
#[derive(Clone, Default)]
pub struct Sinks {
    all: Vec<Arc<Receiver>>,
    since: Arc<OnceLock<Time>>,
}

/// One of them.
pub struct Receiver {
    pub sink: Sink,
    url: Option<String>,
    signed: bool,
    private_ca: bool,
    folder: PathBuf,
    places: Semaphore,
    /// None while the last request went well.
    failing: Mutex<Option<FailureStreak>>,
    /// By notification.
    failing_notifications: Mutex<HashMap<String, FailureStreak>>,
    delivered: TtlCache<()>,
}

/// The failures since a receiver, or one notification, last succeeded.
#[derive(Clone, Debug)]
struct FailureStreak {
    failures: u32,
    since: Instant,
    /// It is left alone until then.
    until: Instant,
    why: String,
}

impl FailureStreak {
    fn after(before: Option<&Self>, failure: &Failure, now: Instant) -> Self {
        let failures = before.map_or(0, |before| before.failures);
        let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
        let again_in = failure.asked.map_or(pause, |asked| asked.clamp(pause, LONGEST_PAUSE));
        Self {
            failures: failures.saturating_add(1),
            since: before.map_or(now, |before| before.since),
            until: now + again_in,
            why: failure.why.clone(),
        }
    }

    fn trouble(&self, now: Instant) -> Trouble {
        let lasts = SignedDuration::try_from(now.saturating_duration_since(self.since)).unwrap_or(SignedDuration::MAX);
        Trouble { lasts, failures: self.failures }
    }
}

/// Of one request.
#[derive(Debug, Default)]
struct Failure {
    /// Holds nothing that the receiver said, nor anything of its address: tenants read it.
    why: String,
    /// For the log.
    said: String,
    /// How long the receiver asks to be left alone.
    asked: Option<Duration>,
    /// Whether the receiver refuses what was sent, and may well take others.
    is_of_this_alone: bool,
}

impl Failure {
    fn of(why: String) -> Self {
        Self { why, ..Self::default() }
    }
}

/// Why something is not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undelivered {
    /// Else it was left alone after a failure, or all places were taken.
    pub was_tried: bool,
    /// Whether others may be delivered meanwhile.
    pub is_of_this_alone: bool,
    pub again_in: Duration,
    /// Of the last failure, and fit for tenants.
    pub why: String,
    /// What else the log may say of it.
    pub said: String,
    pub trouble: Trouble,
}

impl Sinks {
    pub fn open(options: &SinkOptions) -> anyhow::Result<Self> {
        let text = options.notifications.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        let wrong = "LOCKSTEP_NOTIFICATIONS (chart value notifications.sinks)";
        let settings: Vec<Setting> = serde_json::from_str(text).context(wrong)?;
        ensure!(settings.len() <= MOST, "{wrong}: {} receivers, {MOST} at most", settings.len());
        let mut all: Vec<Arc<Receiver>> = Vec::new();
        for setting in settings {
            let name = &setting.sink.name;
            let is_name = !name.is_empty()
                && name.len() <= 40
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            ensure!(is_name, "{wrong}: {name:?} is no name: small letters, digits and -, 40 at most");
            ensure!(all.iter().all(|known| known.sink.name != *name), "{wrong}: {name} stands there twice");
            let folder = options.notifications_folder.join(name);
            let receiver = Receiver {
                url: setting.url.filter(|url| !url.is_empty()),
                signed: setting.signed,
                private_ca: setting.private_ca,
                folder,
                places: Semaphore::new(AT_ONCE),
                failing: Mutex::default(),
                failing_notifications: Mutex::default(),
                delivered: TtlCache::new(KEEP, KEPT),
                sink: setting.sink,
            };
            match receiver.address() {
                Ok(_) => {}
                Err(why) if receiver.url.is_some() => {
                    return Err(why.context(format!("{wrong}: {}", receiver.sink.name)));
                }
                // Runs do not wait for a Secret that is still to come.
                Err(why) => {
                    tracing::warn!(sink = receiver.sink.name, why = format!("{why:#}"), "its address is not known yet");
                }
            }
            all.push(Arc::new(receiver));
        }
        Ok(Self { all, since: Arc::default() })
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// When this process began to tell.
    pub fn since(&self, now: &Time) -> &Time {
        self.since.get_or_init(|| now.clone())
    }

    pub fn all(&self) -> impl Iterator<Item = &Sink> {
        self.all.iter().map(|receiver| &receiver.sink)
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Receiver>> {
        self.all.iter().find(|receiver| receiver.sink.name == name)
    }
}

impl Receiver {
    /// Sends it once, unless it, or the receiver, failed a moment ago.
    pub async fn deliver(self: &Arc<Self>, event: &CloudEvent, at: i64) -> Result<(), Undelivered> {
        if self.delivered.get(&event.id).is_some() {
            return Ok(());
        }
        self.left_alone(&event.id)?;
        // Whoever waited here would hold up what is told to others.
        let Ok(_place) = self.places.try_acquire() else { return Err(self.later(&event.id, (BUSY, false))) };
        let body = serde_json::to_vec(event).unwrap_or_default();
        let (receiver, id) = (Arc::clone(self), event.id.clone());
        let sent = tokio::task::spawn_blocking(move || receiver.post(&id, at, &body)).await;
        match sent.unwrap_or_else(|_| Err(Failure::of("its request ended by a fault of the operator".to_owned()))) {
            Ok(()) => {
                *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = None;
                self.failing_notifications.lock().unwrap_or_else(PoisonError::into_inner).remove(&event.id);
                self.delivered.insert(event.id.clone(), (), Instant::now());
                Ok(())
            }
            Err(failure) => Err(self.failed(&event.id, failure)),
        }
    }

    fn failed(&self, id: &str, failure: Failure) -> Undelivered {
        let now = Instant::now();
        let mut again_in = FIRST_PAUSE;
        let is_remembered = {
            let mut failing_notifications = self.failing_notifications.lock().unwrap_or_else(PoisonError::into_inner);
            if failing_notifications.len() >= TROUBLES && !failing_notifications.contains_key(id) {
                failing_notifications.retain(|_, one| now.saturating_duration_since(one.until) < REMEMBERED);
            }
            let has_room = failing_notifications.len() < TROUBLES || failing_notifications.contains_key(id);
            if has_room {
                let own = FailureStreak::after(failing_notifications.get(id), &failure, now);
                again_in = own.until.saturating_duration_since(now);
                failing_notifications.insert(id.to_owned(), own);
            }
            has_room
        };
        // Whoever writes what a receiver refuses keeps it from nobody else. There is no end of what is refused, though.
        let is_of_this_alone = failure.is_of_this_alone && is_remembered;
        if !is_of_this_alone {
            let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
            let next = FailureStreak::after(failing.as_ref(), &failure, now);
            again_in = again_in.max(next.until.saturating_duration_since(now));
            *failing = Some(next);
        }
        Undelivered { was_tried: true, said: failure.said, ..self.later(id, (again_in, is_of_this_alone)) }
    }

    fn later(&self, id: &str, (again_in, is_of_this_alone): (Duration, bool)) -> Undelivered {
        let now = Instant::now();
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let own = self.failing_notifications.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        let all = || own.iter().chain(&failing);
        let trouble = Trouble {
            lasts: all().map(|one| one.trouble(now).lasts).max().unwrap_or_default(),
            failures: all().map(|one| one.failures).max().unwrap_or_default(),
        };
        let why = all().next().map(|one| one.why.clone()).unwrap_or_default();
        Undelivered { was_tried: false, is_of_this_alone, again_in, why, said: String::new(), trouble }
    }

    fn left_alone(&self, id: &str) -> Result<(), Undelivered> {
        let left = |one: Option<&FailureStreak>| {
            let left = one.map(|one| one.until.saturating_duration_since(Instant::now()));
            left.filter(|left| !left.is_zero())
        };
        let all = left(self.failing.lock().unwrap_or_else(PoisonError::into_inner).as_ref());
        let own = left(self.failing_notifications.lock().unwrap_or_else(PoisonError::into_inner).get(id));
        all.max(own).map_or(Ok(()), |left| Err(self.later(id, (left, all.is_none()))))
    }

    /// Read anew each time: Kubernetes exchanges the files when the Secret changes.
    fn address(&self) -> anyhow::Result<String> {
        let file = self.folder.join("url");
        let url = match &self.url {
            Some(url) => url.clone(),
            None => std::fs::read_to_string(&file).with_context(|| format!("no url, and {}", file.display()))?,
        };
        let url = url.trim().to_owned();
        // Addresses of chats are secrets: none is shown.
        ensure!(
            ["https://", "http://"].iter().any(|scheme| url.starts_with(scheme)),
            "its url is no http:// or https:// URL"
        );
        Ok(url)
    }

    fn post(&self, id: &str, at: i64, body: &[u8]) -> Result<(), Failure> {
        let never = |why: anyhow::Error| Failure::of(format!("{why:#}"));
        let url = self.address().map_err(never)?;
        let tls = tls(self.private_ca.then(|| self.folder.join("ca.crt")).as_deref()).map_err(never)?;
        let signature = self.signature(id, at, body).map_err(never)?;
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .http_status_as_error(false)
            // Nobody but the administrator says where it goes.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(PATIENCE))
            .user_agent(concat!("lockstep/", env!("CARGO_PKG_VERSION")));
        let mut request = config.build().new_agent().post(&url);
        request = request.header("content-type", "application/cloudevents+json").header("webhook-id", id);
        request = request.header("webhook-timestamp", at.to_string());
        if let Some(signature) = signature {
            request = request.header("webhook-signature", signature);
        }
        let answer = request.send(body).map_err(|why| Failure {
            said: harmless(&why.to_string(), &url),
            ..Failure::of(format!("it cannot be reached: {}", brief(&why)))
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let asked: Option<u64> =
            answer.headers().get("retry-after").and_then(|text| text.to_str().ok()?.trim().parse().ok());
        let said = answer.into_body().with_config().limit(ANSWER_BYTES).read_to_string().unwrap_or_default();
        Err(Failure {
            said: harmless(&said, &url),
            asked: asked.map(Duration::from_secs),
            is_of_this_alone: status.is_client_error() && !OF_THE_RECEIVER.contains(&status.as_u16()),
            ..Failure::of(format!("it answered {}", status.as_u16()))
        })
    }

    /// Of Standard Webhooks, version 1: over id, time and body.
    fn signature(&self, id: &str, at: i64, body: &[u8]) -> anyhow::Result<Option<String>> {
        if !self.signed {
            return Ok(None);
        }
        let file = self.folder.join("secret");
        let text = std::fs::read(&file).with_context(|| file.display().to_string())?;
        Ok(Some(sign(text.trim_ascii(), id, at, body)))
    }
}

/// What Standard Webhooks are signed with by this secret.
pub fn key(secret: &[u8]) -> hmac::Key {
    let encoded = secret.strip_prefix(SECRET_PREFIX.as_bytes()).and_then(|text| STANDARD.decode(text).ok());
    hmac::Key::new(hmac::HMAC_SHA256, encoded.as_deref().unwrap_or(secret))
}

/// As Standard Webhooks says.
pub fn sign(secret: &[u8], id: &str, at: i64, body: &[u8]) -> String {
    let mut signed = format!("{id}.{at}.").into_bytes();
    signed.extend_from_slice(body);
    format!("v1,{}", STANDARD.encode(hmac::sign(&key(secret), &signed)))
}

/// Whom browsers trust.
pub static BROWSERS: LazyLock<TlsConfig> = LazyLock::new(|| {
    let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|der| Certificate::from_der(der).to_owned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = RootCerts::new_with_certs(&roots.collect::<Vec<_>>());
    TlsConfig::builder().unversioned_rustls_crypto_provider(provider).root_certs(roots).build()
});

/// The CA that the administrator named, else whom browsers trust.
fn tls(ca: Option<&Path>) -> anyhow::Result<TlsConfig> {
    if let Some(ca) = ca {
        let pem = std::fs::read(ca).with_context(|| ca.display().to_string())?;
        return trust::only(&pem).map_err(|fault| anyhow::anyhow!("{} {fault}", ca.display()));
    }
    Ok(BROWSERS.clone())
}

/// Without words of others, which may hold the address.
fn brief(why: &ureq::Error) -> String {
    match why {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => "its URL is not valid".to_owned(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::HostNotFound => "its host is not found".to_owned(),
        ureq::Error::Io(why) => why.kind().to_string(),
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => "TLS fails".to_owned(),
        _ => "the connection fails".to_owned(),
    }
}

/// What a receiver says, as the log may have it: on one line, and only where it repeats nothing of the address.
fn harmless(said: &str, url: &str) -> String {
    let lower = said.to_lowercase();
    let address = url.split_once("://").map_or(url, |(_, rest)| rest).to_lowercase();
    let mut words = address.split(['/', '?', '#', '&', '=', '@', ':', '%']).filter(|word| word.len() > 2);
    if words.any(|word| lower.contains(word)) {
        return String::new();
    }
    let line: String = said.chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
    crate::api::condition::clip(line.trim(), SHOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification of Standard Webhooks.
    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        let signed = sign(
            b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_wrong_receiver_is_told_before_anything_runs() {
        let open = |text: &str| {
            let notifications_folder = PathBuf::from("/nowhere");
            let options = SinkOptions { notifications: text.to_owned(), notifications_folder };
            Sinks::open(&options).map(|sinks| sinks.all.len()).map_err(|why| format!("{why:#}"))
        };
        assert_eq!(open(""), Ok(0));
        assert_eq!(open(r#"[{"name": "chat", "url": "https://chat"}, {"name": "b", "url": "http://b"}]"#), Ok(2));
        assert_eq!(open(r#"[{"name": "chat"}]"#), Ok(1), "its Secret may still come");
        for (text, expected) in [
            ("[{", "EOF"),
            (r#"[{"name": "Chat", "url": "https://chat"}]"#, "is no name"),
            (r#"[{"name": "chat", "url": "https://c"}, {"name": "chat", "url": "https://c"}]"#, "twice"),
            (r#"[{"name": "chat", "url": "ftp://chat"}]"#, "no http:// or https:// URL"),
            (r#"[{"name": "chat", "url": "https://c", "events": ["begun"]}]"#, "begun"),
        ] {
            let why = open(text).expect_err(text);
            assert!(why.contains(expected) && why.contains("notifications.sinks"), "{text}: {why}");
        }
    }

    #[test]
    fn what_a_receiver_says_is_logged_where_it_repeats_nothing_of_its_address() {
        let url = "https://user:pass@Chat.example:8443/hooks/T0K3N?key=s3cr3t";
        for (said, expected) in [
            ("come\nback\u{1b}[31m later", "come back [31m later"),
            ("no route for POST /hooks/T0K3N", ""),
            (r"no route for \/hooks\/x", ""),
            ("t0k3n is revoked", ""),
            ("chat.example is down", ""),
            ("key s3cr3t", ""),
            ("", ""),
        ] {
            assert_eq!(harmless(said, url), expected, "{said}");
        }
        assert_eq!(harmless(&"x".repeat(1000), url).len(), SHOWN);
    }

    fn receiver() -> Arc<Receiver> {
        let text = r#"[{"name": "chat", "url": "https://chat"}]"#.to_owned();
        let options = SinkOptions { notifications: text, notifications_folder: PathBuf::from("/nowhere") };
        Sinks::open(&options).expect("they open").all.remove(0)
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_notification_costs_is_borne_by_it_alone() {
        let receiver = receiver();
        let refusal = || Failure { is_of_this_alone: true, ..Failure::of("it answered 400".to_owned()) };
        let failed = receiver.failed("a", refusal());
        assert!(failed.was_tried && failed.is_of_this_alone && failed.again_in == FIRST_PAUSE, "{failed:?}");
        assert!(receiver.left_alone("b").is_ok());
        let left = receiver.left_alone("a").expect_err("a pause of its own");
        assert!(!left.was_tried && left.is_of_this_alone && left.why == "it answered 400", "{left:?}");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(receiver.left_alone("a").is_ok());
        assert_eq!(receiver.failed("a", refusal()).again_in, FIRST_PAUSE * 2);

        let down = receiver.failed("b", Failure::of("it answered 503".to_owned()));
        assert!(!down.is_of_this_alone);
        let left = receiver.left_alone("c").expect_err("the receiver failed");
        assert!(!left.is_of_this_alone && left.why == "it answered 503" && left.trouble.failures == 1, "{left:?}");
        for number in 0..2 * TROUBLES {
            receiver.failed(&format!("n{number}"), refusal());
        }
        assert_eq!(receiver.failing_notifications.lock().expect("nobody panicked").len(), TROUBLES, "it is bounded");
        assert!(!receiver.failed("one more", refusal()).is_of_this_alone, "the receiver is left alone instead");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_place_and_an_hour_counts_from_the_first_failure() {
        let receiver = receiver();
        let places = receiver.places.acquire_many(u32::try_from(AT_ONCE).expect("few")).await.expect("open");
        let run: crate::api::Workflow = serde_json::from_str(
            r#"{"apiVersion": "lockstep.dev/v1alpha1", "kind": "Workflow", "metadata": {"name": "r"},
                "spec": {"templateRef": {"name": "t"}}, "status": {"startedAt": "2026-11-21T10:00:00Z"}}"#,
        )
        .expect("a run");
        let started = crate::decide::notification::of_run(&run).remove(0);
        let event = crate::decide::notification::cloud_event(&started, (&run, None), None, "");
        let later = receiver.deliver(&event, 0).await.expect_err("all places are taken");
        assert_eq!((later.was_tried, later.is_of_this_alone, later.again_in), (false, false, BUSY));
        assert_eq!(later.trouble, Trouble::default(), "nothing failed");
        drop(places);

        receiver.failed("a", Failure::of("it answered 503".to_owned()));
        tokio::time::advance(Duration::from_secs(3000)).await;
        let asked = Failure { asked: Some(Duration::from_secs(40)), ..Failure::of("it answered 503".to_owned()) };
        let failed = receiver.failed("b", asked);
        assert_eq!(failed.again_in, Duration::from_secs(40), "what it asks for");
        let expected = Trouble { lasts: SignedDuration::from_secs(3000), failures: 2 };
        assert_eq!(failed.trouble, expected, "of the receiver");
    }
}
