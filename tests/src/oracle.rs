//! The independent oracle: a Python program that recounts the generator's ledger by the counting rules alone.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::binaries::workspace_root;
use crate::command::{Finished, run};

const LIMIT: Duration = Duration::from_secs(600);

/// Returns the Python that has the oracle's packages: `TWICE_TEST_PYTHON`, else the one `tests/python-env` makes.
///
/// # Errors
/// If there is none and none can be made.
pub fn python() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("TWICE_TEST_PYTHON") {
        return Ok(PathBuf::from(named));
    }
    let printed = run(&mut Command::new(workspace_root().join("tests/python-env")), LIMIT)?.expect(0)?;
    Ok(PathBuf::from(printed.trim()))
}

/// The oracle over one ledger.
#[derive(Debug)]
pub struct Oracle;

impl Oracle {
    /// Runs `oracle.py` with `arguments`.
    ///
    /// # Errors
    /// If it cannot be run to its end.
    pub fn run(arguments: &[&str]) -> Result<Finished> {
        let mut command = Command::new(python()?);
        command.arg(workspace_root().join("tests/oracle/oracle.py")).args(arguments);
        run(&mut command, LIMIT)
    }
}
