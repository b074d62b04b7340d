//! The archiver on a real log and a local archive.
