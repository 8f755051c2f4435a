//! Who calls. Every call to the API server is made with the caller's own token, so that rights, audit and the stamped
//! creator are theirs; the API server says whose the token is.

#![expect(clippy::disallowed_methods, reason = "how long it counts whose a token is")]

use std::fmt::Debug;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::client::Body;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tower::Service;

use super::problem::{Problem, Result};
use crate::api::name;
use crate::cluster::client::CALL_TIMEOUT;
use crate::cluster::fair::Fair;
use crate::cluster::stored::{self, Stored};
use crate::cluster::ttl_cache::TtlCache;

/// How long it counts whose a token is, and that somebody may do something.
const KEEP: Duration = Duration::from_secs(60);
/// A right may be granted, and a token become good, at any moment.
const KEEP_REFUSED: Duration = Duration::from_secs(2);
const KEPT: usize = 16 * 1024;
const TOKEN_BYTES: usize = 8 * 1024;
/// Questions about tokens and rights that are under way at once, and those of one sort that wait.
const ASKED_AT_ONCE: usize = 32;
const QUEUED: usize = 256;

/// Whoever makes a request.
#[derive(Clone)]
pub struct Caller {
    /// As the API server names them.
    pub user: Arc<str>,
    /// Makes calls with their token.
    pub client: Client,
    /// Digest of the token.
    key: Arc<str>,
}

/// What somebody wants to do, as RBAC knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right<'a> {
    pub verb: &'a str,
    /// Of the group lockstep.dev.
    pub resource: &'a str,
    pub namespace: &'a str,
    /// Empty: all of them.
    pub name: &'a str,
}

/// Whom we know, and what they may do.
pub struct Callers {
    /// A client that says nothing of who it is.
    door: Client,
    known: TtlCache<Arc<str>>,
    unknown: TtlCache<()>,
    allowed: TtlCache<()>,
    denied: TtlCache<()>,
    asking: Fair,
}

impl Callers {
    pub fn new(door: Client) -> Self {
        Self {
            door,
            known: TtlCache::new(KEEP, KEPT),
            unknown: TtlCache::new(KEEP_REFUSED, KEPT),
            allowed: TtlCache::new(KEEP, KEPT),
            denied: TtlCache::new(KEEP_REFUSED, KEPT),
            asking: Fair::new(ASKED_AT_ONCE, QUEUED),
        }
    }

    /// Whose the bearer token of a request is.
    pub async fn of(&self, headers: &HeaderMap) -> Result<Caller> {
        let token = bearer(headers)?;
        let key: Arc<str> = name::digest([token.as_bytes()]).into();
        let mut credentials = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Problem::unauthorized("the bearer token has characters that no token has"))?;
        credentials.set_sensitive(true);
        let client = Client::new(Bearer { door: self.door.clone(), credentials }, "default");
        if let Some(user) = self.known.get(&key) {
            return Ok(Caller { user, client, key });
        }
        let stranger = || Problem::unauthorized("the API server of Kubernetes does not know this token");
        if self.unknown.get(&key).is_some() {
            return Err(stranger());
        }
        let _place = self.asking.acquire("tokens").await?;
        let asked_at = Instant::now();
        let api: Api<SelfSubjectReview> = Api::all(client.clone());
        let review = SelfSubjectReview::default();
        let told = match within(api.create(&PostParams::default(), &review)).await {
            Ok(told) => told,
            Err(problem) if problem.status == http::StatusCode::UNAUTHORIZED => {
                self.unknown.insert(key.to_string(), (), asked_at);
                return Err(stranger());
            }
            Err(problem) => return Err(problem),
        };
        let user = told.status.and_then(|s| s.user_info).and_then(|user| user.username).unwrap_or_default();
        if user.is_empty() || user == "system:anonymous" {
            return Err(stranger());
        }
        let user: Arc<str> = user.into();
        self.known.insert(key.to_string(), Arc::clone(&user), asked_at);
        Ok(Caller { user, client, key })
    }

    /// The API's own account, for senders whom a Trigger's secret has proven.
    pub async fn own(&self, client: &Client) -> Result<Caller> {
        const KEY: &str = "own";
        if let Some(user) = self.known.get(KEY) {
            return Ok(Caller { user, client: client.clone(), key: KEY.into() });
        }
        let asked_at = Instant::now();
        let api: Api<SelfSubjectReview> = Api::all(client.clone());
        let told = within(api.create(&PostParams::default(), &SelfSubjectReview::default())).await?;
        let user = told.status.and_then(|s| s.user_info).and_then(|user| user.username).unwrap_or_default();
        let user: Arc<str> = user.into();
        self.known.insert(KEY.to_owned(), Arc::clone(&user), asked_at);
        Ok(Caller { user, client: client.clone(), key: KEY.into() })
    }

    /// Whether RBAC lets the caller do it, asked with the caller's own token, at most a minute ago.
    pub async fn may(&self, caller: &Caller, right: Right<'_>) -> Result<bool> {
        let key = right.key(caller);
        if self.allowed.get(&key).is_some() {
            return Ok(true);
        }
        if self.denied.get(&key).is_some() {
            return Ok(false);
        }
        self.may_now(caller, right).await
    }

    /// The same, asked now.
    async fn may_now(&self, caller: &Caller, right: Right<'_>) -> Result<bool> {
        let _place = self.asking.acquire("rights").await?;
        let asked_at = Instant::now();
        let api: Api<SelfSubjectAccessReview> = Api::all(caller.client.clone());
        let told = within(api.create(&PostParams::default(), &right.review())).await?;
        let is_allowed = told.status.is_some_and(|status| status.allowed);
        let kept = if is_allowed { &self.allowed } else { &self.denied };
        kept.insert(right.key(caller), (), asked_at);
        Ok(is_allowed)
    }

    /// The same; a refusal says what is missing.
    pub async fn must(&self, caller: &Caller, right: Right<'_>) -> Result<()> {
        if self.may(caller, right).await? { Ok(()) } else { Err(right.lacking(caller)) }
    }

    /// The same, asked now.
    pub async fn must_now(&self, caller: &Caller, right: Right<'_>) -> Result<()> {
        if self.may_now(caller, right).await? { Ok(()) } else { Err(right.lacking(caller)) }
    }
}

