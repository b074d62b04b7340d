//! Finds billed hours that later events touch: clicks, verdicts, and rates their newest runs did not see (CR-9, CR-10).
//!
//! Guarantee: what a run did not see is found by comparing its recorded cutoffs, or the moment it was begun, with what is
//! there now; verdicts are looked at from where the newest sweep record ends, and hours it owes are touched again. Nothing
//! is remembered that a crash could lose, and where nothing is new nothing is read but the manifests.
//! Words: *touched* = to be run again; *position* = the ends of the newest sweep record, below which verdicts were
//! looked at and what they touched was run again or is owed; *owed* = touched, and the run failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::Mutex;
use twice_log::archive::{
    BillingPath, BillingStatus, ChainKey, FileEntry, FileKind, ManifestIndex, Rate, SweepRecord, SweptEnd,
};
use twice_log::event::Sha256Hex;
use twice_log::{Hour, LogOffset, Topic, UtcMillis};
use twice_store::BillingQuery;

use super::book::{NewestRun, RunBook};
use super::handle::ReconcilerDeps;
use super::hour_actor::HourWork;
use super::progress::SweepReport;
use super::retention::Reach;
use crate::config::ReconcilerConfig;
use crate::error::Result;
use crate::recompute::{LookedUp, RecomputeRequest, Task, VerdictLookup, hours_before};

/// A rate's moment of recording is taken a little before it is stored, so a run begun shortly after may have missed it:
/// within this, its inputs are asked.
const RATE_SLACK_MS: i64 = 60_000;
/// Rows asked for at once.
const PAGE: u32 = 1000;

/// One look for touched hours.
pub(super) struct SweepLook {
    pub config: ReconcilerConfig,
    pub deps: ReconcilerDeps,
    pub index: Arc<Mutex<ManifestIndex>>,
    pub book: Arc<Mutex<RunBook>>,
    /// Whether the schedule asks: then only when it is time, and for final hours; others have their close before them.
    pub is_scheduled: bool,
}

/// What a look found.
#[derive(Debug)]
pub(super) struct Touched {
    pub hours: BTreeSet<Hour>,
    pub report: SweepReport,
    /// To be put once every hour's run has ended; `None` where nothing was looked at.
    pub record: Option<SweepRecord>,
    /// The newest record's ends and hours owed: what says the same again is not put.
    pub before: Option<(Vec<SweptEnd>, BTreeSet<Hour>)>,
    /// Why hours with later events cannot be run again.
    pub refused: BTreeMap<Hour, String>,
    /// Whether the newest record did not refuse one of them.
    pub is_refusal_new: bool,
}

impl Touched {
    /// Returns the record to put when the runs of all hours but `owed` went well; `None` where it would be no news.
    pub fn record(&self, owed: &BTreeSet<Hour>) -> Option<SweepRecord> {
        let record = self.record.as_ref()?;
        let hours: Vec<Hour> = self.hours.difference(owed).copied().collect();
        let says_the_same =
            self.before.as_ref().is_some_and(|(ends, before)| *ends == record.verdict_ends && before == owed);
        let is_news = !hours.is_empty() || !says_the_same || self.is_refusal_new;
        is_news.then(|| SweepRecord { hours, owed: owed.iter().copied().collect(), ..record.clone() })
    }
}

/// Returns the newest moment at or before `now` at which a sweep is due.
pub(super) fn due_at(now: UtcMillis, interval_ms: i64, maturity_ms: i64) -> UtcMillis {
    let since = now.epoch_ms().saturating_sub(maturity_ms).div_euclid(interval_ms.max(1));
    UtcMillis::clamped(since.saturating_mul(interval_ms).saturating_add(maturity_ms))
}

