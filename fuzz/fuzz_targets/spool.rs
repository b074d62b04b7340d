//! Searches for bytes that break `twice_log::fuzzing::spool`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| twice_log::fuzzing::spool(bytes));
