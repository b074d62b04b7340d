//! One look at manifests and run records: which hours are due, and which of them a night.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::Mutex;
use twice_log::archive::{BillingPath, ManifestIndex};
use twice_log::{Day, Hour};

use super::book::RunBook;
use super::due::{DueSettings, Sightings};
use super::handle::ReconcilerDeps;
use super::hour_actor::HourWork;
use crate::config::ReconcilerConfig;
use crate::error::{Error, Result};

/// What a look reads, and by which settings it judges.
#[derive(Clone)]
pub struct Look {
    pub config: ReconcilerConfig,
    pub deps: ReconcilerDeps,
    pub index: Arc<Mutex<ManifestIndex>>,
    pub sightings: Arc<Mutex<Sightings>>,
    pub book: Arc<Mutex<RunBook>>,
    pub settings: DueSettings,
    pub maturity_ms: i64,
}

/// What the schedule would do now; hours oldest first.
#[derive(Debug, Default)]
pub struct Found {
    /// Hours to close: ended and not billed, or with a run that a crash left open.
    pub due: Vec<Hour>,
    /// Hours to make final.
    pub nights: Vec<Hour>,
}

impl Look {
    /// Looks for hours that are due.
    ///
    /// # Errors
    /// Those of the archive and of the billing store.
    pub async fn due(&self) -> Result<Found> {
        let grown = {
            let mut index = self.index.lock().await;
            index.refresh().await?;
            index.click_hours().clone()
        };
        let now = self.deps.clock.now();
        let mut due = BTreeSet::new();
        if let (Some((first, _)), Some((last, _))) = (grown.first_key_value(), grown.last_key_value()) {
            let billed =
                self.deps.billing.billed_hours(Some(BillingPath::Lambda), *first, last.plus(1)).await?;
            let billed: BTreeSet<Hour> = billed.into_iter().collect();
            due.extend(self.sightings.lock().await.due(&grown, &billed, now, self.settings));
        }
        let mut book = self.book.lock().await;
        book.refresh(&self.deps.archive).await?;
        due.extend(book.open());
        Ok(Found { due: due.into_iter().collect(), nights: book.nights(now, self.maturity_ms) })
    }

    /// Returns the hours of a day that have clicks or a bill.
    ///
    /// # Errors
    /// `DayNotOver` before its end, and those of the archive.
    pub async fn day(&self, day: Day) -> Result<Vec<Hour>> {
        if self.deps.clock.now() < day.end() {
            return Err(Error::DayNotOver { day: day.to_string(), end: day.end() });
        }
        let (config, index) = (self.config.clone(), Arc::clone(&self.index));
        HourWork::beside_the_schedule(config, self.deps.clone(), index).archive_the_present().await?;
        // Never both locks at once: a sweep takes them in the other order.
        let with_clicks = {
            let mut index = self.index.lock().await;
            index.refresh().await?;
            index.click_hours().clone()
        };
        let mut book = self.book.lock().await;
        book.refresh(&self.deps.archive).await?;
        let counts = |hour: &Hour| with_clicks.contains_key(hour) || book.run(*hour).is_some();
        Ok(day.hours().filter(counts).collect())
    }
}
