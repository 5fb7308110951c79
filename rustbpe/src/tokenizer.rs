//! The tokenizer: a pattern and ranked tokens. Knows nothing of special tokens.

use rayon::prelude::*;

use crate::count::ChunkCounts;
use crate::encode::{CacheLoan, Encoder};
use crate::error::Error;
use crate::split::Splitter;
use crate::train::learn_merges;

/// Texts below this many bytes together are encoded on the calling thread.
const WORTH_THREADS_BYTES: usize = 1 << 16;

/// Collects text, then learns merges from it.
pub struct Trainer {
    splitter: Splitter,
    merges: usize,
    counts: Vec<ChunkCounts>,
}

impl Trainer {
    /// `vocab_size` counts the 256 bytes and the merges.
    pub fn new(vocab_size: i64, pattern: &str) -> Result<Self, Error> {
        let merges = u32::try_from(vocab_size)
            .ok()
            .filter(|size| *size < 1 << 31)
            .and_then(|size| size.checked_sub(256));
        let Some(merges) = merges else {
            return Err(Error::Value(format!(
                "vocab_size is {vocab_size}; it counts the 256 single bytes, so it is at least 256 (and below 2^31)"
            )));
        };
        Ok(Trainer { splitter: Splitter::new(pattern)?, merges: merges as usize, counts: Vec::new() })
    }

    /// Count the chunks of a batch; with `threads`, on all threads of the current rayon pool.
    pub fn add<T: AsRef<str> + Sync>(&mut self, texts: &[T], threads: bool) -> Result<(), Error> {
        let parts = if threads { rayon::current_num_threads() } else { 1 };
        self.counts.resize_with(self.counts.len().max(parts), ChunkCounts::default);
        let splitter = &self.splitter;
        if parts == 1 {
            return texts.iter().try_for_each(|text| self.counts[0].add_text(splitter, text.as_ref()));
        }
        // Each thread keeps its own counts over all batches and takes the next text when it is free.
        let next = std::sync::atomic::AtomicUsize::new(0);
        self.counts.par_iter_mut().try_for_each(|counts| {
            while let Some(text) = texts.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                counts.add_text(splitter, text.as_ref())?;
            }
            Ok(())
        })
    }

    /// Learn the merges; fewer than asked for when the text holds no further pair.
    pub fn finish(self, threads: bool) -> Result<Tokenizer, Error> {
        let counts = if threads {
            self.counts.into_par_iter().reduce(ChunkCounts::default, ChunkCounts::merge)
        } else {
            self.counts.into_iter().fold(ChunkCounts::default(), ChunkCounts::merge)
        };
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        for (left, right) in learn_merges(counts, self.merges)? {
            let token = [&tokens[left as usize][..], &tokens[right as usize][..]].concat();
            tokens.push(token);
        }
        Tokenizer::with_splitter(tokens, self.splitter)
    }
}

/// Turns text into ids and back; immutable and shared by threads.
pub struct Tokenizer {
    splitter: Splitter,
    encoder: Encoder,
    /// All tokens one after another, in the order of their ids.
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`.
    ends: Vec<usize>,
}

impl Tokenizer {
    /// `tokens` in the order of their ranks, which are their ids.
    pub fn new(tokens: Vec<Vec<u8>>, pattern: &str) -> Result<Self, Error> {
        Self::with_splitter(tokens, Splitter::new(pattern)?)
    }

    fn with_splitter(tokens: Vec<Vec<u8>>, splitter: Splitter) -> Result<Self, Error> {
        let encoder = Encoder::new(&tokens)?;
        let mut bytes = Vec::with_capacity(tokens.iter().map(Vec::len).sum());
        let mut ends = Vec::with_capacity(tokens.len());
        for token in &tokens {
            bytes.extend_from_slice(token);
            ends.push(bytes.len());
        }
        Ok(Tokenizer { splitter, encoder, bytes, ends })
    }

    pub fn pattern(&self) -> &str {
        self.splitter.pattern()
    }

    /// Return the number of tokens, the 256 bytes included.
    pub fn vocab_size(&self) -> usize {
        self.ends.len()
    }

    /// Return a token's bytes.
    pub fn token(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.bytes[start..end])
    }

    /// Return the tokens in the order of their ids.
    pub fn tokens(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends.len() as u32).filter_map(|id| self.token(id))
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.encoder.encode(&self.splitter, text, self.encoder.cache().get(), &mut ids)?;
        Ok(ids)
    }

    /// Encode each text; with `threads`, on all threads of the current rayon pool.
    pub fn encode_batch<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        threads: bool,
    ) -> Result<Vec<Vec<u32>>, Error> {
        self.map_texts(texts, threads, |cache, text| {
            let mut ids = Vec::with_capacity(text.len() / 3 + 1);
            self.encoder.encode(&self.splitter, text, cache.get(), &mut ids)?;
            Ok(ids)
        })
    }

    /// Encode each text to little-endian 16-bit ids, all in one buffer, each after `first` where given;
    /// the second value is the number of ids a text. Fails where an id needs more bits.
    pub fn encode_packed<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        first: Option<u16>,
        threads: bool,
    ) -> Result<(Vec<u8>, Vec<usize>), Error> {
        if self.vocab_size() > 1 << 16 {
            return Err(Error::Value(format!("{} tokens do not fit 16-bit ids", self.vocab_size())));
        }
        let packed: Vec<Vec<u8>> = self.map_texts(texts, threads, |cache, text| {
            let mut ids = Vec::with_capacity(text.len() / 3 + 2);
            ids.extend(first.map(u32::from));
            self.encoder.encode(&self.splitter, text, cache.get(), &mut ids)?;
            Ok(ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect())
        })?;
        Ok((packed.concat(), packed.iter().map(|ids| ids.len() / 2).collect()))
    }

    fn map_texts<'t, T: AsRef<str> + Sync, R: Send>(
        &self,
        texts: &'t [T],
        threads: bool,
        work: impl Fn(&mut CacheLoan<'_>, &'t str) -> Result<R, Error> + Sync,
    ) -> Result<Vec<R>, Error> {
        let bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        if !threads || texts.len() < 2 || bytes < WORTH_THREADS_BYTES {
            let mut cache = self.encoder.cache();
            return texts.iter().map(|text| work(&mut cache, text.as_ref())).collect();
        }
        texts.par_iter().map_init(|| self.encoder.cache(), |cache, text| work(cache, text.as_ref())).collect()
    }

    /// Return the bytes of `ids`; fails on an id that is no token.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            match self.token(id) {
                Some(token) => out.extend_from_slice(token),
                None => {
                    let last = self.vocab_size() - 1;
                    return Err(Error::Value(format!("id {id} is no token; ids run from 0 to {last}")));
                }
            }
        }
        Ok(out)
    }
}
