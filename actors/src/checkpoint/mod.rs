//! Checkpoints of partitions in sled (G-2).
