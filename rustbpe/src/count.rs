//! How often each chunk occurs. Knows nothing of merges.

use crate::chunk::{pack, unpack, Map, SHORT};
use crate::error::Error;
use crate::split::Splitter;

/// Counts of distinct chunks; memory grows with the distinct ones alone.
#[derive(Default)]
pub struct ChunkCounts {
    short: Map<u128, u64>,
    long: Map<Box<[u8]>, u64>,
}

impl ChunkCounts {
    /// Count the chunks of one text.
    pub fn add_text(&mut self, splitter: &Splitter, text: &str) -> Result<(), Error> {
        let bytes = text.as_bytes();
        splitter.split(text, |start, end| {
            if end - start <= SHORT {
                *self.short.entry(pack(bytes, start, end)).or_insert(0) += 1;
            } else if let Some(count) = self.long.get_mut(&bytes[start..end]) {
                *count += 1;
            } else {
                self.long.insert(bytes[start..end].into(), 1);
            }
        })
    }

    /// Add the counts of `other`; the smaller map is moved into the larger one.
    pub fn merge(mut self, mut other: Self) -> Self {
        if self.len() < other.len() {
            std::mem::swap(&mut self, &mut other);
        }
        for (chunk, count) in other.short {
            *self.short.entry(chunk).or_insert(0) += count;
        }
        for (chunk, count) in other.long {
            *self.long.entry(chunk).or_insert(0) += count;
        }
        self
    }

    /// Return the number of distinct chunks.
    pub fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Return the bytes of all distinct chunks together.
    pub fn total_bytes(&self) -> usize {
        let short: usize = self.short.keys().map(|&chunk| (chunk >> 120) as usize).sum();
        short + self.long.keys().map(|chunk| chunk.len()).sum::<usize>()
    }

    /// Consume the counts, one `visit(bytes, count)` a distinct chunk, in no particular order.
    pub fn drain(self, mut visit: impl FnMut(&[u8], u64)) {
        let mut bytes = Vec::with_capacity(SHORT);
        for (chunk, count) in self.short {
            bytes.clear();
            unpack(chunk, &mut bytes);
            visit(&bytes, count);
        }
        for (chunk, count) in self.long {
            visit(&chunk, count);
        }
    }
}
