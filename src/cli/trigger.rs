//! `trigger`: publishes an event to one Trigger, by `POST /events` of the HTTP API, with the token of the kubeconfig.

#![expect(clippy::disallowed_methods, reason = "a busy API is asked again after a pause")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kube::Config;
use kube::client::ConfigExt;
use serde_json::{Map, Value};
use tower::{Layer, ServiceExt};
use ureq::tls::TlsConfig;

use super::complete;
use super::connect::{self, Connection, Global};
use super::fault::{Code, Fault};
use super::file::read;
use super::print::{self, Format, put};
use super::text::inline;
use crate::api::Trigger;
use crate::api::trigger::{EventFilter, MANUAL};
use crate::cluster::chance::run_name;
use crate::definition::digits;
use crate::protocol::trust;

/// Who publishes, where nobody says another source.
const SOURCE: &str = "/kubectl-lockstep";
/// An answer is small; more is none of this API.
const ANSWER_BYTES: u64 = 4 << 20;
/// How long a busy API is asked again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Publish an event to a Trigger, which starts a run
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The event is a CloudEvent, sent to POST /events/NAME of the HTTP API, with the token of your kubeconfig. A kubeconfig that logs in by
certificate has none: then give one of an account. You need the permission trigger on the Trigger, and to make the run (ClusterRole
lockstep-edit has both). The same id again is the same run: its name is printed, and nothing starts.

Exit codes: 0 a run was started or is there, 1 the Trigger does not take the event, 2 wrong usage, 4 no such Trigger, 5 the API refused
or cannot be reached.

Examples:
  kubectl lockstep trigger orders --data order.json
  echo '{\"text\": \"bikes\"}' | kubectl lockstep trigger orders --data - --id order-7
  kubectl lockstep trigger orders --url https://localhost:8443 --certificate-authority ca.crt \\
    --token $(kubectl create token shop)")]
pub struct Args {
    /// The Trigger
    #[arg(add = complete::by(complete::triggers))]
    name: String,
    /// What the event holds: a file with JSON or text, - standard input
    #[arg(long, short, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Its id, and by default the session of the run; NAME and five random characters unless told
    #[arg(long)]
    id: Option<String>,
    /// Its type; that of the Trigger unless told
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Its source; that of the Trigger unless told
    #[arg(long)]
    source: Option<String>,
    /// Where the HTTP API is; unless told what the Trigger's status says
    #[arg(long, env = "LOCKSTEP_API_URL", value_name = "URL")]
    url: Option<String>,
    /// A token of Kubernetes; that of the kubeconfig unless told
    #[arg(long, env = "LOCKSTEP_API_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The CA of the HTTP API: ca.crt of the Secret lockstep-api-tls, read from there unless told
    #[arg(long, value_name = "FILE")]
    certificate_authority: Option<PathBuf>,
}

/// Where the chart puts the certificate of the HTTP API.
const SYSTEM: &str = "lockstep-system";
const TLS_SECRET: &str = "lockstep-api-tls";

pub async fn run(on: &Connection, global: &Global, args: &Args) -> Result<Code, Fault> {
    if global.as_user.is_some() {
        return Err(Fault::usage("--as does not reach the HTTP API, which sees the token alone; give another --token"));
    }
    let data = args.data.as_deref().map(data).transpose()?;
    let trigger = known(on, &args.name).await?;
    let event = event(args, trigger.as_ref(), data);
    let base = base(args, trigger.as_ref())?;
    let url = format!("{}/namespaces/{}/events/{}", base.trim_end_matches('/'), on.namespace, args.name);
    if url.starts_with("http:") {
        eprintln!("the token is sent without TLS, because the URL begins with http:");
    }
    let token = match &args.token {
        Some(token) => token.trim().to_owned(),
        None => token(&connect::config(global).await?).await?,
    };
    let tls = if url.starts_with("https:") { tls(on, args).await? } else { TlsConfig::builder().build() };
    let request = EventRequest { url, token, tls, event: event.to_string(), timeout: on.timeout };
    let sent = tokio::task::spawn_blocking(move || request.send());
    let reply = sent.await.map_err(|why| Fault::new(Code::Api, format!("cannot publish: {why}")))??;
    told(on, args, reply.code, &reply.body)
}

