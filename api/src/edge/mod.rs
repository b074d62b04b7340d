//! The edge: what meets a connection and a request before anything looks at who sends it.
//!
//! Guarantee: no sender holds memory or a connection longer than the settings allow, with or without a key.
//! Flow: the listener takes a connection (over TLS where a certificate is set), its head must come within a time and a
//! size, [`edge`] checks it, answers the preflights of browsers and puts the body under a pace.

mod config;
mod door;
mod idle;
mod listen;
mod pace;
mod tls;

pub use config::EdgeConfig;
pub(crate) use door::{Connections, edge};
pub(crate) use listen::listen;
pub(crate) use pace::body_error;
pub(crate) use tls::Certificates;
