//! Stores shared by the paths and the API: their traits, their row types and their backends.
//!
//! Real-time windows live in sled; billing, campaigns with rates, and imports in SQLite.

pub mod billing;
pub mod campaigns;
mod error;
pub mod imports;
pub mod sketch;
pub mod windows;

pub use error::{Error, Result};
