//! End-to-end tests over the real binaries: clicks in, preliminary out, reconciled out, and no kill loses or doubles one.

#![allow(clippy::print_stderr)] // a long test says where it is; seen when it fails, or with --nocapture

mod abuse;
mod aggregates;
mod audit;
mod bad_input;
mod budgets;
mod checkpoints;
mod compare;
mod crash;
mod crash_cluster;
mod damage;
mod dashboard;
mod docs;
mod examples;
mod fail_points;
mod fluvio;
mod import;
mod limits;
mod openapi;
mod outages;
mod profiles;
mod retention;
mod s3;
mod scenario;
mod support;
mod thin_line;
mod trim;
