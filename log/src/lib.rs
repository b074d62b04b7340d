//! The event-sourced log of Count Twice and the vocabulary every other crate speaks.
//!
//! `event` holds clicks, verdicts, identifiers, time and their encodings; `hot` the ordered, partitioned log;
//! `archive` the immutable Parquet files, manifests, seals and run records; `fs` the file layer both write through;
//! `breaker` keeps callers from something that is down; `spool` keeps records while the log is.

pub mod archive;
pub mod breaker;
mod error;
pub mod event;
pub mod fail;
pub mod fs;
#[doc(hidden)]
pub mod fuzzing;
pub mod hot;
pub mod spool;

pub use error::{Error, ErrorKind, Result};
pub use event::{
    AdId, CampaignId, Click, ClickCopy, ClickId, Clock, Currency, Day, Generation, Hour, LogOffset, Micros,
    PartitionId, Position, PublisherId, Topic, UserId, UtcMillis, Verdict, VerdictClass, WallClock,
    Watermark,
};
