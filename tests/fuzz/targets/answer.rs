//! Any bytes as an answer to the upgrade.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldgate::fuzzing::answer(bytes));
