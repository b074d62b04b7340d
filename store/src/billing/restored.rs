//! A run as the archive tells it, to be written again exactly as it was.

use std::collections::HashMap;

use twice_log::archive::{BillingPath, ResultRow, RunOutcome, RunResult};

use super::decide::{HourFacts, Plan, PlannedRow};
use super::{BillingCounts, NewBillingRow, Reason, RunCommit, UtcMicros};
use crate::error::{Error, Result};

/// A run computed again from its recorded inputs, with the result the archive holds of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredRun {
    /// Everything the run counted, as when it was committed first; also the rows it wrote no version of.
    pub commit: RunCommit,
    /// What it wrote: versions, statuses, reasons, digests, moment and mode are taken from here and decided by nothing.
    pub result: RunResult,
}

impl RestoredRun {
    /// Refuses what is no end of this run.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { commit, result } = self;
        if (result.path, result.hour, result.seq) != (commit.path, commit.hour, commit.seq) {
            return Err(self.conflict("its result is another run's"));
        }
        if result.inputs_sha256 != commit.inputs_sha256 {
            return Err(self.conflict("its result names other inputs"));
        }
        match result.outcome {
            RunOutcome::Committed if result.committed_at.is_none() => {
                Err(self.conflict("its result is committed at no moment"))
            }
            RunOutcome::Identical if !result.rows.is_empty() => {
                Err(self.conflict("its result is identical and names rows"))
            }
            RunOutcome::Abandoned => Err(self.conflict("it was abandoned, and the store keeps no such runs")),
            _ => Ok(()),
        }
    }

    /// Returns the moment of the commit; `None` where the outcome is `identical`.
    pub(crate) fn committed_at(&self) -> Result<Option<UtcMicros>> {
        let moment = self.result.committed_at.as_deref().map(str::parse).transpose();
        moment.map_err(|error| self.conflict(format!("its result's committed_at {error}")))
    }

    /// Returns what to write, from the result alone; `facts` only have to agree with it.
    ///
    /// # Errors
    /// `Conflict`, naming the row that is not what the run counted, or not the one after the newest stored.
    pub(crate) fn plan(&self, facts: &HourFacts) -> Result<Plan> {
        let mut versions = facts.versions();
        let mut rows = Vec::with_capacity(self.result.rows.len());
        let counted: HashMap<_, _> =
            self.commit.rows.iter().map(|row| (&row.counts.campaign_id, row)).collect();
        let mut status = facts.status_at_least(self.commit.status);
        for row in &self.result.rows {
            status = status.max(row.status);
            let planned =
                self.planned(row, counted.get(&row.campaign_id).map(|row| (*row).clone()), facts)?;
            if versions.insert(row.campaign_id.clone(), row.version).unwrap_or(0) + 1 != row.version {
                let reason = format!("version {} of {} does not follow", row.version, row.campaign_id);
                return Err(self.conflict(reason));
            }
            rows.push(planned);
        }
        if let Some(row) = self.result.rows.iter().find(|row| row.status != status) {
            return Err(self.conflict(format!(
                "the status of {} falls below {}",
                row.campaign_id,
                status.name()
            )));
        }
        rows.sort_by(|left, right| left.row.counts.campaign_id.cmp(&right.row.counts.campaign_id));
        Ok(Plan { outcome: self.result.outcome, status, rows, versions })
    }

    fn planned(
        &self,
        row: &ResultRow,
        counted: Option<NewBillingRow>,
        facts: &HourFacts,
    ) -> Result<PlannedRow> {
        // A campaign that vanished has a version of zeros, in the currency it had.
        let counted = counted.unwrap_or_else(|| {
            let currency = facts.currency(&row.campaign_id);
            NewBillingRow::new(self.commit.hour, BillingCounts::zero(row.campaign_id.clone(), currency))
        });
        if counted.digest != row.digest {
            let reason = format!(
                "{} counts to digest {}, its result says {}",
                row.campaign_id, counted.digest, row.digest
            );
            return Err(self.conflict(reason));
        }
        let reason: Result<Reason, _> = row.reason.parse();
        let reason = reason.map_err(|error| self.conflict(format!("`{}` {error}", row.reason)))?;
        Ok(PlannedRow { version: row.version, reason, row: counted })
    }

    /// Checks the mode the result names against the one in force, and returns whether it is to be written.
    pub(crate) fn fixes_mode(&self, in_force: Option<BillingPath>) -> Result<bool> {
        let mode = self.result.mode;
        match in_force {
            _ if self.commit.mode_change && mode != self.commit.path => {
                Err(self.conflict("it changed the mode, and its result names the other one"))
            }
            Some(in_force) if in_force != mode && !self.commit.mode_change => {
                Err(self.conflict(format!("its result names mode {mode}, in force is {in_force}")))
            }
            Some(in_force) => Ok(in_force != mode),
            None => Ok(true),
        }
    }

    pub(crate) fn conflict(&self, reason: impl std::fmt::Display) -> Error {
        Error::Conflict { reason: format!("cannot restore run {}: {reason}", self.commit.run_id) }
    }
}
