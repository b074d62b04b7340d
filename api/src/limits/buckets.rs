//! The buckets of a tier's keys.
//!
//! Guarantee: forgetting changes no decision: only a full bucket is forgotten, and a new one is full. There are never more
//! than there are keys in use.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::tokens::{Bucket, TokenClock};

/// Parts of the map with a lock each: many more than threads that serve requests.
const SHARDS: usize = 32;

/// One bucket a key, made when the key is first seen.
pub(super) struct Buckets {
    clock: TokenClock,
    burst: NonZeroU32,
    shards: [Mutex<HashMap<String, Arc<Bucket>>>; SHARDS],
}

impl Buckets {
    pub fn new(clock: TokenClock, burst: NonZeroU32) -> Self {
        Self { clock, burst, shards: Default::default() }
    }

    /// Returns the key's bucket.
    pub fn of(&self, key_id: &str) -> Arc<Bucket> {
        let mut hasher = DefaultHasher::new();
        key_id.hash(&mut hasher);
        // Smaller than the number of shards.
        let mut shard = self.lock((hasher.finish() % SHARDS as u64) as usize);
        if let Some(bucket) = shard.get(key_id) {
            return bucket.clone();
        }
        let bucket = Arc::new(Bucket::new(self.clock.clone(), self.burst));
        shard.insert(key_id.to_owned(), bucket.clone());
        bucket
    }

    /// Forgets full buckets that nobody holds.
    pub fn forget_full(&self) {
        for shard in 0..SHARDS {
            // A request that holds a bucket may be about to take from it.
            self.lock(shard).retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.is_full());
        }
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, HashMap<String, Arc<Bucket>>> {
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.lock(shard).len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tests::HandClock;
    use super::*;

    #[test]
    fn each_key_has_a_bucket_of_its_own_and_only_full_ones_are_forgotten() {
        let wall = HandClock::new();
        let clock = TokenClock::new(wall.clone(), 10);
        let buckets = Buckets::new(clock, NonZeroU32::new(10).expect("some"));
        buckets.of("a").take(10).expect("full");
        assert!(buckets.of("a").take(1).is_err());
        buckets.of("b").take(5).expect("full, whatever a did");
        let held = buckets.of("c");
        assert_eq!(buckets.len(), 3);
        buckets.forget_full();
        assert_eq!(buckets.len(), 3, "a and b are not full, c is held");
        held.take(1).expect("full");
        drop(held);
        wall.advance(600);
        buckets.forget_full();
        assert_eq!(buckets.len(), 1, "b and c are full again");
        assert!(buckets.of("a").take(10).is_err(), "a's bucket is not a new one");
    }
}
