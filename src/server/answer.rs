//! The body of an answer: as long as it is on its way to a caller who is known, its connection is not idle, however slowly it is
//! read. What is left in buffers behind the last piece is small.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::peer::Busy;

/// The server takes the next piece when the one before has left its buffer.
const PIECE: usize = 16 * 1024;

pub struct HeldBody {
    body: Body,
    /// What is left of a part of the body.
    left: Bytes,
    _busy: Busy,
}

impl HeldBody {
    pub fn new(body: Body, busy: Busy) -> Self {
        Self { body, left: Bytes::new(), _busy: busy }
    }
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let held = self.get_mut();
        if held.left.is_empty() {
            match Pin::new(&mut held.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => held.left = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        let piece = held.left.split_to(held.left.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint() + SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::time::Instant;

    use futures::StreamExt;

    use super::*;
    use crate::server::peer::ConnectionState;

    #[tokio::test]
    async fn a_connection_is_busy_until_its_answer_is_read() {
        let state = Arc::new(ConnectionState::new(Ipv4Addr::LOCALHOST.into(), Instant::now()));
        let text = "document ".repeat(4096);
        let held = HeldBody::new(Body::from(text.clone()), state.begin());
        assert_eq!(held.size_hint().exact(), Some(text.len() as u64));
        let mut pieces = Body::new(held).into_data_stream();
        let mut read = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.expect("a piece");
            assert!(piece.len() <= PIECE, "{}", piece.len());
            read.extend_from_slice(&piece);
            assert!(state.idle_since().is_none(), "after {} bytes", read.len());
        }
        assert_eq!(read, text.as_bytes());
        drop(pieces);
        assert!(state.idle_since().is_some());
    }
}
