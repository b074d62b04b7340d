//! The flags of every subcommand, each with short and long help.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::units::{EventStart, Share, parse_duration, parse_event_start, parse_share};
use crate::ledger::Worker;
use crate::run::BodyForm;
use crate::stream::Profile;

/// Where the node is and how to reach it.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Address of the node.
    ///
    /// Plain HTTP, such as http://127.0.0.1:8080. Put a proxy in front of a node that speaks TLS only.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub target: String,
    /// API key sent with every request.
    ///
    /// Needs the right to write clicks and campaigns (run) or to read billing and to reconcile (verify). A node that
    /// runs with --insecure-no-auth needs none.
    #[arg(long, value_name = "KEY", env = "TWICE_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Longest wait for one answer.
    ///
    /// A request that takes longer has an unknown outcome; it is sent again with the same click ids.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Longest time without success before giving up.
    ///
    /// While the node is down or answers `retry`, requests are repeated. After this long without success the command
    /// stops, and the ledger says which clicks were never acknowledged.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    pub give_up_after: Duration,
}

/// What the stream consists of. The same values give the same stream, byte for byte.
#[derive(Debug, Clone, Args)]
pub struct StreamArgs {
    /// Seed of the stream.
    ///
    /// Decides every click id, campaign, time and copy. Two runs with one seed send the same clicks: a second run
    /// into the same data is all duplicates, so give it another seed.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// What kind of load it is.
    ///
    /// Seeded like everything else: the same flags give the same clicks, at the same moments.
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// Number of campaigns.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub campaigns: u32,
    /// Exponent of the popularity of campaigns.
    ///
    /// Campaign number n gets a share proportional to 1 / n^exponent. 0 makes all equally popular.
    #[arg(long, value_name = "EXPONENT", default_value_t = 1.05)]
    pub zipf: f64,
    /// Share of copies that repeat an earlier click unchanged.
    #[arg(long, value_name = "SHARE", default_value = "0.6%", value_parser = parse_share)]
    pub duplicates: Share,
    /// Share of clicks that come too late for the stream path.
    ///
    /// Their event time lies more than disorder + window + grace (95 s) behind the newest one sent, so that only the
    /// batch path counts them.
    #[arg(long, value_name = "SHARE", default_value = "0.3%", value_parser = parse_share)]
    pub late: Share,
    /// Share of copies that repeat an earlier click with another payload.
    ///
    /// Another ad, or another event time, also in the hour before or after. Such a copy goes out only after its
    /// original was acknowledged: else nobody could say which of the two won.
    #[arg(long, value_name = "SHARE", default_value = "0.1%", value_parser = parse_share)]
    pub conflicts: Share,
    /// Number of ads a campaign has.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub ads: u32,
    /// Number of users.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub users: u32,
    /// Number of publishers.
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub publishers: u32,
    /// Number of campaigns without any rate [default: 1 % of the campaigns].
    ///
    /// Their clicks are counted and unpriced.
    #[arg(long, value_name = "COUNT")]
    pub unknown_campaigns: Option<u32>,
    /// Number of campaigns whose price changes in mid-hour [default: 5 % of the campaigns].
    ///
    /// Every fourth of them has no rate at all before that moment.
    #[arg(long, value_name = "COUNT")]
    pub price_changes: Option<u32>,
    /// Event time of the first click: an hour, a time, or `live` [default: full hours that end with the current hour's start].
    ///
    /// Times in the past let whole hours be closed at once. The door refuses clicks older than seven days, except by
    /// import. `live` takes the wall clock, as in production.
    #[arg(long, alias = "start-time", value_name = "TIME", value_parser = parse_event_start)]
    pub event_start: Option<EventStart>,
    /// Event time the stream runs through, from first to last click [default: 2h].
    ///
    /// Not with `--event-start live`, where event time passes as fast as the clock does.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub event_span: Option<Duration>,
    /// Farthest an ordinary click lies behind the newest event time.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub disorder: Duration,
    /// First part of every campaign id [default: load{seed}-].
    ///
    /// Letters, digits, `-`, `_` and `.`, at most 40. Give runs into the same data different seeds or prefixes.
    #[arg(long, value_name = "TEXT")]
    pub campaign_prefix: Option<String>,
}

/// Flags of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Clicks a second, duplicates and conflicts included; of `--profile spike` before and after the spike.
    #[arg(long, value_name = "CLICKS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: u64,
    /// How long to send.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Clicks a request.
    #[arg(long, value_name = "CLICKS", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub batch: u32,
    /// How the clicks of a request are written.
    ///
    /// The bill does not depend on it, so the same ledger verifies them all.
    #[arg(long, value_enum, default_value_t)]
    pub body: BodyForm,
    /// Connections to the node.
    ///
    /// Each has one request in flight. Too few make a slow node look slower than it is; latency counts from the moment a
    /// batch was due in any case.
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// File to write the ledger to.
    ///
    /// Parquet, one row a copy; the rates go beside it as FILE.rates.json. Without it nothing can be verified later.
    /// With --worker it is the folder that all workers share.
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Which of several processes this is, such as 1/4.
    ///
    /// Each sends its part of one stream, all together at --rate, and writes its own file into the folder --ledger. Start
    /// every worker with the same flags but this; one that was killed goes on where it was when it is started again.
    /// `verify --ledger FOLDER` reads them all.
    #[arg(long, value_name = "NUMBER/COUNT")]
    pub worker: Option<Worker>,
    /// Replace an existing ledger.
    #[arg(long)]
    pub overwrite: bool,
    /// Do not put campaigns and rates first.
    ///
    /// For a node that has them already, from `campaigns` or an earlier run with the same flags.
    #[arg(long)]
    pub no_campaigns: bool,
}

/// Flags of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Ledger of a run; give all whose campaigns meet, oldest first.
    #[arg(long, value_name = "FILE", required = true)]
    pub ledger: Vec<PathBuf>,
    /// Reconcile every hour touched first, and wait.
    #[arg(long)]
    pub reconcile: bool,
    /// Nothing else was ever sent to this node.
    ///
    /// Then any billed campaign or hour the ledgers do not know is a difference too.
    #[arg(long)]
    pub exclusive: bool,
    /// Copies may have been stored more often than the ledger says.
    ///
    /// For files imported with interruptions. `gross` and `duplicates` then have no upper bound; `billable` stays exact.
    #[arg(long)]
    pub extra_copies: bool,
    /// Hours of the dedup horizon of the bill.
    ///
    /// 1 for hours that are reconciled, 24 after the nightly close.
    #[arg(long, value_name = "HOURS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub horizon_hours: u32,
    /// An hour whose stream is not complete is a difference.
    ///
    /// Otherwise its `unexplained` is null and only reported.
    #[arg(long)]
    pub require_complete: bool,
    /// Longest wait for one hour to be reconciled.
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = parse_duration)]
    pub reconcile_timeout: Duration,
}

/// Flags of `generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Number of clicks, duplicates and conflicts included.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub clicks: u64,
    /// File to write: .ndjson or .parquet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// File to write the ledger to.
    ///
    /// It calls every copy acknowledged, which is true once the whole file has been imported. The rates go beside it as
    /// FILE.rates.json; put them with `twice-loadgen campaigns`.
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Replace existing files.
    #[arg(long)]
    pub overwrite: bool,
}

/// Flags of `campaigns`.
#[derive(Debug, Clone, Args)]
pub struct CampaignsArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Ledger whose campaigns and rates to put.
    #[arg(long, value_name = "FILE")]
    pub ledger: PathBuf,
}

#[cfg(test)]
mod tests;
