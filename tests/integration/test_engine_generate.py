"""The engine with real models: equal to the plain forward pass, whoever shares the batch."""

from __future__ import annotations

import pytest
import torch

from nanochat.engine.engine import Engine, Limits
from nanochat.engine.packed import PackedLinear, batching, can_pack, pack
from nanochat.engine.request import SamplingParams
from nanochat.gpt import GPT
from nanochat.shape import Shape
from tests.engine_fakes import ByteTokenizer, Collect

TOKENIZER = ByteTokenizer()
VOCAB = 265


def build(arch, dtype=torch.float32, *, kv_heads=2):
    """A model with windows shorter than the context, and no weight left at zero."""
    shape = Shape(
        arch=arch,
        depth=3,
        width=64,
        heads=2,
        kv_heads=kv_heads,
        head_dim=32,
        vocab_size=VOCAB,
        seq_len=320,
        window_pattern="SSL" if arch == "modern" else "L",
    )
    model = GPT(shape, dtype=dtype)
    model.init_weights(3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.3, generator=generator)
        if model.smear_scale is not None:
            model.smear_scale.fill_(0.5)
    return model.for_inference()


@pytest.fixture(scope="module", params=["modern", "classic"])
def model(request):
    torch.set_num_threads(1)
    return build(request.param)


def prompts(count, longest=250):
    generator = torch.Generator().manual_seed(5)
    sizes = [1 + (longest - 1) * i // max(count - 1, 1) for i in range(count)]
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in sizes]


def naive(model, prompt, steps):
    """Greedy tokens by the whole forward pass, without any cache."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def greedy(n):
    return SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, tools=False)


def engine(model, **options):
    limits = Limits(**{"prefill_chunk": 32, "max_step_tokens": 64} | options.pop("limits", {}))
    return Engine(model, TOKENIZER, limits=limits, **options)


@torch.no_grad()
def test_chunks_windows_and_batches_give_the_tokens_of_the_whole_forward(model):
    asked = prompts(8)
    done = engine(model).generate(asked, greedy(12))
    assert [c.token_ids for c in done] == [naive(model, p, 12) for p in asked]


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_log_probabilities_equal_those_of_the_whole_forward(model, chunk):
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, tools=False, logprobs=2)
    prompt = prompts(2, longest=200)[1]
    limits = {"prefill_chunk": chunk, "max_step_tokens": chunk + 8}
    (done,) = engine(model, limits=limits).generate([prompt], params)
    ids = torch.tensor([prompt + done.token_ids])
    expected = torch.log_softmax(model(ids)[0, len(prompt) - 1 : -1], -1)
    visible = [(i, t) for i, t in enumerate(done.token_ids) if t < 256]
    assert [e.token for e in done.logprobs] == [t for _, t in visible]
    for (i, token), entry in zip(visible, done.logprobs, strict=True):
        assert entry.logprob == pytest.approx(expected[i, token].item(), abs=1e-3)
        assert [t for t, _, _ in entry.top] == expected[i].topk(2).indices.tolist()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_output_is_the_same_to_the_last_bit_alone_and_in_a_batch_that_others_join_and_leave(
    arch, dtype, packed
):
    """As served: bf16, packed. Chunks of 32, so prompts meet each other's chunks and decoding rows."""
    model = build(arch, dtype)
    kinds = [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}]
    each = [
        SamplingParams(
            seed=i, max_tokens=8 + 5 * (i % 4), ignore_eos=True, tools=False, logprobs=3, **kinds[i % 3]
        )
        for i in range(24)
    ]
    asked = prompts(24, longest=150)
    alone = [engine(model, pack=packed).generate([p], [q])[0] for p, q in zip(asked, each, strict=True)]
    together = engine(model, pack=packed, limits={"max_running": 8, "max_step_tokens": 80})
    assert together.generate(asked, each) == alone  # tokens, text and log probabilities
    assert len({tuple(c.token_ids) for c in alone}) == 24


class Leaning(PackedLinear):
    """A matrix whose rows depend on each other as a BLAS's may."""

    def __init__(self, how):
        torch.nn.Module.__init__(self)
        self.inputs, self.outputs, self.dtype, self.device = 8, 4, torch.float32, torch.device("cpu")
        self.how = how

    def forward(self, x):
        return x.sum(-1, keepdim=True) + self.how(x)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (lambda x: 0, "any"),
        (lambda x: x.size(0), "full"),
        (lambda x: torch.arange(x.size(0))[:, None, None], "one"),
    ],
)
def test_the_engine_finds_out_how_many_rows_leave_each_other_alone(how, expected):
    assert batching(torch.nn.Sequential(Leaning(how)), 8) == expected


