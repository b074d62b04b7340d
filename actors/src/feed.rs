//! Records of one partition in offset order, without a hole: what counting and archiving both read.
//!
//! Guarantee: the next record has the offset expected. A hole is read again, for ever if need be, and never passed over
//! (published log clients skip records in silence).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use twice_log::hot::ClickLog;
use twice_log::{LogOffset, PartitionId, Topic};

use crate::error::{Error, ErrorKind, Result};
use crate::metrics::HOLES_TOTAL;

/// Reads one partition of one topic from an offset on.
pub(crate) struct RecordFeed {
    pub(crate) log: Arc<dyn ClickLog>,
    pub(crate) topic: Topic,
    pub(crate) partition: PartitionId,
    /// Offset the next record must have.
    pub(crate) expected: LogOffset,
    pub(crate) bytes_max: usize,
    pub(crate) retry_pause: Duration,
}

impl RecordFeed {
    /// Returns the next records, at least one; waits until there are any.
    ///
    /// # Errors
    /// Those that reading again does not cure: damage, or an offset the log does not hold.
    pub(crate) async fn next(&mut self) -> Result<Vec<(LogOffset, Bytes)>> {
        loop {
            match self.read_contiguous().await {
                Ok(records) => match records.last() {
                    Some((last, _)) => {
                        self.expected = last.next();
                        return Ok(records);
                    }
                    None => self.log.wait_for(self.topic, self.partition, self.expected).await?,
                },
                Err(error) if error.kind() == ErrorKind::Retry || is_hole(&error) => {
                    tracing::warn!(topic = %self.topic, partition = %self.partition, offset = %self.expected, %error,
                        "read failed, reading again from the offset expected");
                    tokio::time::sleep(self.retry_pause).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads from the offset expected, up to the first hole.
    async fn read_contiguous(&self) -> Result<Vec<(LogOffset, Bytes)>> {
        let read = self.log.read(self.topic, self.partition, self.expected, self.bytes_max).await?;
        let mut records = read.records;
        let mut expected = self.expected;
        for (index, (offset, _)) in records.iter().enumerate() {
            if *offset != expected {
                metrics::counter!(HOLES_TOTAL).increment(1);
                tracing::warn!(topic = %self.topic, partition = %self.partition, %expected, read = %offset,
                    "hole in the log, reopening");
                if index == 0 {
                    let (topic, partition, read) = (self.topic, self.partition, *offset);
                    return Err(twice_log::Error::Hole { topic, partition, expected, read }.into());
                }
                records.truncate(index);
                break;
            }
            expected = expected.next();
        }
        Ok(records)
    }
}

fn is_hole(error: &Error) -> bool {
    matches!(error, Error::Log(twice_log::Error::Hole { .. }))
}
