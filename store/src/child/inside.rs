//! The child's own side: what it asks of the system before it works.

use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};

/// Address space a process may map beside twice its limit: thread stacks, and what the allocator keeps unused.
const MEMORY_SLACK_BYTES: u64 = 1 << 30;

/// Asks to be killed when the parent is gone: nobody would read the answer.
pub fn die_with_parent() {
    // If it cannot be set, the broken pipe ends the process later.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}

/// Bounds what this process can map, in case it does not keep to its limit; an existing lower bound stays.
///
/// # Errors
/// If the system refuses.
pub fn limit_memory(limit_bytes: u64) -> std::io::Result<()> {
    let bound = limit_bytes.saturating_mul(2).saturating_add(MEMORY_SLACK_BYTES);
    let present = getrlimit(Resource::Data);
    let bound = present.maximum.map_or(bound, |maximum| bound.min(maximum));
    Ok(setrlimit(Resource::Data, Rlimit { current: Some(bound), maximum: present.maximum })?)
}
