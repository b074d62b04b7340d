//! Settings of the HTTP face.

use clap::{ArgAction, Args};
use twice_log::event::json::AgeLimits;

use crate::edge::EdgeConfig;
use crate::error::{Error, Result};
use crate::limits::LimitsConfig;

/// Settings of the HTTP face; every one has a default that suits one machine.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ApiConfig {
    /// Threads that serve requests, 1 to 256; 0 = one a core. More than the cores only adds switching. Default 0.
    #[arg(long, default_value_t = ApiConfig::default().workers)]
    pub workers: u16,
    /// Largest request body, counted after decompression, at most 1 GiB; more is answered 413. A bigger body means
    /// fewer requests and more memory a request. Default 16 MiB.
    #[arg(long, default_value_t = ApiConfig::default().body_bytes_max)]
    pub body_bytes_max: u32,
    /// Memory for request bodies that are there at the same time, unpacked, at least `body_bytes_max` and at most 1 TiB;
    /// what does not fit is answered 503. While a body is checked it takes about twice as much. Default 256 MiB.
    #[arg(long, default_value_t = ApiConfig::default().bodies_bytes_max)]
    pub bodies_bytes_max: u64,
    /// Most clicks or verdicts of one request, 1 to 1 000 000; more is answered 413. Default 50 000.
    #[arg(long, default_value_t = ApiConfig::default().batch_records_max)]
    pub batch_records_max: u32,
    /// Time a client has to send its body, at least 100; slower is answered 408. Default 30 000.
    #[arg(long, default_value_t = ApiConfig::default().body_timeout_ms)]
    pub body_timeout_ms: u32,
    /// Clicks older than this are refused (CR-7), at most 400 days; imports lift it for their hours. Default 7 days.
    #[arg(long, default_value_t = ApiConfig::default().click_age_ms_max)]
    pub click_age_ms_max: i64,
    /// Clicks further than this in the future are refused (CR-7), at most one day. Default 5 minutes.
    #[arg(long, default_value_t = ApiConfig::default().click_future_ms_max)]
    pub click_future_ms_max: i64,
    /// Proxies of ours in front of the gateway: the address of a click is then taken that many places from the right
    /// of `X-Forwarded-For`. 0 = the peer's own address, the header is not believed. Default 0.
    #[arg(long, default_value_t = ApiConfig::default().trusted_proxies)]
    pub trusted_proxies: u8,
    /// Serve `/metrics` without a key; else it needs one with scope `admin`. Open it to a scraper of your own network only:
    /// the numbers are of all campaigns. Default false.
    #[arg(long, default_value_t = ApiConfig::default().metrics_open, action = ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true")]
    pub metrics_open: bool,
    /// How often keys are read again, 100 to 600 000: a key that another process revoked is refused that much later; one
    /// revoked through this node is refused at once. Shorter asks the store more often. Default 2 000.
    #[arg(long, default_value_t = ApiConfig::default().key_reload_ms)]
    pub key_reload_ms: u32,
    /// Most hours one import may announce, 1 to 100 000. Default 10 000.
    #[arg(long, default_value_t = ApiConfig::default().import_hours_max)]
    pub import_hours_max: u32,
    /// Most rows one answer about clicks holds, 1 to 100 000; a wider range is answered 422. Default 1 500.
    #[arg(long, default_value_t = ApiConfig::default().query_rows_max)]
    pub query_rows_max: u32,
    /// Questions about clicks answered at once, 1 to 10 000; more are answered 503. Default 64.
    #[arg(long, default_value_t = ApiConfig::default().queries_in_flight_max)]
    pub queries_in_flight_max: u32,
    /// Most billed hours one question reads aggregates of (minutes, ads, unique users), 24 to 10 000; the newest are read,
    /// and the answer says so. More hours mean more reads of the archive. Default 768, which is 32 days.
    #[arg(long, default_value_t = ApiConfig::default().query_aggregate_hours_max)]
    pub query_aggregate_hours_max: u32,
    /// Memory for aggregates that were read, 1 MiB to 64 GiB. A campaign's day takes about 100 bytes an ad and minute, up
    /// to 4 KiB where its users are many. Default 64 MiB.
    #[arg(long, default_value_t = ApiConfig::default().query_cache_bytes_max)]
    pub query_cache_bytes_max: u64,
    /// Event streams (`/v1/budget-decisions`, `…/live`) open at once, 1 to 100 000; more are answered 503. Each takes a
    /// connection and a few KiB. Default 1 000.
    #[arg(long, default_value_t = ApiConfig::default().event_streams_max)]
    pub event_streams_max: u32,
    /// Time without an event after which an event stream sends a comment, 100 to 600 000. Shorter finds dead connections
    /// sooner. Default 15 000.
    #[arg(long, default_value_t = ApiConfig::default().event_heartbeat_ms)]
    pub event_heartbeat_ms: u32,
    /// Seconds named in `Retry-After` of a 503. Default 1.
    #[arg(long, default_value_t = ApiConfig::default().retry_after_s)]
    pub retry_after_s: u32,
    /// Time requests in flight get to finish at a graceful stop. Default 30.
    #[arg(long, default_value_t = ApiConfig::default().shutdown_timeout_s)]
    pub shutdown_timeout_s: u32,
    #[command(flatten)]
    pub edge: EdgeConfig,
    #[command(flatten)]
    pub limits: LimitsConfig,
}

