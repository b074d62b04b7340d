//! Bodies that come too slowly: a sender that trickles bytes must not hold a connection and its memory.
//!
//! A body has its whole time, `body_timeout_ms`, and within it must keep a pace: [`GRACE`], and then `body_rate_bytes_min`
//! bytes for each second. A body that is there with its head, as most are, costs no timer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::time::Sleep;

use crate::config::ApiConfig;
use crate::error::Error;

/// Time before the pace counts: a connection that stalls and recovers is none of an attacker.
const GRACE: Duration = Duration::from_secs(5);

/// A body that fails with `TimedOut` when it falls behind its pace.
pub(crate) struct Paced {
    body: Payload,
    begun: Instant,
    received: u64,
    whole: Duration,
    rate_bytes_min: u32,
    /// Runs while the next bytes are waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    /// Puts `body` under the settings' pace.
    pub fn of(body: Payload, config: &ApiConfig) -> Payload {
        if matches!(body, Payload::None) {
            return body;
        }
        let whole = Duration::from_millis(config.body_timeout_ms.into());
        let (begun, rate_bytes_min) = (Instant::now(), config.edge.body_rate_bytes_min);
        Payload::Stream {
            payload: Box::pin(Self { body, begun, received: 0, whole, rate_bytes_min, timer: None }),
        }
    }

    /// Returns how long after its begin the body may go on with what has come.
    fn allowed(&self) -> Duration {
        match self.rate_bytes_min {
            0 => self.whole,
            rate => self.whole.min(GRACE + Duration::from_secs(self.received / u64::from(rate))),
        }
    }
}

impl Stream for Paced {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.body.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(chunk))) => {
                self.received += chunk.len() as u64;
                self.timer = None;
                Poll::Ready(Some(Ok(chunk)))
            }
            Poll::Ready(other) => Poll::Ready(other),
            Poll::Pending => {
                let ends = self.begun + self.allowed();
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(ends.into())));
                futures::ready!(timer.as_mut().poll(context));
                Poll::Ready(Some(Err(PayloadError::Io(io::ErrorKind::TimedOut.into()))))
            }
        }
    }
}

/// Tells a body that came too slowly from one that broke off.
pub(crate) fn body_error(error: &PayloadError) -> Error {
    match error {
        PayloadError::Io(error) if error.kind() == io::ErrorKind::TimedOut => Error::BodyTooSlow,
        other => Error::bad_request(format!("the body broke off: {other}")),
    }
}
