//! Any bytes as what a hub says.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldgate::fuzzing::hub_message(bytes));
