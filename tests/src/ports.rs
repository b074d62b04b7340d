//! Ports that no outgoing connection of this machine can take while a node is down.
//!
//! A client that retries against a dead port out of the kernel's ephemeral range can, by chance, connect to itself and
//! hold the port. So nodes under test listen below that range.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

const FIRST: u32 = 18_000;
const COUNT: u32 = 12_000;
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Raises the limit of open files of the test as far as the system lets it, for tests that hold many connections.
pub fn raise_file_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    // A limit that stays low fails the test at its connections, with their number.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
}

/// Returns a port on the loopback that was free a moment ago.
///
/// # Errors
/// If none of a few hundred candidates is free.
pub fn free_port() -> Result<u16> {
    // Processes start at different places, so that two test processes rarely try the same port.
    let start = std::process::id().wrapping_mul(7_919);
    for _ in 0..500 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + start.wrapping_add(step) % COUNT) as u16; // below 30_000
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}
