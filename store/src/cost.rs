//! What a piece of work cost the machine, measured by the process that did it.
//!
//! Guarantee: figures are the system's own accounts of this process (`/proc/self`), not estimates; where the system does
//! not tell, a figure is 0. Both paths measure with this one piece of code, so that their costs can be compared.

use std::fs::read_to_string;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Clock ticks a second in which the system accounts CPU time; 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Figures of one piece of work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub wall_seconds: f64,
    /// Of all threads, user and system together.
    pub cpu_seconds: f64,
    /// Peak resident memory of the process, also of what it did before.
    pub rss_peak_bytes: u64,
    /// Bytes that went through reads and writes, from the page cache or not; pipes count too.
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// Measures from its making on.
#[derive(Debug, Clone, Copy)]
pub struct CostMeter {
    started: Instant,
    before: Cost,
}

impl CostMeter {
    /// Begins to measure.
    pub fn start() -> Self {
        Self { started: Instant::now(), before: account() }
    }

    /// Returns what the process cost since the start.
    pub fn read(&self) -> Cost {
        let now = account();
        Cost {
            wall_seconds: self.started.elapsed().as_secs_f64(),
            cpu_seconds: (now.cpu_seconds - self.before.cpu_seconds).max(0.0),
            rss_peak_bytes: now.rss_peak_bytes,
            bytes_read: now.bytes_read.saturating_sub(self.before.bytes_read),
            bytes_written: now.bytes_written.saturating_sub(self.before.bytes_written),
        }
    }
}

/// Returns the account of this process since it began, without wall time.
fn account() -> Cost {
    let io = read_to_string("/proc/self/io").unwrap_or_default();
    Cost {
        wall_seconds: 0.0,
        cpu_seconds: cpu_seconds(&read_to_string("/proc/self/stat").unwrap_or_default()),
        rss_peak_bytes: rss_peak_bytes(),
        bytes_read: field(&io, "rchar:"),
        bytes_written: field(&io, "wchar:"),
    }
}

/// Returns the resident memory of this process, or 0 where the system does not tell.
pub fn rss_bytes() -> u64 {
    field(&read_to_string("/proc/self/status").unwrap_or_default(), "VmRSS:") * 1024
}

/// Returns the peak resident memory of this process, or 0 where the system does not tell.
pub fn rss_peak_bytes() -> u64 {
    field(&read_to_string("/proc/self/status").unwrap_or_default(), "VmHWM:") * 1024
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Reads user and system time, the 14th and 15th field; the second, the name, is in parentheses and may hold spaces.
fn cpu_seconds(stat: &str) -> f64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_user_and_system_time_of_the_account() {
        let stat = "42 (a name) with) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0";
        assert!((cpu_seconds(stat) - 3.0).abs() < 1e-9);
        assert!(cpu_seconds("").abs() < 1e-9);
    }

    #[test]
    fn work_costs_what_it_takes() {
        let meter = CostMeter::start();
        let mut sum = 0_u64;
        while meter.read().cpu_seconds < 0.02 {
            sum = (0..10_000_u64).fold(sum, |sum, number| sum.wrapping_mul(31).wrapping_add(number));
        }
        let cost = meter.read();
        assert!(cost.wall_seconds > 0.0 && cost.bytes_read > 0, "{cost:?} {sum}");
        assert!(rss_peak_bytes() >= rss_bytes() && rss_bytes() > 0);
    }
}
