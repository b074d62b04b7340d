//! A node around the reconciler: real log, archive and billing store in a folder; stream path and archiver by hand.
