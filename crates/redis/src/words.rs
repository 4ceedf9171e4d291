//! The keys and arguments of a script, in one allocation.

use std::{fmt, io::Write as _};

use crate::link::Bytes;

/// A list of words that is being written.
#[derive(Debug, Default)]
pub(crate) struct Words {
    buffer: Vec<u8>,
    ends: Vec<usize>,
}

impl Words {
    pub(crate) fn with_capacity(words: usize, bytes: usize) -> Self {
        Self { buffer: Vec::with_capacity(bytes), ends: Vec::with_capacity(words) }
    }

    pub(crate) fn push(&mut self, word: &[u8]) {
        self.buffer.extend_from_slice(word);
        self.ends.push(self.buffer.len());
    }

    /// Adds one word made of several parts.
    pub(crate) fn join(&mut self, parts: &[&str]) {
        for part in parts {
            self.buffer.extend_from_slice(part.as_bytes());
        }
        self.ends.push(self.buffer.len());
    }

    /// Adds what is shown as one word.
    pub(crate) fn show(&mut self, word: impl fmt::Display) {
        // Writing to memory does not fail.
        let _ = write!(self.buffer, "{word}");
        self.ends.push(self.buffer.len());
    }

    pub(crate) fn flag(&mut self, flag: bool) {
        self.push(if flag { b"1" } else { b"0" });
    }

    pub(crate) fn finish(self) -> Vec<Bytes> {
        let buffer = Bytes::from(self.buffer);
        let mut start = 0;
        let slice = |end| {
            let word = buffer.slice(start..end);
            start = end;
            word
        };
        self.ends.into_iter().map(slice).collect()
    }
}
