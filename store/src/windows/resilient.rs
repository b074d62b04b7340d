//! The window store that outlives its disk: owns the handle, bounds each call, and opens the folder anew when it failed.
//!
//! Guarantee: no call waits longer than its limit, whatever the disk does, and no failure of the store ends anything but
//! the call. What was published and not flushed may be lost when the folder is opened anew: [`WindowStore::openings`]
//! says so, and the stream shows its windows again.
//! Words: *broken* = sled reported an error of its own or panicked. It then refuses everything for good, so its handle is
//! let go and the folder opened again, in the background, until that works.
//! Flow: handle there? breaker closed? -> call on a blocking thread, at most the limit -> broken: reopen.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tracing::{info, warn};
use twice_log::breaker::{Breaker, BreakerConfig, BreakerState};
use twice_log::{CampaignId, Hour, UtcMillis};

use super::{SledWindows, WindowRow, WindowStore};
use crate::error::{Error, Result};

/// How long publishing, flushing or removing a share of rows may take. Beyond, the disk is taken to hang; a loaded one
/// needs a second or two.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// Pauses between two attempts to open the folder.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often a folder that does not open is warned of.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// Rows removed in one call, and the pause after it: sled's process-wide lock is everybody's, dashboards and
/// checkpoints included, and a stop waits for a call under way.
const ROWS_REMOVED_AT_ONCE: usize = 1_000;
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

