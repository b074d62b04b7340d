//! twice-api
