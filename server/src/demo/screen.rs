//! What the reader sees: titles, lines, and the time since the beginning.

use std::time::Instant;

/// The demo's voice. Everything goes to standard output, in whole lines, so that it reads well in a file too.
#[derive(Debug)]
pub(super) struct Screen {
    began: Instant,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { began: Instant::now() }
    }

    pub(super) fn title(&self, text: &str) {
        println!("\n[{:>5.1} s] {text}", self.began.elapsed().as_secs_f64());
    }

    pub(super) fn say(&self, text: &str) {
        println!("          {text}");
    }

    pub(super) fn progress(&self, text: &str) {
        println!("[{:>5.1} s]   {text}", self.began.elapsed().as_secs_f64());
    }
}
