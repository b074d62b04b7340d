//! Where another process finds the same archive: what the node hands to the children it starts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Archive;
use super::s3::S3Config;
use crate::error::Result;

/// The place of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArchiveLocation {
    /// A local directory.
    Local { root: PathBuf },
    /// Buckets of S3. Credentials are not among the settings: the child finds them where its parent did.
    S3 { config: Box<S3Config> },
}

impl ArchiveLocation {
    /// Opens the archive for reading.
    ///
    /// # Errors
    /// If it is not there.
    pub fn open(&self) -> Result<Archive> {
        match self {
            ArchiveLocation::Local { root } => Archive::read_local(root),
            ArchiveLocation::S3 { config } => config.open_for_reading(),
        }
    }
}
