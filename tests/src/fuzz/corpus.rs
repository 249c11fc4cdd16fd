//! The inputs that are checked in: `tests/fuzz/corpus`, a directory a target.

use std::path::PathBuf;

use super::Target;

/// A target's inputs by file name, in order.
///
/// # Errors
/// If its directory or a file in it cannot be read.
pub fn of(target: &Target) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(dir(target))? {
        let entry = entry?;
        inputs.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
    }
    inputs.sort();
    Ok(inputs)
}

/// Where they are.
pub fn dir(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}
