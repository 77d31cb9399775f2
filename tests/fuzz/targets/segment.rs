//! Any bytes as a segment of a spool.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fieldgate::fuzzing::segment(bytes));
