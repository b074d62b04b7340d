//! What one request may send.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use twice_store::Tier;

use super::RateLimits;
use super::plan::{Canary, Fate, InForce, Plan, tier_name};
use super::tokens::{Bucket, Short};
use crate::error::{Error, Result};
use crate::ingest::IngestAnswer;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// How a batch may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// Within the limit: into the log.
    Within,
    /// Over the limit of a premium key: into the spill queue.
    Over { retry_after_s: u32 },
}

/// What one request may send; without a key, everything.
pub(crate) struct Allowance {
    limits: Arc<RateLimits>,
    key: Option<OfKey>,
}

struct OfKey {
    id: String,
    in_force: Arc<InForce>,
    bucket: Arc<Bucket>,
    tier: Tier,
    /// The canary under way, of other keys or of this one.
    canary: Option<Arc<Canary>>,
}

impl Allowance {
    pub(super) fn unlimited(limits: Arc<RateLimits>) -> Self {
        Self { limits, key: None }
    }

    pub(super) fn of_key(limits: Arc<RateLimits>, plan: &Plan, key_id: &str, tier: Tier) -> Self {
        let in_force = plan.of(key_id).clone();
        let bucket = in_force.tier(tier).buckets.of(key_id);
        let id = key_id.to_owned();
        Self { limits, key: Some(OfKey { id, in_force, bucket, tier, canary: plan.canary.clone() }) }
    }

    /// Refuses before the body is read, where not one click would pass: a flood costs its headers only. Premium keys are
    /// never refused here.
    ///
    /// # Errors
    /// `TooManyRequests`.
    pub fn glance(&self) -> Result<()> {
        let Some(key) = self.key.as_ref().filter(|key| key.tier == Tier::Standard) else { return Ok(()) };
        key.bucket.glance().map_err(|short| {
            key.decided(true);
            self.refused(key, 0, short)
        })
    }

    /// Decides about a batch of so many clicks, those the door refused included: they cost the same work.
    ///
    /// # Errors
    /// `TooManyRequests` for a standard key over its limit; nothing of the batch may be stored then.
    pub fn take(&self, clicks: u32) -> Result<Passage> {
        let Some(key) = &self.key else { return Ok(Passage::Within) };
        let taken = key.bucket.take(clicks);
        key.decided(taken.is_err());
        match taken {
            Ok(()) => {
                self.count(key, Fate::Accepted, clicks);
                Ok(Passage::Within)
            }
            Err(Short { retry_after_s }) if key.tier == Tier::Premium => Ok(Passage::Over { retry_after_s }),
            Err(short) => Err(self.refused(key, clicks, short)),
        }
    }

    /// Notes what became of a batch within the limit: how long its append took, and how many of its clicks are to be sent
    /// again, which then will be taken again.
    pub fn settle(&self, answer: &IngestAnswer, took: Duration) {
        if answer.accepted > 0 {
            self.limits.latency.note(took);
        }
        let again = u32::try_from(answer.retry.len()).unwrap_or(u32::MAX);
        if let Some(key) = self.key.as_ref().filter(|_| again > 0) {
            key.bucket.give_back(again);
        }
    }

    /// Returns the key's id; empty without a key.
    pub fn key_id(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.id)
    }

    /// Notes a batch over the limit that the spill queue took.
    pub fn spilled(&self, clicks: u32) {
        if let Some(key) = &self.key {
            self.count(key, Fate::Spilled, clicks);
        }
    }

    /// Notes a batch over the limit that found the spill queue full, and returns its answer.
    pub fn found_no_room(&self, clicks: u32, retry_after_s: u32) -> Error {
        match &self.key {
            Some(key) => self.refused(key, clicks, Short { retry_after_s }),
            None => Error::Overloaded { retry_after_s },
        }
    }

    /// Tells the sender what it has left, in the fields of the IETF's draft (`RateLimit`, `RateLimit-Policy`).
    pub fn stamp(&self, headers: &mut HeaderMap) {
        let Some(key) = &self.key else { return };
        let tier = key.in_force.tier(key.tier);
        let burst = tier.limits.burst;
        let window_s = burst.div_ceil(tier.clicks_per_second().max(1)).max(1);
        let rest = key.bucket.rest();
        let policy = format!("\"clicks\";q={burst};w={window_s}");
        let left = format!("\"clicks\";r={};t={}", rest.clicks, rest.full_in_s);
        for (name, value) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, left)] {
            // Digits and letters are always a header value.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }

    fn refused(&self, key: &OfKey, clicks: u32, Short { retry_after_s }: Short) -> Error {
        self.count(key, Fate::Limited, clicks);
        let limit = key.in_force.tier(key.tier).clicks_per_second();
        let tier = tier_name(key.tier);
        let detail = format!(
            "the key's limit, now {limit} clicks a second (tier {tier}), is used up; nothing of this request was stored, \
             send it again in {retry_after_s} s"
        );
        Error::TooManyRequests { detail, retry_after_s }
    }

    fn count(&self, key: &OfKey, fate: Fate, clicks: u32) {
        key.in_force.tier(key.tier).count(fate, clicks);
        let totals = &self.limits.totals;
        totals.requests.fetch_add(1, Ordering::Relaxed);
        totals.limited.fetch_add(u64::from(fate == Fate::Limited), Ordering::Relaxed);
    }
}

impl OfKey {
    /// Counts a decision in the figures the canary is judged by.
    fn decided(&self, is_over: bool) {
        if let Some(canary) = &self.canary {
            canary.decided(&self.in_force, is_over);
        }
    }
}