impl Default for ApiConfig {
    fn default() -> Self {
        let limits = AgeLimits::default();
        Self {
            workers: 0,
            body_bytes_max: 16 << 20,
            bodies_bytes_max: 256 << 20,
            batch_records_max: 50_000,
            body_timeout_ms: 30_000,
            click_age_ms_max: limits.past_ms_max.unwrap_or(7 * DAY_MS),
            click_future_ms_max: limits.future_ms_max,
            trusted_proxies: 0,
            metrics_open: false,
            key_reload_ms: 2_000,
            import_hours_max: 10_000,
            query_rows_max: 1_500,
            queries_in_flight_max: 64,
            query_aggregate_hours_max: 768,
            query_cache_bytes_max: 64 << 20,
            event_streams_max: 1_000,
            event_heartbeat_ms: 15_000,
            retry_after_s: 1,
            shutdown_timeout_s: 30,
            edge: EdgeConfig::default(),
            limits: LimitsConfig::default(),
        }
    }
}

const DAY_MS: i64 = 86_400_000;

impl ApiConfig {
    /// Checks every bound; called once at start-up.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting and its bound.
    pub fn validate(&self) -> Result<()> {
        within("workers", self.workers.into(), 0, 256)?;
        within("body_bytes_max", self.body_bytes_max.into(), 1_024, 1 << 30)?;
        let bodies_bytes = i64::try_from(self.bodies_bytes_max).unwrap_or(i64::MAX);
        // One body must fit, with the step that is taken ahead of it.
        let body_bytes = i64::from(self.body_bytes_max) + 1_024;
        within("bodies_bytes_max", bodies_bytes, body_bytes, 1 << 40)?;
        within("batch_records_max", self.batch_records_max.into(), 1, 1_000_000)?;
        within("body_timeout_ms", self.body_timeout_ms.into(), 100, DAY_MS)?;
        within("click_age_ms_max", self.click_age_ms_max, 0, 400 * DAY_MS)?;
        within("click_future_ms_max", self.click_future_ms_max, 0, DAY_MS)?;
        within("key_reload_ms", self.key_reload_ms.into(), 100, 600_000)?;
        within("import_hours_max", self.import_hours_max.into(), 1, 100_000)?;
        within("query_rows_max", self.query_rows_max.into(), 1, 100_000)?;
        within("queries_in_flight_max", self.queries_in_flight_max.into(), 1, 10_000)?;
        within("query_aggregate_hours_max", self.query_aggregate_hours_max.into(), 24, 10_000)?;
        let cache_bytes = i64::try_from(self.query_cache_bytes_max).unwrap_or(i64::MAX);
        within("query_cache_bytes_max", cache_bytes, 1 << 20, 64 << 30)?;
        within("event_streams_max", self.event_streams_max.into(), 1, 100_000)?;
        within("event_heartbeat_ms", self.event_heartbeat_ms.into(), 100, 600_000)?;
        within("retry_after_s", self.retry_after_s.into(), 0, 3_600)?;
        within("shutdown_timeout_s", self.shutdown_timeout_s.into(), 0, 3_600)?;
        self.edge.validate()?;
        self.limits.validate()
    }

    /// Returns the age limits of the door.
    pub(crate) fn age_limits(&self) -> AgeLimits {
        AgeLimits { past_ms_max: Some(self.click_age_ms_max), future_ms_max: self.click_future_ms_max }
    }
}

pub(crate) fn within(setting: &'static str, value: i64, lowest: i64, highest: i64) -> Result<()> {
    if (lowest..=highest).contains(&value) {
        Ok(())
    } else {
        Err(Error::Config { setting, value, lowest, highest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_lie_within_their_bounds() {
        ApiConfig::default().validate().expect("valid");
    }

    #[test]
    fn a_setting_out_of_bounds_is_named() {
        let config = ApiConfig { batch_records_max: 0, ..ApiConfig::default() };
        let error = config.validate().expect_err("out of bounds").to_string();
        assert!(error.contains("batch_records_max"), "{error}");
    }
}
