//! The S3 server of the tests: a real one over HTTP, killed and restarted over the same files.
//!
//! Guarantee: the server under test is the one this test started, and ends with it. Objects are plain files, so a test and
//! the oracle look into a bucket as into a directory.
//! Flow: start -> create buckets -> nodes with `node_options` -> kill, restart, inject faults -> look at files and writes.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::binaries::workspace_root;
use crate::command::{Running, spawn, tail};
use crate::node::NodeOptions;
use crate::ports::free_port;

const ACCESS_KEY: &str = "count-twice-test";
const SECRET_KEY: &str = "not-a-secret-of-anyone";
/// Generous: a test that waits this long has failed, and a slow machine has not.
const LISTEN_LIMIT: Duration = Duration::from_secs(60);

/// What the server does wrong from now on to writes of some keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Fault {
    /// Answers 503 and does nothing.
    Refuse,
    /// Answers 403 and does nothing.
    Deny,
    /// Does it and answers 500: an outcome nobody knows.
    Lose,
    /// Forgets If-None-Match.
    Overwrite,
}

/// A running or killed server and its files. Dropping it kills the process and removes the files.
#[derive(Debug)]
pub struct S3Server {
    folder: TempDir,
    port: u16,
    process: Option<Running>,
}

/// One write the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Write {
    pub status: u16,
    pub method: String,
    /// `BUCKET/KEY`.
    pub path: String,
    /// Empty where there was none.
    pub query: String,
    /// `x-amz-server-side-encryption`; `None` where it was not sent.
    pub encryption: Option<String>,
}

impl S3Server {
    /// Starts a server with these empty buckets.
    ///
    /// # Errors
    /// If it does not build or does not listen.
    pub fn start(buckets: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("count-twice-s3-").tempdir()?;
        let mut server = Self { folder, port: free_port()?, process: None };
        buckets.iter().try_for_each(|bucket| server.create_bucket(bucket))?;
        server.restart()?;
        Ok(server)
    }

    /// Starts the process over the same files and port.
    ///
    /// # Errors
    /// If it does not listen; the message has the end of its output.
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let mut command = Command::new(program());
        command.arg(self.folder.path()).arg(self.port.to_string()).args([ACCESS_KEY, SECRET_KEY]);
        let mut process = spawn(&mut command, self.folder.path(), "s3-server")?;
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if process.ended()?.is_some() || started.elapsed() > LISTEN_LIMIT {
                bail!(
                    "the S3 server does not listen\n{}",
                    tail(&self.folder.path().join("s3-server.err"), 20)
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.process = Some(process);
        Ok(())
    }

    /// Kills the process with SIGKILL, as a crash would. Its files stay.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// Creates an empty bucket.
    ///
    /// # Errors
    /// If its folder cannot be made.
    pub fn create_bucket(&self, bucket: &str) -> Result<()> {
        std::fs::create_dir_all(self.bucket_dir(bucket)).with_context(|| format!("create bucket {bucket}"))
    }

    /// Returns the folder in which the bucket's objects lie as files, by key.
    pub fn bucket_dir(&self, bucket: &str) -> PathBuf {
        self.folder.path().join("buckets").join(bucket)
    }

    /// Returns the address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the variables a client needs: credentials, and no proxy before the loopback.
    pub fn environment(&self) -> Vec<(String, String)> {
        [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY), ("NO_PROXY", "127.0.0.1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    /// Adds to `options` what makes a node archive into `bucket`, given as `BUCKET` or `BUCKET/PREFIX`.
    #[must_use]
    pub fn archive_into(&self, mut options: NodeOptions, bucket: &str) -> NodeOptions {
        let arguments =
            ["--archive".to_owned(), format!("s3://{bucket}"), "--s3-endpoint".to_owned(), self.endpoint()];
        options.arguments.extend(arguments);
        options.environment.extend(self.environment());
        options
    }

    /// Has writes below `prefix` of `bucket` fail from now on; an empty prefix means every key.
    ///
    /// # Errors
    /// If the order cannot be written.
    pub fn inject(&self, fault: S3Fault, bucket: &str, prefix: &str) -> Result<()> {
        let kind = match fault {
            S3Fault::Refuse => "refuse",
            S3Fault::Deny => "deny",
            S3Fault::Lose => "lose",
            S3Fault::Overwrite => "overwrite",
        };
        let file = self.folder.path().join("faults");
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        // Written beside and renamed: the server reads it with each request.
        let beside = file.with_extension("new");
        std::fs::write(&beside, format!("{before}{kind} {bucket} {prefix}\n"))?;
        std::fs::rename(beside, file).context("inject a fault")
    }

    /// Ends every fault.
    ///
    /// # Errors
    /// If the order cannot be removed.
    pub fn heal(&self) -> Result<()> {
        match std::fs::remove_file(self.folder.path().join("faults")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("end the faults")
            }
            _ => Ok(()),
        }
    }

    /// Returns the writes the server has answered, over all its starts.
    ///
    /// # Errors
    /// If the note of them does not read.
    pub fn writes(&self) -> Result<Vec<S3Write>> {
        let text = std::fs::read_to_string(self.folder.path().join("writes")).unwrap_or_default();
        // A kill may have cut the last line.
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(parse_write).collect()
    }

    /// Returns the keys of a bucket below `prefix`, sorted.
    ///
    /// # Errors
    /// If a folder does not list.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Result<Vec<String>> {
        let root = self.bucket_dir(bucket);
        let mut keys = Vec::new();
        collect(&root, &root, &mut keys)?;
        keys.retain(|key| key.starts_with(prefix));
        keys.sort_unstable();
        Ok(keys)
    }
}

fn parse_write(line: &str) -> Result<S3Write> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [status, method, path, query, encryption] = words.as_slice() else { bail!("no write: {line:?}") };
    let given = |word: &str| (word != "-").then(|| word.to_owned());
    Ok(S3Write {
        status: status.parse().with_context(|| format!("status of {line:?}"))?,
        method: (*method).to_owned(),
        path: (*path).to_owned(),
        query: given(query).unwrap_or_default(),
        encryption: given(encryption),
    })
}

fn collect(root: &Path, folder: &Path, keys: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, keys)?;
        } else if let Ok(key) = path.strip_prefix(root) {
            keys.push(key.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// Returns the server's program, building it first; once a process. It is a workspace of its own: its features must not
/// become those of the programs under test.
fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let manifest = workspace_root().join("tests/s3-server/Cargo.toml");
        match crate::binaries::build_other(&manifest, "s3-server") {
            Ok(program) => program,
            Err(error) => panic!("the S3 server does not build: {error:#}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noted_write_reads_back() {
        let write = parse_write("200 PUT clicks/a/b.json partNumber=1 AES256\n").expect("reads");
        assert_eq!((write.status, write.path.as_str()), (200, "clicks/a/b.json"));
        assert_eq!((write.query.as_str(), write.encryption.as_deref()), ("partNumber=1", Some("AES256")));
        assert_eq!(parse_write("412 PUT clicks/a - -\n").expect("reads").encryption, None);
        assert!(parse_write("412 PUT\n").is_err());
    }
}
