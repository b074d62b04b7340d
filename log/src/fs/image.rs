//! The durable bytes of one file of [`super::ForgetfulFs`], kept sparsely, and the changes that wait for a sync.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;

/// Size of the pieces in which a power cut keeps or loses an unsynced write.
pub(super) const BLOCK_BYTES: usize = 512;

/// A file's bytes; a block that is absent is zero.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    length: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
}

/// A change to a file that no sync has made durable.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLength(u64),
    Extend(u64),
}

impl Image {
    /// Reads the image of a file that was there before: all of it counts as durable.
    pub(super) fn of(file: &std::fs::File) -> io::Result<Self> {
        let mut image = Image { length: file.metadata()?.len(), blocks: BTreeMap::new() };
        let mut buffer = vec![0; 64 * BLOCK_BYTES];
        let mut offset = 0;
        loop {
            let read = file.read_at(&mut buffer, offset)?;
            if read == 0 {
                return Ok(image);
            }
            for (index, piece) in buffer[..read].chunks(BLOCK_BYTES).enumerate() {
                if piece.iter().any(|byte| *byte != 0) {
                    image.write(offset + (index * BLOCK_BYTES) as u64, piece);
                }
            }
            offset += read as u64;
        }
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes } => self.write(*offset, bytes),
            Change::SetLength(length) => self.set_length(*length),
            Change::Extend(length) => self.length = self.length.max(*length),
        }
    }

    /// Applies of `change` the pieces that `keep` chooses; a write is chosen block by block.
    pub(super) fn apply_some(&mut self, change: &Change, keep: &mut impl FnMut() -> bool) {
        let Change::Write { offset, bytes } = change else {
            if keep() {
                self.apply(change);
            }
            return;
        };
        for (at, piece) in pieces(*offset, bytes) {
            if keep() {
                self.write(at, piece);
            }
        }
    }

    /// Writes the image into an empty file.
    pub(super) fn store(&self, file: &std::fs::File) -> io::Result<()> {
        file.set_len(self.length)?;
        for (block, bytes) in &self.blocks {
            let start = block * BLOCK_BYTES as u64;
            let length = usize::try_from(self.length.saturating_sub(start)).unwrap_or(usize::MAX);
            file.write_all_at(&bytes[..bytes.len().min(length)], start)?;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.length = self.length.max(offset + bytes.len() as u64);
        for (at, piece) in pieces(offset, bytes) {
            let start = (at % BLOCK_BYTES as u64) as usize;
            let block =
                self.blocks.entry(at / BLOCK_BYTES as u64).or_insert_with(|| vec![0; BLOCK_BYTES].into());
            block[start..start + piece.len()].copy_from_slice(piece);
        }
    }

    fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.blocks.split_off(&length.div_ceil(BLOCK_BYTES as u64));
            let kept = (length % BLOCK_BYTES as u64) as usize;
            if kept > 0
                && let Some(block) = self.blocks.get_mut(&(length / BLOCK_BYTES as u64))
            {
                block[kept..].fill(0);
            }
        }
        self.length = length;
    }
}

/// Cuts a write at block borders.
fn pieces(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let head = (BLOCK_BYTES - (offset % BLOCK_BYTES as u64) as usize).min(bytes.len());
    let (first, rest) = bytes.split_at(head);
    let rest_offset = offset + head as u64;
    let rest = rest.chunks(BLOCK_BYTES).enumerate();
    std::iter::once((offset, first))
        .chain(rest.map(move |(index, piece)| (rest_offset + (index * BLOCK_BYTES) as u64, piece)))
}