/// What the file says, as JSON where it is.
fn data(file: &Path) -> Result<Value, Fault> {
    let text = read(file)?;
    let is_json = file.extension().is_some_and(|ending| ending == "json");
    match digits::read(&text) {
        Ok(value) => Ok(value),
        Err(why) if is_json => Err(Fault::usage(format!("{} is not valid JSON: {why}", file.display()))),
        Err(_) => Ok(Value::String(text)),
    }
}

/// The Trigger, where it may be read: it says which events it takes, and where they are sent.
async fn known(on: &Connection, name: &str) -> Result<Option<Trigger>, Fault> {
    on.read_if_allowed::<Trigger>("Trigger", name).await
}

fn event(args: &Args, trigger: Option<&Trigger>, data: Option<Value>) -> Value {
    let filter = trigger.and_then(|trigger| trigger.spec.event.as_ref());
    let event_type = args.event_type.as_deref().or(filter.map(EventFilter::event_type)).unwrap_or(MANUAL);
    let source = args.source.as_deref().or(filter.and_then(|filter| filter.source.as_deref())).unwrap_or(SOURCE);
    let id = args.id.clone().unwrap_or_else(|| run_name(&args.name));
    let mut event: Map<String, Value> = [("specversion", "1.0"), ("id", &id), ("source", source), ("type", event_type)]
        .map(|(name, text)| (name.to_owned(), text.into()))
        .into_iter()
        .collect();
    event.extend(data.map(|data| ("data".to_owned(), data)));
    Value::Object(event)
}

/// Without the path, which is added here.
fn base(args: &Args, trigger: Option<&Trigger>) -> Result<String, Fault> {
    if let Some(url) = &args.url {
        let is_url = ["https://", "http://"].iter().any(|scheme| url.starts_with(scheme));
        let wrong = || Fault::usage(format!("--url {}: begin it with https:// or http://", inline(url, 200)));
        return if is_url { Ok(url.clone()) } else { Err(wrong()) };
    }
    let told = trigger.and_then(|trigger| trigger.status.as_ref()?.url.clone());
    let told = told.and_then(|url| url.split_once("/namespaces/").map(|(base, _)| base.to_owned()));
    told.ok_or_else(|| {
        let has_schedule = trigger.is_some_and(|trigger| trigger.spec.schedule.is_some());
        Fault::usage(if has_schedule {
            "this Trigger has a schedule and takes no events; start a run with kubectl lockstep run".to_owned()
        } else {
            "it is not known where the HTTP API is: say --url, or install it (--set api.enabled=true)".to_owned()
        })
    })
}

/// The token that requests of this kubeconfig bring.
async fn token(config: &Config) -> Result<String, Fault> {
    let lacking = || {
        Fault::usage(
            "this kubeconfig logs in without a token, which the HTTP API needs; give one of an account: --token $(kubectl create token NAME)",
        )
    };
    let layer = config.auth_layer().map_err(|wrong| Fault::call("log in", &wrong))?;
    let Some(layer) = layer else { return Err(lacking()) };
    let seen = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        let header = request.headers().get(http::header::AUTHORIZATION).cloned();
        Ok::<_, tower::BoxError>(http::Response::new(header))
    });
    let header = layer.layer(seen).oneshot(http::Request::new(kube::client::Body::empty())).await;
    let header = header.map_err(|why| Fault::new(Code::Api, format!("cannot log in: {why}")))?.into_body();
    let text = header.as_ref().and_then(|header| header.to_str().ok());
    text.and_then(|text| text.strip_prefix("Bearer ")).map(str::to_owned).ok_or_else(lacking)
}

