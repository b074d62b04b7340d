//! Searches for bytes that break `twice_api::fuzzing::arrow_body`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| twice_api::fuzzing::arrow_body(bytes));
