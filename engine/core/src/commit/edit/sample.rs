//! The first rows of a record, as a commit reads them.

/// The first rows of a record, read at once: all that there is of most records, so that a commit to one of those asks the
/// store a single time.
pub(super) const SAMPLE_ROWS: usize = 16;

/// Rows as they are stored, in the order of their keys. They lie in one buffer, and one is taken apart only when something
/// of it is asked for: most commits ask for one row of many.
pub(super) struct Sample {
    bytes: Vec<u8>,
    /// Of each row, the end of its key and of its value.
    pub(super) ends: Vec<(usize, usize)>,
}

impl Sample {
    /// What most records fit in.
    const BYTES: usize = 1024;

    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(Self::BYTES), ends: Vec::with_capacity(SAMPLE_ROWS) }
    }

    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((key_end, self.bytes.len()));
    }

    /// Keys and values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.ends.iter().scan(0, |from, &(key_end, end)| {
            let (key, value) = (&self.bytes[*from..key_end], &self.bytes[key_end..end]);
            *from = end;
            Some((key, value))
        })
    }
}
