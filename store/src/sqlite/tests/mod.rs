//! Tests of the SQLite store, on real files.

mod as_of;
mod budgets;
mod campaigns;
mod commit;
mod guard;
mod imports_and_modes;
mod keys;
mod limits;
mod open;
mod properties;
mod read;
mod restatements;
mod restore;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tempfile::TempDir;
use twice_log::archive::{BillingPath, BillingStatus, Cutoff};
use twice_log::event::Sha256Hex;
use twice_log::{CampaignId, Clock, Generation, Hour, LogOffset, PartitionId, Topic, UtcMillis};

use super::SqliteStore;
use crate::billing::*;

/// 2025-01-15T12:00:00Z
const NOON_MS: i64 = 1_736_942_400_000;

/// A clock that stands where the test put it.
#[derive(Debug)]
struct HandClock(AtomicI64);

impl HandClock {
    fn set(&self, epoch_ms: i64) {
        self.0.store(epoch_ms, Ordering::SeqCst);
    }
    fn advance(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> UtcMillis {
        UtcMillis::clamped(self.0.load(Ordering::SeqCst))
    }
}

/// A store on a file of its own.
struct Fixture {
    folder: TempDir,
    clock: Arc<HandClock>,
    store: SqliteStore,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let clock = Arc::new(HandClock(AtomicI64::new(NOON_MS)));
        let store =
            SqliteStore::open(&folder.path().join("twice.sqlite"), clock.clone()).await.expect("opens");
        Self { folder, clock, store }
    }

    /// Closes the store and opens the file again, as a restart does.
    async fn reopen(self) -> Self {
        let Self { folder, clock, store } = self;
        store.close().await;
        drop(store);
        let store =
            SqliteStore::open(&folder.path().join("twice.sqlite"), clock.clone()).await.expect("opens");
        Self { folder, clock, store }
    }

    async fn commit(&self, commit: RunCommit) -> CommittedRun {
        self.store.commit_run(commit).await.expect("commits")
    }

    async fn rows(&self, query: &BillingQuery) -> Vec<BillingRow> {
        self.store.billing(query).await.expect("reads").rows
    }
}

fn noon() -> Hour {
    UtcMillis::clamped(NOON_MS).hour()
}

fn campaign(name: &str) -> CampaignId {
    CampaignId::new(name).expect("valid id")
}

fn counts(name: &str, billable: u64) -> BillingCounts {
    BillingCounts {
        gross: billable + 3,
        duplicates: 1,
        conflicts: 1,
        invalid_givt: 1,
        invalid_sivt: 1,
        billable,
        amount_micros: billable as i64 * 500_000,
        currency: Some("USD".parse().expect("valid currency")),
        ..BillingCounts::zero(campaign(name), None)
    }
}

/// A reconciled lambda run of noon with the campaigns' billable clicks.
fn run(seq: u32, rows: &[(&str, u64)]) -> RunCommit {
    let (path, hour) = (BillingPath::Lambda, noon());
    RunCommit {
        path,
        hour,
        seq,
        run_id: format!("{path}/{hour}/{seq:06}"),
        status: BillingStatus::Reconciled,
        inputs_sha256: Sha256Hex::of(&seq.to_le_bytes()),
        cutoffs: vec![cutoff(0, 100 + i64::from(seq))],
        started_at: UtcMillis::clamped(NOON_MS - 5),
        mode_change: false,
        rows: rows.iter().map(|(name, billable)| NewBillingRow::new(hour, counts(name, *billable))).collect(),
        divergence: rows.iter().map(|(name, billable)| divergence(name, *billable)).collect(),
    }
}

/// The same run for another path and hour.
fn moved(mut commit: RunCommit, path: BillingPath, hour: Hour) -> RunCommit {
    commit.run_id = format!("{path}/{hour}/{:06}", commit.seq);
    commit.rows = commit.rows.into_iter().map(|row| NewBillingRow::new(hour, row.counts)).collect();
    RunCommit { path, hour, ..commit }
}

fn divergence(name: &str, billed: u64) -> Divergence {
    Divergence {
        campaign_id: campaign(name),
        stream: StreamState::Complete,
        preliminary: Some(billed + 1),
        billed,
        late: Some(2),
        late_duplicate: Some(1),
        fraud: Some(2),
        unexplained: Some(0),
    }
}

fn cutoff(partition: u32, end: i64) -> Cutoff {
    Cutoff {
        topic: Topic::AdClicks,
        generation: Generation(0),
        partition: PartitionId(partition),
        end: LogOffset(end),
        head_manifest_sha256: Some(Sha256Hex::of(&end.to_le_bytes())),
    }
}

/// Noon's newest rows of the path in force.
fn at_noon() -> BillingQuery {
    BillingQuery {
        from: noon(),
        to: noon().plus(1),
        campaigns: None,
        path: None,
        version: None,
        as_of: None,
        limit: 1_000,
        cursor: None,
    }
}

fn as_of(moment: UtcMicros) -> BillingQuery {
    BillingQuery { as_of: Some(moment), ..at_noon() }
}

/// (campaign, version, billable) of rows, for short comparisons.
fn brief(rows: &[BillingRow]) -> Vec<(&str, u32, u64)> {
    rows.iter().map(|row| (row.counts.campaign_id.as_str(), row.version, row.counts.billable)).collect()
}