/// The window store of a node. Cheap to clone; clones share the handle.
#[derive(Debug, Clone)]
pub struct ResilientWindows {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    cache_bytes: u64,
    read_limit: Duration,
    breaker: Breaker,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` while the folder does not open.
    handle: Option<SledWindows>,
    /// Times the folder was opened.
    openings: u64,
    /// Why the store does not answer.
    failure: Option<String>,
}

impl ResilientWindows {
    /// Opens the folder as [`SledWindows::open`] does; reads may take `read_limit`.
    ///
    /// # Errors
    /// As for [`SledWindows::open`]: at the start an operator is there to follow the advice.
    pub async fn open(folder: &Path, cache_bytes: u64, read_limit: Duration) -> Result<Self> {
        let handle = SledWindows::open(folder, cache_bytes).await?;
        let state = State { handle: Some(handle), openings: 1, failure: None };
        let shared = Shared {
            folder: folder.to_owned(),
            cache_bytes,
            read_limit,
            breaker: Breaker::new(BreakerConfig::default()),
            state: Mutex::new(state),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns what the breaker before the store does with the next call.
    pub fn breaker(&self) -> BreakerState {
        self.shared.breaker.state(Instant::now())
    }

    /// Returns why the store does not answer; `None` while it does.
    pub fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }

    /// Asks a store that lately did not answer whether it answers again: without readers and clicks nobody would notice.
    pub async fn probe(&self) {
        if self.failure().is_some() {
            let _ = self.hours().await; // what comes of it is in the breaker
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(SledWindows) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (handle, opening) = self.shared.handle()?;
        let called = tokio::time::timeout(limit, super::sled::blocking(move || work(handle))).await;
        match called {
            Ok(Err(error @ Error::Windows { .. })) => {
                self.shared.broken(opening, &error);
                Err(error)
            }
            Ok(answer) => {
                self.shared.answered(opening);
                answer
            }
            Err(_) => {
                let reason = format!("it did not answer within {} ms", limit.as_millis());
                self.shared.failed(&reason);
                Err(unanswered(reason))
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the handle and the number of its opening, if a call may go out.
    fn handle(&self) -> Result<(SledWindows, u64)> {
        let state = self.lock();
        let reason = || state.failure.clone().unwrap_or_else(|| "it does not answer".to_owned());
        match &state.handle {
            Some(handle) if self.breaker.allow(Instant::now()) => Ok((handle.clone(), state.openings)),
            Some(_) | None => Err(unanswered(reason())),
        }
    }

    fn answered(&self, opening: u64) {
        let mut state = self.lock();
        if state.openings == opening && state.handle.is_some() {
            state.failure = None;
            self.breaker.succeeded();
        }
    }

    fn failed(&self, reason: &str) {
        self.lock().failure = Some(reason.to_owned());
        self.breaker.failed(Instant::now());
    }

    /// Lets go of the handle that failed, unless that was done, and begins to open the folder anew.
    fn broken(self: &Arc<Self>, opening: u64, error: &Error) {
        let reason = with_cause(error);
        self.failed(&reason);
        let mut state = self.lock();
        if state.openings != opening {
            return; // a call of the handle before this one
        }
        let Some(handle) = state.handle.take() else { return };
        warn!(folder = %self.folder.display(), reason, "window store failed; it is opened anew until that works");
        tokio::spawn(reopen(Arc::downgrade(self), handle));
    }
}

/// Opens the folder until that works or nobody wants it any more.
async fn reopen(shared: Weak<Shared>, broken: SledWindows) {
    // Its end may write, wait or panic.
    let _ = tokio::task::spawn_blocking(move || drop(broken)).await;
    let mut pause = REOPEN_PAUSE;
    let mut warned: Option<Instant> = None;
    loop {
        tokio::time::sleep(pause).await;
        let Some(shared) = shared.upgrade() else { return };
        match SledWindows::open(&shared.folder, shared.cache_bytes).await {
            Ok(handle) => {
                let mut state = shared.lock();
                *state = State { handle: Some(handle), openings: state.openings + 1, failure: None };
                shared.breaker.succeeded();
                info!(folder = %shared.folder.display(), "window store is open again");
                return;
            }
            Err(error) => {
                let now = Instant::now();
                let reason = with_cause(&error);
                if warned.is_none_or(|warned| now - warned >= WARNING_INTERVAL) {
                    warned = Some(now);
                    warn!(folder = %shared.folder.display(), reason, "window store does not open, trying again");
                }
                shared.failed(&reason);
            }
        }
        pause = (pause * 2).min(REOPEN_PAUSE_MAX);
    }
}

fn unanswered(reason: String) -> Error {
    Error::Unanswered { store: "the real-time store", reason }
}

fn with_cause(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[async_trait]
impl WindowStore for ResilientWindows {
    async fn publish(&self, rows: Vec<WindowRow>) -> Result<()> {
        self.call(WRITE_LIMIT, move |windows| rows.iter().try_for_each(|row| windows.publish_row(row))).await
    }

    async fn read(&self, campaign: &CampaignId, from: UtcMillis, to: UtcMillis) -> Result<Vec<WindowRow>> {
        let campaign = campaign.clone();
        self.call(self.shared.read_limit, move |windows| windows.read_range(&campaign, from, to)).await
    }

    async fn flush(&self) -> Result<()> {
        self.call(WRITE_LIMIT, |windows| windows.flush_all()).await
    }

    async fn remove_hours(&self, hours: &[Hour]) -> Result<()> {
        for hour in hours.iter().copied() {
            while self
                .call(WRITE_LIMIT, move |windows| windows.remove_some(hour, ROWS_REMOVED_AT_ONCE))
                .await?
            {
                tokio::time::sleep(REMOVAL_PAUSE).await;
            }
        }
        Ok(())
    }

    async fn hours(&self) -> Result<Vec<Hour>> {
        self.call(self.shared.read_limit, |windows| windows.list_hours()).await
    }

    fn openings(&self) -> u64 {
        self.shared.lock().openings
    }
}

#[cfg(test)]
mod tests {
    use twice_log::{Generation, LogOffset};

    use super::*;
    use crate::sketch::UserSketch;
    use crate::windows::Fence;

    const LIMIT: Duration = Duration::from_secs(20);

    fn row(minute: i64) -> WindowRow {
        WindowRow {
            campaign_id: CampaignId::new("c").expect("valid"),
            window_start: UtcMillis::clamped(minute * 60_000),
            fence: Fence { lease_epoch: 0, generation: Generation(0), applied: LogOffset(minute) },
            clicks: 1,
            users: UserSketch::default(),
            ads: Vec::new(),
        }
    }

    async fn open(folder: &Path) -> ResilientWindows {
        ResilientWindows::open(folder, 1 << 20, LIMIT).await.expect("opens")
    }

    async fn rows(windows: &ResilientWindows) -> Result<usize> {
        let campaign = CampaignId::new("c").expect("valid");
        let read = windows.read(&campaign, UtcMillis::clamped(0), UtcMillis::clamped(i64::MAX)).await;
        read.map(|rows| rows.len())
    }

    fn an_io_error() -> Error {
        Error::Windows { action: "flush", source: sled::Error::Io(std::io::ErrorKind::StorageFull.into()) }
    }

    #[tokio::test]
    async fn a_store_that_failed_is_opened_anew_and_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let windows = open(folder.path()).await;
        windows.publish(vec![row(1)]).await.expect("stored");
        windows.flush().await.expect("flushed");
        assert_eq!(windows.openings(), 1);

        windows.shared.broken(1, &an_io_error());
        let refused = rows(&windows).await.expect_err("it is down");
        assert!(
            matches!(refused, Error::Unanswered { .. }) && refused.to_string().contains("flush"),
            "{refused}"
        );
        assert!(windows.failure().is_some());
        // A late call of the old handle changes nothing.
        windows.shared.broken(1, &an_io_error());

        let begun = Instant::now();
        while rows(&windows).await.is_err() {
            assert!(begun.elapsed() < LIMIT, "{:?}", windows.failure());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(rows(&windows).await.expect("reads"), 1, "what was flushed is there");
        assert_eq!((windows.openings(), windows.failure()), (2, None));
        windows.publish(vec![row(2)]).await.expect("stored");
    }

    #[tokio::test]
    async fn calls_that_are_not_answered_in_time_close_the_door_for_a_while() {
        let folder = tempfile::tempdir().expect("a folder");
        let windows = open(folder.path()).await;
        for _ in 0..3 {
            let slow = windows.call(Duration::from_millis(1), |_| {
                std::thread::sleep(Duration::from_millis(100));
                Ok(())
            });
            assert!(matches!(slow.await, Err(Error::Unanswered { .. })));
        }
        assert_eq!(windows.breaker(), BreakerState::Open);
        let refused = rows(&windows).await.expect_err("not even asked");
        assert!(refused.to_string().contains("did not answer"), "{refused}");
        let begun = Instant::now();
        while rows(&windows).await.is_err() {
            assert!(begun.elapsed() < LIMIT);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((windows.breaker(), windows.openings()), (BreakerState::Closed, 1));
    }

    #[tokio::test]
    async fn hours_are_removed_share_by_share_until_nothing_is_left_of_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let windows = open(folder.path()).await;
        let of = |campaign: usize, minute| WindowRow {
            campaign_id: CampaignId::new(format!("c{campaign}")).expect("valid"),
            ..row(minute)
        };
        let many = (0..ROWS_REMOVED_AT_ONCE + 10).map(|campaign| of(campaign, 1)).chain([of(0, 61)]);
        windows.publish(many.collect()).await.expect("stored");
        windows.remove_hours(&[Hour::from_since_epoch(0)]).await.expect("removed");
        assert_eq!(windows.hours().await.expect("listed"), [Hour::from_since_epoch(1)]);
    }
}
