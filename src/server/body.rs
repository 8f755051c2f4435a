//! The body of a request: bounded in bytes, and in time by the pace at which it comes.

#![expect(clippy::disallowed_methods, reason = "measures the pace of a body")]

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use futures::StreamExt;
use http::{HeaderMap, header};
use tokio::time::Instant;

/// A slow sender must not keep the place of others: a body has so long, and a second more for so many bytes that came.
const GRACE: Duration = Duration::from_secs(3);
const BYTES_A_SECOND: u64 = 100_000;
/// Bytes of a caller's body beyond its limit that are read, so that its sender can hear the refusal.
const DISCARDED: usize = 8 << 20;

/// Why a body was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    TooLarge,
    Slow,
    Broken,
}

/// The whole body of a request, at most so many bytes.
pub async fn read(request: Request, limit: usize) -> Result<Vec<u8>, Unread> {
    let declared = declared(request.headers());
    let mut incoming = Incoming::of(request.into_body());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(too_large(incoming).await);
    }
    let mut body = Vec::with_capacity(declared.unwrap_or_default());
    while let Some(chunk) = incoming.next().await? {
        if body.len() + chunk.len() > limit {
            return Err(too_large(incoming).await);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn declared(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads on for a while and keeps nothing: a client in the middle of sending sees a broken connection, not an answer.
async fn too_large(mut rest: Incoming) -> Unread {
    let mut read = 0;
    while let Ok(Some(chunk)) = rest.next().await {
        read += chunk.len();
        if read > DISCARDED {
            break;
        }
    }
    Unread::TooLarge
}

/// A body that must come at a certain pace.
struct Incoming {
    chunks: BodyDataStream,
    begun: Instant,
    received: u64,
}

impl Incoming {
    fn of(body: Body) -> Self {
        Self { chunks: body.into_data_stream(), begun: Instant::now(), received: 0 }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Unread> {
        let until = self.begun
            + GRACE
            + Duration::from_secs(1) * u32::try_from(self.received / BYTES_A_SECOND).unwrap_or(u32::MAX);
        let chunk = tokio::time::timeout_at(until, self.chunks.next()).await.map_err(|_| Unread::Slow)?;
        let chunk = chunk.transpose().map_err(|_| Unread::Broken)?;
        self.received += chunk.as_ref().map_or(0, Bytes::len) as u64;
        Ok(chunk)
    }
}
