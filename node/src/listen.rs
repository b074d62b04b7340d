//! The sockets a node listens on, and the file descriptors their connections take.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpSocket;
use tracing::warn;
use twice_api::Listeners;

/// File descriptors that are for files rather than connections: segments, databases, the archive.
const FILES_RESERVED: u64 = 2_048;

/// How the node listens.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ListenConfig {
    /// A second address, on loopback, that is served without TLS: for `twice` and scrapers on the same machine, which
    /// do not speak it. Keys are asked for here too
    #[arg(long, value_name = "ADDRESS")]
    pub listen_local: Option<SocketAddr>,
    /// Connections that may wait for the node to take them, 16 to 65535; the kernel may allow fewer (net.core.somaxconn).
    /// More outlasts a rush of new ones, fewer refuses it sooner
    #[arg(long, default_value_t = ListenConfig::default().listen_backlog)]
    pub listen_backlog: u32,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self { listen_local: None, listen_backlog: 1_024 }
    }
}

impl ListenConfig {
    /// Takes the addresses.
    ///
    /// # Errors
    /// If one cannot be listened on, or the local one is open to others.
    pub async fn open(&self, public: SocketAddr) -> Result<Listeners> {
        if !(16..=65_535).contains(&self.listen_backlog) {
            bail!("listen_backlog is {}; it must lie between 16 and 65535", self.listen_backlog);
        }
        let local = match self.listen_local {
            None => None,
            Some(address) if address.ip().is_loopback() => {
                Some(listen(address, self.listen_backlog, "--listen-local")?)
            }
            Some(address) => {
                bail!("--listen-local {address} is open to others; it is for loopback, as it has no TLS")
            }
        };
        Ok(Listeners { public: listen(public, self.listen_backlog, "--listen")?, local })
    }
}

/// MUST be called within a runtime.
fn listen(address: SocketAddr, backlog: u32, flag: &str) -> Result<TcpListener> {
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // As the standard library does: a node that starts again must not wait for old connections to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(backlog)?.into_std()
    };
    open().with_context(|| format!("cannot listen on {address}; choose another {flag}"))
}

/// Raises the limit of open files as far as the system lets a process do by itself, and says where that is not enough.
pub fn raise_file_limit(connections_max: u32) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            warn!(%error, "the limit of open files could not be raised");
        }
    }
    let wanted = u64::from(connections_max) + FILES_RESERVED;
    if let Some(allowed) = getrlimit(Resource::Nofile).current.filter(|allowed| *allowed < wanted) {
        warn!(
            allowed,
            wanted,
            "the limit of open files is below what connections_max needs; raise it (LimitNOFILE) or lower connections_max"
        );
    }
}