impl SweepLook {
    /// Looks for touched hours; `None` where it is not yet time.
    pub async fn look(self) -> Result<Option<Touched>> {
        let begun_at = self.deps.clock.now();
        let newest = self.deps.archive.newest_sweep().await?;
        let (interval, maturity) = (ms(self.config.sweep_interval_ms), ms(self.config.verdict_maturity_ms));
        let due_at = due_at(begun_at, interval, maturity);
        let is_done = |newest: &SweepRecord| newest.begun_at >= due_at && newest.owed.is_empty();
        if self.is_scheduled && newest.as_ref().is_some_and(is_done) {
            return Ok(None);
        }
        let status = if self.is_scheduled { BillingStatus::Final } else { BillingStatus::Reconciled };
        if !self.is_scheduled {
            let (config, index) = (self.config.clone(), Arc::clone(&self.index));
            HourWork::beside_the_schedule(config, self.deps.clone(), index).archive_the_present().await?;
        }
        let mut book = self.book.lock().await;
        book.refresh(&self.deps.archive).await?;
        if !book.runs().any(|(_, run)| run.status >= status) {
            return Ok(if self.is_scheduled { None } else { Some(nothing()) });
        }
        let mut index = self.index.lock().await;
        index.refresh().await?;
        // Hours that something was deleted of have their last bill; what comes for them is told, and never counted.
        let first = book.runs().map(|(hour, _)| hour).next();
        let first = first.unwrap_or_else(|| begun_at.hour());
        let reach = Reach::read(&self.deps.archive, first, self.config.nightly_horizon_hours).await?;
        let clicks = book.with_later_clicks(&index, status);
        let rates = self.with_later_rates(&book, status).await?;
        let new = NewVerdicts::of(&index, &book, newest.as_ref());
        let looked_up = self.look_up(&index, &new, &reach).await?;
        let verdicts = with_later_verdicts(&looked_up, &book, status);
        let owed = newest.iter().flat_map(|newest| newest.owed.iter().copied()).collect();
        let named = looked_up.named_hours.iter().copied().filter(|hour| book.run(*hour).is_some());
        let mut refused: BTreeMap<Hour, String> =
            named.filter_map(|hour| Some((hour, reach.why(hour)?))).collect();
        let mut hours: BTreeSet<Hour> =
            [&clicks, &rates, &verdicts, &owed].into_iter().flatten().copied().collect();
        hours.retain(|hour| match reach.why(*hour) {
            Some(why) => {
                refused.insert(*hour, why);
                false
            }
            None => true,
        });
        let mut refused_ever: BTreeSet<Hour> =
            newest.iter().flat_map(|newest| newest.refused.iter().copied()).collect();
        let refused_before = refused_ever.len();
        refused_ever.extend(refused.keys());
        let report = SweepReport {
            verdicts: looked_up.verdicts,
            verdicts_without_click: looked_up.verdicts_without_click,
            hours_with_clicks: clicks.len() as u64,
            hours_with_verdicts: verdicts.len() as u64,
            hours_with_rates: rates.len() as u64,
            refused: refused.keys().copied().collect(),
            hours: Vec::new(),
        };
        let before = newest.as_ref().map(|newest| (newest.verdict_ends.clone(), owed));
        let is_refusal_new = refused_ever.len() > refused_before;
        let record = SweepRecord {
            seq: newest.as_ref().map_or(1, |newest| newest.seq + 1),
            begun_at,
            verdict_ends: new.to,
            verdicts: report.verdicts,
            verdicts_without_click: report.verdicts_without_click,
            hours: Vec::new(),
            owed: Vec::new(),
            refused: refused_ever.into_iter().collect(),
        };
        Ok(Some(Touched { hours, report, record: Some(record), before, refused, is_refusal_new }))
    }

