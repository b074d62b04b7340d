//! Output: progress and advice on stderr, results on stdout. A closed stream is nobody reading, never an error.

use std::io::Write;

/// Writes one line to stderr.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes text to stdout as it is.
pub(crate) fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
