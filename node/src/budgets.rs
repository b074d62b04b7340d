//! Wiring of budgets: what the stream counts, what it publishes, and what waits outside of the log.

use std::sync::Arc;

use anyhow::Result;
use tokio::sync::watch;
use twice_actors::{BudgetConfig, BudgetParts, Budgets, PublishedSpend, SpendFeed, StreamPath};
use twice_log::Clock;
use twice_log::fail::FailPoints;
use twice_log::hot::ClickLog;
use twice_log::spool::Spooling;
use twice_store::windows::{LiveWindows, ObservedWindows, WindowObserver};
use twice_store::{SqliteStore, WindowStore};

/// What the stream path is given, so that others see what it counts.
#[derive(Clone, Default)]
pub struct Observing {
    pub spend: Arc<SpendFeed>,
    pub live: LiveWindows,
}

impl Observing {
    /// Wraps the store of windows that the stream publishes to.
    pub fn over(&self, windows: Arc<dyn WindowStore>) -> Arc<dyn WindowStore> {
        let observers: Vec<Arc<dyn WindowObserver>> =
            vec![Arc::new(PublishedSpend(self.spend.clone())), Arc::new(self.live.clone())];
        Arc::new(ObservedWindows::new(windows, observers))
    }
}

/// What the budgets of a node are started with.
pub struct BudgetWiring {
    pub log: Arc<dyn ClickLog>,
    pub spooling: Arc<Spooling>,
    pub stream: StreamPath,
    pub windows: Arc<dyn WindowStore>,
    pub store: Arc<SqliteStore>,
    pub clock: Arc<dyn Clock>,
    pub fail_points: FailPoints,
}

/// The running budgets, and the end of event streams.
pub struct RunningBudgets {
    pub budgets: Budgets,
    pub live: LiveWindows,
    stopping: watch::Sender<bool>,
}

impl RunningBudgets {
    /// Starts to keep budgets.
    ///
    /// # Errors
    /// A setting out of bounds, or no thread.
    pub fn start(observing: Observing, wiring: BudgetWiring, config: BudgetConfig) -> Result<Self> {
        let BudgetWiring { log, spooling, stream, windows, store, clock, fail_points } = wiring;
        let parts = BudgetParts {
            log,
            windows,
            billing: store.clone(),
            campaigns: store.clone(),
            decisions: store,
            feed: observing.spend,
            applied_ends: Arc::new(move || stream.applied_ends()),
            // Spooled and spilled clicks are acknowledged, and no budget knows of them yet.
            waiting_since: Arc::new(move |partition| spooling.oldest_click(partition)),
            clock,
            fail_points,
        };
        let budgets = Budgets::start(parts, config)?;
        Ok(Self { budgets, live: observing.live, stopping: watch::channel(false).0 })
    }

    /// Returns what turns true when event streams are to end.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Ends event streams: they would hold up a graceful stop for as long as it may take.
    pub fn end_streams(&self) {
        self.stopping.send_replace(true);
    }

    /// Stops keeping budgets.
    pub async fn stop(&self) {
        self.end_streams();
        self.budgets.stop().await;
    }
}
