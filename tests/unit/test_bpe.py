"""The Rust BPE against its Python twin, the index's `rustbpe` and `tiktoken`, and its own promises."""

from __future__ import annotations

import pydoc_data.topics
import string
import threading
import unicodedata

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_rustbpe import GPT4_PATTERN, Tokenizer, split

import rustbpe
from nanochat import bpe_reference

WORLD = """Ünïcode naïve façade. ΑΒΓ αβγ, Привет мир! 你好，世界。 日本語のテキスト 안녕하세요 مرحبا بالعالم
שלום עולם नमस्ते दुनिया สวัสดีชาวโลก Ⅻ ½ ² ٣٤٥ 𝟘𝟙𝟚
🙂👍🏽👩‍👩‍👧 e\u0301 \u00a0\u2003\u3000
ﬁ ǅ ʰ ª\r\n\r\n\tI'LL we've it'ſ don't
x = [1, 22, 333, 4444];  // "quoted" 'single'   \n   \n\n  end  """


@pytest.fixture(scope="module")
def manual():
    """Return 700 KB of English and code: the language manual that ships with Python."""
    return [*pydoc_data.topics.topics.values(), WORLD * 3]


@pytest.fixture(scope="module")
def trained(manual):
    return Tokenizer.train(manual, 2_000)


def oracle(texts, vocab_size):
    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=GPT4_PATTERN)
    return tokenizer, [(bytes(token), rank) for token, rank in tokenizer.get_mergeable_ranks()]


def peer(ours):
    """Return a tiktoken encoding of our ranks."""
    return tiktoken.Encoding(
        "ours", pat_str=ours.pattern, mergeable_ranks=dict(ours.mergeable_ranks()), special_tokens={}
    )


def assigned(character):
    """Say whether every Unicode version in play knows the character: the oracles' are older."""
    return unicodedata.category(character) not in ("Cn", "Cs")


# Characters at which patterns go wrong, and any other.
TEXT = st.text(
    st.one_of(
        st.sampled_from("aé1²  \t\r\n'sSlLvVeErRſ!.\u2003\u00a0你🙂"), st.characters().filter(assigned)
    ),
    max_size=40,
)


class TestTraining:
    def test_merges_equal_those_of_the_index_s_rustbpe(self, manual, trained):
        assert trained.mergeable_ranks() == oracle(manual, 2_000)[1]

    @pytest.mark.parametrize("texts", [[WORLD], ["aaaa aaaaa aaaaaaa"], ["ab" * 50, "ba" * 50], ["", "x"]])
    def test_merges_equal_those_of_the_twin(self, texts):
        ours = Tokenizer.train(texts, 330)
        assert [token for token, _ in ours.mergeable_ranks()] == bpe_reference.train(texts, 330)

    @settings(deadline=None, max_examples=60)
    @given(st.lists(TEXT, max_size=6), st.integers(256, 300))
    def test_merges_of_any_text_equal_those_of_both(self, texts, vocab_size):
        ours = Tokenizer.train(texts, vocab_size).mergeable_ranks()
        assert ours == oracle(texts, vocab_size)[1]
        assert [token for token, _ in ours] == bpe_reference.train(texts, vocab_size)

    def test_of_equally_frequent_pairs_the_smaller_is_first(self):
        ranks = Tokenizer.train(["zy", "ba", "ac", "ab"], 260).mergeable_ranks()
        assert [token for token, _ in ranks[256:]] == [b"ab", b"ac", b"ba", b"zy"]

    @pytest.mark.parametrize("texts", [[], [""], ["", " ", "x"]])
    def test_a_corpus_without_pairs_gives_the_256_bytes(self, texts):
        tokenizer = Tokenizer.train(texts, 1_000)
        assert tokenizer.mergeable_ranks() == [(bytes([byte]), byte) for byte in range(256)]
        assert tokenizer.vocab_size == 256

    @pytest.mark.parametrize("batch_bytes", [1, 1_000, 100_000])
    def test_the_result_does_not_depend_on_batches_or_on_the_kind_of_iterable(self, manual, batch_bytes):
        texts = manual[:20]
        expected = Tokenizer.train(texts, 400).mergeable_ranks()
        generator = (text for text in reversed(texts))
        assert Tokenizer.train(generator, 400, batch_bytes=batch_bytes).mergeable_ranks() == expected

    def test_cutting_documents_between_chunks_changes_nothing(self, manual):
        text = manual[3]
        pieces = split(text)
        assert "".join(pieces) == text
        assert Tokenizer.train(pieces, 300).vocab_size == Tokenizer.train([text], 300).vocab_size == 300

    def test_a_million_equal_characters_are_one_chunk_and_no_problem(self):
        text = "é" * 500_000 + "a" * 500_000
        tokenizer = Tokenizer.train([text], 300)
        ids = tokenizer.encode_ordinary(text)
        assert len(ids) < 30
        assert tokenizer.decode_bytes(ids).decode() == text

    @pytest.mark.parametrize("vocab_size", [255, 0, -1, 2**40])
    def test_a_vocabulary_without_room_for_the_bytes_names_its_size_and_the_minimum(self, vocab_size):
        with pytest.raises(ValueError, match=rf"{vocab_size}.*at least 256"):
            Tokenizer.train(["a"], vocab_size)

    def test_an_exception_of_the_iterator_arrives_as_it_is(self):
        error = KeyError("from the reader")

        def texts():
            yield "one"
            raise error

        with pytest.raises(KeyError) as caught:
            Tokenizer.train(texts(), 300)
        assert caught.value is error

    @pytest.mark.parametrize("item", [b"bytes", None, 3, ["list"]])
    def test_an_item_that_is_no_str_is_named(self, item):
        with pytest.raises(TypeError, match=rf"item 1 is {type(item).__name__}, not str"):
            Tokenizer.train(["fine", item], 300)
        with pytest.raises(TypeError, match="item 0"):
            Tokenizer.train([], 300).encode_batch([item])

    def test_one_str_is_not_an_iterable_of_texts(self):
        with pytest.raises(TypeError, match="one str"):
            Tokenizer.train("text", 300)

    def test_other_threads_run_during_training(self, manual):
        beats = []
        done = threading.Event()

        def texts():
            yield from manual
            beats.clear()  # reading is over; what follows must not hold the lock

        def count():
            while not done.wait(0.001):
                beats.append(1)

        thread = threading.Thread(target=count)
        thread.start()
        Tokenizer.train(texts(), 20_000)
        done.set()
        thread.join()
        assert beats


