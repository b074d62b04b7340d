//! `run`: sends the stream on a fixed schedule and writes down what became of every copy.
//!
//! Guarantee: no coordinated omission. The schedule is `start + moment of the number`; latency counts from there, whatever
//! the node does. No copy is reported acknowledged that the node did not accept; none is forgotten that it may have.
//! Flow: a thread plans batches, formats them and releases each when due -> one task a connection delivers a batch,
//! again and again until every copy is settled -> a thread writes the ledger.
//! Memory is bounded: a node that does not answer stops the planning after some batches, not the schedule.

mod batch;
mod body;
mod deliver;
mod extras;
mod gate;
mod planner;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use tokio::sync::{Mutex, mpsc};
use twice_log::event::json::AgeLimits;
use twice_log::{Clock, UtcMillis};

pub use batch::{Answer, Batch, Pending, Refusal, settle};
pub use body::BodyForm;
use deliver::Deliverer;
use gate::Gate;
use planner::Planner;
use report::{Counters, Report};

use crate::campaigns::put_rates;
use crate::cli::{Ended, EventStart, RunArgs};
use crate::console::tell;
use crate::ledger::{
    Earlier, LedgerWriter, Settled, Worker, forget_sent, join_shared, make_room, read_earlier, write_rates,
};
use crate::server::Server;
use crate::stream::{ClickStream, Pace, Profile, StreamSettings, Timing, campaign_rates};

/// Formatted batches that wait for a connection at most.
const BATCHES_WAITING_MAX: usize = 64;
/// Settled batches that wait for the ledger at most.
const SETTLED_WAITING_MAX: usize = 1_024;

/// How a run ended, as the ledger's metadata has it.
#[derive(Debug, Clone, Serialize)]
struct End {
    started_at: UtcMillis,
    ended_at: UtcMillis,
    target: String,
    sent: u64,
    acknowledged: u64,
    rejected: u64,
    given_up: u64,
    /// Why the run stopped before its end.
    stopped: Option<String>,
}

/// What the threads and tasks of a run share.
#[derive(Debug)]
struct Shared {
    stream: Arc<ClickStream>,
    pace: Pace,
    form: BodyForm,
    /// Which of several processes this is, and the file it writes.
    worker: Option<Worker>,
    worker_file: Option<PathBuf>,
    /// What an earlier life of this process left.
    earlier: Earlier,
    gate: Gate,
    counters: Counters,
    started: Instant,
}

impl Shared {
    /// Returns whether this process sends the click that begins with copy `original`.
    fn has(&self, original: u64) -> bool {
        self.worker.is_none_or(|worker| worker.has(original))
    }
}

/// Runs `run`.
///
/// # Errors
/// If nothing could be sent at all: a bad flag, a ledger in the way, a node that is not there or refuses.
pub fn run(args: &RunArgs, clock: &dyn Clock) -> Result<Ended> {
    let pace = Pace::of(args.stream.profile, args.duration);
    let copies = pace.copies(args.rate);
    let settings = StreamSettings::from_args(&args.stream, copies, Timing::Sent(args.duration), clock)?;
    let (settings, file, earlier) = prepare_ledger(args, settings)?; // before anything is sent
    check_age(&settings, clock)?;
    let rates = campaign_rates(&settings);
    let stream = Arc::new(ClickStream::new(settings));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let server = Server::new(&args.server, args.connections as usize)?;
    if !args.no_campaigns {
        runtime.block_on(put_rates(&server, &args.server, &rates))?;
    }
    let ledger = match &file {
        Some(path) => {
            write_rates(path, &rates)?;
            let ledger = LedgerWriter::after(path, Arc::clone(&stream), earlier.parts.clone())?;
            Some(ledger.with_verdicts())
        }
        None => None,
    };
    let started_at = clock.now();
    let shared = Arc::new(Shared {
        stream,
        pace,
        form: args.body,
        worker: args.worker,
        worker_file: file.filter(|_| args.worker.is_some()),
        earlier,
        gate: Gate::default(),
        counters: Counters::default(),
        started: Instant::now(),
    });
    let mut ledger = runtime.block_on(send_all(args, &server, &shared, ledger))?;
    if let Some(ledger) = &mut ledger {
        ledger.close_part()?; // whatever becomes of the verdicts, the clicks are written down
    }
    let stopped = shared.gate.stop_reason();
    if stopped.is_none() {
        let sending = extras::send_verdicts(&server, &args.server, &shared, args.worker);
        shared.counters.verdicts.fetch_add(runtime.block_on(sending)?, Ordering::Relaxed);
    }
    let report = Report::of(&shared);
    report.print();
    if let Some(ledger) = ledger {
        let end = End {
            started_at,
            ended_at: clock.now(),
            target: server.base().to_owned(),
            sent: report.sent,
            acknowledged: report.acknowledged,
            rejected: report.rejected,
            given_up: report.given_up,
            stopped: stopped.clone(),
        };
        // Clicks ruled on by verdicts that never went out are no click that the ledger may call invalid.
        if stopped.is_none() || args.stream.profile != Profile::Bots {
            ledger.finish(&end)?;
        }
    }
    ended(&shared, &report, stopped)
}

fn ended(shared: &Shared, report: &Report, stopped: Option<String>) -> Result<Ended> {
    match stopped {
        Some(reason) if report.acknowledged + shared.earlier.acknowledged == 0 => Err(anyhow!(reason)),
        Some(reason) => {
            tell(&format!("stopped early: {reason}"));
            Ok(Ended::Difference)
        }
        None if report.rejected + report.given_up + report.wrong_refusals + shared.earlier.wrong > 0 => {
            Ok(Ended::Difference)
        }
        None => Ok(Ended::Agreed),
    }
}

