//! Any bytes as what a gateway says.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldgate::fuzzing::gateway_message(bytes));
