//! Cutting text into chunks, the units that merges never cross.
//!
//! A hand-written automaton for the default pattern, `fancy-regex` for any other.
//! Knows nothing of ids.

use fancy_regex::{Regex, RegexBuilder};

use crate::error::Error;
use crate::unicode::{classes, END, LETTER, NEWLINE, NUMBER, OTHER, SPACE};

/// GPT-4's pattern with numbers cut into groups of at most two digits.
pub const GPT4_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}",
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// Cuts text by one pattern.
#[derive(Clone, Debug)]
pub struct Splitter {
    pattern: String,
    method: Method,
}

#[derive(Clone, Debug)]
enum Method {
    Automaton(Automaton),
    Regex(Box<Regex>),
}

impl Splitter {
    /// Prepare `pattern`; the automaton serves GPT-4's pattern with any limit of digits.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let method = match gpt4_digits(pattern) {
            Some(max_digits) => Method::Automaton(Automaton { max_digits, classes: classes() }),
            None => Method::Regex(Box::new(compile(pattern)?)),
        };
        Ok(Splitter { pattern: pattern.to_owned(), method })
    }

    /// Prepare `pattern` for `fancy-regex`, also where the automaton could serve it.
    pub fn by_regex(pattern: &str) -> Result<Self, Error> {
        Ok(Splitter { pattern: pattern.to_owned(), method: Method::Regex(Box::new(compile(pattern)?)) })
    }

    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Call `visit(start, end)` for every chunk of `text`, in order, as byte offsets.
    ///
    /// The default pattern covers every character. Text between two matches of another
    /// pattern belongs to no chunk, as in every tokenizer of this family.
    pub fn split(&self, text: &str, mut visit: impl FnMut(usize, usize)) -> Result<(), Error> {
        match &self.method {
            Method::Automaton(automaton) => {
                let bytes = text.as_bytes();
                let mut start = 0;
                while start < bytes.len() {
                    let end = automaton.end_of_chunk(bytes, start);
                    visit(start, end);
                    start = end;
                }
            }
            Method::Regex(regex) => {
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| {
                        Error::Split(format!("pattern {:?} gave up on a text: {error}", self.pattern))
                    })?;
                    if found.start() < found.end() {
                        visit(found.start(), found.end());
                    }
                }
            }
        }
        Ok(())
    }
}

fn compile(pattern: &str) -> Result<Regex, Error> {
    // The default limit of 10^6 steps refuses long runs of white space.
    RegexBuilder::new(pattern).backtrack_limit(usize::MAX).build().map_err(|error| {
        Error::Value(format!("pattern {pattern:?} is not a valid regular expression: {error}"))
    })
}

/// Return n where `pattern` is `GPT4_PATTERN` with groups of at most n digits.
fn gpt4_digits(pattern: &str) -> Option<usize> {
    let (head, tail) = GPT4_PATTERN.split_once("{1,2}").expect("the constant holds the limit once");
    let digits = pattern.strip_prefix(head)?.strip_suffix(tail)?;
    let limit = digits.strip_prefix("{1,")?.strip_suffix('}')?.parse().ok()?;
    (1..=9).contains(&limit).then_some(limit)
}

/// The alternatives of `GPT4_PATTERN`, tried in order at each position.
///
/// None needs backtracking: the optional leading character of a word is no letter, the
/// possessive runs end where their class ends, and the white-space alternatives differ
/// only in where one run is cut.
#[derive(Clone, Copy, Debug)]
struct Automaton {
    max_digits: usize,
    classes: &'static [u8],
}

impl Automaton {
    /// Return the end of the chunk that starts at `start < bytes.len()`.
    #[inline]
    fn end_of_chunk(&self, bytes: &[u8], start: usize) -> usize {
        let (class, width) = self.peek(bytes, start);
        let second = start + width;
        if bytes[start] == b'\'' {
            if let Some(length) = contraction(&bytes[second..]) {
                return second + length;
            }
        }
        match class {
            LETTER => self.skip(bytes, second, LETTER),
            NUMBER => self.number(bytes, second),
            NEWLINE => self.white_space(bytes, start),
            _ => {
                let (next, next_width) = self.peek(bytes, second);
                if next == LETTER {
                    self.skip(bytes, second + next_width, LETTER)
                } else if class == OTHER {
                    newlines(bytes, self.skip(bytes, second, OTHER))
                } else if next == OTHER && bytes[start] == b' ' {
                    newlines(bytes, self.skip(bytes, second + next_width, OTHER))
                } else {
                    self.white_space(bytes, start)
                }
            }
        }
    }

    /// Cut a run of white space: after its last newline; else before its last character, which
    /// belongs to the word that follows; a single character and the end of the text stand alone.
    fn white_space(&self, bytes: &[u8], start: usize) -> usize {
        let (mut end, mut last, mut after_newline) = (start, start, start);
        loop {
            let (class, width) = self.peek(bytes, end);
            if class != SPACE && class != NEWLINE {
                return match class {
                    _ if after_newline > start => after_newline,
                    END => end,
                    _ if last == start => end,
                    _ => last,
                };
            }
            last = end;
            end += width;
            if class == NEWLINE {
                after_newline = end;
            }
        }
    }

