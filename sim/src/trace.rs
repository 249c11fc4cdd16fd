//! The trace of a run: every event in order, hashed, and printed if asked for.
//!
//! Two runs of one seed must have the same digest. The digest covers the lines themselves, so whatever a line
//! shows is covered. Beside it, what a picture of the run needs is kept if somebody wants one: that decides nothing.
//!
//! Lines are gathered before they are hashed: hashing is quick on long stretches only.

use std::fmt;

/// How much is gathered before it is hashed.
const GATHERED_BYTES: usize = 64 * 1024;

/// What becomes of a trace, its digest apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watch {
    /// Whether each line is printed as it comes.
    pub print: bool,
    /// Whether marks are kept for a timeline.
    pub keep: bool,
}

/// The most marks that are kept; the earliest ones go first.
pub const MARKS_MAX: usize = 200_000;

/// Something that a timeline shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Simulated microseconds since the beginning.
    pub at_us: u64,
    /// What it is.
    pub what: What,
}

/// What a timeline shows. Nodes are numbers of places, links have the smaller one first.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum What {
    /// A client asks for a commit.
    Asked { node: usize, request: u64, client: Option<usize>, writes: String },
    /// It is answered.
    Answered { node: usize, request: u64, answer: String },
    /// A frame is sent.
    Sent { number: u64, from: usize, to: usize, message: &'static str, bytes: usize },
    /// A frame arrives at a process.
    Arrived { number: u64 },
    /// A link is cut.
    Cut { link: (usize, usize) },
    /// It works again.
    Healed { link: (usize, usize) },
    /// A process starts.
    Started { node: usize, name: String, region: String },
    /// A process is gone.
    Ended { node: usize },
    /// Anything else that happens to a node.
    Happened { node: usize, what: String },
    /// A node's durable state, all that it applied and holds.
    State { node: usize, digest: u64 },
}

/// A growing trace.
#[derive(Debug)]
pub struct Trace {
    hasher: blake3::Hasher,
    gathered: String,
    watch: Watch,
    lines: u64,
    marks: std::collections::VecDeque<Mark>,
}

impl Trace {
    /// An empty trace.
    pub fn new(watch: Watch) -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            gathered: String::new(),
            watch,
            lines: 0,
            marks: Default::default(),
        }
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
        if self.watch.print {
            println!("{:>13.6}s {what}", now_us as f64 / 1e6);
        }
    }

    /// Whether marks are kept: who has to reckon for one asks before.
    pub fn keeps_marks(&self) -> bool {
        self.watch.keep
    }

    /// Adds a mark for a timeline, if marks are kept.
    pub fn mark(&mut self, at_us: u64, what: impl FnOnce() -> What) {
        if self.watch.keep {
            if self.marks.len() == MARKS_MAX {
                self.marks.pop_front();
            }
            self.marks.push_back(Mark { at_us, what: what() });
        }
    }

    /// The marks, in order of time.
    pub fn into_marks(self) -> Vec<Mark> {
        self.marks.into()
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
