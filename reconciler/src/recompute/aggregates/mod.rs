//! Aggregates of the hour, by ad and minute, made beside its bill in the same slices.
//!
//! Guarantee: the rows of each campaign sum to its billing row in every count and in the amount, or the run fails before
//! anything is committed; the same inputs give the same bytes, however the work is cut.
//! Flow: a range of campaigns is billed -> the same range is aggregated, slice by slice, to local files -> the slices'
//! rows, in order, are compared with the bill and go into the run's files -> the parent puts those into the archive.

mod files;
mod runs;
mod users;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use twice_log::{CampaignId, Hour};
use twice_store::{AggregateCounts, BillingCounts};

use super::CampaignRange;
use super::engine::HourRecompute;
use super::values::contradiction;
use crate::error::Result;

pub use files::LocalAggregates;
pub(super) use users::user_sketch;

/// The statement that makes the rows by ad and minute.
pub const AGGREGATES_SQL: &str = include_str!("aggregates.sql");
/// The subquery that is named twice; its answer is small.
const SHARED_SUBQUERY: &str = "repeated";

/// Aggregates one run, range by range.
pub(super) struct Aggregating {
    folder: PathBuf,
    hour: Hour,
    levels: files::Levels,
}

impl Aggregating {
    /// Begins the aggregates of `hour` in `folder`, which is there and empty.
    pub fn new(folder: &Path, hour: Hour) -> Self {
        Self { folder: folder.to_path_buf(), hour, levels: files::Levels::new(folder, hour) }
    }

    /// Aggregates a range whose bill is `bill`. Ranges MUST come in order.
    ///
    /// # Errors
    /// `Contradiction` if the rows do not sum to the bill; `OutOfMemory` as for the bill.
    pub async fn add(
        &mut self,
        work: &HourRecompute<'_>,
        range: &CampaignRange,
        bill: &BTreeMap<CampaignId, BillingCounts>,
    ) -> Result<()> {
        let (folder, hour) = (self.folder.as_path(), self.hour);
        let write = |range| async move { write_slices(work, &range, folder, hour).await }.boxed();
        // Ad, minute and user stand beside each identity here: a row takes about twice the memory of the bill's.
        let (_, paths) = work.within_memory(&range.finer(), write).await?;
        let mut merged = runs::Merged::open(&paths)?;
        let mut check = Check { bill, campaigns: 0, sum: None };
        while let Some((campaign, row)) = merged.next()? {
            check.take(&campaign, &row.counts)?;
            self.levels.push(campaign, row)?;
        }
        check.finish()?;
        for path in paths {
            // What cannot be removed goes with the folder.
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }

    /// Ends the files and lists them.
    pub fn finish(self) -> Result<Vec<LocalAggregates>> {
        self.levels.finish()
    }
}

/// Writes the rows of each slice to a file of its own; an earlier attempt's files are written over.
async fn write_slices(
    work: &HourRecompute<'_>,
    range: &CampaignRange,
    folder: &Path,
    hour: Hour,
) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for (index, slice) in range.slices().enumerate() {
        let session = work.session(&slice).await?;
        let action = "aggregate by ad and minute";
        let answer = session.stream_sharing(action, AGGREGATES_SQL, SHARED_SUBQUERY).await?;
        let path = folder.join(format!("slice-{index}"));
        paths.extend(runs::write(answer, path, hour).await?);
    }
    Ok(paths)
}

/// Compares the sums of each campaign with its bill.
struct Check<'a> {
    bill: &'a BTreeMap<CampaignId, BillingCounts>,
    campaigns: usize,
    sum: Option<(CampaignId, AggregateCounts)>,
}

impl Check<'_> {
    fn take(&mut self, campaign: &CampaignId, counts: &AggregateCounts) -> Result<()> {
        match &mut self.sum {
            Some((of, sum)) if of == campaign => sum.add(counts),
            _ => {
                self.end_campaign()?;
                self.sum = Some((campaign.clone(), *counts));
            }
        }
        Ok(())
    }

    fn end_campaign(&mut self) -> Result<()> {
        let Some((campaign, sum)) = self.sum.take() else { return Ok(()) };
        self.campaigns += 1;
        let billed = self.bill.get(&campaign).map(AggregateCounts::of);
        if billed == Some(sum) {
            Ok(())
        } else {
            Err(contradiction(format!("aggregates of {campaign} sum to {sum:?}, its bill is {billed:?}")))
        }
    }

    fn finish(mut self) -> Result<()> {
        self.end_campaign()?;
        if self.campaigns == self.bill.len() {
            Ok(())
        } else {
            let (campaigns, billed) = (self.campaigns, self.bill.len());
            Err(contradiction(format!("{campaigns} campaigns have aggregates, {billed} are billed")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn campaign(text: &str) -> CampaignId {
        CampaignId::new(text).expect("valid id")
    }

    fn counts(gross: u64) -> AggregateCounts {
        AggregateCounts { gross, billable: gross, ..AggregateCounts::default() }
    }

    /// Checks rows by campaign against a bill of 5 clicks of `a` and 2 of `b`.
    fn check(rows: &[(&str, u64)]) -> Result<()> {
        let bill = [("a", 5), ("b", 2)].map(|(of, gross)| {
            let zero = BillingCounts::zero(campaign(of), None);
            (campaign(of), BillingCounts { gross, billable: gross, ..zero })
        });
        let bill = BTreeMap::from(bill);
        let mut check = Check { bill: &bill, campaigns: 0, sum: None };
        for (of, gross) in rows {
            check.take(&campaign(of), &counts(*gross))?;
        }
        check.finish()
    }

    #[test]
    fn rows_that_do_not_sum_to_the_bill_are_an_error_of_the_run() {
        check(&[("a", 4), ("a", 1), ("b", 2)]).expect("they sum to it");
        for wrong in [
            &[("a", 4), ("b", 2)][..],
            &[("a", 5)],
            &[("a", 5), ("b", 2), ("c", 1)],
            &[("a", 5), ("b", 1), ("b", 2)],
            &[],
        ] {
            assert_eq!(check(wrong).expect_err("refused").kind(), ErrorKind::Damage, "{wrong:?}");
        }
    }
}
