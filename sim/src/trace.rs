//! The trace of a run: every event in order, hashed, and printed if asked for.
//!
//! Two runs of one seed must have the same digest. The digest covers the lines themselves, so whatever a line
//! shows is covered.

use std::fmt;

/// A growing trace.
#[derive(Debug)]
pub struct Trace {
    hasher: blake3::Hasher,
    print: bool,
    lines: u64,
}

impl Trace {
    /// An empty trace; `print` shows each line as it comes.
    pub fn new(print: bool) -> Self {
        Self { hasher: blake3::Hasher::new(), print, lines: 0 }
    }

    /// Adds a line at a simulated time.
    pub fn line(&mut self, now_us: u64, what: fmt::Arguments<'_>) {
        self.lines += 1;
        // Hashing cannot fail.
        let _ = fmt::write(&mut Feed(&mut self.hasher), format_args!("{now_us} {what}\n"));
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
        self.hasher.finalize().to_hex()[..32].to_string()
    }
}

struct Feed<'a>(&'a mut blake3::Hasher);

impl fmt::Write for Feed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}
