//! The actor that keeps budgets, and the handle others ask.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, Arbiter, Context, Handler, Message};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use twice_log::fail::FailPoints;
use twice_log::hot::ClickLog;
use twice_log::{CampaignId, Clock, Day, LogOffset, PartitionId, UtcMillis};
use twice_store::{BillingStore, BudgetReport, BudgetState, BudgetStore, CampaignStore, WindowStore};

use super::book::Book;
use super::config::BudgetConfig;
use super::feed::SpendFeed;
use super::health::Health;
use super::keeper::Keeper;
use super::publisher::Publisher;
use super::reader::Reader;
use super::seed::Stores;
use super::sight::Sight;
use crate::error::{Error, Result};
use crate::metrics::BUDGET_STORE_FAILURES_TOTAL;

/// Messages the mailbox holds: there is one kind, and it comes once.
const MAILBOX_CAPACITY: usize = 1;

/// What budgets work with.
#[derive(Clone)]
pub struct BudgetParts {
    pub log: Arc<dyn ClickLog>,
    pub windows: Arc<dyn WindowStore>,
    pub billing: Arc<dyn BillingStore>,
    pub campaigns: Arc<dyn CampaignStore>,
    pub decisions: Arc<dyn BudgetStore>,
    /// What the stream leaves for the budgets; the same that the stream path was given.
    pub feed: Arc<SpendFeed>,
    /// Returns up to where the stream has applied each partition, in order.
    pub applied_ends: Arc<dyn Fn() -> Vec<LogOffset> + Send + Sync>,
    /// Returns the arrival of a partition's oldest click that was acknowledged and is not in the log yet; `None` if all
    /// are.
    pub waiting_since: Arc<dyn Fn(PartitionId) -> Option<UtcMillis> + Send + Sync>,
    pub clock: Arc<dyn Clock>,
    pub fail_points: FailPoints,
}

/// What the actor's tasks and its handle share.
pub(super) struct Shared {
    pub(super) parts: BudgetParts,
    pub(super) stores: Stores,
    pub(super) config: BudgetConfig,
    /// Locked for moments only, never across a wait.
    book: Mutex<Book>,
    health: Mutex<Health>,
    /// Something else than clicks may have changed a state.
    pub(super) news: Notify,
    /// Sequence of the newest decision stored.
    pub(super) stored: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(parts: BudgetParts, config: BudgetConfig) -> Self {
        let now = parts.clock.now();
        let sights = (0..parts.log.partitions()).map(|_| Sight::new(&config, now)).collect();
        let stores = Stores {
            windows: parts.windows.clone(),
            billing: parts.billing.clone(),
            campaigns: parts.campaigns.clone(),
            decisions: parts.decisions.clone(),
        };
        let book = Mutex::new(Book::new(sights, Day::of(now.hour())));
        let limit = Duration::from_millis(config.budget_lag_ms_max);
        let health = Mutex::new(Health::new(limit, Instant::now()));
        let (stored, _) = watch::channel(0);
        Self { parts, stores, config, book, health, news: Notify::new(), stored }
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the sequence of the newest decision known to be stored.
    pub(super) fn tell_newest(&self, newest: u64) {
        self.stored.send_if_modified(|known| {
            let is_newer = newest > *known;
            *known = newest.max(*known);
            is_newer
        });
    }

    pub(super) fn note_failure(&self, what: &'static str, error: &Error) {
        tracing::warn!(error = %error.with_causes(), "{what}");
        metrics::counter!(BUDGET_STORE_FAILURES_TOTAL).increment(1);
    }

    /// Tells how a day of a campaign stands, `None` meaning today; nothing if the campaign was never set.
    pub(super) async fn report(
        &self,
        campaign: &CampaignId,
        day: Option<Day>,
    ) -> Result<Option<BudgetReport>> {
        let now = self.parts.clock.now();
        let is_down = self.health().is_down(Instant::now());
        let (day, today, kept, is_doubtful) = {
            let book = self.book();
            let day = day.unwrap_or(book.today());
            let is_current = day >= book.first_day();
            let kept = if is_current && book.is_seeded { book.report(campaign, day, now) } else { None };
            (day, book.today(), kept, is_current && (is_down || !book.is_opened(campaign)))
        };
        let mut report = match kept {
            Some(report) => report,
            None => {
                let Some(terms) = self.stores.campaign(campaign).await? else { return Ok(None) };
                self.stores.account(terms, day, day).await?.report(day, today, true, now)
            }
        };
        if is_doubtful && report.strict && report.state.is_some() {
            // No decision can be numbered while none can be stored; who asks is told all the same.
            report.state = Some(BudgetState::Unknown);
        }
        Ok(Some(report))
    }
}

/// Keeps budgets. A thin shell: decisions are made in `account`, and waits are `keeper`'s.
pub struct BudgetActor {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Actor for BudgetActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX_CAPACITY);
        let parts = &self.shared.parts;
        let publisher = Publisher {
            log: parts.log.clone(),
            decisions: parts.decisions.clone(),
            stored: self.shared.stored.subscribe(),
            fail_points: parts.fail_points.clone(),
        };
        self.tasks.push(actix::spawn(Keeper::new(self.shared.clone()).watch()));
        self.tasks.push(actix::spawn(Keeper::new(self.shared.clone()).decide()));
        self.tasks.push(actix::spawn(Reader::new(self.shared.clone()).run()));
        self.tasks.push(actix::spawn(publisher.run()));
    }

    fn stopped(&mut self, _context: &mut Self::Context) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Ends the actor. A decision being stored is stored or not, and the next start finds out which.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct StopBudgets;