    fn number(&self, bytes: &[u8], mut end: usize) -> usize {
        for _ in 1..self.max_digits {
            let (class, width) = self.peek(bytes, end);
            if class != NUMBER {
                break;
            }
            end += width;
        }
        end
    }

    #[inline]
    fn skip(&self, bytes: &[u8], mut end: usize, wanted: u8) -> usize {
        loop {
            let (class, width) = self.peek(bytes, end);
            if class != wanted {
                return end;
            }
            end += width;
        }
    }

    /// Return class and width in bytes of the character at `at`.
    #[inline(always)]
    fn peek(&self, bytes: &[u8], at: usize) -> (u8, usize) {
        match bytes.get(at) {
            None => (END, 0),
            Some(&byte) if byte < 0x80 => (self.classes[byte as usize], 1),
            Some(&byte) => self.peek_wide(bytes, at, byte),
        }
    }

    fn peek_wide(&self, bytes: &[u8], at: usize, first: u8) -> (u8, usize) {
        let bits = |offset: usize| (bytes[at + offset] & 0x3f) as usize;
        let (code, width) = match first {
            0xf0.. => ((first as usize & 0x07) << 18 | bits(1) << 12 | bits(2) << 6 | bits(3), 4),
            0xe0.. => ((first as usize & 0x0f) << 12 | bits(1) << 6 | bits(2), 3),
            _ => ((first as usize & 0x1f) << 6 | bits(1), 2),
        };
        (self.classes[code], width)
    }
}

/// Return the length of `(?i:[sdmt]|ll|ve|re)` at the start of `rest`.
fn contraction(rest: &[u8]) -> Option<usize> {
    match *rest {
        [b's' | b'd' | b'm' | b't' | b'S' | b'D' | b'M' | b'T', ..] => Some(1),
        [b'l' | b'L', b'l' | b'L', ..] | [b'v' | b'V' | b'r' | b'R', b'e' | b'E', ..] => Some(2),
        [0xc5, 0xbf, ..] => Some(2), // U+017F, the long s, folds to s
        _ => None,
    }
}

fn newlines(bytes: &[u8], mut end: usize) -> usize {
    while let Some(b'\r' | b'\n') = bytes.get(end) {
        end += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
        let mut out = Vec::new();
        splitter.split(text, |start, end| out.push(&text[start..end])).unwrap();
        out
    }

    #[test]
    fn splits_like_the_documented_examples() {
        let splitter = Splitter::new(GPT4_PATTERN).unwrap();
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("Hello world", &["Hello", " world"]),
            ("I'll don't IT'S", &["I", "'ll", " don", "'t", " IT", "'S"]),
            ("it'\u{17f} 'steady", &["it", "'\u{17f}", " '", "steady"]),
            ("12345", &["12", "34", "5"]),
            ("a  b", &["a", " ", " b"]),
            ("a   ", &["a", "   "]),
            ("a \n\n  b", &["a", " \n\n", " ", " b"]),
            ("x = [1];\r\n\r\ny", &["x", " =", " [", "1", "];\r\n\r\n", "y"]),
            ("\tif", &["\tif"]),
            ("a\u{a0}\u{a0}9", &["a", "\u{a0}", "\u{a0}", "9"]),
            ("你好，世界", &["你好", "，世界"]),
        ];
        for (text, expected) in cases {
            assert_eq!(chunks(&splitter, text), *expected, "{text:?}");
        }
    }

    /// Every text of up to four characters over one representative of each thing the pattern sees.
    #[test]
    fn automaton_equals_the_regular_expression() {
        let alphabet = [
            'a', 'é', '1', '²', ' ', '\t', '\u{2003}', '\n', '\r', '!', '\'', 's', 'L', 'e', '😀', '\u{17f}',
        ];
        for digits in 1..=3 {
            let pattern = GPT4_PATTERN.replace("{1,2}", &format!("{{1,{digits}}}"));
            let fast = Splitter::new(&pattern).unwrap();
            assert!(matches!(fast.method, Method::Automaton(_)));
            let slow = Splitter::by_regex(&pattern).unwrap();
            let longest = if digits == 2 { 4 } else { 3 };
            let mut texts = vec![String::new()];
            for _ in 0..longest {
                texts = texts
                    .iter()
                    .flat_map(|text| alphabet.iter().map(move |character| format!("{text}{character}")))
                    .collect();
                for text in &texts {
                    assert_eq!(chunks(&fast, text), chunks(&slow, text), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn every_assigned_code_point_has_the_class_of_the_regular_expression() {
        let fast = Splitter::new(GPT4_PATTERN).unwrap();
        let slow = Splitter::by_regex(GPT4_PATTERN).unwrap();
        let assigned = (0..0x3_2500).chain(0xe_0000..0xe_0200); // the rest is empty or private
        for code in assigned.filter_map(char::from_u32) {
            let text = format!(" {code}{code}a{code}\n");
            assert_eq!(chunks(&fast, &text), chunks(&slow, &text), "{text:?}");
        }
    }

    #[test]
    fn other_patterns_go_to_the_regular_expression() {
        assert_eq!(chunks(&Splitter::new(r"\w+|\s+(?!\S)").unwrap(), "ab, c  d"), ["ab", "c", " ", "d"]);
        assert!(matches!(Splitter::new("(").unwrap_err(), Error::Value(_)));
    }
}