/// Trusts whoever signed the API's certificate.
async fn tls(on: &Connection, args: &Args) -> Result<TlsConfig, Fault> {
    let pem = if let Some(file) = &args.certificate_authority {
        read(file)?.into_bytes()
    } else {
        let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> = kube::Api::namespaced(on.client.clone(), SYSTEM);
        let found = on.within("read the CA of the HTTP API", secrets.get(TLS_SECRET)).await?;
        let data = found.ok().and_then(|secret| secret.data?.remove("ca.crt"));
        data.map(|bytes| bytes.0).ok_or_else(|| {
            Fault::usage(format!(
                "the CA of the HTTP API cannot be read from the Secret {TLS_SECRET} in {SYSTEM}: give it with --certificate-authority FILE"
            ))
        })?
    };
    trust::only(&pem).map_err(|fault| {
        let place = args.certificate_authority.as_ref().map(|file| inline(&file.display().to_string(), 200));
        let place = place.unwrap_or_else(|| format!("ca.crt of the Secret {TLS_SECRET} in {SYSTEM}"));
        Fault::usage(format!("{place} {fault}; give the CA of the HTTP API with --certificate-authority FILE"))
    })
}

/// The request that publishes an event through the HTTP API.
struct EventRequest {
    url: String,
    token: String,
    tls: TlsConfig,
    event: String,
    timeout: Duration,
}

/// The HTTP API's response, and after which time it may be asked again.
struct ApiReply {
    code: u16,
    body: Value,
    again: Option<Duration>,
}

impl EventRequest {
    /// The same event is the same run, so a call that the API is too busy for is made again for a while.
    fn send(&self) -> Result<ApiReply, Fault> {
        let end = Instant::now() + PATIENCE;
        let mut reply = self.send_once()?;
        while let Some(pause) = reply.again.filter(|pause| Instant::now() + *pause < end) {
            eprintln!("the HTTP API is busy ({}); trying again", reply.code);
            std::thread::sleep(pause);
            reply = self.send_once()?;
        }
        Ok(reply)
    }

    fn send_once(&self) -> Result<ApiReply, Fault> {
        let timeout = Some(self.timeout).filter(|timeout| !timeout.is_zero());
        let config = ureq::Agent::config_builder()
            .tls_config(self.tls.clone())
            .http_status_as_error(false)
            .timeout_global(timeout);
        let request = config.build().new_agent().post(&self.url);
        let request = request
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/cloudevents+json");
        let failed = |why: ureq::Error| {
            Fault::new(
                Code::Api,
                format!(
                    "cannot reach {}: {why}; from outside of the cluster: kubectl -n {SYSTEM} port-forward service/lockstep-api 8443:443 & and --url https://localhost:8443",
                    self.url
                ),
            )
        };
        let response = request.send(&self.event).map_err(failed)?;
        let code = response.status().as_u16();
        let seconds = response.headers().get("retry-after").and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
        let again = seconds.filter(|_| matches!(code, 429 | 503)).map(Duration::from_secs);
        let text = response.into_body().with_config().limit(ANSWER_BYTES).read_to_string().map_err(failed)?;
        Ok(ApiReply { code, body: serde_json::from_str(&text).unwrap_or(Value::String(text)), again })
    }
}

