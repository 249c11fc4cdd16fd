//! The binary `godwit`: see [`godwit_server::cli`].

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// See ADR 30.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    godwit_server::cli::main()
}
