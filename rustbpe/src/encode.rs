//! Applying merges: chunks to ids.
//!
//! A chunk that is a token is that token; any other is merged pair by pair, lowest rank
//! first and of equals the leftmost. Knows nothing of how the ranks came about.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

use crate::chunk::{hash_packed, pack, Map, SHORT};
use crate::error::Error;
use crate::split::Splitter;

/// No token.
const NONE: u32 = u32::MAX;
/// Up to this many bytes a scan for the lowest rank beats a heap.
const SCAN: usize = 64;

/// The ranks in the forms that encoding needs; shared by all threads.
pub struct Encoder {
    short: Map<u128, u32>,
    long: Map<Box<[u8]>, u32>,
    bytes: [u32; 256],
    /// (left, right) -> the token that both make.
    pairs: Map<u64, u32>,
    /// One per thread at work; idle ones wait here.
    caches: Mutex<Vec<Cache>>,
}

impl Encoder {
    /// Index `tokens`, whose position is their rank and id.
    ///
    /// Fails unless they are distinct, not empty and hold all 256 single bytes.
    pub fn new(tokens: &[Vec<u8>]) -> Result<Self, Error> {
        if tokens.len() >= NONE as usize {
            return Err(Error::Value(format!("{} tokens are too many", tokens.len())));
        }
        let mut encoder = Encoder {
            short: Map::default(),
            long: Map::default(),
            bytes: [NONE; 256],
            pairs: Map::default(),
            caches: Mutex::new(Vec::new()),
        };
        for (rank, token) in tokens.iter().enumerate() {
            let rank = rank as u32;
            let twin = match token.len() {
                0 => return Err(Error::Value(format!("token {rank} is empty"))),
                1..=SHORT => encoder.short.insert(pack(token, 0, token.len()), rank),
                _ => encoder.long.insert(token.as_slice().into(), rank),
            };
            if let Some(twin) = twin {
                return Err(Error::Value(format!("tokens {twin} and {rank} are the same bytes")));
            }
            if let [byte] = token[..] {
                encoder.bytes[byte as usize] = rank;
            }
        }
        if let Some(byte) = encoder.bytes.iter().position(|&rank| rank == NONE) {
            return Err(Error::Value(format!("no token is the single byte 0x{byte:02x}")));
        }
        let mut lengths: Vec<usize> = tokens.iter().map(Vec::len).collect();
        lengths.sort_unstable();
        lengths.dedup();
        for token in tokens {
            encoder.index_pairs(token, &lengths);
        }
        Ok(encoder)
    }

    /// Enter every way to make `token` of two tokens. `lengths` are those of all tokens, ascending:
    /// a token of a megabyte has as many cuts, nearly all of them with halves of other lengths.
    fn index_pairs(&mut self, token: &[u8], lengths: &[usize]) {
        let Some(rank) = self.lookup(token, 0, token.len()) else { return };
        for &middle in lengths.iter().take_while(|&&length| length < token.len()) {
            if lengths.binary_search(&(token.len() - middle)).is_err() {
                continue;
            }
            let left = self.lookup(token, 0, middle);
            let right = self.lookup(token, middle, token.len());
            if let (Some(left), Some(right)) = (left, right) {
                self.pairs.insert(pair_key(left, right), rank);
            }
        }
    }

    #[inline]
    fn lookup(&self, text: &[u8], start: usize, end: usize) -> Option<u32> {
        if end - start <= SHORT {
            self.short.get(&pack(text, start, end)).copied()
        } else {
            self.long.get(&text[start..end]).copied()
        }
    }

    #[inline]
    fn rank_of(&self, left: u32, right: u32) -> u32 {
        self.pairs.get(&pair_key(left, right)).copied().unwrap_or(NONE)
    }

    /// Append the ids of `text` to `ids`.
    pub fn encode(
        &self,
        splitter: &Splitter,
        text: &str,
        cache: &mut Cache,
        ids: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let bytes = text.as_bytes();
        splitter.split(text, |start, end| {
            if end - start > SHORT {
                self.encode_chunk(bytes, start, end, ids);
                return;
            }
            let key = pack(bytes, start, end);
            let slot = cache.slot(key);
            if slot.key == key {
                ids.extend_from_slice(&slot.ids[..slot.length as usize]);
                return;
            }
            let first = ids.len();
            self.encode_chunk(bytes, start, end, ids);
            slot.fill(key, &ids[first..]);
        })
    }

    fn encode_chunk(&self, text: &[u8], start: usize, end: usize, ids: &mut Vec<u32>) {
        if let Some(rank) = self.lookup(text, start, end) {
            ids.push(rank);
        } else if end - start <= SCAN {
            self.merge_by_scan(&text[start..end], ids);
        } else {
            self.merge_by_heap(&text[start..end], ids);
        }
    }

