//! The API server, answering a write only when it is kept on disk. Whoever watches may hear of it before; but nothing outside of
//! this process follows from that: a command starts when its claim was answered, and a person is told what was answered.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use tokio::sync::watch;
use tower::Service;

use super::disk::Written;
use crate::apiserver::ApiServer;

#[derive(Clone)]
pub struct Durable {
    pub api: ApiServer,
    pub written: watch::Receiver<Written>,
}

impl Durable {
    /// A client of that user, with a namespace for what names none.
    pub fn client(&self, user: &str, namespace: &str) -> kube::Client {
        kube::Client::new(Self { api: self.api.as_user(user), ..self.clone() }, namespace)
    }

    /// Waits until all that was written so far is kept; the error says why it will not be.
    pub async fn kept(&mut self) -> Result<(), String> {
        let version = self.api.with(|registry| registry.store().version());
        let seen = self.written.wait_for(|written| written.version >= version || written.fault.is_some()).await;
        let fault = match seen {
            Ok(written) => written.fault.clone(),
            Err(_) => Some("the disk's thread has ended".to_owned()),
        };
        fault.map_or(Ok(()), Err)
    }
}

impl<B> Service<Request<B>> for Durable
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut server = self.clone();
        async move {
            let writes = *request.method() != Method::GET;
            let answer = server.api.call(request).await?;
            if !writes {
                return Ok(answer);
            }
            match server.kept().await {
                Ok(()) => Ok(answer),
                Err(why) => {
                    let mut refusal = Response::new(Body::from(format!("the state cannot be kept: {why}")));
                    *refusal.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    Ok(refusal)
                }
            }
        }
        .boxed()
    }
}
