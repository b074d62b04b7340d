//! Partitions end to end.
