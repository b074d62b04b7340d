//! `twice rebuild billing`: the billing store again, from the archive.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use twice_actors::ReplayConfig;
use twice_log::archive::Archive;
use twice_log::fs::RealFs;
use twice_log::{Clock, WallClock};
use twice_reconciler::ReconcilerConfig;
use twice_reconciler::rebuild::{
    RebuildDeps, RebuildProgress, Rebuilt, put_results_of, rebuild, recorded_rates,
};
use twice_store::SqliteStore;

use super::offline::{Access, DataDir, recompute};
use super::{Agreement, Outcome};
use crate::database::DATABASE;
use crate::node::{replay_child, take_lock};
use crate::swap::Swap;

/// Rebuilds a store from the archive
#[derive(Debug, Clone, Subcommand)]
pub enum Rebuild {
    Billing(Box<RebuildBilling>),
}

/// Rebuilds the billing store of a stopped node from the archive.
///
/// Every run of both paths is counted again from its recorded inputs, compared with its result, and written with the
/// versions, statuses, reasons, moments and digests it had. The old database is moved aside, never deleted; campaigns,
/// budgets, imports and mode settings are copied from it where it can still be read. Started again after a kill, it
/// goes on.
#[derive(Debug, Clone, Args)]
pub struct RebuildBilling {
    #[command(flatten)]
    place: DataDir,
}

/// Runs the command.
pub async fn run(Rebuild::Billing(arguments): Rebuild) -> Result<Outcome> {
    let place = &arguments.place;
    let Some(folder) = place.folder() else {
        bail!("name the data folder of the stopped node: twice rebuild billing --data-dir DIR");
    };
    place.check(folder)?;
    let _lock = take_lock(folder)?;
    let swap = Swap::of(Arc::new(RealFs), folder, DATABASE);
    if swap.is_under_way()? {
        return finish(
            &swap,
            &WallClock,
            "the rebuild before was killed while it put the new database in place",
        );
    }
    let (archive, archive_location) = place.open_archive(folder, Access::Write).await?;
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    put_results(&archive, &folder.join(DATABASE), clock.clone()).await?;
    let store = SqliteStore::open(&swap.new_file(), clock.clone()).await?;
    copy_settings(&store, &folder.join(DATABASE)).await;
    store.restore_rates(&recorded_rates(&archive).await?).await?;
    let deps = RebuildDeps {
        replay: Arc::new(replay_child(&ReplayConfig::default(), archive_location.clone(), folder)?),
        archive,
        archive_location,
        recompute: Arc::new(recompute()?),
        limits: ReconcilerConfig::default().limits(),
    };
    let rebuilt = show_progress(&deps, &store).await?;
    store.close_whole().await?;
    drop(store);
    print(&rebuilt);
    finish(&swap, clock.as_ref(), "the new database is whole")
}

/// Puts what the old database has committed and the archive does not say yet, where that database can be read.
async fn put_results(archive: &Archive, old: &Path, clock: Arc<dyn Clock>) -> Result<()> {
    if !old.exists() {
        return Ok(());
    }
    let put = match SqliteStore::open_read_only(old, clock).await {
        Ok(store) => put_results_of(archive, &store).await,
        Err(error) => Err(error.into()),
    };
    match put {
        Ok(0) => {}
        Ok(count) => println!(
            "{count} runs were committed and had no result in the archive: put from the old database"
        ),
        Err(twice_reconciler::Error::Store(error)) => println!(
            "the old database cannot be asked for runs without a result in the archive ({:#}); such runs are open",
            anyhow::Error::from(error)
        ),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Copies what is in no archive from the old database, and says what is lost where that cannot be read.
async fn copy_settings(store: &SqliteStore, old: &Path) {
    let copied = if old.exists() {
        store.copy_settings(old).await.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    } else {
        Err(format!("there is no {}", old.display()))
    };
    match copied {
        Ok(()) => println!("campaigns, budgets, imports and mode settings: copied from {}", old.display()),
        Err(reason) => println!(
            "campaigns: from the rates that runs recorded, as {reason}. Lost, as no archive has them: names (the id \
             stands for them), budgets, announced imports, mode settings of hours not yet billed, and rates that no run \
             has used. Put campaigns again with `twice campaigns`"
        ),
    }
}

async fn show_progress(deps: &RebuildDeps, store: &SqliteStore) -> Result<Rebuilt> {
    let (sender, mut receiver) = mpsc::unbounded_channel::<RebuildProgress>();
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} runs, {eta} left  {msg}")
        .context("the progress bar's own text")?;
    bar.set_style(style);
    let show = async {
        while let Some(RebuildProgress { run, done, total }) = receiver.recv().await {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(run.to_string());
        }
    };
    let (rebuilt, ()) = futures::join!(rebuild(deps, store, Some(sender)), show);
    bar.finish_and_clear();
    rebuilt.context(
        "the rebuild stopped; the database in place is untouched. `twice audit` names what is wrong with the archive",
    )
}

fn print(rebuilt: &Rebuilt) {
    let Rebuilt { runs, counted, open, versions } = rebuilt;
    println!("{runs} runs, {counted} of them counted now: {versions} row versions, each as its result says");
    if *open > 0 {
        println!("{open} runs have no end in the archive; the node goes on with them when it starts");
    }
}

fn finish(swap: &Swap, clock: &dyn Clock, why: &str) -> Result<Outcome> {
    let aside = swap.finish(clock.now())?;
    println!("{why}, and now in place: {}", swap.file().display());
    if let Some(aside) = aside {
        println!("the old one is {}", aside.display());
    }
    Ok(Outcome::Done(Agreement::Agreed))
}
