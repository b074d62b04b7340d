//! Damage: each kind of it is refused with a message that says what to do next, or repaired; none of it changes a bill.

mod archive;
pub(crate) mod disk;
mod log;
mod sqlite;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use twice_log::Hour;
use twice_tests::{LoadShape, Node, NodeOptions};

use crate::support::hours_ago;

/// How long a node that cannot start gets to say so.
const REFUSAL_LIMIT: Duration = Duration::from_secs(60);

/// A stopped node that has taken a small load, nothing of it billed yet.
pub(super) struct Scene {
    pub node: Node,
    pub from: Hour,
    pub ledger: PathBuf,
}

impl Scene {
    /// Loads a node, lets it write everything down, and stops it.
    pub fn stopped(seed: u64) -> Result<Self> {
        let mut scene = Self::running(seed, NodeOptions::brisk())?;
        ensure!(scene.node.stop()?.success(), "graceful stop\n{}", scene.node.log_tail());
        Ok(scene)
    }

    /// Loads a node that goes on running.
    pub fn running(seed: u64, options: NodeOptions) -> Result<Self> {
        let from = hours_ago(3);
        let node = Node::start(options)?;
        let ledger = LoadShape::small("damage", seed, &from.to_string()).run(&node)?;
        Ok(Self { node, from, ledger })
    }

    /// Proves that the bill is what the ledger says.
    pub fn prove(&self) -> Result<()> {
        self.node.prove(std::slice::from_ref(&self.ledger)).map(|_| ())
    }

    /// Starts the node, which must end by itself with status 2 and say every one of `words`.
    pub fn is_refused(&mut self, words: &[&str]) -> Result<()> {
        self.node.restart_unready()?;
        let ended = self.node.death_within(REFUSAL_LIMIT)?;
        let status = ended.with_context(|| format!("the node runs on\n{}", self.node.log_tail()))?;
        let said = self.node.log_tail();
        ensure!(status.code() == Some(2), "{status}\n{said}");
        let missing: Vec<_> = words.iter().filter(|word| !said.contains(**word)).collect();
        ensure!(missing.is_empty(), "the message lacks {missing:?}:\n{said}");
        Ok(())
    }
}

/// Returns every file below `folder` whose name ends in `ending`, sorted.
pub(super) fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Changes one bit of the byte at `at`. Doing it twice undoes it.
pub(super) fn flip(path: &Path, at: usize) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    let byte = bytes.get_mut(at).with_context(|| format!("{} has no byte {at}", path.display()))?;
    *byte ^= 0x10;
    Ok(std::fs::write(path, bytes)?)
}