    fn merge_by_scan(&self, chunk: &[u8], ids: &mut Vec<u32>) {
        let mut parts = [NONE; SCAN];
        let mut ranks = [NONE; SCAN]; // of (parts[i], parts[i + 1])
        let mut count = chunk.len();
        for (part, &byte) in parts.iter_mut().zip(chunk) {
            *part = self.bytes[byte as usize];
        }
        for i in 0..count - 1 {
            ranks[i] = self.rank_of(parts[i], parts[i + 1]);
        }
        loop {
            let (mut best, mut at) = (NONE, 0);
            for (i, &rank) in ranks[..count - 1].iter().enumerate() {
                if rank < best {
                    (best, at) = (rank, i);
                }
            }
            if best == NONE {
                break;
            }
            parts[at] = best;
            parts.copy_within(at + 2..count, at + 1);
            ranks.copy_within(at + 2..count, at + 1);
            count -= 1;
            ranks[count - 1] = NONE;
            if at + 1 < count {
                ranks[at] = self.rank_of(parts[at], parts[at + 1]);
            }
            if at > 0 {
                ranks[at - 1] = self.rank_of(parts[at - 1], parts[at]);
            }
        }
        ids.extend_from_slice(&parts[..count]);
    }

    /// The same result in n log n: a chunk may be a megabyte of one character.
    fn merge_by_heap(&self, chunk: &[u8], ids: &mut Vec<u32>) {
        let size = chunk.len();
        let mut parts: Vec<u32> = chunk.iter().map(|&byte| self.bytes[byte as usize]).collect();
        let mut ranks: Vec<u32> = parts.windows(2).map(|pair| self.rank_of(pair[0], pair[1])).collect();
        ranks.push(NONE);
        let mut next: Vec<usize> = (1..=size).collect();
        let mut previous: Vec<usize> = (0..size).map(|at| at.saturating_sub(1)).collect();
        let mut queue: BinaryHeap<Reverse<(u32, usize)>> = ranks
            .iter()
            .enumerate()
            .filter(|(_, &rank)| rank != NONE)
            .map(|(at, &rank)| Reverse((rank, at)))
            .collect();

        while let Some(Reverse((rank, at))) = queue.pop() {
            if ranks[at] != rank {
                continue; // one of the two parts has changed since
            }
            let taken = next[at];
            parts[at] = rank;
            ranks[taken] = NONE;
            next[at] = next[taken];
            if next[at] < size {
                previous[next[at]] = at;
            }
            for place in [(at > 0).then(|| previous[at]), Some(at)].into_iter().flatten() {
                let after = next[place];
                ranks[place] = if after < size { self.rank_of(parts[place], parts[after]) } else { NONE };
                if ranks[place] != NONE {
                    queue.push(Reverse((ranks[place], place)));
                }
            }
        }
        let mut at = 0;
        while at < size {
            ids.push(parts[at]);
            at = next[at];
        }
    }

    /// Lend a cache; it returns when the loan is dropped.
    pub fn cache(&self) -> CacheLoan<'_> {
        let cache = self.caches.lock().unwrap_or_else(PoisonError::into_inner).pop();
        CacheLoan { encoder: self, cache: cache.unwrap_or_else(Cache::new) }
    }
}

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Ids of chunks seen lately: direct-mapped, of fixed size, so that it fits the second-level cache.
pub struct Cache {
    slots: Box<[Slot]>,
}

const SLOTS: usize = 1 << 15; // 2 MiB
const SLOT_IDS: usize = 11; // a slot fills one 64-byte cache line

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Slot {
    key: u128,
    ids: [u32; SLOT_IDS],
    length: u32,
}

impl Cache {
    fn new() -> Self {
        // Key 0 is no chunk: chunks are never empty.
        Cache { slots: vec![Slot { key: 0, ids: [0; SLOT_IDS], length: 0 }; SLOTS].into_boxed_slice() }
    }

    #[inline(always)]
    fn slot(&mut self, key: u128) -> &mut Slot {
        &mut self.slots[hash_packed(key) as usize & (SLOTS - 1)]
    }
}

impl Slot {
    fn fill(&mut self, key: u128, ids: &[u32]) {
        if let Some(room) = self.ids.get_mut(..ids.len()) {
            room.copy_from_slice(ids);
            self.key = key;
            self.length = ids.len() as u32;
        }
    }
}

/// A cache in use by one thread.
pub struct CacheLoan<'e> {
    encoder: &'e Encoder,
    cache: Cache,
}

impl CacheLoan<'_> {
    pub fn get(&mut self) -> &mut Cache {
        &mut self.cache
    }
}

impl Drop for CacheLoan<'_> {
    fn drop(&mut self) {
        let cache = Cache { slots: std::mem::take(&mut self.cache.slots) };
        self.encoder.caches.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
    }
}
