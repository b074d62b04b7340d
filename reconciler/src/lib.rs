//! twice-reconciler