    /// Finds hours whose clicks have another price by a rate recorded after their newest run was begun (CR-6).
    async fn with_later_rates(&self, book: &RunBook, status: BillingStatus) -> Result<BTreeSet<Hour>> {
        let runs = || book.runs().filter(|(_, run)| run.status >= status);
        let (Some(oldest), Some((last, _))) = (runs().map(|(_, run)| run.created_at).min(), runs().last())
        else {
            return Ok(BTreeSet::new());
        };
        let rates = self.deps.campaigns.rates_effective_before(last.end()).await?;
        // Hours that a rate has a part in, and rates that the newest run of an hour may have read or not.
        let (mut missed, mut doubtful) = (BTreeMap::new(), BTreeMap::new());
        for campaign in rates.chunk_by(|left, right| left.campaign_id == right.campaign_id) {
            for (index, rate) in campaign.iter().enumerate() {
                if rate.recorded_at.plus_ms(RATE_SLACK_MS) < oldest {
                    continue;
                }
                // In force until the next one takes over; one replaced at its own moment is never in force.
                let next = campaign.get(index + 1).map(|next| next.effective_from);
                let may_miss = |(hour, run): &(Hour, &NewestRun)| {
                    run.created_at <= rate.recorded_at.plus_ms(RATE_SLACK_MS)
                        && rate.effective_from < hour.end()
                        && next.is_none_or(|next| next > hour.start() && next > rate.effective_from)
                };
                for (hour, run) in runs().filter(may_miss) {
                    if run.created_at < rate.recorded_at {
                        missed.entry(rate).or_insert_with(BTreeSet::new).insert(hour);
                    } else {
                        doubtful.entry((hour, run.seq)).or_insert_with(BTreeSet::new).insert(rate);
                    }
                }
            }
        }
        for ((hour, seq), rates) in doubtful {
            for rate in self.not_read(hour, seq, rates).await? {
                missed.entry(rate).or_default().insert(hour);
            }
        }
        let mut touched = BTreeSet::new();
        for (rate, hours) in missed {
            touched.extend(self.with_rows(rate, &hours).await?);
        }
        Ok(touched)
    }

    /// Returns those of the rates that are not among the inputs of a run. They are read once for all: both may be many.
    async fn not_read<'r>(
        &self,
        hour: Hour,
        seq: u32,
        mut rates: BTreeSet<&'r Rate>,
    ) -> Result<BTreeSet<&'r Rate>> {
        let stored = self.deps.archive.run_inputs(BillingPath::Lambda, hour, seq).await?;
        for read in stored.iter().flat_map(|stored| &stored.inputs.rates) {
            rates.remove(read);
        }
        Ok(rates)
    }

    /// Returns those of the hours in which the rate's campaign has a row.
    async fn with_rows(&self, rate: &Rate, hours: &BTreeSet<Hour>) -> Result<BTreeSet<Hour>> {
        let mut found = BTreeSet::new();
        let (Some(first), Some(last)) = (hours.first(), hours.last()) else { return Ok(found) };
        let mut query = BillingQuery {
            from: *first,
            to: last.plus(1),
            campaigns: Some([rate.campaign_id.clone()].into()),
            path: Some(BillingPath::Lambda),
            version: None,
            as_of: None,
            limit: PAGE,
            cursor: None,
        };
        loop {
            let page = self.deps.billing.billing(&query).await?;
            let billed = page.rows.iter().filter(|row| row.counts.billable > 0).map(|row| row.hour);
            found.extend(billed.filter(|hour| hours.contains(hour)));
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                return Ok(found);
            }
        }
    }

    /// Has the clicks of new verdicts looked for, in the child process.
    async fn look_up(&self, index: &ManifestIndex, new: &NewVerdicts, reach: &Reach) -> Result<LookedUp> {
        let Some((first, last)) = new.arrivals() else { return Ok(LookedUp::default()) };
        let lookback_ms = self.config.verdict_lookback_ms;
        let mut lookup = VerdictLookup {
            verdict_files: new.files.clone(),
            from: new.from.clone(),
            to: new.to.clone(),
            click_files: Vec::new(),
            lookback_ms,
        };
        // The copy named may be a duplicate: the one that was billed is within the horizon of it (CR-3).
        let horizon = i64::from(self.config.nightly_horizon_hours);
        let around = |hour: Hour| (-horizon..=horizon).map(move |apart| hour.plus(apart));
        let named: BTreeSet<Hour> =
            self.ask(lookup.clone()).await?.named_hours.into_iter().flat_map(around).collect();
        let before = hours_before(first, last, lookback_ms);
        let clicks = index.chains().filter(|chain| chain.topic == Topic::AdClicks);
        let files =
            clicks.flat_map(|chain| index.manifests(chain)).flat_map(|manifest| &manifest.manifest.files);
        let may_hold = |file: &&FileEntry| {
            file.kind == FileKind::Clicks
                && file.hour.is_some_and(|hour| {
                    (before.contains(&hour) || named.contains(&hour)) && !reach.has_buried_clicks(hour)
                })
        };
        lookup.click_files = files.filter(may_hold).cloned().collect();
        self.ask(lookup).await
    }

    async fn ask(&self, lookup: VerdictLookup) -> Result<LookedUp> {
        let request = RecomputeRequest {
            archive: self.deps.archive_location.clone(),
            // A lookup belongs to no run.
            inputs_path: String::new(),
            inputs_sha256: Sha256Hex(String::new()),
            limits: self.config.limits(),
            task: Task::LookUp(Box::new(lookup)),
            aggregates_dir: None,
        };
        self.deps.recompute.look_up(request).await
    }
}

