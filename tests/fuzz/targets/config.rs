//! Any bytes as the text of a configuration.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldgate::fuzzing::config(bytes));
