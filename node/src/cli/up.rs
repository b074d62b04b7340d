//! `twice up`: everything in one process, on embedded parts or on Fluvio and S3.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use twice_actors::{ArchiverConfig, BudgetConfig, ReplayConfig, StreamConfig};
use twice_api::{Access, ApiConfig};
use twice_log::archive::CountingSettings;
use twice_log::archive::s3::S3Config;
use twice_log::fail::FailPoints;
use twice_log::spool::SpoolConfig;
use twice_reconciler::ReconcilerConfig;

use super::{Agreement, Outcome};
use crate::disk::DiskConfig;
use crate::listen::{ListenConfig, raise_file_limit};
use crate::log::LogConfig;
use crate::node::{Node, NodeConfig};
use crate::privacy::PrivacyConfig;
use crate::stores::StoresConfig;
use crate::telemetry::{self, LogFormat};
use crate::trim::TrimConfig;

/// Runs everything in one process: gateway, stream, archive, reconciler and dashboard. Log and archive are in
/// the data folder, or with --log fluvio and --archive s3://… in a Fluvio cluster and a bucket.
///
/// Every setting is also a key of the config file and a variable: --close-delay-ms is `close_delay_ms = …` and
/// TWICE_CLOSE_DELAY_MS. Flags win over variables, variables over the file. SIGTERM or Ctrl-C stops gracefully.
#[derive(Debug, Clone, Args)]
pub struct Up {
    /// Settings as TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything is kept
    #[arg(long, default_value = "./twice-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Address to serve on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    #[command(flatten)]
    sockets: ListenConfig,
    /// Serve without API keys, which is allowed on loopback only. Left out, the first start shows a key
    #[arg(long)]
    insecure_no_auth: bool,
    /// Form of the log lines
    #[arg(long, value_enum, default_value = "human")]
    log_format: LogFormat,
    /// Which log lines are written, in the syntax of RUST_LOG
    #[arg(
        long,
        default_value = "info,actix_server=warn,fluvio=warn,object_store=warn",
        value_name = "FILTER"
    )]
    log_filter: String,
    /// Page cache of the real-time window store, bytes
    #[arg(long, default_value_t = 128 << 20, value_name = "BYTES")]
    windows_cache_bytes: u64,
    /// End the process at a fail point; for tests of crashes only
    #[arg(long, hide = true)]
    fail_point: Option<FailPoints>,
    #[command(flatten)]
    stores: StoresConfig,
    #[command(flatten)]
    disk: DiskConfig,
    #[command(flatten)]
    counting: Counting,
    #[command(flatten, next_help_heading = "Log")]
    log: LogConfig,
    #[command(flatten, next_help_heading = "Log")]
    trim: TrimConfig,
    #[command(flatten, next_help_heading = "Spool")]
    spool: SpoolConfig,
    #[command(flatten, next_help_heading = "Stream path")]
    stream: StreamConfig,
    #[command(flatten, next_help_heading = "Budgets")]
    budget: BudgetConfig,
    #[command(flatten, next_help_heading = "Archiver")]
    archiver: ArchiverConfig,
    #[command(flatten, next_help_heading = "Archive on S3")]
    s3: S3Config,
    #[command(flatten, next_help_heading = "Reconciler")]
    reconciler: ReconcilerConfig,
    #[command(flatten, next_help_heading = "Privacy")]
    privacy: PrivacyConfig,
    #[command(flatten, next_help_heading = "Replay")]
    replay: ReplayConfig,
    #[command(flatten, next_help_heading = "HTTP")]
    api: ApiConfig,
}

/// Counting rules that may be set. Both paths use the same values, and every run records them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Counting rules")]
struct Counting {
    /// Horizon of duplicates of an hourly run, in hours
    #[arg(long, default_value_t = CountingSettings::default().horizon_hours, value_name = "HOURS")]
    horizon_hours: u32,
    /// Disorder of events allowed under the watermark
    #[arg(long, default_value_t = CountingSettings::default().disorder_ms, value_name = "MS")]
    disorder_ms: i64,
    /// Grace after a window's end before a click is late for the stream
    #[arg(long, default_value_t = CountingSettings::default().grace_ms, value_name = "MS")]
    grace_ms: i64,
    /// Horizon of duplicates of the stream
    #[arg(long, default_value_t = CountingSettings::default().stream_dedup_ms, value_name = "MS")]
    stream_dedup_ms: i64,
}

/// Where the node serves.
struct Place {
    listen: SocketAddr,
    sockets: ListenConfig,
    scheme: &'static str,
}

/// Runs the command until a signal stops it.
pub fn run(arguments: Up) -> Result<Outcome> {
    let access = if arguments.insecure_no_auth { Access::Open } else { Access::Keyed };
    if access == Access::Open && !arguments.listen.ip().is_loopback() {
        bail!("--insecure-no-auth serves on loopback only; --listen {} is open to others", arguments.listen);
    }
    telemetry::start_logging(arguments.log_format, &arguments.log_filter)?;
    let render_metrics = telemetry::start_metrics()?;
    let is_plain = arguments.api.edge.tls_cert.is_none();
    if is_plain && !arguments.listen.ip().is_loopback() {
        tracing::warn!(listen = %arguments.listen, "keys and clicks travel in the clear: no tls_cert is set");
    }
    raise_file_limit(arguments.api.edge.connections_max);
    let scheme = if is_plain { "http" } else { "https" };
    let place = Place { listen: arguments.listen, sockets: arguments.sockets, scheme };
    let counting = CountingSettings {
        horizon_hours: arguments.counting.horizon_hours.max(1),
        disorder_ms: arguments.counting.disorder_ms,
        grace_ms: arguments.counting.grace_ms,
        stream_dedup_ms: arguments.counting.stream_dedup_ms,
    };
    let mut reconciler = arguments.reconciler;
    reconciler.spill_dir = arguments.data_dir.join("spill");
    reconciler.counting = counting;
    let config = NodeConfig {
        data_dir: arguments.data_dir,
        counting,
        log: arguments.log,
        spool: arguments.spool,
        stream: arguments.stream,
        budget: arguments.budget,
        archiver: arguments.archiver,
        s3: arguments.s3,
        reconciler,
        privacy: arguments.privacy,
        replay: arguments.replay,
        api: arguments.api,
        windows_cache_bytes: arguments.windows_cache_bytes,
        stores: arguments.stores,
        disk: arguments.disk,
        trim: arguments.trim,
        fail_points: arguments.fail_point.unwrap_or_default(),
        access,
        render_metrics,
    };
    actix_web::rt::System::new().block_on(serve(config, place))?;
    Ok(Outcome::Done(Agreement::Agreed))
}

async fn serve(config: NodeConfig, place: Place) -> Result<()> {
    // Before anything opens: a signal during a long start must stop it gracefully too.
    let mut terminate = signal(SignalKind::terminate()).context("cannot take SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot take SIGINT")?;
    let listeners = place.sockets.open(place.listen).await?;
    let address = listeners.public.local_addr().context("the listening socket has no address")?;
    let (node, server, handle) = Node::start(config, listeners).await?;
    let serving = actix_web::rt::spawn(server);
    tracing::info!("listening on {}://{address}", place.scheme);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: requests in flight finish, then everything is written down");
    // First what takes long: requests that wait for a run end with it.
    node.stop_long_work().await;
    handle.stop(true).await;
    let served = serving.await.context("the HTTP server")?;
    node.stop().await?;
    served.context("the HTTP server")?;
    tracing::info!("stopped");
    Ok(())
}
