//! Child processes that count: one request on standard input, lines of JSON on standard output.
//!
//! Guarantee: a child has a low priority and a bound on its memory, and dies with whoever asked. What its lines mean is
//! for the caller: it must not take an answer for whole unless a last line says so. Both paths start their children here.

mod inside;
mod parent;

pub use inside::{die_with_parent, limit_memory};
pub use parent::{ChildCommand, ChildError};
