//! Clicks, verdicts, identifiers, money and time, and how they are written as records and read from JSON.

mod click;
mod day;
mod hash;
mod ids;
pub mod json;
mod position;
pub mod record;
mod time;
mod verdict;
mod watermark;

pub use click::{Click, ClickCopy, IpHash, SCHEMA_VERSION_LATEST};
pub use day::Day;
pub use hash::{PARTITION_HASH_NAME, Sha256Hex, partition_of, payload_hash};
pub use ids::{
    AdId, CampaignId, ClickId, Currency, CurrencyError, ID_BYTES_MAX, IdError, Micros, ModelVersion,
    PublisherId, UserId, namespace_click,
};
pub use position::{Generation, LogOffset, PartitionId, Position, Topic};
pub use time::{Clock, HOUR_MS, Hour, MINUTE_MS, TimeError, UtcMillis, WallClock};
pub use verdict::{Verdict, VerdictClass, VerdictCopy};
pub use watermark::{DISORDER_MS_DEFAULT, Watermark};
