//! What the crates ask of each other, carried over: each port of one crate implemented with the handle of another.

mod audit;
mod budget;
mod compare;
mod replay;
mod retention;
mod shadow;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;
use twice_actors::{Archiving, PartitionPhase, StreamPath};
use twice_api::ports as api;
use twice_log::event::partition_of;
use twice_log::hot::ClickLog;
use twice_log::spool::Spooling;
use twice_log::{CampaignId, Clock, Hour, LogOffset, PartitionId, Topic, UtcMillis};
use twice_reconciler::{BillChange, ProgressEvent, ReconcilerHandle, ports as batch};
use twice_store::{ResilientWindows, SqliteStore};

use crate::disk::DiskSpace;
use crate::metrics::BREAKER_STATE;

pub use audit::Audits;
pub use budget::BudgetReports;
pub use compare::{Around, Compares};
pub use replay::ReplayStarts;
pub use retention::CountableImports;
pub use shadow::{Shadows, shadow_of};

/// Seals hours in the stream path, for the batch path.
pub struct StreamSeals(pub StreamPath);

#[async_trait]
impl batch::SealControl for StreamSeals {
    async fn seal(
        &self,
        hour: Hour,
        partition: PartitionId,
        at_least: LogOffset,
    ) -> Result<(), batch::PortError> {
        for (_, sealed) in self.0.seal(hour, &[(partition, at_least)]).await {
            sealed.map_err(|error| unavailable("the stream path", &error))?;
        }
        Ok(())
    }
}

/// Moves the archive up to a cutoff, for the batch path.
pub struct ArchiverFlush(pub Archiving);

#[async_trait]
impl batch::ArchiveControl for ArchiverFlush {
    async fn flush_through(
        &self,
        topic: Topic,
        partition: PartitionId,
        end: LogOffset,
    ) -> Result<(), batch::PortError> {
        let flushed = self.0.flush_through(topic, &[(partition, end)]).await;
        flushed.map_err(|error| unavailable("the archiver", &error))
    }
}

fn unavailable(part: &'static str, error: &dyn std::error::Error) -> batch::PortError {
    batch::PortError::Unavailable { part, detail: chain(error) }
}

/// Starts reconciliations, for the API.
pub struct Reconciles(pub ReconcilerHandle);

#[async_trait]
impl api::ReconcileControl for Reconciles {
    async fn start(
        &self,
        target: api::ReconcileTarget,
    ) -> Result<BoxStream<'static, api::ReconcileEvent>, api::PortError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let handle = self.0.clone();
        // A task of its own: a client that goes away must not stop what it started.
        tokio::spawn(async move {
            let ended = match target {
                api::ReconcileTarget::Hour(hour) => {
                    handle.reconcile(hour, Some(sender.clone())).await.map(|_| ())
                }
                api::ReconcileTarget::Due => handle.reconcile_due(Some(sender)).await.map(|_| ()),
                api::ReconcileTarget::Day(day) => handle.close_day(day, Some(sender)).await.map(|_| ()),
                api::ReconcileTarget::Sweep => handle.sweep(Some(sender)).await.map(|_| ()),
            };
            if let Err(error) = ended {
                tracing::warn!(error = %chain(&error), "reconciliation failed");
            }
        });
        let next = async |mut receiver: mpsc::UnboundedReceiver<ProgressEvent>| {
            receiver.recv().await.map(|progress| (event(progress), receiver))
        };
        Ok(stream::unfold(receiver, next).boxed())
    }

    async fn retain(
        &self,
        hour: Option<Hour>,
        dry_run: bool,
    ) -> Result<Box<serde_json::value::RawValue>, api::PortError> {
        retention::retain(&self.0, hour, dry_run).await
    }
}

