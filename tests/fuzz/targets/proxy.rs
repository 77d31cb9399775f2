//! Any bytes as what a proxy says.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldgate::fuzzing::proxy(bytes));
