//! Learning merges from chunk counts.
//!
//! All distinct chunks lie in one array, one entry a byte. Every pair of neighbouring
//! tokens knows its count and the places where it begins, so a merge touches its own
//! occurrences only: neither the number nor the length of the chunks matters.
//! Knows nothing of text or patterns.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::chunk::Map;
use crate::count::ChunkCounts;
use crate::error::Error;

/// Set in entries that are not the first byte of a token. In a token's last entry the other
/// bits are the distance to its first one.
const INNER: u32 = 1 << 31;
/// Between two chunks.
const WALL: u32 = u32::MAX;
const NONE: u32 = u32::MAX;

/// Return up to `wanted` merges `(left, right)`; merge k makes token 256 + k.
///
/// Always the most frequent pair, of equals the smaller one; fewer than `wanted` when no pair is
/// left. The result depends on the counts alone.
pub fn learn_merges(counts: ChunkCounts, wanted: usize) -> Result<Vec<(u32, u32)>, Error> {
    let mut corpus = Corpus::new(counts)?;
    let mut pairs = corpus.initial_pairs();
    let mut queue: BinaryHeap<Candidate> =
        pairs.iter().map(|(&key, pair)| Candidate { count: pair.count, key: Reverse(key) }).collect();
    let mut widths = vec![1; 256]; // bytes of each token
    let mut merges = Vec::with_capacity(wanted);
    let mut neighbours = Neighbours::new(256 + wanted);

    while merges.len() < wanted {
        let Some(best) = queue.pop() else { break };
        let key = best.key.0;
        // Counts fall while a candidate waits; it is put back with its present count.
        let Some(pair) = pairs.get(&key) else { continue };
        if pair.count < best.count {
            queue.push(Candidate { count: pair.count, ..best });
            continue;
        }
        let places = pairs.remove(&key).map(|pair| pair.places).unwrap_or_default();
        let (left, right) = unpair(key);
        let token = 256 + merges.len() as u32;
        merges.push((left, right));
        widths.push(widths[left as usize] + widths[right as usize]);
        for place in places {
            corpus.merge_at(place as usize, (left, right), token, &widths, &mut neighbours);
        }
        for side in neighbours.before.drain() {
            reduce(&mut pairs, pair_key(side.token, left), side.lost);
            admit(&mut pairs, &mut queue, pair_key(side.token, token), side);
        }
        for side in neighbours.after.drain() {
            reduce(&mut pairs, pair_key(right, side.token), side.lost);
            admit(&mut pairs, &mut queue, pair_key(token, side.token), side);
        }
    }
    Ok(merges)
}

/// A pair that waits to be merged; the greatest is the next one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: u64,
    key: Reverse<u64>,
}

struct Pair {
    count: u64,
    /// Ascending array positions of left tokens; some may be out of date, which the array shows.
    places: Vec<u32>,
}

type Pairs = Map<u64, Pair>;

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

fn unpair(key: u64) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
}

fn reduce(pairs: &mut Pairs, key: u64, lost: u64) {
    if let Some(pair) = pairs.get_mut(&key) {
        pair.count -= lost;
        if pair.count == 0 {
            pairs.remove(&key);
        }
    }
}

fn admit(pairs: &mut Pairs, queue: &mut BinaryHeap<Candidate>, key: u64, side: Side) {
    // Neighbours of a token only ever appear while it is made, so the pair is new.
    if side.gained > 0 {
        queue.push(Candidate { count: side.gained, key: Reverse(key) });
        pairs.insert(key, Pair { count: side.gained, places: side.places });
    }
}

/// What a merge does to the pairs with one neighbouring token.
struct Side {
    token: u32,
    lost: u64,
    gained: u64,
    places: Vec<u32>,
}

/// The neighbours on one side, found by token without hashing.
struct Sides {
    index: Vec<u32>,
    sides: Vec<Side>,
}

impl Sides {
    fn of(&mut self, token: u32) -> &mut Side {
        let slot = &mut self.index[token as usize];
        if *slot == NONE {
            *slot = self.sides.len() as u32;
            self.sides.push(Side { token, lost: 0, gained: 0, places: Vec::new() });
        }
        &mut self.sides[*slot as usize]
    }

