//! twice-store
