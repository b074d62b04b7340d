//! End-to-end tests take turns: each starts a node that wants both cores.

use std::sync::{Mutex, MutexGuard};

static TURN: Mutex<()> = Mutex::new(());

/// Waits for the other tests of this process and returns the turn.
///
/// nextest, which gives each test its own process, keeps the same order by the `end-to-end` group of
/// `.config/nextest.toml`. A test that failed while it had the turn does not spoil it for the next.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
