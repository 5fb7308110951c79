//! The fast algorithms against the plainest ones, on small alphabets where pairs overlap most.

use std::collections::HashMap;

use nanochat_rustbpe::{Tokenizer, Trainer, GPT4_PATTERN};

/// A linear congruential generator: the same texts in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }

    fn text(&mut self, alphabet: &[&str], length: usize) -> String {
        (0..length).map(|_| alphabet[self.below(alphabet.len())]).collect()
    }
}

fn train(texts: &[String], vocab_size: i64, threads: bool) -> Tokenizer {
    let mut trainer = Trainer::new(vocab_size, GPT4_PATTERN).unwrap();
    trainer.add(texts, threads).unwrap();
    trainer.finish(threads).unwrap()
}

fn tokens(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    tokenizer.tokens().map(<[u8]>::to_vec).collect()
}

/// Count all pairs again before every merge.
fn plain_train(chunks: &[&str], vocab_size: usize) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut words: Vec<Vec<usize>> =
        chunks.iter().map(|chunk| chunk.bytes().map(usize::from).collect()).collect();
    while tokens.len() < vocab_size {
        let mut counts: HashMap<(usize, usize), u64> = HashMap::new();
        for pair in words.iter().flat_map(|word| word.windows(2)) {
            *counts.entry((pair[0], pair[1])).or_default() += 1;
        }
        let Some((&pair, _)) = counts.iter().max_by_key(|(&pair, &count)| (count, std::cmp::Reverse(pair)))
        else {
            break;
        };
        for word in &mut words {
            let mut at = 0;
            while at + 1 < word.len() {
                if (word[at], word[at + 1]) == pair {
                    word.splice(at..at + 2, [tokens.len()]);
                }
                at += 1;
            }
        }
        tokens.push([&tokens[pair.0][..], &tokens[pair.1][..]].concat());
    }
    tokens
}

/// Merge the lowest rank, of equals the leftmost, until nothing merges.
fn plain_encode(tokens: &[Vec<u8>], chunk: &str) -> Vec<u32> {
    let rank = |bytes: &[u8]| tokens.iter().position(|token| token == bytes);
    let mut parts: Vec<Vec<u8>> = chunk.bytes().map(|byte| vec![byte]).collect();
    while let Some((best, at)) =
        (1..parts.len()).filter_map(|at| Some((rank(&parts[at - 1..=at].concat())?, at))).min()
    {
        parts[at - 1].clone_from(&tokens[best]);
        parts.remove(at);
    }
    parts.iter().map(|part| rank(part).unwrap() as u32).collect()
}

#[test]
fn merges_equal_those_of_counting_everything_again() {
    let mut random = Random(1);
    for round in 0..150 {
        // One chunk a text: letters only.
        let alphabet = &["a", "b", "c", "d", "é"][..1 + round % 5];
        let texts: Vec<String> =
            (0..1 + random.below(8)).map(|_| random.text(alphabet, 7 * (round % 7))).collect();
        let chunks: Vec<&str> = texts.iter().map(String::as_str).collect();
        let vocab_size = 256 + random.below(60);
        let ours = train(&texts, vocab_size as i64, false);
        assert_eq!(tokens(&ours), plain_train(&chunks, vocab_size), "{texts:?}");
    }
}

#[test]
fn ids_equal_those_of_plain_merging_below_and_above_the_scan_limit() {
    let mut random = Random(2);
    let texts: Vec<String> = (0..20).map(|_| random.text(&["a", "b", "c"], 60)).collect();
    let tokenizer = train(&texts, 300, false);
    let tokens = tokens(&tokenizer);
    for length in (1..80).chain([127, 128, 129, 300]) {
        let text = random.text(&["a", "b", "c", "d"], length);
        assert_eq!(tokenizer.encode(&text).unwrap(), plain_encode(&tokens, &text), "{text}");
    }
}

