//! twice-tests
