//! The ingest gateway: clicks, verdicts and announced imports.
//!
//! Flow of a request: `body` reads and unpacks it under the size limit, `batch` takes it apart record by record (clicks
//! come in any `shape`, also as `cloudevents` or `arrow_body`), `clicks` or `verdicts` checks each at the door and writes
//! the records into one buffer, `answer` appends them to the log in one call and says what became of each.

mod answer;
mod arrow_body;
mod arrow_frames;
mod batch;
mod body;
mod clicks;
mod cloudevents;
pub mod fuzzing;
mod imports;
mod pseudonym;
mod shape;
mod verdicts;

pub(crate) use answer::IngestAnswer;
pub(crate) use batch::read_batch;
pub(crate) use body::{BodyMemory, read_body};
pub(crate) use clicks::post_clicks;
pub(crate) use imports::post_imports;
pub use pseudonym::{MonthOfKeys, PseudonymKeys};
pub(crate) use verdicts::post_verdicts;
