//! See `godwit_tests::fuzz::repairs::repairs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| godwit_tests::fuzz::repairs::repairs(bytes));
