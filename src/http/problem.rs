//! Every answer that is not what was asked for, in one shape.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::condition::clip;
use crate::cluster::fair::Full;
use crate::server::body::Unread;

pub type Result<T> = std::result::Result<T, Problem>;

const DETAIL_BYTES: usize = 4096;

/// Why a request was not done.
#[derive(Serialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct Refusal {
    /// What is wrong, and what helps, in words.
    pub detail: String,
    /// One entry for each field of the request that is not valid; absent where no single field is at fault.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub errors: Vec<FieldFault>,
    /// The run that is meant, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The flows that the caller may run, where an unknown one was asked for; at most 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50))]
    pub flows: Option<Vec<String>>,
}

/// What is wrong with one field.
#[derive(Serialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct FieldFault {
    /// The name of the field; `documents[0].type` for one inside of another; empty for the body as a whole.
    pub field: String,
    /// What the field must be.
    pub message: String,
}

/// A refusal with its status code.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub status: StatusCode,
    pub refusal: Refusal,
    /// Seconds after which it is worth while to ask again.
    pub retry_after: Option<u32>,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl AsRef<str>) -> Self {
        let refusal = Refusal { detail: clip(detail.as_ref(), DETAIL_BYTES), ..Refusal::default() };
        Self { status, refusal, retry_after: None }
    }

    pub fn bad_request(detail: impl AsRef<str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub fn unauthorized(detail: impl AsRef<str>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    pub fn forbidden(detail: impl AsRef<str>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    pub fn conflict(detail: impl AsRef<str>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// What is not there; it may be in a moment.
    pub fn not_found(detail: impl AsRef<str>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail).again_after(1)
    }

    pub fn unavailable(detail: impl AsRef<str>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).again_after(1)
    }

    pub fn too_many(detail: impl AsRef<str>, seconds: u32) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail).again_after(seconds)
    }

    /// No stream can be opened.
    pub fn no_stream() -> Self {
        Self::too_many("too many streams are open, of all or of you; close one, or ask for the run itself", 10)
    }

    /// Faults of fields, all of them.
    pub fn fields(errors: Vec<FieldFault>) -> Self {
        let list: Vec<String> = errors.iter().map(|one| format!("{}: {}", one.field, one.message)).collect();
        let fields = if errors.len() == 1 { "a field is" } else { "fields are" };
        let mut problem = Self::bad_request(format!("{fields} not valid: {}", list.join("; ")));
        problem.refusal.errors = errors;
        problem
    }

    pub fn field(field: &str, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldFault { field: field.to_owned(), message: message.into() }])
    }

    #[must_use]
    pub fn again_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    #[must_use]
    pub fn about(mut self, run: &str) -> Self {
        self.refusal.run = Some(run.to_owned());
        self
    }

    pub fn unread(why: Unread, limit: usize) -> Self {
        match why {
            Unread::TooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body has more than {limit} bytes; put what is large as a Document, and refer to it"),
            ),
            Unread::Slow => Self::new(StatusCode::REQUEST_TIMEOUT, "the body came too slowly"),
            Unread::Broken => Self::bad_request("the body broke off"),
        }
    }
}

impl From<Full> for Problem {
    fn from(_: Full) -> Self {
        Self::too_many("too many of your requests are under way in this namespace; try again in a moment", 1)
    }
}

/// What the API server said to a call that was made with the caller's own token.
impl From<kube::Error> for Problem {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            tracing::warn!(%error, "a call to the API server failed");
            return Self::unavailable("the API server of Kubernetes cannot be reached now");
        };
        let said = &status.message;
        match status.code {
            400 | 422 => Self::bad_request(said),
            401 => Self::unauthorized("the API server of Kubernetes does not know this token (any more)"),
            403 => Self::forbidden(said),
            404 => Self::not_found(said),
            409 => Self::conflict(said),
            429 => Self::too_many("the API server of Kubernetes is busy", 2),
            _ => Self::unavailable(format!("the API server of Kubernetes answered {}: {said}", status.code)),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.refusal)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body was not read, so nothing else can follow on this connection.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
