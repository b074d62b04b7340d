//! Copies of closed segments in the archive's `spool/` tree, for the day when the node's disk is lost with what it holds.
//!
//! Guarantee: billing never reads them. A copy is put if absent, never changed, and deleted once its records are in the log.
//! Flow: closed segment -> `spool/{node}/{queue}/{epoch}-{base offset}.seg` -> drained -> copy deleted. What a process
//! before this one left is found by listing, so a copy outlives its records by one restart at most.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use object_store::ObjectStoreExt;
use twice_log::archive::Archive;
use twice_log::fs::FileSystem;
use twice_log::spool::{SpoolQueue, Spooling};

use super::label_of;
use crate::note::Note;

/// How often it is looked for segments to copy: what is lost with a disk is what came since, and the open segment.
const COPY_EVERY: Duration = Duration::from_secs(5);
/// File in the data folder with a name of its own for this node: gateways share an archive.
const NODE: Note = Note("NODE");

/// Returns the name under which this node keeps its copies.
///
/// # Errors
/// If it cannot be noted.
pub fn node_name(fs: &dyn FileSystem, data_dir: &Path) -> Result<String> {
    if let Some(noted) = NODE.read(data_dir)? {
        return Ok(noted);
    }
    let name = uuid::Uuid::new_v4().simple().to_string();
    NODE.write(fs, data_dir, &name)?;
    Ok(name)
}

/// Copies until the task is dropped. An archive that does not answer is asked again: the records are on disk.
pub async fn run(spooling: Arc<Spooling>, archive: Archive, node: String) {
    let mut every = tokio::time::interval(COPY_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Of each queue, whether copies may be there: an archive with none is not asked every time.
    let mut may_have: Vec<bool> = spooling.queues().map(|_| true).collect();
    loop {
        every.tick().await;
        for (queue, may_have) in spooling.queues().zip(&mut may_have) {
            let folder = format!("spool/{node}/{}", label_of(queue.status().name));
            if let Err(error) = copy(queue, &archive, &folder, may_have).await {
                tracing::debug!(
                    error = format!("{error:#}"),
                    folder,
                    "copies of the spool wait for the archive"
                );
            }
        }
    }
}

async fn copy(queue: &SpoolQueue, archive: &Archive, folder: &str, may_have: &mut bool) -> Result<()> {
    // Damaged files may need their copies: nothing is deleted until that is decided.
    let may_delete = queue.status().missing == 0;
    let closed = queue.closed_segments().await.context("listing the queue's segments")?;
    if closed.is_empty() && !*may_have {
        return Ok(());
    }
    *may_have = true;
    let there = archive.list(folder, None).await.context("listing copies")?;
    let there: BTreeSet<String> = there.into_iter().map(|object| object.location.to_string()).collect();
    let mut wanted = BTreeSet::new();
    for segment in &closed {
        let path = format!("{folder}/{}.seg", segment.name);
        if !there.contains(&path)
            && let Some(bytes) = queue.read_segment(segment).await.context("reading a segment")?
        {
            archive.put_if_absent(&path, bytes).await.context("putting a copy")?;
        }
        wanted.insert(path);
    }
    for drained in there.difference(&wanted).filter(|_| may_delete) {
        archive.store().delete(&drained.as_str().into()).await.context("deleting a copy")?;
    }
    *may_have = !wanted.is_empty() || !may_delete;
    Ok(())
}
