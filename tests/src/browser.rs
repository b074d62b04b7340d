//! Headless Chromium: the page as a person's browser builds it, and a picture of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::command::run;

const LIMIT: Duration = Duration::from_secs(120);

/// A Chromium on this machine.
#[derive(Debug)]
pub struct Browser {
    program: PathBuf,
}

impl Browser {
    /// Returns the browser, or `None` where the machine has none and does not have to.
    ///
    /// Looks at `TWICE_TEST_CHROMIUM`, then for `chromium`, `chromium-browser` and `google-chrome` on the path.
    ///
    /// # Errors
    /// If there is none and `CI` is set: there the page must be tested.
    pub fn find() -> Result<Option<Self>> {
        let named = std::env::var_os("TWICE_TEST_CHROMIUM").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).flat_map(|folder| {
            ["chromium", "chromium-browser", "google-chrome"].map(|name| folder.join(name))
        });
        if let Some(program) = named.into_iter().chain(on_path).find(|program| program.is_file()) {
            return Ok(Some(Self { program }));
        }
        if std::env::var_os("CI").is_some() {
            bail!(
                "no Chromium on this machine: install it (`apt-get install chromium`) or set TWICE_TEST_CHROMIUM"
            );
        }
        Ok(None)
    }

    /// Returns the document of `url` after its scripts have run for `settle` of the page's own time.
    ///
    /// # Errors
    /// If the browser fails.
    pub fn document(&self, url: &str, settle: Duration) -> Result<String> {
        let budget = format!("--virtual-time-budget={}", settle.as_millis());
        self.run(&[&budget, "--dump-dom", url])
    }

    /// Writes a picture of `url` to `file` as PNG.
    ///
    /// # Errors
    /// If the browser fails or writes no picture.
    pub fn picture(&self, url: &str, settle: Duration, file: &Path) -> Result<()> {
        self.picture_sized(url, settle, file, (1_280, 900))
    }

    /// Writes a picture of `url` in a window of this width and height.
    ///
    /// # Errors
    /// As [`Browser::picture`].
    pub fn picture_sized(
        &self,
        url: &str,
        settle: Duration,
        file: &Path,
        (width, height): (u32, u32),
    ) -> Result<()> {
        let budget = format!("--virtual-time-budget={}", settle.as_millis());
        let size = format!("--window-size={width},{height}");
        self.run(&[&budget, &size, "--hide-scrollbars", &format!("--screenshot={}", file.display()), url])?;
        if !file.is_file() {
            bail!("the browser wrote no picture of {url}");
        }
        Ok(())
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let profile = tempfile::tempdir()?;
        let mut command = Command::new(&self.program);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
        // Without these it asks the network at every start, which a machine without one refuses many times over.
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.arg("--disable-dev-shm-usage");
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.args(arguments);
        run(&mut command, LIMIT)?.expect(0)
    }
}
