//! Sends spans to a receiver of OTLP over HTTP, beside the work: what does not fit the queue is dropped, and nothing waits.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail, ensure};
use http::{Request, Response, Uri};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor,
};
use ureq::tls::TlsConfig;

use crate::decide::trace::{Fact, Span};
use crate::protocol::trust;

/// Spans that wait to be sent; more are dropped.
const QUEUED: usize = 4096;
const BATCH: usize = 512;
/// Between two batches.
const PACE: Duration = Duration::from_secs(1);
/// How long one batch may take, and the last one at the end.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an attribute, and of why a span failed.
const TEXT_BYTES: usize = 1024;
/// Bytes of an answer of the receiver.
const ANSWER_BYTES: u64 = 64 * 1024;

/// Where traces go. Headers for the receiver, a token say, are read from the variable OTEL_EXPORTER_OTLP_HEADERS.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct OtlpOptions {
    /// Where traces are sent: the URL of a receiver of OTLP over HTTP, for example http://collector:4318. Without it none are.
    #[arg(long, env = "LOCKSTEP_OTLP_ENDPOINT", default_value = "")]
    pub otlp_endpoint: String,
    /// PEM file of the CA of an https:// receiver.
    #[arg(long, env = "LOCKSTEP_OTLP_CA_FILE")]
    pub otlp_ca_file: Option<PathBuf>,
}

/// The way to the receiver; none where traces are off.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<BatchSpanProcessor>>);

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Traces({})", if self.0.is_some() { "on" } else { "off" })
    }
}

impl Traces {
    /// Opens the way, on a thread of its own. A receiver that cannot be reached is no fault.
    pub fn open(options: &OtlpOptions, service: &'static str) -> anyhow::Result<Self> {
        if options.otlp_endpoint.is_empty() {
            return Ok(Self::default());
        }
        let endpoint = endpoint(&options.otlp_endpoint)?;
        let client = Client(agent(&endpoint, options.otlp_ca_file.as_deref())?);
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.to_string())
            .with_timeout(PATIENCE)
            .build()
            .context("the exporter of traces")?;
        let bounds = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUED)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(PACE)
            .build();
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(bounds).build();
        let names = [("service.name", service), ("service.version", env!("CARGO_PKG_VERSION"))];
        let names = names.map(|(key, value)| KeyValue::new(key, value));
        processor.set_resource(&Resource::builder_empty().with_attributes(names).build());
        tracing::info!(%endpoint, "traces are sent");
        Ok(Self(Some(Arc::new(processor))))
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What is to be sent, made only where something is.
    pub fn made(&self, spans: impl FnOnce() -> Vec<Span>) -> Vec<Span> {
        if self.is_on() { spans() } else { Vec::new() }
    }

    /// Queues those that are wanted; never waits.
    pub fn send(&self, spans: Vec<Span>) {
        let Some(processor) = &self.0 else { return };
        for span in spans.into_iter().filter(|span| span.context.is_sampled) {
            processor.on_end(data(span));
        }
    }

    /// Sends what is queued, as far as the time allows it.
    pub async fn close(self) {
        let Some(processor) = self.0 else { return };
        let closed = tokio::task::spawn_blocking(move || processor.shutdown_with_timeout(PATIENCE)).await;
        if let Ok(Err(error)) = closed {
            tracing::warn!(%error, "the last traces may be lost");
        }
    }
}

/// The receiver's own path, unless one is told.
fn endpoint(text: &str) -> anyhow::Result<Uri> {
    let wrong = "LOCKSTEP_OTLP_ENDPOINT (chart value telemetry.otlp.endpoint)";
    let uri: Uri = text.parse().with_context(|| format!("{wrong}: {text:?} is no URL"))?;
    ensure!(
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty()),
        "{wrong}: {text:?} must be http://HOST:PORT or https://HOST:PORT"
    );
    ensure!(uri.authority().is_none_or(|own| !own.as_str().contains('@')), "{wrong}: a password does not belong there");
    ensure!(uri.query().is_none(), "{wrong}: {text:?} has a query");
    match uri.path() {
        "" | "/" => Ok(format!("{}/v1/traces", text.trim_end_matches('/')).parse()?),
        _ => Ok(uri),
    }
}

fn agent(endpoint: &Uri, ca: Option<&Path>) -> anyhow::Result<ureq::Agent> {
    let tls = match ca {
        Some(file) => {
            let pem = std::fs::read(file).with_context(|| format!("LOCKSTEP_OTLP_CA_FILE: {}", file.display()))?;
            trust::only(&pem).map_err(|fault| anyhow!("LOCKSTEP_OTLP_CA_FILE: {} {fault}", file.display()))?
        }
        None if endpoint.scheme_str() == Some("https") => {
            bail!(
                "LOCKSTEP_OTLP_CA_FILE (chart value telemetry.otlp.caConfigMap) must name the CA of an https:// receiver"
            )
        }
        None => TlsConfig::builder().build(),
    };
    let config = ureq::Agent::config_builder().tls_config(tls).proxy(None).http_status_as_error(false).max_redirects(0);
    let config = config.timeout_global(Some(PATIENCE)).user_agent(concat!("lockstep/", env!("CARGO_PKG_VERSION")));
    Ok(config.build().new_agent())
}

/// The client that the shim has, too; it blocks on the exporter's own thread.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut answer = self.0.run(request.map(|body| body.to_vec()))?;
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES).read_to_vec()?;
        Ok(answer.map(|_| Bytes::from(body)))
    }
}

impl HttpClient for Client {
    fn send_bytes<'own, 'all>(
        &'own self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'all>>
    where
        'own: 'all,
        Self: 'all,
    {
        Box::pin(async move { self.post(request) })
    }
}

/// As the exporter takes it.
fn data(span: Span) -> SpanData {
    let (trace, id) = (TraceId::from_bytes(span.context.trace), SpanId::from_bytes(span.id));
    let kind = if span.is_server { SpanKind::Server } else { SpanKind::Internal };
    let attributes = span.attributes.into_iter().map(|(key, fact)| KeyValue::new(key, value(fact))).collect();
    let started = SystemTime::from(span.started.0);
    SpanData {
        span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::default()),
        parent_span_id: span.context.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
        parent_span_is_remote: span.is_server,
        span_kind: kind,
        name: short(&span.name).into(),
        start_time: started,
        // Two clocks may have told the two.
        end_time: SystemTime::from(span.ended.0).max(started),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: span.fault.map_or(Status::Unset, |why| Status::error(short(&why))),
        instrumentation_scope: InstrumentationScope::builder("lockstep")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

fn short(text: &str) -> String {
    crate::api::condition::clip(text, TEXT_BYTES)
}

fn value(fact: Fact) -> Value {
    match fact {
        Fact::Text(text) => Value::from(short(&text)),
        Fact::Number(number) => Value::from(number),
        Fact::Texts(texts) => {
            Value::Array(Array::from(texts.iter().map(|text| StringValue::from(short(text))).collect::<Vec<_>>()))
        }
    }
}

#[cfg(test)]
mod tests;
