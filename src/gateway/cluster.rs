//! Calls to the API server: each bounded in time, repeated a few times where that may help. All of them may be
//! repeated: reads, creates under computed names, and patches that test what they were decided on.

#![expect(clippy::disallowed_methods, reason = "back-off between tries of one read")]
#![expect(clippy::disallowed_macros, reason = "the operations of a JSON patch")]

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::refusal::{Reason, Refusal};
use crate::api::{StepRun, name};
use crate::cluster::stored::{self, Stored};

const CALL: Duration = Duration::from_secs(10);
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(100);

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the API server answered {}: {}", .0.code, .0.message)]
    Refused(Box<kube::core::Status>),
    #[error("the API server cannot be reached: {0}")]
    Broken(String),
    #[error("the API server did not answer in time")]
    Late,
    #[error("the {kind} {name} cannot be read: {fault}")]
    Unreadable { kind: String, name: String, fault: String },
}

impl Failure {
    fn is_passing(&self) -> bool {
        match self {
            Self::Refused(status) => status.code == 429 || status.code >= 500,
            Self::Broken(_) => true,
            // Its time is the request's: there is none left for another try.
            Self::Late | Self::Unreadable { .. } => false,
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_not_found())
    }

    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_already_exists())
    }

    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 403)
    }

    /// A failed `test` of a JSON patch is Invalid; a PUT that came too late, or a patch that the server itself could
    /// not place among other writes, is Conflict.
    pub fn is_outrun(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_conflict() || status.is_invalid()) && !self.is_by_schema()
    }

    /// The schema of the kind refuses what was written, so its CRD is of another version: that names a field, and no repetition
    /// helps before somebody mends it.
    fn is_by_schema(&self) -> bool {
        let causes = match self {
            Self::Refused(status) if status.is_invalid() => status.details.as_ref().map(|details| &details.causes),
            _ => None,
        };
        causes.is_some_and(|causes| causes.iter().any(|cause| !cause.field.is_empty()))
    }

    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_invalid())
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
            other => Self::Broken(other.to_string()),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        // Nothing that the caller repeats makes it readable.
        if let Failure::Unreadable { .. } = failure {
            return Refusal::new(Reason::NotFound, failure.to_string());
        }
        if failure.is_by_schema() {
            tracing::error!(error = %failure, "the CRDs of this cluster refuse what this version writes; install those of this version");
            return Refusal::unavailable(format!("the CRDs are not those of this gateway: {failure}"));
        }
        // The server's words may speak of objects that the caller has no business with.
        tracing::warn!(error = %failure, "call to the API server failed");
        Refusal::unavailable("the API server cannot serve this now")
    }
}

/// Calls within ten seconds, all tries together.
pub async fn call<T, F, Fut>(attempt: F) -> Result<T, Failure>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, kube::Error>>,
{
    let tries = async {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match attempt().await.map_err(Failure::from) {
                Err(failure) if failure.is_passing() => tokio::time::sleep(pause).await,
                done => return done,
            }
            pause *= 3;
        }
        attempt().await.map_err(Failure::from)
    };
    tokio::time::timeout(CALL, tries).await.unwrap_or(Err(Failure::Late))
}

/// As `call`, with `None` for what does not exist.
pub async fn find<T, F, Fut>(attempt: F) -> Result<Option<T>, Failure>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, kube::Error>>,
{
    match call(attempt).await {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The object of that name; one that cannot be read is told from one that is not there.
pub async fn read<K>(api: &Api<K>, name: &str) -> Result<Option<K>, Failure>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    match call(|| stored::get_opt(api, name)).await? {
        Some(Stored(Ok(found))) => Ok(Some(found)),
        Some(Stored(Err(one))) => {
            Err(Failure::Unreadable { kind: K::kind(&()).into_owned(), name: name.to_owned(), fault: one.fault })
        }
        None => Ok(None),
    }
}

/// Writes below `status.agent`, if all tests hold.
///
/// A JSON patch and not a PUT of what was read: it carries no field of the operator, so it can neither lose one that
/// this version does not know nor change how one is spelt, and its tests are as strong as a resourceVersion.
pub async fn patch_status(api: &Api<StepRun>, name: &str, operations: &[Value]) -> Result<(), Failure> {
    let patch: Patch<()> =
        Patch::Json(serde_json::from_value(json!(operations)).map_err(|e| Failure::Broken(e.to_string()))?);
    let params = PatchParams { field_manager: Some(name::GATEWAY.to_owned()), ..PatchParams::default() };
    call(|| api.patch_status(name, &params, &patch)).await.map(drop)
}

pub fn test(path: &str, value: impl Into<Value>) -> Value {
    json!({"op": "test", "path": path, "value": value.into()})
}

pub fn add(path: &str, value: &impl serde::Serialize) -> Value {
    json!({"op": "add", "path": path, "value": value})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, reason: &str, cause: &Value) -> Failure {
        let status = json!({"status": "Failure", "code": code, "reason": reason, "message": "no",
            "details": {"causes": [cause]}});
        Failure::Refused(serde_json::from_value(status).expect("a status"))
    }

    /// As the API server answers a `test` that fails, a patch that it cannot place, and a value that the schema does not have.
    #[test]
    fn a_refusal_by_schema_is_no_conflict() {
        let test = json!({"reason": "UnexpectedServerResponse", "message": "testing path /status: test failed"});
        let field = json!({"reason": "FieldValueNotSupported", "message": "no", "field": "status.agent.report.class"});
        for (failure, outrun, words) in [
            (refused(422, "Invalid", &test), true, "the API server cannot serve this now"),
            (refused(409, "Conflict", &json!({"message": "modified"})), true, "the API server cannot serve this now"),
            (
                refused(422, "Invalid", &field),
                false,
                "the CRDs are not those of this gateway: the API server answered 422: no",
            ),
        ] {
            assert_eq!(failure.is_outrun(), outrun, "{failure:?}");
            assert_eq!(Refusal::from(failure), Refusal::unavailable(words));
        }
    }
}
