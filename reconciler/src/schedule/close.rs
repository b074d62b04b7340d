//! Closes one hour: ends what a crash left open, records inputs for each path that counts the hour, and runs them.
//!
//! Guarantee: the inputs of every path are recorded before any of them counts, and all say the same (G-7); a final hour
//! is counted with the nightly horizon and stays final, whoever asks for it (CR-9).
//! Words: *wanted* = the status an order asks for; the hour's own newest run may ask for more.

use std::collections::BTreeMap;

use twice_log::Hour;
use twice_log::archive::{BillingPath, BillingStatus, RunInputs, StoredRunInputs};

use super::hour_actor::HourWork;
use super::inputs::reads_the_same;
use super::messages::{CloseHour, Trigger};
use super::progress::HourReport;
use crate::error::{Error, Result, describe};

/// The paths in the order in which they commit.
pub(super) const PATHS: [BillingPath; 2] = [BillingPath::Kappa, BillingPath::Lambda];

/// Run numbers that others may take while a close tries for one; more is no race any more.
const NUMBERS_TAKEN_MAX: u32 = 8;

/// The newest run of each path of an hour.
type Newest = BTreeMap<BillingPath, RunInputs>;

impl HourWork {
    /// Closes the hour: ends runs that a crash left open, then makes new ones if that is wanted.
    pub(super) async fn close(&self, order: &CloseHour) -> Result<HourReport> {
        let hour = order.hour;
        if self.deps.clock.now() < hour.end() {
            return Err(Error::HourNotOver { hour });
        }
        let (newest, resumed) = self.resume_open(hour).await?;
        let status = newest.values().map(|run| run.status).fold(order.status, BillingStatus::max);
        if let Some((run, report)) = &resumed
            && order.trigger == Trigger::Schedule
            && run.status >= status
        {
            return Ok(report.clone());
        }
        if order.trigger == Trigger::Schedule {
            self.deps.check_held(&self.config, hour, status)?;
        }
        let inputs = self.gather(hour, status).await?;
        if let Some((run, report)) = resumed
            && reads_the_same(&run, &inputs)
        {
            return Ok(report);
        }
        self.run_paths(inputs, &newest).await
    }

    /// Ends the runs of the hour that have no result; returns the newest run of each path, and the last one ended here.
    async fn resume_open(&self, hour: Hour) -> Result<(Newest, Option<(RunInputs, HourReport)>)> {
        let (mut newest, mut ended) = (Newest::new(), None);
        for path in PATHS {
            let Some(run) = self.deps.archive.latest_run(path, hour).await? else { continue };
            if run.result.is_none() {
                match self.resume(&run.inputs).await {
                    Ok(Some(report)) => ended = Some((run.inputs.inputs.clone(), report)),
                    Ok(None) => {}
                    // A replay asked for beside the bill, which cannot be counted, must not hold the bill up.
                    Err(error) if self.is_beside_the_bill(path, hour).await? => {
                        tracing::warn!(%hour, %path, error = %describe(&error), "a run beside the bill stays open");
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            newest.insert(path, run.inputs.inputs);
        }
        Ok((newest, ended))
    }

    /// Returns whether the path's rows are counted for comparison only.
    async fn is_beside_the_bill(&self, path: BillingPath, hour: Hour) -> Result<bool> {
        Ok(path == BillingPath::Kappa && self.deps.billing.mode(hour).await? == BillingPath::Lambda)
    }

    /// Records the inputs under the next number that is free, and returns them.
    ///
    /// A replay or a change of mode may have taken the number meanwhile, with inputs of its own: that run is ended first.
    pub(super) async fn record_own(&self, mut inputs: RunInputs) -> Result<StoredRunInputs> {
        for _ in 0..NUMBERS_TAKEN_MAX {
            let stored = self.record(&inputs).await?;
            if reads_the_same(&stored.inputs, &inputs) {
                return Ok(stored);
            }
            self.resume(&stored).await?;
            inputs.seq += 1;
        }
        Err(Error::Contradiction { reason: format!("others take the run numbers of {}", inputs.hour) })
    }

    /// Records the same inputs for each path that counts the hour, then counts and commits path by path.
    async fn run_paths(&self, inputs: RunInputs, newest: &Newest) -> Result<HourReport> {
        let mut recorded = Vec::new();
        for path in self.paths_of(inputs.hour).await? {
            let seq = newest.get(&path).map_or(1, |run| run.seq + 1);
            recorded.push(self.record_own(RunInputs { path, seq, ..inputs.clone() }).await?);
        }
        if let [kappa, lambda] = recorded.as_slice() {
            return self.run_beside(kappa, lambda).await;
        }
        let mut report = None;
        for stored in &recorded {
            report = Some(self.run(stored).await?);
        }
        report.ok_or_else(|| Error::Contradiction { reason: format!("no path counts {}", inputs.hour) })
    }

    /// Returns the paths that count the hour, in the order in which they commit; the recompute counts every hour.
    async fn paths_of(&self, hour: Hour) -> Result<Vec<BillingPath>> {
        Ok(match self.deps.billing.mode(hour).await? {
            BillingPath::Lambda => vec![BillingPath::Lambda],
            BillingPath::Kappa => PATHS.to_vec(),
        })
    }
}
