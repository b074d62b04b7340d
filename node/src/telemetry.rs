//! What the node says of itself: log lines on stderr, metrics for Prometheus.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tracing_subscriber::EnvFilter;

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Human,
    /// One JSON object a line, for machines
    Json,
}

/// Seconds; from a fast append to a slow recompute.
const SECONDS_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0, 1800.0];

/// How often samples of histograms are sorted into their buckets: until then each takes memory of its own, whether or not
/// anybody reads the metrics.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Starts the log lines. `filter` is in the syntax of `RUST_LOG`.
pub fn start_logging(format: LogFormat, filter: &str) -> Result<()> {
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("log filter `{filter}` does not read"))?;
    let colours = std::io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let started = match format {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// Starts the metrics and returns what renders them.
pub fn start_metrics() -> Result<Arc<dyn Fn() -> String + Send + Sync>> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
        .context("metrics buckets")?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)
        .map_err(|error| anyhow::anyhow!("cannot start metrics: {error}"))?;
    twice_actors::metrics::describe();
    twice_reconciler::metrics::describe();
    twice_api::metrics::describe();
    crate::metrics::describe();
    let upkeep = handle.clone();
    std::thread::Builder::new()
        .name("metrics-upkeep".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(UPKEEP_EVERY);
                upkeep.run_upkeep();
            }
        })
        .context("cannot start the upkeep of metrics")?;
    Ok(Arc::new(move || {
        handle.run_upkeep();
        handle.render()
    }))
}
