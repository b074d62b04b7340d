//! Turns for requests that read much: so few at once that the others still find a reader.
//!
//! Guarantee: long lists hold at most [`LISTS_MAX`] of the store's few readers, whoever asks; explanations run in at most
//! [`EXPLANATIONS_MAX`] child processes, one for each key.
//! A list waits for its turn, as a page takes milliseconds to seconds; an explanation does not, as it takes longer.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// Half of the readers the store has.
const LISTS_MAX: usize = 2;
/// How long a list waits for its turn.
const LIST_WAIT: Duration = Duration::from_secs(2);
/// Each is a process that may take as much memory as a run of an hour.
const EXPLANATIONS_MAX: usize = 2;

/// The places there are.
#[derive(Debug)]
pub(crate) struct Turns {
    lists: Arc<Semaphore>,
    list_wait: Duration,
    explanations: Arc<Semaphore>,
    explaining: Arc<Mutex<HashSet<String>>>,
}

/// A place, free again when this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
    /// The key that explains, and those that do.
    of_key: Option<(String, Arc<Mutex<HashSet<String>>>)>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            lists: Arc::new(Semaphore::new(LISTS_MAX)),
            list_wait: LIST_WAIT,
            explanations: Arc::new(Semaphore::new(EXPLANATIONS_MAX)),
            explaining: Arc::default(),
        }
    }
}

impl Turns {
    /// Waits for the turn of a list.
    ///
    /// # Errors
    /// `Overloaded` if none comes soon.
    pub async fn list(&self, retry_after_s: u32) -> Result<Turn> {
        let waited = tokio::time::timeout(self.list_wait, self.lists.clone().acquire_owned()).await;
        match waited {
            Ok(Ok(permit)) => Ok(Turn { _permit: permit, of_key: None }),
            _ => Err(Error::Overloaded { retry_after_s }),
        }
    }

    /// Takes a place for an explanation.
    ///
    /// # Errors
    /// `Overloaded` if there is none, or the key has one.
    pub fn explanation(&self, key_id: &str, retry_after_s: u32) -> Result<Turn> {
        let overloaded = || Error::Overloaded { retry_after_s };
        let permit = self.explanations.clone().try_acquire_owned().map_err(|_| overloaded())?;
        // Without keys there is nobody to tell apart.
        let mut of_key = None;
        if !key_id.is_empty() {
            let mut explaining = self.explaining.lock().unwrap_or_else(PoisonError::into_inner);
            if !explaining.insert(key_id.to_owned()) {
                return Err(overloaded());
            }
            of_key = Some((key_id.to_owned(), self.explaining.clone()));
        }
        Ok(Turn { _permit: permit, of_key })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((key_id, explaining)) = &self.of_key {
            explaining.lock().unwrap_or_else(PoisonError::into_inner).remove(key_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanations_are_few_and_one_for_each_key() {
        let turns = Turns::default();
        let first = turns.explanation("a", 1).expect("free");
        assert!(turns.explanation("a", 1).is_err(), "the key has one");
        let second = turns.explanation("b", 1).expect("free");
        assert!(turns.explanation("c", 1).is_err(), "both are taken");
        drop((first, second));
        let _again = turns.explanation("a", 1).expect("free again");
    }

    #[actix_web::test]
    async fn lists_wait_for_a_turn_and_not_for_ever() {
        let turns = Turns { list_wait: Duration::from_millis(10), ..Turns::default() };
        let (first, _second) = (turns.list(1).await.expect("free"), turns.list(1).await.expect("free"));
        assert!(matches!(turns.list(1).await, Err(Error::Overloaded { .. })));
        let (third, ()) = tokio::join!(turns.list(1), async { drop(first) });
        let _third = third.expect("free when the first ends");
    }
}
