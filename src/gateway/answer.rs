//! Large responses keep the permit of their call until the client has read them, so that slow clients hold the memory of a
//! bounded number of responses.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::refusal::{Reason, Refusal, Result};
use crate::cluster::fair::Permit;

/// Bytes of a frame: as much as a connection buffers anyway.
const PIECE: usize = 16 * 1024;

/// A response body that gives its bytes in pieces, and its permit back once it is dropped.
struct PermitBody {
    rest: Bytes,
    _permit: Permit,
}

impl HttpBody for PermitBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// Has the permit held until the client has read the response. One of a single piece needs none.
pub async fn hold(response: Response, permit: Option<Permit>) -> Result<Response> {
    let Some(permit) = permit else { return Ok(response) };
    let (head, body) = response.into_parts();
    let rest = axum::body::to_bytes(body, usize::MAX).await.map_err(|error| {
        tracing::error!(%error, "an answer could not be gathered");
        Refusal::new(Reason::Internal, "the gateway failed at this")
    })?;
    let body = if rest.len() > PIECE { Body::new(PermitBody { rest, _permit: permit }) } else { Body::from(rest) };
    Ok(Response::from_parts(head, body))
}
