//! Tests of the accounts.
