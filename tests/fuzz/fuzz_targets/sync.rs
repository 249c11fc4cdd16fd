//! See `godwit_tests::fuzz::sync::sync`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_tests::fuzz::sync::sync(bytes));
