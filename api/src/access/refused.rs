//! Actions that a key was refused, counted so that few of them need a note.
//!
//! Guarantee: at most one note a minute for each key and status; the next one says how many had none.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use twice_log::UtcMillis;

/// Time in which one note is enough.
const QUIET_MS: u64 = 60_000;

/// What was refused since the last note, by key and status. Only keys of ours come here, so there are as many at most.
#[derive(Debug, Default)]
pub(crate) struct RefusedActions(Mutex<HashMap<(String, Option<u16>), Since>>);

#[derive(Debug)]
struct Since {
    noted_at: UtcMillis,
    left_out: u64,
}

impl RefusedActions {
    /// Counts one that was refused; returns how many were left out before it if it is to be noted.
    pub fn take(&self, key_id: &str, status: Option<u16>, now: UtcMillis) -> Option<u64> {
        let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(since) = refused.get_mut(&(key_id.to_owned(), status)) else {
            refused.insert((key_id.to_owned(), status), Since { noted_at: now, left_out: 0 });
            return Some(0);
        };
        // However the clock was set meanwhile.
        if now.epoch_ms().abs_diff(since.noted_at.epoch_ms()) < QUIET_MS {
            since.left_out += 1;
            return None;
        }
        since.noted_at = now;
        Some(std::mem::take(&mut since.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_note_a_minute_for_each_key_and_status_says_how_many_had_none() {
        let refused = RefusedActions::default();
        let at = |ms: i64| UtcMillis::clamped(1_736_942_400_000 + ms);
        assert_eq!(refused.take("a", Some(403), at(0)), Some(0));
        for ms in 1..=1_000 {
            assert_eq!(refused.take("a", Some(403), at(ms)), None);
        }
        assert_eq!(refused.take("a", Some(401), at(1_000)), Some(0), "another status");
        assert_eq!(refused.take("b", Some(403), at(1_000)), Some(0), "another key");
        assert_eq!(refused.take("a", Some(403), at(60_000)), Some(1_000));
        assert_eq!(refused.take("a", Some(403), at(-1)), Some(0), "a clock set back does not silence it");
    }
}