impl Right<'_> {
    fn key(&self, caller: &Caller) -> String {
        name::digest([&*caller.key, self.verb, self.resource, self.namespace, self.name].map(str::as_bytes))
    }

    fn review(&self) -> SelfSubjectAccessReview {
        let attributes = ResourceAttributes {
            namespace: Some(self.namespace.to_owned()),
            verb: Some(self.verb.to_owned()),
            group: Some("lockstep.dev".to_owned()),
            resource: Some(self.resource.to_owned()),
            name: Some(self.name.to_owned()).filter(|name| !name.is_empty()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
    }

    fn lacking(self, caller: &Caller) -> Problem {
        let Right { verb, resource, namespace, name } = self;
        let which = if name.is_empty() { String::new() } else { format!(" {name:?}") };
        Problem::forbidden(format!(
            "{} lacks the permission {verb} on {resource}.lockstep.dev{which} in the namespace {namespace}",
            caller.user
        ))
    }
}

/// A call to the API server, bounded in time.
pub async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Problem::unavailable("the API server of Kubernetes did not answer in time")),
    }
}

/// The object of that name; one that cannot be read is a refusal that says why.
pub async fn read<K>(api: &Api<K>, name: &str) -> Result<Option<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    match within(stored::get_opt(api, name)).await? {
        Some(Stored(Ok(found))) => Ok(Some(found)),
        Some(Stored(Err(one))) => {
            Err(Problem::conflict(format!("the {} {name} cannot be read: {}", K::kind(&()), one.fault)))
        }
        None => Ok(None),
    }
}

/// The same of an object that was there a moment ago.
pub async fn read_known<K>(api: &Api<K>, name: &str) -> Result<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let found = read(api, name).await?;
    found.ok_or_else(|| Problem::not_found(format!("the {} {name} is gone", K::kind(&()))))
}

fn bearer(headers: &HeaderMap) -> Result<&str> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty() && token.len() <= TOKEN_BYTES)
        .ok_or_else(|| {
            Problem::unauthorized(
                "a bearer token of Kubernetes is required, for example of kubectl create token NAME: Authorization: Bearer TOKEN",
            )
        })
}

/// The client without a name, with somebody's credentials on every request. All share its connections.
#[derive(Clone)]
struct Bearer {
    door: Client,
    credentials: HeaderValue,
}

impl Service<Request<Body>> for Bearer {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, kube::Result<Response<Body>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<kube::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.headers_mut().insert(header::AUTHORIZATION, self.credentials.clone());
        let door = self.door.clone();
        async move { door.send(request).await }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_says_who_calls() {
        for (value, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer  ", None),
            ("abc", None),
        ] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(bearer(&headers).ok(), expected, "{value}");
        }
        assert!(bearer(&HeaderMap::new()).is_err());
        let long = HeaderValue::from_str(&format!("Bearer {}", "x".repeat(TOKEN_BYTES + 1))).expect("a value");
        assert!(bearer(&HeaderMap::from_iter([(header::AUTHORIZATION, long)])).is_err());
    }
}
