//! Logs: `tracing` to standard error, as text or as JSON. No request writes a line at the level `info`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSection};

/// Reads a filter, or says what is wrong with it.
pub(crate) fn filter(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(filter).map_err(|error| format!("{filter:?} is not a filter: {error}"))
}

/// Starts logging for the whole process. A second call changes nothing.
pub(crate) fn init(log: &LogSection) -> Result<(), String> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&log.filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // An error says that a logger is there already, which is as good.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}
