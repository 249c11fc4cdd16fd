//! The trace of a run: every event in order, hashed, and printed if asked for.
//!
//! Two runs of one seed must have the same digest. The digest covers the lines themselves, so whatever a line
//! shows is covered. Lines are gathered before they are hashed: hashing is quick on long stretches only.

use std::fmt;

/// How much is gathered before it is hashed.
const GATHERED_BYTES: usize = 64 * 1024;

/// A growing trace.
#[derive(Debug)]
pub struct Trace {
    hasher: blake3::Hasher,
    gathered: String,
    print: bool,
    lines: u64,
}

impl Trace {
    /// An empty trace; `print` shows each line as it comes.
    pub fn new(print: bool) -> Self {
        Self { hasher: blake3::Hasher::new(), gathered: String::new(), print, lines: 0 }
    }

    /// Adds a line at a simulated time.
    pub fn line(&mut self, now_us: u64, what: fmt::Arguments<'_>) {
        self.lines += 1;
        // Writing into memory cannot fail.
        let _ = fmt::write(&mut self.gathered, format_args!("{now_us} {what}\n"));
        if self.gathered.len() >= GATHERED_BYTES {
            self.hasher.update(self.gathered.as_bytes());
            self.gathered.clear();
        }
        if self.print {
            println!("{:>13.6}s {what}", now_us as f64 / 1e6);
        }
    }

    /// How many lines there are.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The digest of all lines, in hexadecimal.
    pub fn digest(&self) -> String {
        let mut hasher = self.hasher.clone();
        hasher.update(self.gathered.as_bytes());
        hasher.finalize().to_hex()[..32].to_string()
    }
}