class TestEncoding:
    def test_ids_equal_tiktoken_and_rustbpe_on_real_text(self, manual, trained):
        expected = peer(trained).encode_ordinary_batch(manual, num_threads=1)
        assert [trained.encode_ordinary(text) for text in manual] == expected
        assert trained.encode_batch(manual) == expected
        theirs = oracle(manual, 2_000)[0]
        assert [theirs.encode(text) for text in manual] == expected

    @settings(deadline=None, max_examples=300)
    @given(text=TEXT)
    def test_ids_of_any_text_equal_tiktoken_and_the_twin_and_decode_to_it(self, text):
        ids = SMALL.encode_ordinary(text)
        assert ids == SMALL_PEER.encode_ordinary(text) == bpe_reference.encode(SMALL_TOKENS, text)
        assert SMALL.decode_bytes(ids).decode() == text

    @settings(deadline=None, max_examples=300)
    @given(text=st.text(st.characters(exclude_categories=["Cs"])))
    def test_chunks_of_the_automaton_equal_those_of_the_regular_expression(self, text):
        # `(?:)` changes nothing but sends the pattern to the regular expression.
        assert split(text) == split(text, pattern=f"{GPT4_PATTERN}(?:)")

    @settings(deadline=None, max_examples=100)
    @given(text=TEXT)
    def test_chunks_equal_those_of_the_twin(self, text):
        assert split(text) == list(bpe_reference.split(text))

    @pytest.mark.parametrize("repeated", [" ", "\n", "a", "!", "1", "é", "ab", " \n", "' "])
    def test_long_runs_take_linear_time_and_come_back(self, repeated):
        text = repeated * (200_000 // len(repeated)) + "end"
        assert SMALL.decode_bytes(SMALL.encode_ordinary(text)).decode() == text

    def test_text_that_looks_special_is_ordinary(self, trained):
        for text in ("<|bos|>", "<|endoftext|>", "<|user_start|>hi<|user_end|>"):
            ids = trained.encode_ordinary(text)
            assert max(ids) < trained.vocab_size
            assert trained.decode_bytes(ids) == text.encode()

    def test_packed_ids_are_little_endian_and_follow_the_first_id(self, manual, trained):
        data, counts = trained.encode_packed(manual[:9], first=2_001)
        flat = [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)]
        lists = [[2_001, *ids] for ids in trained.encode_batch(manual[:9])]
        assert flat == [token for ids in lists for token in ids]
        assert counts == [len(ids) for ids in lists]

    def test_threads_may_share_a_tokenizer(self, manual, trained):
        expected = [trained.encode_ordinary(text) for text in manual[:20]]
        results = []

        def work():
            results.append([trained.encode_ordinary(text) for text in manual[:20]])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 4

    def test_a_lone_surrogate_is_refused(self):
        with pytest.raises(UnicodeEncodeError):
            SMALL.encode_ordinary("\ud800")

    @pytest.mark.parametrize("ids", [[100_000], [0, 2**32 - 1]])
    def test_decoding_an_unknown_id_names_it(self, ids):
        with pytest.raises(ValueError, match=f"{ids[-1]} is no token"):
            SMALL.decode_bytes(ids)


