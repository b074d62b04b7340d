//! Who may do what (G-8): API keys, the guard in front of every route, and the log of what administrators ask for.
//!
//! Guarantee: no handler runs for a request without a valid key, except on the few open paths and on a node started
//! without keys; a key revoked through this node is refused from the answer of that request on. Words: *text* = the whole
//! key as its owner has it; *secret* = its 32 random bytes, stored nowhere; *ring* = the keys in memory.
//! Flow: [`guard`] finds the key of a request in the [`KeyRing`] and hands on a `Caller`, which each handler asks what it
//! allows. What changes anything but clicks and verdicts is noted before it is done, and again with its answer.

mod guard;
mod refused;
mod ring;
mod text;

pub(crate) use guard::{RequestId, guard};
pub(crate) use refused::RefusedActions;
pub use ring::{Access, KeyRing, NewKey};
pub use text::KeyText;