#[test]
fn result_does_not_depend_on_threads_or_batches() {
    let mut random = Random(3);
    let texts: Vec<String> =
        (0..200).map(|_| random.text(&["the ", "cat", "s", " sat", "\n", "12"], 400)).collect();
    let expected = train(&texts, 400, false);
    let ids = expected.encode_batch(&texts, false).unwrap();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut trainer = Trainer::new(400, GPT4_PATTERN).unwrap();
            for batch in texts.chunks(threads * 7) {
                trainer.add(batch, true).unwrap();
            }
            assert_eq!(tokens(&trainer.finish(true).unwrap()), tokens(&expected));
            assert_eq!(expected.encode_batch(&texts, true).unwrap(), ids);
        });
    }
}

#[test]
fn a_million_equal_characters_take_no_quadratic_time() {
    let text = "a".repeat(1_000_000);
    let tokenizer = train(std::slice::from_ref(&text), 300, false);
    let ids = tokenizer.encode(&text).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_bytes());
    assert!(ids.len() < 10);

    let other = "ab".repeat(500_000); // no token but `a` fits: the heap works on every byte
    assert_eq!(tokenizer.encode(&other).unwrap().len(), 1_000_000);
}

#[test]
fn a_chunk_that_is_a_token_is_that_token_whatever_the_ranks() {
    // No two tokens make "wxyz", so merging alone never finds it.
    let mut ranked: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    ranked.extend([b"xy".to_vec(), b"wxyz".to_vec()]);
    let tokenizer = Tokenizer::new(ranked, GPT4_PATTERN).unwrap();
    assert_eq!(tokenizer.encode("wxyz").unwrap(), [257]);
    assert_eq!(tokenizer.encode("wxyzw").unwrap(), [119, 256, 122, 119]);
}

#[test]
fn packed_ids_are_the_ids_in_16_bits_after_the_first() {
    let texts: Vec<String> = ["", "aaa bbb", "é"].map(String::from).to_vec();
    let tokenizer = train(&texts, 260, false);
    let (packed, counts) = tokenizer.encode_packed(&texts, Some(999), false).unwrap();
    let ids: Vec<u32> =
        packed.chunks(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect();
    let expected = tokenizer.encode_batch(&texts, false).unwrap();
    let expected: Vec<Vec<u32>> = expected.into_iter().map(|ids| [vec![999], ids].concat()).collect();
    assert_eq!(ids, expected.concat());
    assert_eq!(counts, expected.iter().map(Vec::len).collect::<Vec<_>>());
}

#[test]
fn saving_and_loading_keep_everything_and_damage_is_named() {
    let folder = std::env::temp_dir().join(format!("nanochat-rustbpe-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("bpe.json");
    let tokenizer = train(&["naïve \u{1f600} text text".to_owned()], 270, false);
    tokenizer.save(&path).unwrap();
    let loaded = Tokenizer::load(&path).unwrap();
    assert_eq!(tokens(&loaded), tokens(&tokenizer));
    assert_eq!(loaded.pattern(), tokenizer.pattern());

    for (text, expected) in [
        ("[", "not JSON"),
        (r#"{"version": 2}"#, "`version`"),
        (r#"{"version": 1, "pattern": "a"}"#, "`tokens`"),
        (r#"{"version": 1, "pattern": "a", "tokens": ["6"]}"#, "`tokens[0]`"),
        (r#"{"version": 1, "pattern": "a", "tokens": ["61", "61"]}"#, "same bytes"),
        (r#"{"version": 1, "pattern": "a", "tokens": [""]}"#, "empty"),
        (r#"{"version": 1, "pattern": "a", "tokens": ["61"]}"#, "0x00"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Tokenizer::load(&path).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains("bpe.json"), "{error}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn vocabularies_without_room_for_the_bytes_are_refused() {
    for size in [i64::MIN, -1, 0, 255, 1 << 31] {
        assert!(Trainer::new(size, GPT4_PATTERN).err().unwrap().to_string().contains(&size.to_string()));
    }
    assert_eq!(train(&[], 256, false).vocab_size(), 256);
    assert_eq!(train(&[], 10_000, false).vocab_size(), 256);
}
