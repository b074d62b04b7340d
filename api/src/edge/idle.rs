//! Connections on which nothing happens: each ends after a time, whatever its client holds back.
//!
//! The server below has a time for the first head of a connection and for the pause after an answer. It has none for a
//! later head of which some bytes came, and none for an answer that nobody reads.
//!
//! Guarantee: a connection that is neither being answered nor waiting for what its answer is made of ends with the time for
//! a head after the first byte of one, and with the time for a pause and a head if there is none; an answer that is there
//! must be read at [`ANSWER_BYTES_A_SECOND_MIN`] beside that pause.
//! Flow: [`Timed`] lies between socket and server. Requests and answers move the moment the connection [`Ends`]; where the
//! socket has nothing for the server, or takes nothing from it, a timer runs to that moment and then fails the connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::config::EdgeConfig;

/// Slowest pace at which an answer must be read.
const ANSWER_BYTES_A_SECOND_MIN: u64 = 4 << 10;
/// Moment of a connection that is being answered.
const NEVER: u64 = u64::MAX;

/// When one connection ends.
#[derive(Debug)]
pub(crate) struct Ends {
    begun: Instant,
    /// Between requests, the time of a head included.
    pause: Duration,
    head: Duration,
    /// Milliseconds after `begun`.
    at_ms: AtomicU64,
    /// Bytes of a head came since the last answer.
    head_begun: AtomicBool,
}

impl Ends {
    pub fn new(config: &EdgeConfig) -> Arc<Self> {
        let head = Duration::from_millis(config.header_timeout_ms.into());
        let pause = Duration::from_secs(config.keep_alive_s.into()) + head;
        let at_ms = AtomicU64::new(millis(pause));
        Arc::new(Self { begun: Instant::now(), pause, head, at_ms, head_begun: AtomicBool::new(false) })
    }

    /// Notes that a request is being answered.
    pub fn never(&self) {
        self.head_begun.store(false, Ordering::Relaxed);
        self.at_ms.store(NEVER, Ordering::Relaxed);
    }

    /// Notes that the client has so many bytes to read, and then a pause.
    fn after(&self, bytes: u64) {
        let reading_ms = bytes.saturating_mul(1_000) / ANSWER_BYTES_A_SECOND_MIN;
        let at_ms = self.now_ms().saturating_add(millis(self.pause)).saturating_add(reading_ms);
        self.at_ms.store(at_ms, Ordering::Relaxed);
    }

    /// Notes bytes of the client: outside a request they are of the next head.
    fn received(&self) {
        let at_ms = self.at_ms.load(Ordering::Relaxed);
        if at_ms != NEVER && !self.head_begun.swap(true, Ordering::Relaxed) {
            self.at_ms.store(at_ms.min(self.now_ms() + millis(self.head)), Ordering::Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        millis(self.begun.elapsed())
    }

    /// Returns the moment, if there is one.
    fn at(&self) -> Option<Instant> {
        let at_ms = self.at_ms.load(Ordering::Relaxed);
        (at_ms != NEVER).then(|| self.begun + Duration::from_millis(at_ms))
    }
}

fn millis(duration: Duration) -> u64 {
    // Half a billion years of milliseconds fit.
    duration.as_millis() as u64
}

/// A socket that fails once its connection has ended.
pub(crate) struct Timed<T> {
    socket: T,
    ends: Arc<Ends>,
    /// Runs while the socket is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<T> Timed<T> {
    pub fn new(socket: T, config: &EdgeConfig) -> Self {
        Self { socket, ends: Ends::new(config), timer: None }
    }

    pub fn ends(&self) -> &Arc<Ends> {
        &self.ends
    }

    /// Waits for the end; what is polled next moves it.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let Some(at) = self.ends.at() else {
                self.timer = None;
                return Poll::Pending;
            };
            if at <= Instant::now() {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            let at = at.into();
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            ready!(timer.as_mut().poll(context));
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Timed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.socket).poll_read(context, buffer) {
            Poll::Ready(done) => {
                if buffer.filled().len() > before {
                    self.ends.received();
                }
                Poll::Ready(done)
            }
            Poll::Pending => self.poll_end(context).map(Err),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Timed<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.socket).poll_write(context, bytes) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => self.poll_end(context).map(Err),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.socket).poll_flush(context) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => self.poll_end(context).map(Err),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.socket).poll_write_vectored(context, slices) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => self.poll_end(context).map(Err),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

/// The body of an answer. The server asks for its next piece only once the client read most of the one before.
pub(crate) struct Answer<B> {
    body: B,
    ends: Option<Arc<Ends>>,
}

impl<B> Answer<B> {
    pub fn of(body: B, ends: Option<Arc<Ends>>) -> Self {
        if let Some(ends) = &ends {
            // An answer without a body is asked for no piece at all.
            ends.after(0);
        }
        Self { body, ends }
    }
}

impl<B: MessageBody + Unpin> MessageBody for Answer<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_next(context);
        if let Some(ends) = &self.ends {
            match &polled {
                // The answer waits for us, and not for the client.
                Poll::Pending => ends.never(),
                Poll::Ready(Some(Ok(piece))) => ends.after(piece.len() as u64),
                Poll::Ready(_) => ends.after(0),
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// One end of a connection and the socket of the other, with a second between requests and a tenth for a head.
    fn connection() -> (tokio::io::DuplexStream, Timed<tokio::io::DuplexStream>) {
        let config = EdgeConfig { keep_alive_s: 1, header_timeout_ms: 100, ..EdgeConfig::default() };
        let (client, socket) = tokio::io::duplex(1_024);
        (client, Timed::new(socket, &config))
    }

    #[actix_web::test]
    async fn a_head_that_begins_and_does_not_end_fails_the_connection() {
        let (mut client, mut timed) = connection();
        timed.ends().never();
        let mut answer = Answer::of(Bytes::new(), Some(timed.ends().clone()));
        assert!(
            Pin::new(&mut answer).poll_next(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
        );
        client.write_all(b"G").await.expect("open");
        assert_eq!(timed.read(&mut [0; 9]).await.expect("a byte"), 1);
        let failed = timed.read(&mut [0; 9]).await.expect_err("no more comes");
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
    }

    #[actix_web::test]
    async fn an_answer_that_nobody_reads_fails_the_connection_and_one_not_made_yet_does_not() {
        let (_client, mut timed) = connection();
        timed.ends().never();
        let beyond = Duration::from_millis(1_500);
        let waiting = tokio::time::timeout(beyond, timed.write_all(&[0; 4_096])).await;
        assert!(waiting.is_err(), "being answered: however long");
        timed.ends().after(0);
        let failed = timed.write_all(&[0; 4_096]).await.expect_err("nobody reads");
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
    }
}
