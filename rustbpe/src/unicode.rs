//! The five classes of characters the split pattern tells apart.
//!
//! Filled from `regex-syntax`, the tables behind `fancy-regex`, so that the fast
//! path and the regular expression follow one version of Unicode.

use std::sync::LazyLock;

pub const OTHER: u8 = 0;
/// General category L.
pub const LETTER: u8 = 1;
/// General category N.
pub const NUMBER: u8 = 2;
/// White_Space except carriage return and line feed.
pub const SPACE: u8 = 3;
/// Carriage return or line feed.
pub const NEWLINE: u8 = 4;
/// The end of the text; no character has it.
pub const END: u8 = 5;

/// The class of every code point. One byte each (1.1 MB): real text touches a few pages of it.
static CLASSES: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut table = vec![OTHER; 0x11_0000].into_boxed_slice();
    for (class, pattern) in [(LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s"), (NEWLINE, r"[\r\n]")] {
        for (first, last) in ranges(pattern) {
            table[first as usize..=last as usize].fill(class);
        }
    }
    table
});

/// Return the table, indexed by code point.
pub fn classes() -> &'static [u8] {
    &CLASSES
}

fn ranges(pattern: &str) -> Vec<(u32, u32)> {
    use regex_syntax::hir::{Class, HirKind};
    let hir = regex_syntax::parse(pattern).expect("a constant class pattern parses");
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            class.iter().map(|range| (range.start() as u32, range.end() as u32)).collect()
        }
        kind => unreachable!("{pattern} is a Unicode class, not {kind:?}"),
    }
}
