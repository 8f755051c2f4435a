//! Answers: one that is large keeps its call's place until its reader took it, so that slow readers cost memory of a
//! bounded number.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::refusal::{Reason, Refusal, Result};
use crate::cluster::fair::Permit;

/// What a connection holds anyway.
const PIECE: usize = 16 * 1024;

/// The rest of an answer, given in pieces.
struct Held {
    rest: Bytes,
    _place: Permit,
}

impl HttpBody for Held {
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

/// Gives the place away with the last piece.
pub async fn hold(response: Response, place: Option<Permit>) -> Result<Response> {
    let Some(place) = place else { return Ok(response) };
    let (head, body) = response.into_parts();
    let rest = axum::body::to_bytes(body, usize::MAX).await.map_err(|error| {
        tracing::error!(%error, "an answer could not be gathered");
        Refusal::new(Reason::Internal, "the gateway failed at this")
    })?;
    let body = if rest.len() > PIECE { Body::new(Held { rest, _place: place }) } else { Body::from(rest) };
    Ok(Response::from_parts(head, body))
}
