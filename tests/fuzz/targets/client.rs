//! Any bytes as what an MQTT client sends.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldgate::fuzzing::client(bytes));