fn event(event: ProgressEvent) -> api::ReconcileEvent {
    use twice_reconciler::Step;
    match event {
        ProgressEvent::Step { hour, step } => {
            let step = match step {
                Step::Sealing => api::ReconcileStep::Sealing,
                Step::Cutoff => api::ReconcileStep::Cutoff,
                Step::Archiving => api::ReconcileStep::Archiving,
                Step::Recomputing => api::ReconcileStep::Recomputing,
                Step::Committing => api::ReconcileStep::Committing,
            };
            api::ReconcileEvent::Step { hour, step }
        }
        ProgressEvent::Done(report) => api::ReconcileEvent::Done {
            hour: report.hour,
            outcome: report.outcome,
            run_id: report.run_id,
            rows: report.rows_written,
            unexplained: report.unexplained,
            change: change_of(report.change),
        },
        ProgressEvent::Note { detail } => api::ReconcileEvent::Note { detail },
        ProgressEvent::Refused { detail } => api::ReconcileEvent::Failed { hour: None, detail },
        ProgressEvent::Failed { hour, detail } => api::ReconcileEvent::Failed { hour: Some(hour), detail },
    }
}

fn change_of(change: BillChange) -> api::BillChange {
    let money = change
        .money
        .into_iter()
        .map(|delta| api::MoneyDelta { currency: delta.currency, amount_micros: delta.amount_micros });
    let listed = change.listed.into_iter().map(|row| api::RowChange {
        campaign_id: row.campaign_id,
        version: row.version,
        reason: row.reason.to_string(),
        billable: row.delta.billable,
        amount_micros: row.delta.amount_micros,
        currency: row.currency,
    });
    api::BillChange {
        rows: change.rows,
        billable: change.billable,
        money: money.collect(),
        listed: listed.collect(),
    }
}

/// Lists the copies by which the two paths differ, for the API.
pub struct Explains(pub ReconcilerHandle);

#[async_trait]
impl api::ExplainControl for Explains {
    async fn explain(&self, query: api::ExplainQuery) -> Result<api::Explanation, api::PortError> {
        let explained = self.0.explain(query.hour, query.campaign.clone(), query.limit).await;
        match explained {
            Ok(explanation) => explanation_of(query, explanation),
            Err(twice_reconciler::Error::NotReconciled { hour }) => {
                Err(api::PortError::NotFound { what: format!("a reconciled bill of {hour}") })
            }
            Err(error @ twice_reconciler::Error::Frozen { .. }) => {
                Err(api::PortError::Refused { reason: error.to_string() })
            }
            Err(error) => Err(api::PortError::Unavailable { reason: chain(&error) }),
        }
    }
}

/// Returns an explanation as the API shows it.
///
/// # Errors
/// `NotFound` where the campaign has no click in the hour.
pub fn explanation_of(
    query: api::ExplainQuery,
    explained: twice_reconciler::compare::Explanation,
) -> Result<api::Explanation, api::PortError> {
    use twice_reconciler::compare::Cause;
    let copies = explained.copies.into_iter().map(|copy| api::ExplainedCopy {
        cause: match copy.cause {
            Cause::Late => api::Cause::Late,
            Cause::LateDuplicate => api::Cause::LateDuplicate,
            Cause::Fraud => api::Cause::Fraud,
        },
        click_id: copy.click_id,
        event_time: copy.event_time,
        generation: copy.generation,
        partition: copy.partition,
        log_offset: copy.log_offset,
        files: copy.files,
    });
    let Some(divergence) = explained.divergence else {
        return Err(api::PortError::NotFound {
            what: format!("a click of {} in {}", query.campaign, query.hour),
        });
    };
    Ok(api::Explanation {
        hour: query.hour,
        campaign_id: query.campaign,
        stream: divergence.stream,
        preliminary: divergence.preliminary,
        billed: divergence.billed,
        late: divergence.late,
        late_duplicate: divergence.late_duplicate,
        fraud: divergence.fraud,
        unexplained: divergence.unexplained,
        copies: copies.collect(),
        truncated: explained.truncated,
    })
}

/// How far the stream path and the archiver are, for the API.
#[derive(Clone)]
pub struct Status {
    pub node: String,
    pub log: Arc<dyn ClickLog>,
    pub stream: StreamPath,
    pub archiving: Archiving,
    pub reconciler: ReconcilerHandle,
    pub clock: Arc<dyn Clock>,
    pub freshness: Arc<Mutex<HashMap<PartitionId, Freshness>>>,
    pub space: Arc<DiskSpace>,
    pub spooling: Arc<Spooling>,
    pub windows: Arc<ResilientWindows>,
    pub bounded: Arc<SqliteStore>,
}

