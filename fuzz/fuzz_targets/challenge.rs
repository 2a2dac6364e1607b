//! `millpond_fuzz::challenge` says what is asserted.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| millpond_fuzz::challenge(input));