impl Handler<StopBudgets> for BudgetActor {
    type Result = ();

    fn handle(&mut self, _message: StopBudgets, context: &mut Self::Context) {
        context.stop();
    }
}

/// Handle of the running budgets. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct Budgets {
    shared: Arc<Shared>,
    address: Addr<BudgetActor>,
    /// Emptied by the stop.
    arbiter: Arc<Mutex<Option<Arbiter>>>,
}

impl Budgets {
    /// Starts to keep budgets, on a thread of their own. What is stored is taken over in the background.
    ///
    /// MUST be called inside a running `actix::System`.
    ///
    /// # Errors
    /// `Config` if a setting is out of bounds; `Thread`.
    pub fn start(parts: BudgetParts, config: BudgetConfig) -> Result<Self> {
        config.validate()?;
        let arbiter =
            Arbiter::try_new().map_err(|source| Error::Thread { what: "the thread of budgets", source })?;
        let shared = Arc::new(Shared::new(parts, config));
        let actor = BudgetActor { shared: shared.clone(), tasks: Vec::new() };
        let address = BudgetActor::start_in_arbiter(&arbiter.handle(), move |_| actor);
        Ok(Self { shared, address, arbiter: Arc::new(Mutex::new(Some(arbiter))) })
    }

    /// Returns the sequence of the newest decision stored, as it grows.
    pub fn stored(&self) -> watch::Receiver<u64> {
        self.shared.stored.subscribe()
    }

    /// Tells how a day of a campaign stands, `None` meaning today; nothing if the campaign was never set.
    ///
    /// # Errors
    /// `Store` where the answer has to be read from one that fails.
    pub async fn report(&self, campaign: &CampaignId, day: Option<Day>) -> Result<Option<BudgetReport>> {
        self.shared.report(campaign, day).await
    }

    /// Stops keeping budgets.
    pub async fn stop(&self) {
        let _ = self.address.send(StopBudgets).await; // gone already is stopped as well
        let arbiter = self.arbiter.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(arbiter) = arbiter {
            arbiter.stop();
            let _ = tokio::task::spawn_blocking(move || drop(arbiter.join())).await;
        }
    }
}