/// Up to when a partition's numbers are whole: looked up by marks, each a moment and the end of the log just after it.
///
/// Whatever was acknowledged before the moment lies below that end; once windows are published up to the end, the
/// numbers hold every click that arrived before the moment.
#[derive(Default)]
pub struct Freshness {
    fresh_to: Option<UtcMillis>,
    looked_at: Option<UtcMillis>,
    marks: VecDeque<(UtcMillis, LogOffset)>,
}

impl Freshness {
    /// Marks kept while a partition lags; more would only make its freshness finer.
    const MARKS_MAX: usize = 64;

    fn look(&mut self, now: UtcMillis, log_end: LogOffset, shown_end: LogOffset) -> Option<UtcMillis> {
        if self.looked_at.replace(now) > Some(now) {
            // The clock went back: clicks that arrive from now on carry moments that were promised before.
            self.marks.clear();
            self.fresh_to = self.fresh_to.map(|fresh_to| fresh_to.min(now.plus_ms(-1)));
        }
        if self.marks.len() < Self::MARKS_MAX {
            self.marks.push_back((now, log_end));
        }
        while let Some((moment, end)) = self.marks.front().copied()
            && end <= shown_end
        {
            self.fresh_to = self.fresh_to.max(Some(moment));
            self.marks.pop_front();
        }
        self.fresh_to
    }
}

impl Status {
    /// Looks at the partitions: sets the gauges of lag and freshness, and marks how fresh the numbers are.
    pub async fn look(&self) {
        self.partitions().await;
        self.stream.freshness();
        self.spooling.pause_drain(self.space.refusal().is_some());
        crate::spool::show(&self.spooling, self.clock.now());
        let breakers = [("windows", self.windows.breaker()), ("log", self.spooling.log_state())]
            .into_iter()
            .chain(self.bounded.breakers());
        for (breaker, state) in breakers {
            metrics::gauge!(BREAKER_STATE, "breaker" => breaker).set(f64::from(state as u8));
        }
    }

    async fn partitions(&self) -> Vec<api::PartitionStatus> {
        let archived = self.archiving.status();
        let archived_end = |partition: PartitionId| {
            let mut clicks = archived.iter().filter(|status| status.topic == Topic::AdClicks);
            clicks
                .find(|status| status.partition == partition)
                .map_or(LogOffset(0), |status| status.archived_end)
        };
        let now = self.clock.now(); // before the ends of the log are read, as a mark needs it
        let statuses = self.stream.status().await;
        let mut freshness = self.freshness.lock().unwrap_or_else(PoisonError::into_inner);
        let partitions = statuses.into_iter().map(|status| {
            let lag = status.lag();
            let marks = freshness.entry(status.partition).or_default();
            let fresh_to = marks.look(now, status.log_end, status.shown_end);
            let (state, detail) = match status.phase {
                PartitionPhase::Loading => (api::PartitionState::Restarting, None),
                PartitionPhase::Running => (api::PartitionState::Running, None),
                PartitionPhase::Failed(error) => (api::PartitionState::Restarting, Some(error)),
                PartitionPhase::Stopped => (api::PartitionState::Stopped, None),
            };
            api::PartitionStatus {
                generation: self.log.generation(),
                partition: status.partition,
                state,
                applied_end: status.applied_end,
                log_end: status.log_end,
                archived_end: archived_end(status.partition),
                lag,
                // Counted is not shown yet: windows are published once a second.
                fresh_to,
                detail,
            }
        });
        partitions.collect()
    }

    async fn parts(&self, partitions: &[api::PartitionStatus]) -> Vec<api::PartHealth> {
        let stopped = partitions.iter().find(|partition| partition.state != api::PartitionState::Running);
        let stream = stopped.map(|partition| {
            let detail = partition.detail.clone().unwrap_or_else(|| "is not reading".to_owned());
            format!("partition {}: {detail}", partition.partition)
        });
        let archiver = self.archiving.status().into_iter().find_map(|status| {
            status.last_error.map(|error| format!("{} partition {}: {error}", status.topic, status.partition))
        });
        let reconciler = match self.reconciler.status().await {
            Ok(status) => status.schedule_error.or(status.held_up).or_else(|| {
                status
                    .failures
                    .first()
                    .map(|failure| format!("hour {}: {}", failure.hour, failure.last_error))
            }),
            Err(error) => Some(chain(&error)),
        };
        let billing = self.bounded.trouble().map(str::to_owned);
        let windows = self.windows.failure();
        let log = self.spooling.log_failure().map(|failure| {
            let held: u64 = self.spooling.status().iter().map(|queue| queue.records).sum();
            format!("{failure}; {held} records are spooled")
        });
        let parts = [
            ("log", log),
            ("stream", stream),
            ("real-time store", windows),
            ("archiver", archiver),
            ("reconciler", reconciler),
            ("billing store", billing),
        ];
        parts
            .into_iter()
            .map(|(part, detail)| api::PartHealth {
                node: self.node.clone(),
                part: part.to_owned(),
                healthy: detail.is_none(),
                detail,
            })
            .collect()
    }
}

