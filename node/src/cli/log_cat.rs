//! `twice log cat`: records of the hot log as JSON lines.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Command};
use serde_json::{Value, json};
use twice_log::event::record::{decode_click, decode_verdict};
use twice_log::hot::ClickLog;
use twice_log::hot::embedded::EmbeddedLog;
use twice_log::hot::fluvio::{FluvioConfig, FluvioLog};
use twice_log::{LogOffset, PartitionId, Topic};

use super::{Agreement, Outcome};
use crate::log::LogBackend;
use crate::settings;

const READ_BYTES_MAX: usize = 4 << 20;

/// Prints records of the hot log as JSON lines; reads beside a running node without disturbing it.
#[derive(Debug, Clone, Args)]
pub struct LogCat {
    /// Topic: ad-clicks or fraud-verdicts
    #[arg(value_parser = topic)]
    topic: Topic,
    /// Where the node keeps its log
    #[arg(id = "log", long = "log", value_enum, default_value = "embedded", value_name = "WHERE")]
    backend: LogBackend,
    /// Data folder of the node
    #[arg(long, env = "TWICE_DATA_DIR", default_value = "./twice-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Partition to read; all if left out
    #[arg(long)]
    partition: Option<u32>,
    /// First offset to print; the oldest there is if left out
    #[arg(long, value_name = "OFFSET")]
    from: Option<i64>,
    /// Records printed at most, a partition
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    limit: u64,
    #[command(flatten, next_help_heading = "Fluvio")]
    fluvio: FluvioConfig,
}

/// Lets the variables that say where a node's log is say it here as well.
pub fn with_variables(command: Command) -> Command {
    command.mut_args(|argument| {
        let name = argument.get_id().as_str();
        let is_place = name == "log" || name.starts_with("fluvio_");
        if is_place { settings::with_variable(argument) } else { argument }
    })
}

fn topic(text: &str) -> Result<Topic, String> {
    Topic::from_name(text).ok_or_else(|| {
        let known: Vec<&str> = Topic::ALL.iter().map(|topic| topic.name()).collect();
        format!("no such topic; there are {}", known.join(", "))
    })
}

/// Runs the command.
pub async fn run(arguments: LogCat) -> Result<Outcome> {
    let log = open(&arguments).await?;
    let partitions = match arguments.partition {
        Some(partition) if partition >= log.partitions() => {
            bail!("partition {partition} does not exist; the log has 0 to {}", log.partitions() - 1)
        }
        Some(partition) => partition..partition + 1,
        None => 0..log.partitions(),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for partition in partitions.map(PartitionId) {
        let printed = cat(log.as_ref(), &arguments, partition, &mut out).await;
        match printed.and_then(|()| out.flush().map_err(Into::into)) {
            Err(error) if is_closed_pipe(&error) => return Ok(Outcome::Done(Agreement::Agreed)),
            other => other?,
        }
    }
    Ok(Outcome::Done(Agreement::Agreed))
}

async fn open(arguments: &LogCat) -> Result<Box<dyn ClickLog>> {
    if arguments.backend == LogBackend::Fluvio {
        return Ok(Box::new(FluvioLog::open_reader(&arguments.fluvio).await?));
    }
    let folder = arguments.data_dir.join("log");
    let log = EmbeddedLog::open_reader(&folder).with_context(|| {
        format!("no log in {}; name the node's folder with --data-dir, or --log fluvio", folder.display())
    })?;
    Ok(Box::new(log))
}

async fn cat(
    log: &dyn ClickLog,
    arguments: &LogCat,
    partition: PartitionId,
    out: &mut impl Write,
) -> Result<()> {
    let bounds = log.bounds(arguments.topic, partition).await?;
    let mut next = arguments.from.map_or(bounds.earliest, LogOffset).max(bounds.earliest);
    let mut left = arguments.limit;
    while next < bounds.end && left > 0 {
        let batch = log.read(arguments.topic, partition, next, READ_BYTES_MAX).await?;
        if batch.records.is_empty() {
            break;
        }
        for (offset, bytes) in batch.records {
            if left == 0 {
                break;
            }
            left -= 1;
            let record = decoded(arguments.topic, &bytes);
            serde_json::to_writer(
                &mut *out,
                &json!({ "partition": partition, "offset": offset, "record": record }),
            )?;
            out.write_all(b"\n")?;
            next = offset.next();
        }
    }
    Ok(())
}

fn decoded(topic: Topic, bytes: &[u8]) -> Value {
    let value = match topic {
        Topic::AdClicks => decode_click(bytes).map(|click| json!(click)),
        Topic::FraudVerdicts => decode_verdict(bytes).map(|verdict| json!(verdict)),
        Topic::BudgetDecisions => match serde_json::from_slice(bytes) {
            Ok(decision) => return decision,
            Err(error) => return undecodable(&error, bytes),
        },
    };
    value.unwrap_or_else(|error| undecodable(&error, bytes))
}

fn undecodable(error: &dyn std::error::Error, bytes: &[u8]) -> Value {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "undecodable": error.to_string(), "bytes": hex })
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        io.or_else(|| cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind))
    };
    error.chain().any(|cause| kind(cause) == Some(std::io::ErrorKind::BrokenPipe))
}
