//! twice-log