#[async_trait]
impl api::StreamStatus for Status {
    async fn report(&self) -> Result<api::StreamReport, api::PortError> {
        let partitions = self.partitions().await;
        Ok(api::StreamReport { parts: self.parts(&partitions).await, partitions })
    }

    async fn campaign(&self, campaign: &CampaignId) -> Result<api::PartitionStatus, api::PortError> {
        let partition = partition_of(campaign, self.log.partitions());
        let found = self.partitions().await.into_iter().find(|status| status.partition == partition);
        found.ok_or_else(|| api::PortError::Unavailable {
            reason: format!("partition {partition} is not read here"),
        })
    }
}

#[async_trait]
impl api::HealthStatus for Status {
    async fn readiness(&self) -> api::Readiness {
        let partitions = self.partitions().await;
        let loading = partitions.iter().any(|partition| partition.state == api::PartitionState::Stopped);
        let parts = self.parts(&partitions).await;
        // A full disk refuses nothing while there is a spool on another one.
        let disk = self.space.refusal();
        let spool = self.spooling.refusal();
        let refuses = (disk.is_some() && !self.spooling.is_apart()) || spool.is_some();
        let ready = !loading && !refuses;
        let degraded = parts.into_iter().filter_map(|part| Some(format!("{}: {}", part.part, part.detail?)));
        let disk = disk.map(|reason| format!("disk: {reason}"));
        let spool = spool.map(|reason| format!("spool: {reason}"));
        let reasons = disk.into_iter().chain(spool).chain(degraded);
        api::Readiness { ready, reasons: reasons.collect() }
    }
}

/// Joins an error and its causes into one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line.push_str(": ");
        line.push_str(&inner.to_string());
        cause = inner.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch_ms: i64) -> UtcMillis {
        UtcMillis::clamped(epoch_ms)
    }

    #[test]
    fn numbers_are_fresh_to_the_last_mark_that_is_published() {
        let mut freshness = Freshness::default();
        assert_eq!(freshness.look(at(1), LogOffset(10), LogOffset(0)), None);
        assert_eq!(freshness.look(at(2), LogOffset(20), LogOffset(10)), Some(at(1)));
        assert_eq!(freshness.look(at(3), LogOffset(20), LogOffset(19)), Some(at(1)));
        assert_eq!(freshness.look(at(4), LogOffset(20), LogOffset(20)), Some(at(4)));
    }

    #[test]
    fn a_clock_that_goes_back_takes_back_what_was_promised_of_moments_to_come() {
        let mut freshness = Freshness::default();
        assert_eq!(freshness.look(at(9_000), LogOffset(10), LogOffset(10)), Some(at(9_000)));
        // A click that arrives at 5 000 now is in the log and not shown yet.
        assert_eq!(freshness.look(at(5_000), LogOffset(11), LogOffset(10)), Some(at(4_999)));
        assert_eq!(freshness.look(at(6_000), LogOffset(11), LogOffset(11)), Some(at(6_000)));
        // Forwards: nothing was promised that is not so.
        assert_eq!(freshness.look(at(90_000), LogOffset(12), LogOffset(11)), Some(at(6_000)));
        assert_eq!(freshness.look(at(90_001), LogOffset(12), LogOffset(12)), Some(at(90_001)));
    }

    #[test]
    fn a_long_lag_keeps_the_oldest_marks() {
        let mut freshness = Freshness::default();
        for moment in 0..1_000 {
            freshness.look(at(moment), LogOffset(moment + 1), LogOffset(0));
        }
        assert_eq!(freshness.look(at(1_000), LogOffset(2_000), LogOffset(5)), Some(at(4)));
    }
}
