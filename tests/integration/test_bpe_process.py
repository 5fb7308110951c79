"""The BPE in processes of its own: thread counts, forks, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

CORPUS = """
import hashlib, json, os, resource, pydoc_data.topics
from nanochat_rustbpe import Tokenizer
texts = sorted(pydoc_data.topics.topics.values())
"""


def run(program, **env):
    """Run a program after CORPUS and return the JSON it prints."""
    done = subprocess.run(
        [sys.executable, "-c", CORPUS + textwrap.dedent(program)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    return json.loads(done.stdout)


TRAIN = """
tokenizer = Tokenizer.train(texts, 1000, batch_bytes=20_000)
ids = tokenizer.encode_batch(texts)
digest = lambda value: hashlib.sha256(repr(value).encode()).hexdigest()
print(json.dumps([digest(tokenizer.mergeable_ranks()), digest(ids)]))
"""


def test_ranks_and_ids_do_not_depend_on_the_number_of_threads():
    one, *others = [run(TRAIN, RAYON_NUM_THREADS=str(threads)) for threads in (1, 2, 7)]
    assert others == [one, one]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_encodes_after_its_parent_used_threads():
    program = """
        import warnings
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads: that is the case here
        tokenizer = Tokenizer.train(texts, 500)
        expected = tokenizer.encode_batch(texts)
        child = os.fork()
        if child == 0:
            same = tokenizer.encode_batch(texts) == expected
            again = Tokenizer.train(texts, 500).mergeable_ranks() == tokenizer.mergeable_ranks()
            os._exit(0 if same and again else 1)
        print(json.dumps(os.waitpid(child, 0)[1]))
    """
    assert run(program) == 0


def test_memory_stays_bounded_while_a_long_stream_is_read():
    program = """
        def stream(megabytes):
            for i in range(megabytes):
                yield "".join(texts)[:500_000] + str(i % 1000)
                yield "".join(texts)[200_000:] + str(i % 1000)
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        Tokenizer.train(stream(20), 300, batch_bytes=1 << 20)
        before = peak()
        Tokenizer.train(stream(300), 300, batch_bytes=1 << 20)
        print(json.dumps(peak() - before))
    """
    assert run(program) < 30  # MiB; the longer stream has 200 MB more text
