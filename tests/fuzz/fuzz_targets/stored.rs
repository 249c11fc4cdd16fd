//! See `godwit_tests::fuzz::decoding::stored`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_tests::fuzz::decoding::stored(bytes));