    fn drain(&mut self) -> impl Iterator<Item = Side> + '_ {
        let index = &mut self.index;
        self.sides.drain(..).inspect(|side| index[side.token as usize] = NONE)
    }
}

struct Neighbours {
    before: Sides,
    after: Sides,
}

impl Neighbours {
    fn new(tokens: usize) -> Self {
        let sides = || Sides { index: vec![NONE; tokens], sides: Vec::new() };
        Neighbours { before: sides(), after: sides() }
    }
}

/// Every distinct chunk, cut into tokens.
struct Corpus {
    /// The token at its first byte, `INNER` values at its others, `WALL` around chunks.
    entries: Vec<u32>,
    /// The chunk each entry belongs to.
    chunk_of: Vec<u32>,
    /// How often each chunk occurs.
    weights: Vec<u64>,
}

impl Corpus {
    fn new(counts: ChunkCounts) -> Result<Self, Error> {
        let size = counts.total_bytes() + counts.len() + 1;
        if size >= INNER as usize {
            return Err(Error::Value(format!(
                "the text has {size} bytes of distinct chunks; training holds up to {INNER}"
            )));
        }
        let mut entries = Vec::with_capacity(size);
        let mut chunk_of = Vec::with_capacity(size);
        let mut weights = Vec::with_capacity(counts.len());
        entries.push(WALL);
        chunk_of.push(0);
        counts.drain(|bytes, count| {
            entries.extend(bytes.iter().map(|&byte| u32::from(byte)));
            entries.push(WALL);
            chunk_of.resize(entries.len(), weights.len() as u32);
            weights.push(count);
        });
        Ok(Corpus { entries, chunk_of, weights })
    }

    fn weight(&self, place: usize) -> u64 {
        self.weights[self.chunk_of[place] as usize]
    }

    fn initial_pairs(&self) -> Pairs {
        let mut table: Vec<Pair> = (0..1 << 16).map(|_| Pair { count: 0, places: Vec::new() }).collect();
        for (place, window) in self.entries.windows(2).enumerate() {
            if window[0] != WALL && window[1] != WALL {
                let pair = &mut table[(window[0] << 8 | window[1]) as usize];
                pair.count += self.weight(place);
                pair.places.push(place as u32);
            }
        }
        let present = table.into_iter().enumerate().filter(|(_, pair)| pair.count > 0);
        present.map(|(key, pair)| (pair_key(key as u32 >> 8, key as u32 & 0xff), pair)).collect()
    }

    /// Return the place of the token before `place`.
    fn before(&self, place: usize) -> Option<usize> {
        match self.entries[place - 1] {
            WALL => None,
            inner if inner & INNER != 0 => Some(place - 1 - (inner & !INNER) as usize),
            _ => Some(place - 1),
        }
    }

    /// Merge the pair at `place`, unless an earlier merge has taken one of its tokens, and note
    /// what its neighbours lose and gain.
    fn merge_at(
        &mut self,
        place: usize,
        (left, right): (u32, u32),
        token: u32,
        widths: &[u32],
        neighbours: &mut Neighbours,
    ) {
        let middle = place + widths[left as usize] as usize;
        if self.entries[place] != left || self.entries[middle] != right {
            return;
        }
        let end = middle + widths[right as usize] as usize;
        let weight = self.weight(place);
        if let Some(previous) = self.before(place) {
            let neighbour = self.entries[previous];
            let side = neighbours.before.of(neighbour);
            side.gained += weight;
            side.places.push(previous as u32);
            if neighbour == token {
                // The occurrence before noted (token, left); it is (token, token) now.
                neighbours.after.of(left).gained -= weight;
            } else {
                side.lost += weight;
            }
        }
        let neighbour = self.entries[end];
        if neighbour != WALL {
            let side = neighbours.after.of(neighbour);
            side.lost += weight;
            side.gained += weight;
            side.places.push(place as u32);
        }
        self.entries[place] = token;
        self.entries[middle] = INNER;
        self.entries[end - 1] = INNER | (end - 1 - place) as u32;
    }
}
