//! Counting of one campaign: pure state and the thin actor around it.
