//! The binaries under test, built by cargo from this checkout and found through what cargo prints.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// Paths of the built programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    pub twice: PathBuf,
    pub loadgen: PathBuf,
}

impl Binaries {
    /// Returns the binaries, building them first; once a process, and a rebuild of nothing takes a second.
    ///
    /// `TWICE_TEST_PROFILE` names another cargo profile than `dev`; `verify-full` measures with `release`.
    ///
    /// # Panics
    /// If they do not build: no test can go on without them.
    pub fn get() -> &'static Binaries {
        static BUILT: OnceLock<Binaries> = OnceLock::new();
        BUILT.get_or_init(|| match build() {
            Ok(binaries) => binaries,
            Err(error) => panic!("the programs under test do not build: {error:#}"),
        })
    }

    /// Returns a command that runs `twice`, without any `TWICE_…` variable of the caller.
    pub fn twice(&self) -> Command {
        clean(&self.twice)
    }

    /// Returns a command that runs `twice-loadgen`, without any `TWICE_…` variable of the caller.
    pub fn loadgen(&self) -> Command {
        clean(&self.loadgen)
    }
}

/// Returns the root of the checkout.
///
/// Both test runners name this crate's folder while the test runs. The folder known when it was compiled may be another:
/// two checkouts that share one target directory share the compiled tests too.
pub fn workspace_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let here =
            std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let here = PathBuf::from(here);
        here.parent().unwrap_or(&here).to_path_buf()
    })
}

/// Takes from `command` what cargo tells a test about its package. The build script of ring depends on these variables:
/// with them a build from within a test compiles ring again, and DataFusion with all that lies between.
fn outside_of_tests(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        let of_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CFG_"];
        if of_package.iter().any(|start| told.starts_with(start)) || told == "CARGO_CRATE_NAME" {
            command.env_remove(&name);
        }
    }
    command
}

fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TWICE_") {
            command.env_remove(name);
        }
    }
    command
}

fn build() -> Result<Binaries> {
    let profile = std::env::var("TWICE_TEST_PROFILE").unwrap_or_else(|_| "dev".to_owned());
    let messages = cargo_build(&["--profile", &profile, "-p", "twice", "-p", "twice-loadgen"])?;
    Ok(Binaries { twice: executable(&messages, "twice")?, loadgen: executable(&messages, "twice-loadgen")? })
}

/// Builds the program `name` of another workspace, and returns its path.
pub(crate) fn build_other(manifest: &Path, name: &str) -> Result<PathBuf> {
    let manifest = manifest.to_str().context("the path of the checkout is no text")?;
    executable(&cargo_build(&["--manifest-path", manifest])?, name)
}

/// Runs `cargo build` and returns its messages, one JSON object a line.
fn cargo_build(arguments: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = outside_of_tests(Command::new(cargo));
    build.current_dir(workspace_root()).args(["build", "--message-format=json-render-diagnostics"]);
    let output = build.args(arguments).output().context("run cargo")?;
    if !output.status.success() {
        bail!("cargo build: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("cargo's messages")
}

fn executable(messages: &str, name: &str) -> Result<PathBuf> {
    executable_in(messages, name).with_context(|| format!("cargo named no executable of {name}"))
}

fn executable_in(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == name;
        if is_it { message["executable"].as_str().map(PathBuf::from) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"twice_log"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"twice"},"executable":"/somewhere/debug/twice"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable_in(messages, "twice"), Some(PathBuf::from("/somewhere/debug/twice")));
        assert_eq!(executable_in(messages, "twice_log"), None);
    }
}
