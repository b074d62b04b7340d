//! Copies of closed segments in the archive's `spool/` tree, for the day when the node's disk is lost with what it holds.
//!
//! Guarantee: billing never reads them. A copy is put if absent, never changed, and deleted once its records are in the log.
//! Flow: closed segment -> `spool/{node}/{folder's id}/{queue}/{epoch}-{base offset}.seg` -> drained -> copy deleted. What a
//! process before this one left is found by listing. A copy goes only where this very folder's own position has passed it: of
//! a folder that was lost, and of one that is not there today, the copies are the last there is.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use object_store::ObjectStoreExt;
use twice_log::LogOffset;
use twice_log::archive::Archive;
use twice_log::fs::FileSystem;
use twice_log::spool::{SegmentCopy, SpoolQueue, Spooling};

use super::folder::Noted;
use super::label_of;
use crate::note::Note;

/// How often it is looked for segments to copy: what is lost with a disk is what came since, and the open segment.
const COPY_EVERY: Duration = Duration::from_secs(5);
/// File in the data folder with a name of its own for this node: gateways share an archive.
const NODE: Note = Note("NODE");

/// Returns the name under which this node keeps the copies of its queues' folder, once that is noted.
///
/// # Errors
/// If it cannot be noted.
pub fn node_name(fs: &dyn FileSystem, data_dir: &Path) -> Result<String> {
    let name = match NODE.read(data_dir)? {
        Some(noted) => noted,
        None => {
            let name = uuid::Uuid::new_v4().simple().to_string();
            NODE.write(fs, data_dir, &name)?;
            name
        }
    };
    let id = Noted::read(data_dir)?.and_then(|noted| noted.id);
    Ok(format!("{name}/{}", id.as_deref().unwrap_or("unnamed")))
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
    let Some(drained_to) = queue.drained_to() else { return Ok(()) };
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
    for drained in there.difference(&wanted).filter(|path| may_delete && is_drained(path, drained_to)) {
        archive.store().delete(&drained.as_str().into()).await.context("deleting a copy")?;
    }
    *may_have = !wanted.is_empty() || !may_delete;
    Ok(())
}

/// Returns whether the log has all of a copy whose segment is not held any more.
fn is_drained(path: &str, (epoch, position): (u32, LogOffset)) -> bool {
    let name = path.rsplit('/').next().and_then(|file| file.strip_suffix(".seg"));
    name.and_then(SegmentCopy::parse).is_some_and(|(of, base)| of < epoch || of == epoch && base < position)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use twice_log::event::PartitionId;
    use twice_log::fs::RealFs;
    use twice_log::spool::{Entry, QueueConfig};
    use twice_log::{Topic, UtcMillis};

    use super::*;

    async fn filled(folder: &Path, entries: u32) -> SpoolQueue {
        let config = QueueConfig { name: "spool", bytes_max: 1 << 20, segment_bytes: 1 << 16 };
        let queue = SpoolQueue::open(Arc::new(RealFs), folder.to_path_buf(), config).await;
        for _ in 0..entries {
            let (topic, partition, bytes) = (Topic::AdClicks, PartitionId(0), vec![7; 20_000].into());
            let entry = Entry { topic, partition, arrival_time: UtcMillis::clamped(0), bytes };
            queue.append(&[entry]).await.expect("appended");
        }
        queue
    }

    async fn copies(archive: &Archive) -> usize {
        archive.list("spool", None).await.expect("listed").len()
    }

    #[tokio::test]
    async fn a_copy_goes_once_its_segment_is_drained_and_not_because_nobody_knows_it() {
        let (archive, folder) =
            (Archive::new(Arc::new(InMemory::new()), "primary"), tempfile::tempdir().expect("a folder"));
        let queue = filled(folder.path(), 9).await;
        copy(&queue, &archive, "spool/node/outage", &mut true).await.expect("copied");
        let copied = copies(&archive).await;
        assert!(copied > 1);
        queue.close();

        let bare = tempfile::tempdir().expect("a folder");
        let empty = filled(bare.path(), 0).await;
        copy(&empty, &archive, "spool/node/outage", &mut true).await.expect("looked");
        assert_eq!(copies(&archive).await, copied, "a folder that lost all knows nothing of what is drained");

        let queue = filled(folder.path(), 0).await;
        while queue.status().records > 0 {
            let peeked = queue.peek(30_000).await.expect("peeked");
            queue.advance(peeked).await.expect("advanced");
        }
        copy(&queue, &archive, "spool/node/outage", &mut true).await.expect("deleted");
        assert_eq!(copies(&archive).await, 0);
    }
}
