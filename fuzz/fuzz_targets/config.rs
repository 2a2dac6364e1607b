//! `millpond_fuzz::config` says what is asserted.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| millpond_fuzz::config(input));