class TestPatternsAndFiles:
    GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

    @pytest.mark.parametrize("pattern", [GPT2, GPT4_PATTERN.replace("{1,2}", "{1,3}"), r"\w+|\W"])
    def test_any_pattern_trains_and_encodes_like_the_oracles(self, manual, pattern):
        texts = manual[-30:]
        theirs = rustbpe.Tokenizer()
        theirs.train_from_iterator(iter(texts), 400, pattern=pattern)
        ours = Tokenizer.train(texts, 400, pattern=pattern)
        assert ours.mergeable_ranks() == [(bytes(t), rank) for t, rank in theirs.get_mergeable_ranks()]
        assert ours.encode_batch(texts) == peer(ours).encode_ordinary_batch(texts, num_threads=1)

    def test_a_pattern_that_is_no_expression_is_named(self):
        with pytest.raises(ValueError, match=r"pattern \"\(\[\""):
            Tokenizer.train([], 256, pattern="([")

    def test_saving_and_loading_keep_ranks_and_pattern(self, tmp_path, trained):
        trained.save(tmp_path / "bpe.json")
        loaded = Tokenizer.load(tmp_path / "bpe.json")
        assert loaded.mergeable_ranks() == trained.mergeable_ranks()
        assert loaded.pattern == GPT4_PATTERN
        assert [path.name for path in tmp_path.iterdir()] == ["bpe.json"]

    def test_a_file_that_is_missing_or_damaged_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="absent"):
            Tokenizer.load(tmp_path / "absent")
        (tmp_path / "bad").write_text("{")
        with pytest.raises(ValueError, match="bad"):
            Tokenizer.load(tmp_path / "bad")
        with pytest.raises(OSError, match="none") as caught:
            SMALL.save(tmp_path / "none" / "bpe.json")
        assert caught.value.errno == 2

    BYTES = tuple((bytes([byte]), byte) for byte in range(256))

    @pytest.mark.parametrize(
        ("ranks", "problem"),
        [
            ([*BYTES, (b"ab", 257)], "257 stands where 256 is due"),
            ([*BYTES, (b"ab", 255)], "255 stands where 256 is due"),
            ([*BYTES, (b"ab", 256), (b"ab", 257)], "same bytes"),
            ([*BYTES, (b"", 256)], "empty"),
            (BYTES[:-1], "0xff"),
        ],
    )
    def test_ranks_that_cannot_encode_every_text_are_refused(self, ranks, problem):
        with pytest.raises(ValueError, match=problem):
            Tokenizer.from_ranks(ranks)

    def test_ranks_may_come_in_any_order_and_number_bytes_in_any_way(self):
        order = string.printable.encode() + bytes(b for b in range(256) if b not in string.printable.encode())
        ranks = [(bytes([byte]), rank) for rank, byte in enumerate(order)]
        ranks += [(b"lo", 256), (b"hel", 257), (b"he", 258), (b"hello", 259)]
        ours = Tokenizer.from_ranks(ranks[::-1])
        assert ours.mergeable_ranks() == ranks
        for text in ("hello", "shello", "helo hel lo"):
            assert ours.encode_ordinary(text) == peer(ours).encode_ordinary(text)


SMALL = Tokenizer.train([WORLD, "it's the end. they'll say 12 or 2024!\n\n" * 5], 600)
SMALL_TOKENS = [token for token, _ in SMALL.mergeable_ranks()]
SMALL_PEER = peer(SMALL)
