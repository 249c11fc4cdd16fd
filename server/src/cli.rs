//! The command line. The exit status is 0 if what was asked was done, 1 if not, 2 if it was not understood. `verify` has more: 1
//! if nodes have diverged, 2 if they could not be asked, 3 if nothing was proven; and `import` 3, if its input broke off.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, LogSection};
use crate::demo::{self, DemoArguments};
use crate::node::{RunningNode, StartOptions};
use crate::transfer::{self, ExportArguments, ImportArguments};
use crate::verify::{self, VerifyArguments};
use crate::{ca, logging};

/// Threads for reads that may wait for the disk.
const BLOCKING_THREADS_MAX: usize = 64;

/// An always-writable multi-region key-value store.
#[derive(Debug, Parser)]
#[command(name = "godwit", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a node until SIGTERM or SIGINT.
    Serve {
        /// The configuration, see godwit.example.toml.
        #[arg(long)]
        config: PathBuf,
        /// Lets the API listen beyond loopback, though there are neither tokens nor TLS yet.
        #[arg(long)]
        insecure: bool,
    },
    /// Shows three regions that take real writes through a partition, and proves that they converge.
    Demo(DemoArguments),
    /// Proves that nodes hold the same, or names the records that differ. Exit status: 0 equal, 1 diverged, 2 a node could
    /// not be asked, 3 not proven, since the nodes never had applied the same.
    Verify(VerifyArguments),
    /// Writes a namespace to standard output as JSON Lines.
    Export(ExportArguments),
    /// Writes an export from standard input to a namespace. Exit status: 0 done, 1 it broke off, 2 not understood, 3 all
    /// that was read is imported, but the input has no end.
    Import(ImportArguments),
    /// Makes certificates for the links between nodes.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Checks a configuration and the certificates that it names, and starts nothing.
    CheckConfig {
        /// The configuration.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Makes the authority of a cluster: ca.pem and cluster.secret, which every node needs, and ca.key, which none does.
    Init {
        /// The cluster's name.
        #[arg(long)]
        cluster: String,
        /// Where to write the files.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Makes a node's certificate and private key, NAME.pem and NAME.key.
    Issue {
        /// Where ca.pem and ca.key are, and where to write.
        #[arg(long)]
        dir: PathBuf,
        /// The node's name.
        #[arg(long)]
        node: String,
    },
}

/// The exit status of `verify` if a node could not be asked.
const NOT_ASKED: u8 = 2;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let failure = if matches!(command, Command::Verify(_)) { NOT_ASKED } else { 1 };
    run(command).unwrap_or_else(|error| {
        eprintln!("godwit: {}", told(&error));
        ExitCode::from(failure)
    })
}

/// An error with its causes, those left out that its own text tells already.
fn told(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Verify(arguments) => {
            let outcome = runtime()?.block_on(verify::run(&arguments))?;
            return Ok(ExitCode::from(outcome.exit_status()));
        }
        Command::Import(arguments) => {
            let outcome = runtime()?.block_on(transfer::import(&arguments))?;
            return Ok(ExitCode::from(outcome.exit_status()));
        }
        Command::Export(arguments) => runtime()?.block_on(transfer::export(&arguments)),
        Command::Serve { config, insecure } => serve(&config, insecure),
        Command::Demo(arguments) => {
            logging::init(&LogSection { filter: "error".into(), ..LogSection::default() })
                .map_err(anyhow::Error::msg)?;
            runtime()?.block_on(demo::run(arguments))
        }
        Command::Ca(CaCommand::Init { cluster, dir }) => written(&ca::init(&cluster, &dir)?),
        Command::Ca(CaCommand::Issue { dir, node }) => written(&ca::issue(&dir, &node)?),
        Command::CheckConfig { file } => {
            let config = Config::load(&file)?;
            config.identity()?;
            config.token_key()?;
            println!("{} is a valid configuration", file.display());
            Ok(())
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

fn written(paths: &[PathBuf]) -> anyhow::Result<()> {
    for path in paths {
        println!("wrote {}", path.display());
    }
    Ok(())
}

fn serve(path: &Path, insecure: bool) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    logging::init(&config.log).map_err(anyhow::Error::msg)?;
    runtime()?.block_on(async {
        // Before the node is there: a signal that comes while it starts must not be lost.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let options = StartOptions { insecure, ..StartOptions::default() };
        let node = RunningNode::start(config, options).await?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("stopping: SIGTERM"),
            _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
            failure = node.failed() => tracing::error!(%failure, "stopping: the node failed"),
        }
        // A failure comes back from here.
        node.shutdown().await?;
        Ok(())
    })
}

/// The runtime of a process that runs nodes.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("starting the runtime")
}
