"""The model: initialisation, sizes, causality, windows, loss."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nanochat.attention import band_mask, causal_attention
from nanochat.gpt import GPT, softcap
from nanochat.shape import Shape


def build(shape: Shape, *, seed: int = 0, spread: float = 0.05, **options) -> GPT:
    """A model whose zero-initialised matrices carry noise, so that every path matters."""
    model = GPT(shape, **options)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.add_(noise.to(parameter.dtype))
    return model


def small(arch="modern", depth=3, seq_len=64, vocab_size=130, **changes) -> Shape:
    shape = Shape.from_depth(depth, arch=arch, vocab_size=vocab_size, seq_len=seq_len)
    return replace(shape, **({"width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16} | changes))


def random_ids(shape: Shape, *size: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(shape.vocab_size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("arch", ["modern", "classic"])
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.bfloat16])
def test_no_parameter_is_left_uninitialised(arch, table_dtype):
    model = GPT(small(arch), table_dtype=table_dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.init_weights(3)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
    assert model(random_ids(model.shape, 2, 5)).isfinite().all()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    shape = small()
    models = [GPT(shape) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        model.init_weights(seed)
    assert torch.equal(models[0].wte.weight, models[1].wte.weight)
    assert not torch.equal(models[0].wte.weight, models[2].wte.weight)


def test_initial_values_follow_the_recipe():
    model = GPT(Shape.from_depth(5, vocab_size=1000, seq_len=64))
    model.init_weights()
    bound = math.sqrt(3 / model.shape.width)
    block = model.blocks[4]
    assert model.wte.weight.std().item() == pytest.approx(0.8, rel=0.02)
    assert model.lm_head.weight.std().item() == pytest.approx(0.001, rel=0.02)
    for weight, high in (
        (block.attn.q.weight, bound),
        (block.mlp.up.weight, 0.4 * bound),
        (model.value_embeds["4"].weight, bound),
    ):
        assert weight.abs().max().item() == pytest.approx(high, rel=0.01)
        assert weight.mean().abs().item() < 0.02 * high
    assert block.attn.o.weight.abs().max() == block.mlp.down.weight.abs().max() == 0
    assert 0 <= block.attn.gate.weight.min() <= block.attn.gate.weight.max() <= 0.02
    assert model.resid_L.tolist() == pytest.approx([1.15, 1.125, 1.1, 1.075, 1.05])
    assert model.embed_L.tolist() == pytest.approx([0.2, 0.1625, 0.125, 0.0875, 0.05])
    assert (model.smear_scale.item(), model.backout.item()) == (0, pytest.approx(0.2))


@pytest.mark.parametrize("arch", ["modern", "classic"])
@pytest.mark.parametrize("depth", range(1, 41))
def test_every_depth_builds_with_the_parameters_that_its_shape_counts(arch, depth):
    shape = Shape.from_depth(depth, arch=arch, vocab_size=1000, seq_len=64)
    model = GPT(shape, device="meta")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counts = shape.parameter_counts()
    matrices = sum(p.numel() for p in model.blocks.parameters())
    assert sum(sizes.values()) == counts["total"]
    assert matrices == counts["matrices"]
    assert sizes["lm_head.weight"] == counts["lm_head"]
    assert sum(n for name, n in sizes.items() if "value_embeds" in name) == counts["value_embeddings"]


def test_flops_count_every_matmul_weight_six_times():
    shape = Shape.from_depth(6, vocab_size=1000, seq_len=2048)
    model = GPT(shape, device="meta")
    weights = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "wte" not in n and "embed" not in n
    )
    attention = 12 * shape.width * (4 * 512 + 2 * 2048)
    assert shape.flops_per_token() == 6 * weights + attention


@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_a_token_never_changes_what_comes_before_it(arch):
    shape = small(arch, window_pattern="SL")
    model = build(shape)
    ids = random_ids(shape, 1, 24)
    changed = ids.clone()
    changed[0, 15] = (ids[0, 15] + 1) % shape.vocab_size
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :15], after[:, :15])
    assert (before[:, 15:] - after[:, 15:]).abs().amax(dim=-1).min() > 0


@pytest.mark.parametrize(("tokens", "window"), [(1, 0), (7, 3), (40, 16), (40, 39), (40, 40), (33, 1)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_a_query_sees_itself_and_exactly_its_window(tokens, window, kv_heads, dtype, error):
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(2, tokens, 4, 8, generator=generator)
    k, v = (torch.randn(2, tokens, kv_heads, 8, generator=generator) for _ in range(2))
    q, k, v = (x.to(dtype).float() for x in (q, k, v))
    y = causal_attention(q.to(dtype), k.to(dtype), v.to(dtype), window=window).float()
    for t in range(tokens):
        first = max(0, t - window)
        for head in range(4):
            g = head * kv_heads // 4
            weights = torch.softmax(q[:, t, head, None] @ k[:, first : t + 1, g].mT / math.sqrt(8), dim=-1)
            expected = (weights @ v[:, first : t + 1, g])[:, 0]
            torch.testing.assert_close(y[:, t, head], expected, atol=error, rtol=10 * error)


def test_the_band_mask_has_window_plus_one_keys_a_row():
    mask = band_mask(9, 3, torch.device("cpu"))
    assert mask.sum(dim=1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4]


def test_what_lies_beyond_all_windows_cannot_be_seen():
    shape = small("classic", depth=2, seq_len=1024, window_pattern="S")  # windows: 256, then all
    model = build(shape)
    ids = random_ids(shape, 1, 600)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % shape.vocab_size
    only_short = replace(shape, depth=1)
    first_layer = GPT(only_short)
    first_layer.load_state_dict({k: v for k, v in model.state_dict().items() if "blocks.1" not in k})
    first_layer.blocks[0].attn.window = shape.windows()[0]
    before, after = first_layer(ids), first_layer(changed)
    assert torch.equal(before[:, 257:], after[:, 257:])
    assert not torch.equal(before[:, :257], after[:, :257])


def test_logits_are_cropped_to_the_vocabulary_and_capped_in_fp32():
    shape = small(vocab_size=130)
    model = build(shape, dtype=torch.bfloat16)
    logits = model(random_ids(shape, 2, 9))
    assert logits.shape == (2, 9, 130)
    assert logits.dtype == torch.float32
    assert softcap(torch.tensor([1e4, -1e4, 0.0])).tolist() == [15.0, -15.0, 0.0]
    assert softcap(torch.tensor([8.0, 8.03], dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_the_loss_is_cross_entropy_and_ignores_minus_one(arch):
    shape = small(arch)
    model = build(shape)
    ids, targets = random_ids(shape, 3, 20), random_ids(shape, 3, 20, seed=2)
    targets[0, :11] = -1
    flat = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    torch.testing.assert_close(model(ids, targets, reduction="none").flatten(), flat)
    torch.testing.assert_close(model(ids, targets, reduction="sum"), flat.sum())
    torch.testing.assert_close(model(ids, targets), flat.sum() / 49)


def test_a_batch_without_targets_has_loss_zero_and_no_gradient():
    shape = small()
    model = build(shape)
    loss = model(random_ids(shape, 1, 6), torch.full((1, 6), -1))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_gradients_of_the_loss_equal_those_of_plain_cross_entropy():
    shape = small()
    ids, targets = random_ids(shape, 2, 12), random_ids(shape, 2, 12, seed=2)
    targets[1, 4:] = -1
    ours, plain = build(shape), build(shape)
    (ours(ids, targets) * 3).backward()
    loss = F.cross_entropy(plain(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)
    (loss * 3).backward()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            a.grad, b.grad, atol=2e-6, rtol=2e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_every_parameter_gets_a_gradient():
    shape = small()
    model = build(shape)
    model(random_ids(shape, 2, 12), random_ids(shape, 2, 12, seed=2)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_bf16_stays_close_to_fp32_and_keeps_fp32_masters():
    shape = small()
    exact, rough = build(shape), build(shape, dtype=torch.bfloat16)
    ids, targets = random_ids(shape, 2, 32), random_ids(shape, 2, 32, seed=2)
    assert rough(ids, targets).item() == pytest.approx(exact(ids, targets).item(), rel=0.02)
    assert {p.dtype for p in rough.parameters()} == {torch.float32}


def test_inference_weights_are_resident_in_the_compute_dtype_and_give_the_same_logits():
    shape = small()
    model = build(shape, dtype=torch.bfloat16)
    ids = random_ids(shape, 1, 10)
    trained = model(ids)
    served = model.for_inference()
    assert {p.dtype for p in served.parameters() if p.dim() == 2} == {torch.bfloat16}
    assert not any(p.requires_grad for p in served.parameters())
    assert torch.equal(served(ids), trained)


def test_a_sequence_longer_than_the_context_is_refused():
    shape = small(seq_len=16)
    with pytest.raises(ValueError, match="17 tokens"):
        build(shape)(random_ids(shape, 1, 17))
