//! The event-time watermark of one partition, a function of record fields only.

use super::{Click, UtcMillis};

/// Disorder allowed by default, in milliseconds.
pub const DISORDER_MS_DEFAULT: i64 = 5_000;

/// Highest min(event time, arrival time) seen so far; the watermark stands `disorder_ms` below it.
///
/// The stream path and the archive each keep their own, advanced copy by copy in offset order, so both see the same
/// value at the same offset. Ask [`Watermark::at_next`] first, then [`Watermark::advance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    highest: Option<UtcMillis>,
    disorder_ms: i64,
}

impl Watermark {
    /// Starts from the highest time seen at lower offsets; `None` at a generation's start.
    pub fn new(highest: Option<UtcMillis>, disorder_ms: i64) -> Self {
        Self { highest, disorder_ms }
    }

    /// Returns the watermark of the next copy: nothing is late where it is `None`.
    pub fn at_next(&self) -> Option<UtcMillis> {
        self.highest.map(|highest| highest.plus_ms(-self.disorder_ms))
    }

    /// Takes one copy into account.
    pub fn advance(&mut self, click: &Click) {
        let time = click.watermark_time();
        self.highest = Some(self.highest.map_or(time, |highest| highest.max(time)));
    }

    /// Returns the highest min(event time, arrival time) so far: what manifests and checkpoints store.
    pub fn highest(&self) -> Option<UtcMillis> {
        self.highest
    }
}
