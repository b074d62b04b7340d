//! What was read of aggregates, kept in memory up to a bound of bytes.
//!
//! Everything in it is named by what never changes, a run or a file that is named by its own bytes: nothing is ever
//! invalidated, only pushed out.

use std::sync::Arc;

use moka::future::Cache;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use twice_log::CampaignId;
use twice_log::archive::{AggregateSet, RunKey};

use super::AggregateRow;

/// What a cached value costs beside its own bytes: its place in the cache and its key.
const ENTRY_BYTES: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Set(RunKey),
    Footer(String),
    Rows(String, CampaignId),
}

#[derive(Clone)]
enum Value {
    Set(Arc<AggregateSet>),
    Footer(ArrowReaderMetadata),
    Rows(Arc<Vec<AggregateRow>>),
}

/// Lists of files, footers and rows of campaigns. Cheap to clone.
#[derive(Clone)]
pub(super) struct AggregateCache(Cache<Key, Value>);

impl AggregateCache {
    pub fn new(bytes_max: u64) -> Self {
        let weigher = |_: &Key, value: &Value| u32::try_from(weight(value)).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(bytes_max).weigher(weigher).build())
    }

    pub async fn set(&self, run: RunKey) -> Option<Arc<AggregateSet>> {
        match self.0.get(&Key::Set(run)).await {
            Some(Value::Set(set)) => Some(set),
            _ => None,
        }
    }

    pub async fn keep_set(&self, run: RunKey, set: Arc<AggregateSet>) {
        self.0.insert(Key::Set(run), Value::Set(set)).await;
    }

    pub async fn footer(&self, path: &str) -> Option<ArrowReaderMetadata> {
        match self.0.get(&Key::Footer(path.to_owned())).await {
            Some(Value::Footer(footer)) => Some(footer),
            _ => None,
        }
    }

    pub async fn keep_footer(&self, path: &str, footer: ArrowReaderMetadata) {
        self.0.insert(Key::Footer(path.to_owned()), Value::Footer(footer)).await;
    }

    pub async fn rows(&self, path: &str, campaign: &CampaignId) -> Option<Arc<Vec<AggregateRow>>> {
        match self.0.get(&Key::Rows(path.to_owned(), campaign.clone())).await {
            Some(Value::Rows(rows)) => Some(rows),
            _ => None,
        }
    }

    pub async fn keep_rows(&self, path: &str, campaign: &CampaignId, rows: Arc<Vec<AggregateRow>>) {
        self.0.insert(Key::Rows(path.to_owned(), campaign.clone()), Value::Rows(rows)).await;
    }
}

fn weight(value: &Value) -> usize {
    ENTRY_BYTES
        + match value {
            Value::Set(set) => set.files.len() * 512,
            Value::Footer(footer) => footer.metadata().memory_size(),
            Value::Rows(rows) => {
                rows.iter().map(|row| size_of::<AggregateRow>() + row.users.heap_bytes()).sum()
            }
        }
}
