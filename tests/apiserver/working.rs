//! An operator with its own account, in the namespace of one test.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response, Uri};
use kube::Client;
use kube::client::Body;
use lockstep::cluster::clock::Clock;
use lockstep::cluster::sinks::Sinks;
use lockstep::telemetry::traces::Traces;
use tokio::task::JoinHandle;

use crate::operator::operator;
use crate::support::Team;

/// What an operator lists and watches.
const WATCHED: [&str; 11] = [
    "agents",
    "workflowtemplates",
    "triggers",
    "workflows",
    "stepruns",
    "documents",
    "memories",
    "jobs",
    "pods",
    "events",
    "networkpolicies",
];

/// The way of an operator to the API server, on which it meets one namespace only: the other tests have the others.
#[derive(Clone)]
struct Confined {
    client: Client,
    namespace: Arc<str>,
    /// While it is, no write comes through, and whoever makes one waits.
    closed: Arc<AtomicBool>,
}

impl tower::Service<Request<Body>> for Confined {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, kube::Result<Response<Body>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<kube::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let here = self.clone();
        async move {
            if here.closed.load(Ordering::SeqCst) && request.method() != Method::GET {
                pending::<()>().await;
            }
            let path = request.uri().path();
            if let Some((group, plural)) = path.rsplit_once('/')
                && WATCHED.contains(&plural)
                && !path.contains("/namespaces/")
            {
                let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
                let narrow = format!("{group}/namespaces/{}/{plural}{query}", here.namespace);
                *request.uri_mut() = narrow.parse::<Uri>().map_err(|e| kube::Error::HttpError(e.into()))?;
            }
            here.client.send(request).await
        }
        .boxed()
    }
}

/// An operator that remembers nothing, until it dies.
pub struct Working(JoinHandle<()>);

impl Working {
    /// While it is `closed`, nothing that it writes comes through.
    pub fn start(team: &Team, closed: &Arc<AtomicBool>, sinks: Sinks) -> Self {
        let client = team.operator.client();
        let way = Confined { client, namespace: team.namespace.as_str().into(), closed: Arc::clone(closed) };
        let client = Client::new(way, &team.namespace);
        Self(tokio::spawn(operator(client, Clock::default(), (Traces::default(), sinks))))
    }

    /// It does nothing more from here on.
    pub async fn dies(self) -> Result<()> {
        self.0.abort();
        let ended = self.0.await.err().context("it ended by itself")?;
        ensure!(ended.is_cancelled(), "{ended}");
        Ok(())
    }
}
