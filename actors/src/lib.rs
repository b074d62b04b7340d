//! twice-actors