fn told(on: &Connection, args: &Args, code: u16, reply: &Value) -> Result<Code, Fault> {
    if !matches!(code, 200 | 202) {
        let detail = reply.get("detail").and_then(Value::as_str).unwrap_or("no reason was given");
        let end = if code == 404 { Code::NotFound } else { Code::Api };
        return Err(Fault::new(end, format!("the HTTP API refused the event ({code}): {}", inline(detail, 2000))));
    }
    let list = |name: &str| reply.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |one: &Value, name: &str| one.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    if !on.output.is_text() && on.output != Format::Name {
        print::plain(on.output, reply)?;
    }
    for run in list("runs") {
        let name = text(&run, "run");
        if on.output == Format::Name {
            put(&format!("workflow.lockstep.dev/{name}\n"))?;
        } else if on.output.is_text() {
            put(&format!("{name}\n"))?;
            let again = run.get("duplicate") == Some(&Value::Bool(true));
            if again {
                eprintln!("this event came before: nothing new was started");
            }
            eprintln!("next: {}", on.hint("watch", &name));
        }
    }
    if list("runs").is_empty() {
        let why: Vec<String> = list("skipped").iter().map(|one| text(one, "detail")).collect();
        return Err(Fault::new(
            Code::Failed,
            format!("{} started nothing: {}", args.name, inline(&why.join("; "), 2000)),
        ));
    }
    Ok(Code::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args(line: &str) -> Args {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let words = std::iter::once("trigger").chain(line.split(' '));
        <Line as clap::Parser>::try_parse_from(words).unwrap_or_else(|why| panic!("{line}: {why}")).args
    }

    fn trigger(spec: Value) -> Trigger {
        let mut trigger = Trigger::new("orders", serde_json::from_value(spec).expect("a spec"));
        trigger.status = Some(crate::api::TriggerStatus {
            url: Some("https://api.example/lockstep/namespaces/team/events/orders".into()),
            ..Default::default()
        });
        trigger
    }

    #[test]
    fn what_a_file_says_keeps_its_digits() {
        let folder = std::env::temp_dir().join(format!("lockstep-trigger-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        for (name, text, value) in [
            ("a.json", "{\"order\": 12345678901234567890123}", Some(json!({"order": "12345678901234567890123"}))),
            ("b.txt", "12345678901234567890123", Some(json!("12345678901234567890123"))),
            ("c.txt", "order 7", Some(json!("order 7"))),
            ("d.json", "order 7", None),
        ] {
            let file = folder.join(name);
            std::fs::write(&file, text).expect("a file");
            assert_eq!(data(&file).ok(), value, "{name}");
        }
        std::fs::remove_dir_all(folder).expect("gone");
    }

    #[test]
    fn an_event_is_what_its_trigger_takes_unless_told() {
        let run = json!({"templateRef": {"name": "t"}});
        let orders = trigger(json!({"event": {"type": "order", "source": "/shop"}, "run": run}));
        let made = event(&args("orders --id 7"), Some(&orders), Some(json!({"a": 1})));
        assert_eq!(
            made,
            json!({"specversion": "1.0", "id": "7", "source": "/shop", "type": "order", "data": {"a": 1}})
        );
        let made = event(&args("orders --type x --source y"), Some(&orders), None);
        assert_eq!((&made["type"], &made["source"], made.get("data")), (&json!("x"), &json!("y"), None));
        assert!(made["id"].as_str().is_some_and(|id| id.starts_with("orders-")));
        let manual = trigger(json!({"event": {}, "run": run}));
        for known in [Some(&manual), None] {
            let made = event(&args("orders"), known, None);
            assert_eq!((&made["type"], &made["source"]), (&json!(MANUAL), &json!(SOURCE)));
        }
        assert_eq!(base(&args("orders"), Some(&orders)).as_deref(), Ok("https://api.example/lockstep"));
        assert_eq!(base(&args("orders --url http://x"), None).as_deref(), Ok("http://x"));
        assert!(base(&args("orders --url x"), None).is_err() && base(&args("orders"), None).is_err());
    }

    #[test]
    fn a_busy_api_is_asked_again() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/events/orders", server.local_addr().expect("its address"));
        let answers = std::thread::spawn(move || {
            for head in ["503 Busy\r\nretry-after: 0", "429 Busy\r\nretry-after: 0", "200 OK"] {
                use std::io::{Read, Write};
                let (mut caller, _) = server.accept().expect("a call");
                let mut seen = Vec::new();
                while !seen.ends_with(b"{}") {
                    let mut some = [0; 1024];
                    let read = caller.read(&mut some).expect("the request");
                    seen.extend_from_slice(&some[..read]);
                }
                write!(caller, "HTTP/1.1 {head}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}").expect("sent");
            }
        });
        let (tls, timeout) = (TlsConfig::builder().build(), Duration::from_secs(5));
        let request = EventRequest { url, token: "t".into(), tls, event: "{}".into(), timeout };
        assert_eq!(request.send().ok().map(|reply| reply.code), Some(200));
        answers.join().expect("all three were asked for");
    }
}
