//! What the tests of several crates share: pure code, usable on stable Rust and without a store on disk.

pub mod fuzz;
pub mod hand;