/// Makes room for the ledger, or joins the one this worker shares. Returns the settings, the file to write, and what an
/// earlier life of this worker left.
fn prepare_ledger(
    args: &RunArgs,
    settings: StreamSettings,
) -> Result<(StreamSettings, Option<PathBuf>, Earlier)> {
    match (&args.ledger, args.worker) {
        (None, None) => Ok((settings, None, Earlier::default())),
        (None, Some(_)) => bail!("--worker shares a ledger with others; give --ledger its folder"),
        (Some(path), None) => {
            make_room(path, args.overwrite)?;
            Ok((settings, Some(path.clone()), Earlier::default()))
        }
        (Some(folder), Some(worker)) => {
            let times_open = matches!(args.stream.event_start, None | Some(EventStart::Live));
            let settings = join_shared(folder, worker, settings, times_open)?;
            let file = worker.file(folder);
            if args.overwrite {
                make_room(&file, true)?;
                forget_sent(&file)?;
            }
            let earlier = read_earlier(&file)?;
            if !earlier.settled.is_empty() || earlier.sent_below > 0 {
                tell(&format!(
                    "worker {worker} goes on: {} copies are settled already",
                    earlier.settled.len()
                ));
            }
            Ok((settings, Some(file), earlier))
        }
    }
}

/// Refuses a span that the door would refuse click by click.
fn check_age(settings: &StreamSettings, clock: &dyn Clock) -> Result<()> {
    let limits = AgeLimits::default();
    let now = clock.now().epoch_ms();
    if let Some(past_ms_max) = limits.past_ms_max
        && now - settings.event_start.epoch_ms() > past_ms_max
    {
        bail!(
            "event times from {} on are older than seven days, which the node refuses; use `twice-loadgen generate` \
             and `twice import`",
            settings.event_start
        );
    }
    if !settings.live && settings.event_end().epoch_ms() - now > limits.future_ms_max {
        bail!(
            "event times up to {} lie in the future, which the node refuses; use --event-start live or an earlier one",
            settings.event_end()
        );
    }
    Ok(())
}

/// Sends the whole stream; returns the ledger with every settled copy in it.
async fn send_all(
    args: &RunArgs,
    server: &Server,
    shared: &Arc<Shared>,
    ledger: Option<LedgerWriter>,
) -> Result<Option<LedgerWriter>> {
    let (batches, waiting) = mpsc::channel::<Batch>(BATCHES_WAITING_MAX);
    let (settled, to_write) = mpsc::channel::<Vec<Settled>>(SETTLED_WAITING_MAX);
    let writer = {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || write_settled(ledger, to_write, &shared))
    };
    let planning = {
        let planner = Planner::new(Arc::clone(shared), args.rate, args.batch);
        std::thread::spawn(move || planner.release_all(&batches))
    };
    let waiting = Arc::new(Mutex::new(waiting));
    let mut connections = tokio::task::JoinSet::new();
    for _ in 0..args.connections {
        let deliverer =
            Deliverer::new(server.clone(), args.server.clone(), Arc::clone(shared), settled.clone());
        let waiting = Arc::clone(&waiting);
        connections.spawn(async move {
            loop {
                let batch = waiting.lock().await.recv().await;
                let Some(batch) = batch else { return };
                deliverer.deliver(batch).await;
            }
        });
    }
    drop(settled);
    let progress = tokio::spawn(report::progress(Arc::clone(shared)));
    let interrupt = tokio::spawn(stop_on_signal(Arc::clone(shared)));
    let bad_bodies =
        tokio::spawn(extras::send_bad_bodies(server.clone(), args.server.timeout, Arc::clone(shared)));
    let mut broken = None;
    while let Some(joined) = connections.join_next().await {
        if let Err(error) = joined {
            shared.gate.stop("a connection's task failed".to_owned());
            broken = Some(error);
        }
    }
    progress.abort();
    interrupt.abort();
    bad_bodies.abort();
    drop(waiting); // a planner that still waits for room sees the end
    planning.join().map_err(|_| anyhow!("the planning thread failed"))?;
    let ledger = writer.join().map_err(|_| anyhow!("the ledger's thread failed"))??;
    match broken {
        Some(error) => Err(error).context("a connection's task failed; this is a bug"),
        None => Ok(ledger),
    }
}

fn write_settled(
    mut ledger: Option<LedgerWriter>,
    mut settled: mpsc::Receiver<Vec<Settled>>,
    shared: &Shared,
) -> Result<Option<LedgerWriter>> {
    while let Some(rows) = settled.blocking_recv() {
        let Some(writer) = &mut ledger else { continue };
        if let Err(error) = writer.append(&rows) {
            // Clicks that no ledger knows would look like errors of the node.
            shared.gate.stop(format!("the ledger cannot be written: {error:#}"));
            return Err(error.context("write the ledger; is the disk full?"));
        }
    }
    Ok(ledger)
}

async fn stop_on_signal(shared: Arc<Shared>) {
    if tokio::signal::ctrl_c().await.is_ok() {
        tell("stopping: waiting for what is in flight; press Ctrl-C again to leave at once");
        shared.gate.stop("interrupted".to_owned());
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(2);
        }
    }
}
