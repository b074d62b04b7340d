//! Carries a pass out: settles, buries, removes.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::Mutex;
use twice_log::archive::{
    FileEntry, Grave, ManifestIndex, StoredTombstone, Tombstone, TombstoneKey, TombstoneKeys,
};
use twice_log::fail::FailPoint;
use twice_log::{Hour, UtcMillis};

use super::super::book::RunBook;
use super::super::handle::ReconcilerDeps;
use super::facts::{self, Facts, Lying};
use super::frozen::Reach;
use super::plan::{Ages, HourState, why_clicks_stay, why_verdicts_stay};
use super::settled::settle;
use super::{Buried, Kept, RetentionReport, RetentionScope};
use crate::config::ReconcilerConfig;
use crate::error::{Error, Result};
use crate::metrics;

/// Tombstones of one pass at most: an hour that has just ended must not wait behind a year of deletions.
const TOMBSTONES_MAX: usize = 24;
/// Objects asked for, or removed, at once.
const AT_ONCE: usize = 16;

/// What retention works with.
pub(in super::super) struct RetentionWork {
    pub config: ReconcilerConfig,
    pub deps: ReconcilerDeps,
    pub index: Arc<Mutex<ManifestIndex>>,
    pub book: Arc<Mutex<RunBook>>,
    /// Held by whoever replays: they read what retention would delete.
    pub replays: Arc<Mutex<()>>,
}

/// One pass under way.
struct Pass<'a> {
    work: &'a RetentionWork,
    facts: Facts,
    keys: TombstoneKeys,
    ages: Ages,
    report: RetentionReport,
}

impl RetentionWork {
    /// Makes one pass; the report says whether more is due.
    pub async fn pass(&self, scope: RetentionScope, dry_run: bool) -> Result<RetentionReport> {
        let Ok(_turn) = self.replays.try_lock() else {
            let reason = "a replay reads the archive now; retention goes on once it has ended".to_owned();
            return Err(Error::Config { reason });
        };
        let archive = &self.deps.archive;
        let keys = archive.tombstone_keys(None).await?;
        let mut report = RetentionReport { dry_run, ..RetentionReport::default() };
        if !dry_run {
            report.finished = self.finish(&keys, scope).await?;
        }
        if self.config.archive_retention_ms == 0 {
            return Ok(report);
        }
        // A tombstone outlives the jump of a clock. What would go is shown all the same.
        if let Some(reason) = self.deps.clock_witness.doubt().filter(|_| !dry_run) {
            return Err(Error::Config { reason });
        }
        let retention_ms = i64::try_from(self.config.archive_retention_ms).unwrap_or(i64::MAX);
        let (facts, ages) = self.facts(&keys, scope, retention_ms).await?;
        let mut pass = Pass { work: self, facts, keys, ages, report };
        let with_clicks = pass.hours_with_clicks();
        pass.clicks().await?;
        if scope == RetentionScope::Due {
            pass.settle_without(&with_clicks).await?;
        }
        pass.verdicts().await?;
        pass.quarantine().await?;
        let mut report = pass.report;
        if scope == RetentionScope::Due {
            let before = ages.now.plus_ms(-ages.retention_ms);
            (report.spool_objects, report.spool_bytes) = archive.remove_spool_before(before, dry_run).await?;
            if !dry_run {
                ::metrics::gauge!(metrics::RETENTION_HOURS_KEPT).set(report.kept.len() as f64);
            }
        }
        Ok(report)
    }

    async fn facts(
        &self,
        keys: &TombstoneKeys,
        scope: RetentionScope,
        retention_ms: i64,
    ) -> Result<(Facts, Ages)> {
        let archive = &self.deps.archive;
        let mut book = self.book.lock().await;
        book.refresh(archive).await?;
        let mut index = self.index.lock().await;
        index.refresh().await?;
        let sweep = archive.newest_sweep().await?;
        let recorded = book.runs().map(|(_, run)| run.horizon_hours).max().unwrap_or(0);
        let horizon = self.config.nightly_horizon_hours.max(recorded);
        let ages = Ages { now: self.deps.clock.now(), retention_ms, horizon: i64::from(horizon) };
        let reach = Reach::read(archive, Hour::from_since_epoch(0), horizon).await?;
        let states = facts::states(&index, &book, &reach, sweep.as_ref());
        let only = match scope {
            RetentionScope::Due => None,
            RetentionScope::Hour(hour) => Some(hour),
        };
        let lying = facts::lying(&index, &book, sweep.as_ref(), keys, ages, only).await?;
        Ok((Facts { states, lying }, ages))
    }

    /// Removes what tombstones name whose files a pass before has not all removed.
    async fn finish(&self, keys: &TombstoneKeys, scope: RetentionScope) -> Result<u64> {
        let mut finished = 0;
        for (key, is_removed) in keys {
            let wanted = match scope {
                RetentionScope::Due => !is_removed,
                // Asked by name, files that reappeared go too.
                RetentionScope::Hour(hour) => key.hour == hour,
            };
            if let Some(stored) = match wanted {
                true => self.deps.archive.tombstone(*key).await?,
                false => None,
            } {
                let removed = self.remove(&stored).await?;
                finished += u64::from(!is_removed || removed > 0);
            }
        }
        Ok(finished)
    }

