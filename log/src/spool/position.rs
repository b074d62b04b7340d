//! Up to where a queue is drained, in a small file that is replaced as a whole.
//!
//! A position that is lost or older than it was means that records are appended to the log a second time, which is
//! harmless (CR-1). One that is ahead of what was drained would lose them: it is written only after the log has them.

use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Error, Result};
use crate::event::LogOffset;
use crate::fs::{FileSystem, read_file};

const FILE: &str = "DRAINED";
const NEW_FILE: &str = "DRAINED.new";

/// Reads the offset of the first record that is not drained; `None` where none is noted or the note does not read.
pub(super) fn read(fs: &dyn FileSystem, folder: &Path) -> Result<Option<LogOffset>> {
    let path = folder.join(FILE);
    match read_file(fs, &path) {
        Ok(bytes) => {
            let position = parse(&bytes);
            if position.is_none() {
                tracing::warn!(path = %path.display(), "the queue's position does not read; all it holds is appended again");
            }
            Ok(position)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path)(error)),
    }
}

/// Makes `offset` the position, durably.
pub(super) fn write(fs: &dyn FileSystem, folder: &Path, offset: LogOffset) -> Result<()> {
    let (path, new) = (folder.join(FILE), folder.join(NEW_FILE));
    match fs.remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &new)(error)),
        _ => {}
    }
    let file = fs.create_new(&new).map_err(Error::io("create", &new))?;
    file.write_all_at(text(offset).as_bytes(), 0).map_err(Error::io("write", &new))?;
    file.sync_data().map_err(Error::io("sync", &new))?;
    fs.rename(&new, &path).map_err(Error::io("rename", &new))?;
    fs.sync_dir(folder).map_err(Error::io("sync", folder))
}

fn text(offset: LogOffset) -> String {
    let number = offset.0.to_string();
    format!("{number} {:08x}\n", crc32c::crc32c(number.as_bytes()))
}

pub(super) fn parse(bytes: &[u8]) -> Option<LogOffset> {
    let (number, _) = std::str::from_utf8(bytes).ok()?.split_once(' ')?;
    let offset = LogOffset(number.parse().ok().filter(|number| *number >= 0)?);
    (text(offset).as_bytes() == bytes).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_and_a_wrong_one_begins_anew() {
        assert_eq!(parse(text(LogOffset(42)).as_bytes()), Some(LogOffset(42)));
        let right = text(LogOffset(42)).into_bytes();
        for bit in 0..right.len() * 8 {
            let mut wrong = right.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&wrong), None, "bit {bit}");
        }
        assert_eq!(parse(b""), None);
    }
}