fn nothing() -> Touched {
    Touched {
        hours: BTreeSet::new(),
        report: SweepReport::default(),
        record: None,
        before: None,
        refused: BTreeMap::new(),
        is_refusal_new: false,
    }
}

/// Returns the hours whose newest run did not see one of the verdicts found.
fn with_later_verdicts(found: &LookedUp, book: &RunBook, status: BillingStatus) -> BTreeSet<Hour> {
    let is_missed = |touched: &&crate::recompute::TouchedHour| {
        let chain = ChainKey {
            topic: Topic::FraudVerdicts,
            generation: touched.generation,
            partition: touched.partition,
        };
        let run = book.run(touched.hour).filter(|run| run.status >= status);
        run.is_some_and(|run| touched.newest >= run.end(chain))
    };
    found.touched.iter().filter(is_missed).map(|touched| touched.hour).collect()
}

/// Verdicts above the position of the newest sweep.
struct NewVerdicts {
    from: Vec<SweptEnd>,
    to: Vec<SweptEnd>,
    files: Vec<FileEntry>,
}

impl NewVerdicts {
    /// Without a record the position is what every billed hour has seen.
    fn of(index: &ManifestIndex, book: &RunBook, newest: Option<&SweepRecord>) -> Self {
        let mut new = Self { from: Vec::new(), to: Vec::new(), files: Vec::new() };
        for chain in index.chains().filter(|chain| chain.topic == Topic::FraudVerdicts) {
            let ChainKey { generation, partition, .. } = chain;
            let swept = newest.map(|newest| {
                let mut ends = newest.verdict_ends.iter();
                let end = ends.find(|end| (end.generation, end.partition) == (generation, partition));
                end.map_or(LogOffset(0), |end| end.end)
            });
            let seen = || book.runs().map(|(_, run)| run.end(chain)).min();
            let from = swept.or_else(seen).unwrap_or(LogOffset(0));
            let to = index.covered_end(chain);
            new.from.push(SweptEnd { generation, partition, end: from });
            new.to.push(SweptEnd { generation, partition, end: to });
            let manifests = index.manifests(chain).iter().filter(|manifest| manifest.end() > from);
            let files = manifests.flat_map(|manifest| &manifest.manifest.files);
            new.files.extend(files.filter(|file| file.kind == FileKind::Verdicts).cloned());
        }
        new
    }

    /// Returns the first and last arrival hour; `None` where nothing is new.
    fn arrivals(&self) -> Option<(Hour, Hour)> {
        let hours = || self.files.iter().filter_map(|file| file.hour);
        hours().min().zip(hours().max())
    }
}

fn ms(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_due_once_an_interval_and_begins_the_maturity_after_midnight() {
        let (day, maturity) = (86_400_000, 21_600_000);
        let at = |text: &str| -> UtcMillis { text.parse().expect("a time") };
        let due = |now: &str| due_at(at(now), day, maturity);
        assert_eq!(due("2025-01-16T06:00:00Z"), at("2025-01-16T06:00:00Z"));
        assert_eq!(due("2025-01-16T05:59:59Z"), at("2025-01-15T06:00:00Z"));
        assert_eq!(due("2025-01-17T05:00:00Z"), at("2025-01-16T06:00:00Z"));
    }
}
