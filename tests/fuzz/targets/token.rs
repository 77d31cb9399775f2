//! Any bytes as a token, or as the keys of an issuer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldgate::fuzzing::token(bytes));
