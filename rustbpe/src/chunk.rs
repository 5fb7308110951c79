//! Short chunks as integers, and the hash of everything small.
//!
//! 99% of the chunks of real text have at most 15 bytes; as one `u128` they are
//! compared and hashed without a loop or an allocation.

use std::hash::{BuildHasherDefault, Hasher};

/// The longest chunk that `pack` takes, in bytes.
pub const SHORT: usize = 15;

/// Return bytes `start..end` of `text` as a number that no other chunk has; at most `SHORT` bytes.
#[inline(always)]
pub fn pack(text: &[u8], start: usize, end: usize) -> u128 {
    let length = end - start;
    debug_assert!(length <= SHORT);
    let word = match text.get(start..start + 16) {
        Some(window) => {
            let window: [u8; 16] = window.try_into().expect("the window has 16 bytes");
            u128::from_le_bytes(window) & ((1 << (8 * length)) - 1)
        }
        None => {
            let mut window = [0; 16];
            window[..length].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(window)
        }
    };
    word | (length as u128) << 120
}

/// Write the bytes of a packed chunk into `out`.
pub fn unpack(packed: u128, out: &mut Vec<u8>) {
    let length = (packed >> 120) as usize;
    out.extend_from_slice(&packed.to_le_bytes()[..length]);
}

/// Multiply and fold: one multiplication a key.
#[inline(always)]
pub fn fold(low: u64, high: u64) -> u64 {
    let product = u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(high ^ 0xd1b5_4a32_d192_ed03);
    product as u64 ^ (product >> 64) as u64
}

#[inline(always)]
pub fn hash_packed(packed: u128) -> u64 {
    fold(packed as u64, (packed >> 64) as u64)
}

/// A hasher for keys from training text; not meant to resist chosen collisions.
#[derive(Default)]
pub struct FoldHasher(u64);

impl Hasher for FoldHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for window in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..window.len()].copy_from_slice(window);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.0 = fold(value, self.0);
    }

    #[inline]
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    #[inline]
    fn write_u128(&mut self, value: u128) {
        self.0 ^= hash_packed(value);
    }
}

pub type Map<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<FoldHasher>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_bytes_and_length() {
        let text = b"ab\0\0cdefghijklmnopqrstuvwxyz";
        for start in 0..text.len() {
            for end in start..=text.len().min(start + SHORT) {
                let mut out = Vec::new();
                unpack(pack(text, start, end), &mut out);
                assert_eq!(out, &text[start..end]);
            }
        }
        assert_ne!(pack(b"a\0", 0, 1), pack(b"a\0", 0, 2));
    }
}
