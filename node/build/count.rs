//! What counts as a line of code, and whose it is: used by the build script, and by the test of it.

use std::path::{Path, PathBuf};

/// Folders of the workspace whose lines are counted together.
pub struct Place {
    /// Variable by which the build script tells the program.
    pub variable: &'static str,
    pub folders: &'static [&'static str],
    /// A folder below them that is counted elsewhere.
    pub without: Option<&'static str>,
}

/// Whose code lies where.
pub const PLACES: [Place; 4] = [
    Place { variable: "TWICE_LINES_STREAM", folders: &["actors/src"], without: Some("actors/src/replay") },
    Place { variable: "TWICE_LINES_KAPPA", folders: &["actors/src/replay"], without: None },
    Place {
        variable: "TWICE_LINES_LAMBDA",
        folders: &["reconciler/src/recompute", "reconciler/src/compare"],
        without: Some("reconciler/src/compare/paths"),
    },
    Place { variable: "TWICE_LINES_SHARED", folders: &["log/src", "store/src"], without: None },
];

/// Returns the lines of every Rust and SQL file below `folder`, without tests; 0 where there is no such folder.
pub fn lines_below(folder: &Path, without: &Option<PathBuf>) -> std::io::Result<u64> {
    if without.as_deref() == Some(folder) || !folder.is_dir() {
        return Ok(0);
    }
    let mut lines = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if ["tests", "tests.rs", "testing.rs"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            lines += lines_below(&path, without)?;
        } else if name.ends_with(".rs") || name.ends_with(".sql") {
            let comment = if name.ends_with(".rs") { "//" } else { "--" };
            lines += lines_of(&std::fs::read_to_string(&path)?, comment);
        }
    }
    Ok(lines)
}

/// Counts lines that are neither blank nor a comment nor of an item that is there for tests alone.
pub fn lines_of(text: &str, comment: &str) -> u64 {
    let mut count = 0;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let words = line.trim();
        if words == "#[cfg(test)]" {
            skip_item(line, &mut lines);
        } else if !words.is_empty() && !words.starts_with(comment) {
            count += 1;
        }
    }
    count
}

/// Passes over the item after an attribute: to its semicolon, or to the brace at the attribute's own indentation.
fn skip_item<'a>(attribute: &str, lines: &mut impl Iterator<Item = &'a str>) {
    let indent = &attribute[..attribute.len() - attribute.trim_start().len()];
    let closing = format!("{indent}}}");
    for line in lines {
        if line == closing || (line.ends_with(';') && !line[indent.len().min(line.len())..].starts_with(' '))
        {
            return;
        }
    }
}
