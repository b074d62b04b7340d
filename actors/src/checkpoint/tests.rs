//! Checkpoints through crash, loss and damage.
