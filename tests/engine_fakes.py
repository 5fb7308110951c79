"""A tokenizer of letters and a model without weights, for tests of the engine."""

from __future__ import annotations

import torch

from nanochat.engine.request import Request, SamplingParams
from nanochat.engine.sampler import uniform_stream
from nanochat.shape import Shape

SPECIALS = (
    "bos",
    "user_start",
    "user_end",
    "assistant_start",
    "assistant_end",
    "python_start",
    "python_end",
    "output_start",
    "output_end",
)


class ByteTokenizer:
    """Id = byte; after the 256 bytes come the nine special tokens, then `extra` tokens of more bytes."""

    def __init__(self, extra: tuple[bytes, ...] = ()):
        self.specials = {name: 256 + i for i, name in enumerate(SPECIALS)}
        self.extra = extra

    def token_bytes(self):
        return [bytes([i]) for i in range(256)] + [b""] * len(SPECIALS) + list(self.extra)

    def encode(self, text):
        return list(text.encode())


class Collect:
    """A sink that keeps every delta."""

    def __init__(self):
        self.deltas = []

    def put(self, delta):
        self.deltas.append(delta)

    @property
    def text(self):
        return "".join(d.text for d in self.deltas)

    @property
    def token_ids(self):
        return [t for d in self.deltas for t in d.token_ids]

    @property
    def finish_reason(self):
        return self.deltas[-1].finish_reason if self.deltas else None


class ScriptModel:
    """After the last token of a row comes the next one of its script, else token + 1.

    `script[(a, b)] = c`: after ids a, b the greedy token is c. Keeps no keys or values.
    """

    def __init__(self, vocab_size=300, seq_len=64, script=None):
        self.shape = Shape.from_depth(1, vocab_size=vocab_size, seq_len=seq_len)
        self.dtype = torch.float32
        self.script = script or {}
        self.batches = []
        self.on_forward = lambda: None

    def parameters(self):
        return iter([torch.nn.Parameter(torch.zeros(1))])

    def forward_cached(self, ids_BT, prev_ids_B, start_B, kv, *, last_B):
        self.on_forward()
        self.batches.append(tuple(ids_BT.shape))
        logits = torch.zeros(len(ids_BT), self.shape.vocab_size)
        for b, last in enumerate(last_B.tolist()):
            token = int(ids_BT[b, last])
            before = int(ids_BT[b, last - 1]) if last else int(prev_ids_B[b])
            logits[b, self.script.get((before, token), (token + 1) % self.shape.vocab_size)] = 9.0
        return logits


def request(prompt=(1, 2, 3), *, max_tokens=4, sink=None, **params):
    """A request as the engine would make it."""
    params = SamplingParams(max_tokens=max_tokens, **params)
    return Request(
        id=0,
        prompt_tokens=len(prompt),
        params=params,
        sink=sink or Collect(),
        tokens=list(prompt),
        limit=len(prompt) + max_tokens,
        uniform=uniform_stream(params.seed or 0),
    )