@pytest.mark.parametrize("how", ["any", "full", "one"])
def test_filling_up_a_batch_or_emptying_it_leaves_tokens_and_slots_as_they_are(model, how):
    asked, params = prompts(5, longest=90), greedy(10)
    expected = [engine(model).generate([p], params)[0].token_ids for p in asked]
    running = engine(model)
    running.runner.batching = how
    assert [c.token_ids for c in running.generate(asked, params)] == expected
    assert running.stats().kv_intact


def test_requests_that_join_and_leave_at_any_step_do_not_change_each_other(model):
    asked, params = prompts(6, longest=90), greedy(15)
    expected = [engine(model).generate([p], params)[0].token_ids for p in asked]
    running = engine(model, limits={"max_running": 3})
    sinks = [Collect() for _ in asked]
    for n, (prompt, sink) in enumerate(zip(asked, sinks, strict=True)):
        running.submit(prompt, params, sink)
        for _ in range(n * 2):
            running.step()
        if n == 2:
            gone = running.submit(asked[0], greedy(100), Collect())
            running.step()
            running.cancel(gone)
    while running.step():
        pass
    assert [s.token_ids for s in sinks] == expected
    assert running.stats().kv_intact


def test_one_prompt_with_eight_seeds_gives_eight_answers(model):
    done = engine(model).generate(
        [[1, 2, 3]] * 8, [SamplingParams(seed=s, max_tokens=4, ignore_eos=True) for s in range(8)]
    )
    assert len({tuple(c.token_ids) for c in done}) > 4
    assert len({c.token_ids[0] for c in done}) > 2


def test_a_context_is_used_to_its_last_token(model):
    (done,) = engine(model).generate(
        [prompts(2, longest=318)[1]], SamplingParams(temperature=0, ignore_eos=True)
    )
    assert (done.completion_tokens, done.finish_reason) == (2, "length")


@torch.no_grad()
def test_fewer_key_heads_than_query_heads_work():
    model = build("modern", kv_heads=1)
    asked = prompts(4, longest=100)
    assert [c.token_ids for c in engine(model).generate(asked, greedy(8))] == [
        naive(model, p, 8) for p in asked
    ]


def test_bf16_weights_stay_bf16_and_answer():
    model = build("classic", torch.bfloat16)
    done = engine(model).generate(prompts(4, longest=60), greedy(8))
    assert {p.dtype for p in model.parameters() if p.dim() == 2} == {torch.bfloat16}
    assert all(c.completion_tokens == 8 for c in done)


@torch.no_grad()
def test_packed_matrices_answer_as_plain_ones():
    asked = prompts(8, longest=60)
    plain = engine(build("modern", torch.bfloat16)).generate(asked, greedy(12))
    packed = build("modern", torch.bfloat16)
    done = engine(packed, pack=True).generate(asked, greedy(12))
    if can_pack(torch.bfloat16):
        assert any(isinstance(m, PackedLinear) for m in packed.modules())
        assert pack(packed) == 0  # nothing is packed twice
    assert sum(a.token_ids == b.token_ids for a, b in zip(plain, done, strict=True)) >= 6


def test_a_forced_answer_is_computed_like_any_other_tokens(model):
    """After a forced answer the model goes on exactly as if the answer had been part of the prompt."""
    running = engine(model)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    request_sink = []

    class Sink:
        def put(self, delta):
            request_sink.append(delta)

    request = running.submit([1, 2, 3], params, Sink())
    running.step()
    for token in (TOKENIZER.specials["python_start"], ord("2"), ord("+"), ord("3")):
        request.tokens[-1] = token  # stands for what a trained model would have drawn
        request.state._tool.feed(token, bytes([token]) if token < 256 else b"")
        running.step()
    call = request.state._tool.feed(TOKENIZER.specials["python_end"], b"")
    assert call is not None
    request.tokens[-1:] = [TOKENIZER.specials["python_end"], *call[1]]
    prefix = list(request.tokens)
    for _ in range(5):
        running.step()
    (fresh,) = engine(model).generate([prefix], greedy(5))
    assert request.tokens[len(prefix) :] == fresh.token_ids
