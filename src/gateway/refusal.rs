//! What the gateway answers when it does not do what it was asked. The reasons are stable: shims branch on them.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use crate::api::condition::clip;
use crate::api::limits::MESSAGE_BYTES;
use crate::cluster::fair::Full;
use crate::protocol;

pub type Result<T> = std::result::Result<T, Refusal>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    BadRequest,
    Unauthenticated,
    /// The token is good, but its pod is not the one that may speak for the attempt.
    WrongPod,
    NotFound,
    /// Another id, or another pod, has the attempt.
    AlreadyClaimed,
    /// The attempt is not the current one, or the step has ended or waits for a person.
    Fenced,
    TooLarge,
    /// A defect of the gateway.
    Internal,
    /// Try again.
    Unavailable,
}

impl Reason {
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::WrongPod => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyClaimed | Self::Fenced => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub message: String,
}

impl Refusal {
    pub fn new(reason: Reason, message: impl AsRef<str>) -> Self {
        Self { reason, message: clip(message.as_ref(), MESSAGE_BYTES) }
    }

    pub fn bad_request(message: impl AsRef<str>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    pub fn fenced(message: impl AsRef<str>) -> Self {
        Self::new(Reason::Fenced, message)
    }

    pub fn unavailable(message: impl AsRef<str>) -> Self {
        Self::new(Reason::Unavailable, message)
    }
}

impl From<Full> for Refusal {
    fn from(_: Full) -> Self {
        Self::unavailable("many calls like this are under way; try again in a moment")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = protocol::Refusal { reason: format!("{:?}", self.reason), message: self.message };
        let mut response = (self.reason.status(), axum::Json(body)).into_response();
        let headers = response.headers_mut();
        if self.reason == Reason::Unavailable {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.reason == Reason::TooLarge {
            // The rest of the body was not read, so nothing else can follow on this connection.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
