//! What the server was told to do wrong.

use std::path::Path;

/// How a request is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 503 SlowDown, nothing done.
    Refuse,
    /// 403 AccessDenied, nothing done.
    Deny,
    /// Done, and answered with 500.
    Lose,
    /// Done, over whatever is there.
    Overwrite,
}

/// Returns the fault in `file` that concerns a write of `key` in `bucket`.
///
/// The file is small and changes while the server runs, so each request reads it.
pub fn of(file: &Path, bucket: &str, key: &str) -> Option<Fault> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let fault = match words.next()? {
            "refuse" => Fault::Refuse,
            "deny" => Fault::Deny,
            "lose" => Fault::Lose,
            "overwrite" => Fault::Overwrite,
            _ => return None,
        };
        let concerns = words.next()? == bucket && key.starts_with(words.next().unwrap_or(""));
        concerns.then_some(fault)
    })
}
