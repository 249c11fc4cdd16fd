//! See `godwit_tests::fuzz::documents::documents`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_tests::fuzz::documents::documents(bytes));
