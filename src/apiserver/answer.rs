//! Requests over HTTP, as any client of Kubernetes sends them.

#![expect(clippy::disallowed_macros, reason = "the Status that answers a delete")]

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::BoxError;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use kube::core::Status;
use serde_json::{Value, json};
use tower::Service;

use super::json_text;
use super::listing::list;
use super::object::{Key, Object};
use super::patch::Format;
use super::registry::{Registry, Writer};
use super::request::{Call, Query, call};
use super::status::{Refusal, Result, bad_request, plain};
use super::{ApiServer, review, table, watch};

/// The most bytes of a body, as the real server has it.
const BODY_BYTES: usize = 3 << 20;

/// The body of an answer.
enum Answer {
    Json(StatusCode, Bytes),
    Stream(Body),
}

impl<B> Service<Request<B>> for ApiServer
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, std::result::Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.clone();
        async move {
            let (head, body) = request.into_parts();
            let answered = match to_bytes(Body::new(body), BODY_BYTES).await {
                Ok(body) => server
                    .known(head.headers.get(header::AUTHORIZATION))
                    .and_then(|server| server.answer(&Request::from_parts(head, body))),
                Err(error) => Err(bad_request(&error.to_string())),
            };
            Ok(response(answered.unwrap_or_else(|refusal| refused(&refusal))))
        }
        .boxed()
    }
}

impl ApiServer {
    /// The server as whoever holds the token of the request sees it; without a token as it is.
    fn known(self, credentials: Option<&HeaderValue>) -> Result<Self> {
        let Some(credentials) = credentials else { return Ok(self) };
        let token = credentials.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
        let holder = self.with(|registry| registry.access.authenticate(token, &[]));
        let user = holder.and_then(|(user, _)| user.username);
        let user = user.ok_or_else(|| plain(401, "Unauthorized", "Unauthorized"))?;
        Ok(self.as_user(&user))
    }

    /// What a request comes to. Whoever watches hears of it when this returns.
    fn answer(&self, request: &Request<Bytes>) -> Result<Answer> {
        let query = Query::of(request.uri());
        let call = call(request.method(), request.uri(), &query)?;
        if let Call::Watch(kind, selection, asked) = call {
            let from = (Arc::clone(&self.registry), Arc::clone(&self.commits));
            let lines = watch::stream(from, kind, selection, &asked).map(Ok::<_, Infallible>);
            return Ok(Answer::Stream(Body::from_stream(lines)));
        }
        let by = Writer { user: &self.user, is_dry_run: query.is_dry_run() };
        self.with(|registry| handled(registry, call, request, by))
    }
}

fn handled(registry: &mut Registry, call: Call, request: &Request<Bytes>, by: Writer<'_>) -> Result<Answer> {
    match call {
        Call::Get(key) => Ok(shown(StatusCode::OK, &registry.get(&key)?)),
        Call::List(kind, selection, page) => {
            let body = list(registry, kind, (&selection, &page), table::form(request.headers()))?;
            Ok(Answer::Json(StatusCode::OK, body.into()))
        }
        Call::Create { kind, namespace } => {
            let value = body(request)?;
            let name = value["metadata"]["name"].as_str().filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| bad_request("name is required, generateName is not served"))?;
            let key = Key::new(kind, &namespace, name);
            Ok(shown(StatusCode::CREATED, &registry.create(&key, named(&key, value)?, by)?))
        }
        Call::Replace(key, part) => {
            let value = named(&key, body(request)?)?;
            Ok(shown(StatusCode::OK, &registry.replace(&key, part, value, by)?))
        }
        Call::Patch(key, part) => {
            let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let format = Format::of(content_type.unwrap_or_default())?;
            Ok(shown(StatusCode::OK, &registry.patch(&key, part, (format, &body(request)?), by)?))
        }
        Call::Delete(key) => delete(registry, &key, request, by),
        Call::Review(what) => {
            let answer = review::review(registry.access.as_ref(), by.user, &what, body(request)?)?;
            Ok(Answer::Json(StatusCode::CREATED, answer.to_string().into()))
        }
        Call::Watch(..) => Err(bad_request("a watch is a stream")),
    }
}

/// Answers with the object while it is there, with the bare word of success once it is gone.
fn delete(registry: &mut Registry, key: &Key, request: &Request<Bytes>, mut by: Writer<'_>) -> Result<Answer> {
    let options: DeleteOptions = if request.body().is_empty() {
        DeleteOptions::default()
    } else {
        serde_json::from_slice(request.body()).map_err(|error| bad_request(&error.to_string()))?
    };
    by.is_dry_run |= options.dry_run.iter().flatten().any(|part| part == "All");
    let object = registry.delete(key, &options, by)?;
    if registry.store().find(key).is_some_and(|found| found.uid == object.uid) {
        return Ok(shown(StatusCode::OK, &object));
    }
    let details = json!({"name": key.name, "group": key.kind.group(), "kind": key.kind.plural(), "uid": object.uid});
    let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(Answer::Json(StatusCode::OK, gone.to_string().into()))
}

fn body(request: &Request<Bytes>) -> Result<Value> {
    json_text::read(request.body()).map_err(|error| bad_request(&error.to_string()))
}

/// The body, if it names the object that the path names.
fn named(key: &Key, value: Value) -> Result<Value> {
    let stated = |field: &str| value["metadata"][field].as_str().unwrap_or_default();
    if stated("name") != key.name {
        let why =
            format!("the name of the object ({}) does not match the name on the URL ({})", stated("name"), key.name);
        return Err(bad_request(&why));
    }
    if !stated("namespace").is_empty() && stated("namespace") != key.namespace {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(bad_request(why));
    }
    Ok(value)
}

fn shown(code: StatusCode, object: &Arc<Object>) -> Answer {
    Answer::Json(code, object.json())
}

fn refused(refusal: &Refusal) -> Answer {
    let code = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Answer::Json(code, written(refusal).to_string().into())
}

fn written(status: &Status) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    value["kind"] = json!("Status");
    value["apiVersion"] = json!("v1");
    value
}

fn response(answer: Answer) -> Response<Body> {
    let (code, body) = match answer {
        Answer::Json(code, json) => (code, Body::from(json)),
        Answer::Stream(body) => (StatusCode::OK, body),
    };
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
