//! Opens the billing store of a data folder for writing.
//!
//! Guarantee: a database that does not know what its archive says was billed is never written to: every billed hour would
//! be billed again, without prices and as a first version, and kept so in the archive for ever. Whoever moved the database
//! away, or lost it, is sent to the rebuild.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use twice_log::archive::{Archive, BillingPath, RunKey, RunOutcome};
use twice_log::{Clock, ErrorKind, Hour};
use twice_store::{BillingStore, SqliteStore};

use crate::ports::chain;

/// File of the billing store in the data folder.
pub const DATABASE: &str = "twice.sqlite";

/// Opens the store; one that is not there is created only where the archive has no ended run either.
///
/// # Errors
/// What does not open, with what to do; a store without runs beside an archive with some.
pub async fn open_for_writing(
    folder: &Path,
    archive: &Archive,
    clock: Arc<dyn Clock>,
) -> Result<SqliteStore> {
    let database = folder.join(DATABASE);
    if !database.exists() {
        // Before it is created: an empty file would be taken for what a rebuild may copy settings from.
        refuse_billed(folder, archive).await?;
    }
    let store = SqliteStore::open(&database, clock).await?;
    if store.reconciliations(1, None).await?.rows.is_empty() {
        refuse_billed(folder, archive).await?;
    }
    Ok(store)
}

/// Refuses an archive with ended runs. One that does not answer keeps no node from taking clicks, unless the node has run
/// before and its store is gone: what it billed cannot be known then.
async fn refuse_billed(folder: &Path, archive: &Archive) -> Result<()> {
    let run = match ended_run(archive).await {
        Ok(run) => run,
        Err(error) if error.kind() == ErrorKind::Retry && is_plain(folder) => {
            tracing::warn!(
                error = chain(&error),
                "the archive does not say whether it has runs the store lacks"
            );
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(run) = run {
        bail!(
            "the archive has runs, such as {run}, and the billing store {} has none; write it again from the archive: \
             twice rebuild billing --data-dir {}",
            folder.join(DATABASE).display(),
            folder.display()
        );
    }
    Ok(())
}

/// Returns whether the store is there, or the folder is that of a node that has never run.
fn is_plain(folder: &Path) -> bool {
    folder.join(DATABASE).exists() || !folder.join("sled").exists()
}

/// Returns a run that the store must know. One without a result may have died before its commit, and is gone on with.
async fn ended_run(archive: &Archive) -> twice_log::Result<Option<RunKey>> {
    for path in [BillingPath::Lambda, BillingPath::Kappa] {
        for hour in archive.run_hours(path).await? {
            if let Some(seq) = ended_seq(archive, path, hour).await? {
                return Ok(Some(RunKey { path, hour, seq }));
            }
        }
    }
    Ok(None)
}

async fn ended_seq(archive: &Archive, path: BillingPath, hour: Hour) -> twice_log::Result<Option<u32>> {
    let results = archive.run_results(path, hour).await?;
    let ended = results.iter().find(|stored| stored.result.outcome != RunOutcome::Abandoned);
    Ok(ended.map(|stored| stored.result.seq))
}

#[cfg(test)]
mod tests {
    use twice_log::UtcMillis;
    use twice_log::WallClock;
    use twice_log::archive::{BillingStatus, CountingSettings, RunInputs, RunResult};
    use twice_log::event::Sha256Hex;
    use twice_log::fs::RealFs;

    use super::*;

    fn inputs(hour: Hour) -> RunInputs {
        RunInputs {
            path: BillingPath::Lambda,
            hour,
            seq: 1,
            status: BillingStatus::Reconciled,
            settings: CountingSettings::default(),
            cutoffs: Vec::new(),
            seals: Vec::new(),
            click_files: Vec::new(),
            verdict_files: Vec::new(),
            rates: Vec::new(),
            announced: false,
            mode_change: false,
            rules_sha256: Sha256Hex("0".repeat(64)),
            created_at: UtcMillis::clamped(0),
        }
    }

    fn result(inputs: &RunInputs, sha256: Sha256Hex, outcome: RunOutcome) -> RunResult {
        RunResult {
            path: inputs.path,
            hour: inputs.hour,
            seq: inputs.seq,
            outcome,
            committed_at: None,
            mode: BillingPath::Lambda,
            inputs_sha256: sha256,
            rows: Vec::new(),
            aggregates: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_store_without_the_runs_of_its_archive_is_not_opened_for_writing() {
        let folder = tempfile::tempdir().expect("folder");
        let archive = Archive::open_local(Arc::new(RealFs), &folder.path().join("archive")).expect("archive");
        let open = async || open_for_writing(folder.path(), &archive, Arc::new(WallClock)).await;
        let clear = || std::fs::remove_file(folder.path().join(DATABASE)).expect("removed");
        open().await.expect("a new node").close().await;

        // What a death before the first commit leaves, and a run that was given up, are no bill.
        for (hour, outcome) in [(400_000, None), (400_001, Some(RunOutcome::Abandoned))] {
            let inputs = inputs(Hour::from_since_epoch(hour));
            let stored = archive.put_run_inputs(&inputs).await.expect("inputs are put");
            if let Some(outcome) = outcome {
                archive
                    .put_run_result(&result(&inputs, stored.sha256, outcome))
                    .await
                    .expect("result is put");
            }
        }
        open().await.expect("nothing was billed").close().await;

        let inputs = inputs(Hour::from_since_epoch(400_002));
        let stored = archive.put_run_inputs(&inputs).await.expect("inputs are put");
        let ended = result(&inputs, stored.sha256, RunOutcome::Committed);
        archive.put_run_result(&ended).await.expect("result is put");
        let refused = open().await.expect_err("is empty").to_string();
        assert!(refused.contains("twice rebuild billing --data-dir"), "{refused}");
        clear();
        open().await.expect_err("is gone");
        assert!(!folder.path().join(DATABASE).exists(), "nothing is put in its place");
    }
}
