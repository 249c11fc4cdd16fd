//! The binary `godwit`: see [`godwit_server::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    godwit_server::cli::main()
}