    /// Removes the files of a tombstone and notes that they are gone; returns how many were there.
    async fn remove(&self, stored: &StoredTombstone) -> Result<u64> {
        let archive = &self.deps.archive;
        let mut removed = 0;
        let files = &stored.tombstone.files;
        let mut removals = futures::stream::iter(files)
            .map(|entry| async move { archive.remove_buried(stored, entry).await })
            .buffer_unordered(AT_ONCE);
        while let Some(was_there) = removals.next().await {
            removed += u64::from(was_there?);
            self.deps.fail_points.pass(FailPoint::BuriedFileRemoved);
        }
        archive.put_removed(&stored.tombstone, self.deps.clock.now()).await?;
        ::metrics::counter!(metrics::RETENTION_DELETED_FILES_TOTAL).increment(removed);
        Ok(removed)
    }
}

impl Pass<'_> {
    /// Returns whether this pass may bury more; notes that more is due where not.
    fn goes_on(&mut self) -> bool {
        let goes_on = self.report.dry_run || self.report.deleted.len() < TOMBSTONES_MAX;
        self.report.more |= !goes_on;
        goes_on
    }

    fn take(&mut self, is_of: impl Fn(Grave) -> bool) -> Vec<((Grave, Hour), Vec<Lying>)> {
        let (wanted, rest) =
            std::mem::take(&mut self.facts.lying).into_iter().partition(|((grave, _), _)| is_of(*grave));
        self.facts.lying = rest;
        let wanted: facts::LyingFiles = wanted;
        wanted.into_iter().collect()
    }

    fn keep(&mut self, grave: Grave, hour: Hour, reason: String) {
        self.report.kept.push(Kept { grave, hour, reason });
    }

    async fn clicks(&mut self) -> Result<()> {
        for ((grave, hour), files) in self.take(|grave| grave == Grave::AdClicks) {
            if !self.goes_on() {
                break;
            }
            let (billed, unbilled): (Vec<Lying>, Vec<Lying>) =
                files.into_iter().partition(|file| file.is_seen);
            if billed.is_empty() && unbilled.is_empty() {
                continue;
            }
            if let Some(reason) = why_clicks_stay(hour, &self.facts.states, self.ages) {
                self.keep(grave, hour, reason);
                continue;
            }
            if !billed.is_empty() {
                if let Some(reason) = self.settle_around(hour).await? {
                    self.keep(grave, hour, reason);
                    continue;
                }
                self.bury(grave, hour, entries(billed), false).await?;
            }
            self.unbilled(grave, hour, unbilled).await?;
        }
        Ok(())
    }

    /// Clicks that came when their hour could no longer be counted: kept for a retention of their own, for whoever wants to
    /// look at them, and named by the report until then.
    async fn unbilled(&mut self, grave: Grave, hour: Hour, files: Vec<Lying>) -> Result<()> {
        let (due, young): (Vec<Lying>, Vec<Lying>) =
            files.into_iter().partition(|file| self.ages.is_expired(file.put_at));
        if !due.is_empty() {
            self.bury(grave, hour, entries(due), true).await?;
        }
        if let Some(newest) = young.iter().map(|file| file.put_at).max() {
            let rows: u64 = young.iter().map(|file| file.entry.rows).sum();
            let goes = newest.plus_ms(self.ages.retention_ms);
            let reason = format!(
                "{rows} clicks came when it could no longer be counted: no bill has them, and they go on {goes}"
            );
            self.keep(grave, hour, reason);
        }
        Ok(())
    }

    async fn verdicts(&mut self) -> Result<()> {
        for ((grave, hour), files) in self.take(|grave| grave == Grave::FraudVerdicts) {
            if !self.goes_on() {
                break;
            }
            if let Some(reason) = why_verdicts_stay(hour, &self.facts.states) {
                self.keep(grave, hour, reason);
            } else if files.iter().any(|file| !file.is_seen) {
                self.keep(grave, hour, "no sweep has looked at all of its verdicts yet".to_owned());
            } else {
                self.bury(grave, hour, entries(files), false).await?;
            }
        }
        Ok(())
    }

    async fn quarantine(&mut self) -> Result<()> {
        for ((grave, hour), files) in self.take(Grave::is_quarantine) {
            if !self.goes_on() {
                break;
            }
            self.bury(grave, hour, entries(files), false).await?;
        }
        Ok(())
    }

    fn hours_with_clicks(&self) -> BTreeSet<Hour> {
        let clicks = self.facts.lying.keys().filter(|(grave, _)| *grave == Grave::AdClicks);
        clicks.map(|(_, hour)| *hour).collect()
    }

    /// Settles expired hours that were billed without a click: there is nothing of them to bury, and without that the
    /// verdicts after them would stay for ever.
    async fn settle_without(&mut self, with_clicks: &BTreeSet<Hour>) -> Result<()> {
        let (states, ages) = (&self.facts.states, self.ages);
        let is_due = |hour: Hour| {
            !with_clicks.contains(&hour)
                && ages.are_clicks_expired(hour)
                && why_clicks_stay(hour, states, ages).is_none()
        };
        let finals = states.iter().filter(|(_, state)| **state == HourState::Final);
        let due: Vec<Hour> = finals.map(|(hour, _)| *hour).filter(|hour| is_due(*hour)).collect();
        for hour in due {
            if let Some(reason) = self.settle(hour).await? {
                self.keep(Grave::AdClicks, hour, reason);
            }
        }
        Ok(())
    }

    /// Settles every hour whose runs read this one; returns why that cannot be.
    async fn settle_around(&mut self, hour: Hour) -> Result<Option<String>> {
        let around = hour.plus(-self.ages.horizon)..=hour.plus(self.ages.horizon);
        let wanted: Vec<Hour> = self
            .facts
            .states
            .range(around)
            .filter(|(_, state)| **state == HourState::Final)
            .map(|(hour, _)| *hour)
            .collect();
        for reading in wanted {
            if let Some(reason) = self.settle(reading).await? {
                return Ok(Some(format!("{reading}, whose runs read it, {reason}")));
            }
        }
        Ok(None)
    }

    /// Settles one hour; returns why that cannot be.
    async fn settle(&mut self, hour: Hour) -> Result<Option<String>> {
        if self.report.dry_run {
            return Ok(None);
        }
        let deps = &self.work.deps;
        let kept = settle(&deps.archive, deps.billing.as_ref(), hour, self.ages.now).await?;
        if kept.is_none() {
            deps.fail_points.pass(FailPoint::SettledPut);
            self.facts.states.insert(hour, HourState::Settled);
            self.report.settled += 1;
        }
        Ok(kept)
    }

    /// Puts the tombstone of these files, and removes them. Files that are not what their manifests say stay: a tombstone
    /// must not explain away a loss.
    async fn bury(
        &mut self,
        grave: Grave,
        hour: Hour,
        files: Vec<FileEntry>,
        never_billed: bool,
    ) -> Result<()> {
        if let Some(reason) = self.fault(&files).await? {
            self.keep(grave, hour, reason);
            return Ok(());
        }
        let tombstone = self.tombstone(grave, hour, files, never_billed);
        if !self.report.dry_run {
            let deps = &self.work.deps;
            let stored = deps.archive.put_tombstone(&tombstone).await?;
            deps.fail_points.pass(FailPoint::TombstonePut);
            self.work.remove(&stored).await?;
            self.keys.insert(tombstone.key(), true);
            ::metrics::counter!(metrics::RETENTION_DELETED_ROWS_TOTAL).increment(tombstone.rows);
            ::metrics::counter!(metrics::RETENTION_DELETED_BYTES_TOTAL).increment(tombstone.bytes);
            tracing::info!(%grave, %hour, rows = tombstone.rows, never_billed, "deleted under retention");
        }
        self.report.deleted.push(Buried::of(&tombstone));
        Ok(())
    }

    fn tombstone(&self, grave: Grave, hour: Hour, files: Vec<FileEntry>, never_billed: bool) -> Tombstone {
        let numbers =
            TombstoneKey { grave, hour, number: 1 }..=TombstoneKey { grave, hour, number: u32::MAX };
        let number = self.keys.range(numbers).next_back().map_or(1, |(key, _)| key.number + 1);
        let reason = match never_billed {
            false => "older than the retention of the archive, and settled",
            true => "came when its hour could no longer be counted, and is older than the retention since",
        };
        Tombstone {
            grave,
            hour,
            number,
            reason: reason.to_owned(),
            retention_ms: self.work.config.archive_retention_ms,
            deleted_at: self.ages.now,
            never_billed,
            rows: files.iter().map(|file| file.rows).sum(),
            bytes: files.iter().map(|file| file.bytes).sum(),
            files,
        }
    }

    /// Returns what is wrong with the first file that is not there as its manifest says.
    async fn fault(&self, files: &[FileEntry]) -> Result<Option<String>> {
        let archive = &self.work.deps.archive;
        let mut sizes = futures::stream::iter(files)
            .map(|entry| async move { (entry, archive.data_size(entry).await) })
            .buffered(AT_ONCE);
        while let Some((entry, size)) = sizes.next().await {
            let fault = match size? {
                Some(bytes) if bytes == entry.bytes => continue,
                Some(bytes) => format!("has {bytes} bytes, its manifest says {}", entry.bytes),
                None => "is missing, and no tombstone names it".to_owned(),
            };
            return Ok(Some(format!("{} {fault}; restore it from a copy of the archive", entry.path)));
        }
        Ok(None)
    }
}

fn entries(files: Vec<Lying>) -> Vec<FileEntry> {
    files.into_iter().map(|file| file.entry).collect()
}

/// Returns the newest moment at or before `now` at which retention is due: its interval counts from midnight.
pub(in super::super) fn due_at(now: UtcMillis, interval_ms: i64) -> UtcMillis {
    super::super::sweep::due_at(now, interval_ms, 0)
}
