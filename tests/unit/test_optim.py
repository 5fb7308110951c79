"""MuonAdamW: update rules, state, learning rates; schedules are in test_optim_schedule."""

import math

import pytest
import torch
from test_gpt import build, random_ids, small

from nanochat.errors import DataError
from nanochat.optim import MuonAdamW, OptimHyper
from nanochat.optim.groups import muon_lr
from nanochat.optim.muon import POLAR_EXPRESS, muon_update, normalise, polar_factor, second_moment_size
from nanochat.shape import PRESETS, Shape


def fill_gradients(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def hyper(model, **changes) -> OptimHyper:
    return OptimHyper.for_shape(model.shape, muon_bf16=False, **changes)


SIZES = [(8, 8), (24, 8), (8, 24), (1, 12), (64, 16)]


@pytest.mark.parametrize("size", SIZES)
def test_orthogonalised_matrices_have_nearly_equal_singular_values(size):
    u = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    x = polar_factor(u)
    y = normalise(x, torch.zeros(second_moment_size(3, *size)))
    norms = torch.full((3,), float(min(size)))
    torch.testing.assert_close(y.square().sum(dim=(1, 2)), norms, atol=1e-3, rtol=1e-4)
    singular = torch.linalg.svdvals(x)
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def plain_muon(p, g, m, v, *, lr, mu, decay):
    """The recipe for one matrix, in double precision, written without batching or tricks."""
    p, g, m, v = (x.double() for x in (p, g, m, v))
    rows, columns = p.shape
    m = mu * m + (1 - mu) * g
    u = (1 - mu) * g + mu * m
    norms = u.norm(dim=1, keepdim=True)
    u = u * (u.norm() / math.sqrt(rows)) / norms.clamp(min=1e-6)
    u = u / (1.01 * u.norm() + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = u @ u.T
        u = a * u + (b * gram + c * gram @ gram) @ u
    u = u * math.sqrt(min(rows, columns)) / u.norm()
    axis = 1 if rows >= columns else 0
    v = 0.9 * v + 0.1 * u.square().mean(dim=axis, keepdim=True)
    scaled = u / v.clamp(min=1e-10).sqrt()
    u = scaled * u.norm() / scaled.norm()
    p = p - lr * u - lr * decay * p * (u * p >= 0)
    return p, m, v


@pytest.mark.parametrize("size", SIZES)
def test_a_stack_of_matrices_follows_the_recipe_of_each(size):
    generator = torch.Generator().manual_seed(2)
    p, m = (torch.randn(3, *size, generator=generator) for _ in range(2))
    v = torch.rand(second_moment_size(3, *size), generator=generator)
    for lr, mu, decay in ((0.02, 0.85, 0.3), (0.01, 0.97, 0.0)):
        g = torch.randn(3, *size, generator=generator)
        expected = [plain_muon(p[i], g[i], m[i], v[i], lr=lr, mu=mu, decay=decay) for i in range(3)]
        scalars = {"lr": torch.tensor(lr), "mu": torch.tensor(mu), "decay": torch.tensor(decay)}
        muon_update(p, list(g.unbind()), m, v, **scalars, dtype=torch.float32)
        for i in range(3):
            for got, want in zip((p[i], m[i], v[i]), expected[i], strict=True):
                torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=2e-4)


def test_weight_decay_touches_only_weights_that_the_step_shrinks():
    p = torch.tensor([[[2.0, -2.0], [2.0, -2.0]]])
    g = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]])
    updates = []
    for decay in (0.0, 0.5):
        q = p.clone()
        scalars = {"lr": torch.tensor(0.1), "mu": torch.tensor(0.0), "decay": torch.tensor(decay)}
        muon_update(q, [g[0]], torch.zeros(1, 2, 2), torch.zeros(1, 2, 1), **scalars, dtype=torch.float32)
        updates.append(p - q)
    assert ((updates[1] - updates[0]) / 0.05 / p).round(decimals=4).tolist() == [[[1.0, 0.0], [1.0, 1.0]]]


def test_a_zero_gradient_moves_no_matrix_and_makes_no_nan():
    p = torch.randn(2, 4, 4)
    before = p.clone()
    scalars = {"lr": torch.tensor(0.1), "mu": torch.tensor(0.9), "decay": torch.tensor(0.0)}
    muon_update(
        p, [torch.zeros(4, 4)] * 2, torch.zeros(2, 4, 4), torch.zeros(2, 4, 1), **scalars, dtype=torch.float32
    )
    assert torch.equal(p, before)


@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_the_adamw_part_equals_torch(arch):
    model, twin = build(small(arch)), build(small(arch))
    ours = MuonAdamW(model, hyper(model))
    names = [n for n, _ in twin.named_parameters() if not n.startswith("blocks.")]
    rules = {n: hyper(model).rule(n) for n in names}
    named = dict(twin.named_parameters())
    groups = [
        {
            "params": [named[n]],
            "lr": rules[n].lr,
            "betas": rules[n].betas,
            "weight_decay": rules[n].weight_decay,
        }
        for n in names
    ]
    theirs = torch.optim.AdamW(groups, eps=1e-10)
    for step, lr_mult in enumerate((0.5, 1.0, 0.2)):
        fill_gradients(model, step)
        fill_gradients(twin, step)
        for group, name in zip(theirs.param_groups, names, strict=True):
            group["lr"] = rules[name].lr * lr_mult
        ours.step(lr_mult=lr_mult, muon_momentum=0.9, muon_wd=0.1)
        theirs.step()
    for name in names:
        torch.testing.assert_close(dict(model.named_parameters())[name], named[name], atol=1e-6, rtol=1e-5)


def test_learning_rates_follow_the_recipe():
    shape = Shape.from_depth(24, vocab_size=2**15, seq_len=2048)
    rules = OptimHyper.for_preset(PRESETS["speedrun"])
    s, narrow = math.sqrt(2), (1536 / 768) ** -0.5
    table = {
        "lm_head.weight": (0.008 * s * narrow, (0.8, 0.96), 0.01),
        "wte.weight": (0.3 * s * narrow, (0.8, 0.995), 0.001),
        "value_embeds.23.weight": (0.15 * s * narrow, (0.8, 0.995), 0.01),
        "resid_L": (0.005 * s, (0.8, 0.95), 0.05),
        "embed_L": (0.5 * s, (0.96, 0.95), 0.0),
        "smear_gate.weight": (0.2, (0.8, 0.95), 0.0),
        "smear_scale": (0.2, (0.8, 0.95), 0.0),
        "backout": (0.2, (0.8, 0.95), 0.0),
    }
    for name, (lr, betas, decay) in table.items():
        rule = rules.rule(name)
        assert (rule.kind, rule.betas, rule.weight_decay) == ("adamw", betas, decay)
        assert rule.lr == pytest.approx(lr)
    assert rules.rule("blocks.3.mlp.up.weight").kind == "muon"
    lr = rules.rule("blocks.3.mlp.up.weight").lr
    assert muon_lr(lr, 4 * shape.width, shape.width) == pytest.approx(0.02 * s * 2)
    assert muon_lr(lr, shape.width, 4 * shape.width) == pytest.approx(0.02 * s)


@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_every_parameter_is_trained(arch):
    model = build(small(arch))
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = MuonAdamW(model, hyper(model))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    model(random_ids(model.shape, 2, 16), random_ids(model.shape, 2, 16, seed=2)).backward()
    optimizer.step(lr_mult=1.0, muon_momentum=0.85, muon_wd=0.1)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert parameter.isfinite().all(), name


def test_training_overfits_one_batch():
    model = build(small(), dtype=torch.bfloat16, spread=0.0)
    optimizer = MuonAdamW(model, OptimHyper.for_shape(model.shape, lr_scale=0.5))
    ids = random_ids(model.shape, 2, 33)
    losses = []
    for _ in range(30):
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step(lr_mult=1.0, muon_momentum=0.9, muon_wd=0.0)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(model.shape.vocab_size), rel=0.02)
    assert losses[-1] < 0.7


def test_bf16_tables_train_close_to_fp32_ones_with_bf16_state():
    exact, half = build(small()), build(small(), table_dtype=torch.bfloat16)
    for model in (exact, half):
        optimizer = MuonAdamW(model, hyper(model))
        fill_gradients(model, 0)
        optimizer.step(lr_mult=0.1, muon_momentum=0.9, muon_wd=0.0)
    assert optimizer.state_tensors()["wte.weight/exp_avg@0"].dtype == torch.bfloat16
    torch.testing.assert_close(half.wte.weight.float(), exact.wte.weight, atol=0.02, rtol=0.02)


def test_a_restored_optimizer_goes_on_bit_for_bit():
    first, second = build(small()), build(small(), seed=9)
    a = MuonAdamW(first, hyper(first))
    fill_gradients(first, 0)
    a.step(lr_mult=1.0, muon_momentum=0.9, muon_wd=0.1)
    second.load_state_dict(first.state_dict())
    b = MuonAdamW(second, hyper(second))
    b.load_state_tensors({name: tensor.clone() for name, tensor in a.state_tensors().items()})
    for optimizer, model in ((a, first), (b, second)):
        fill_gradients(model, 1)
        optimizer.step(lr_mult=0.5, muon_momentum=0.9, muon_wd=0.1)
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_the_state_is_keyed_by_parameter_name_and_whole():
    model = build(small())
    state = MuonAdamW(model, hyper(model)).state_tensors()
    for name, parameter in model.named_parameters():
        if name.startswith("blocks."):
            assert state[f"{name}/momentum"].shape == parameter.shape
        else:
            assert state[f"{name}/exp_avg@0"].numel() == parameter.numel()
            assert state[f"{name}/exp_avg_sq@0"].dtype == parameter.dtype


@pytest.mark.parametrize(
    ("drop", "named"),
    [
        ("blocks.0.attn.q.weight/momentum", "blocks.0.attn.q.weight/momentum"),
        ("wte.weight/exp_avg@0", "`wte.weight/exp_avg` is incomplete at element 0"),
        ("step", "step"),
    ],
)
def test_missing_state_is_named(drop, named):
    model = build(small())
    optimizer = MuonAdamW(model, hyper(model))
    state = optimizer.state_tensors()
    del state[drop]
    with pytest.raises(DataError, match=named):
        optimizer.load_state_tensors(state)


def test_state_of_another_shape_is_refused():
    model, other = build(small()), build(small(depth=3, width=96))
    optimizer = MuonAdamW(model, hyper(model))
    with pytest.raises(DataError, match="expected"):
        optimizer.load_state_tensors(MuonAdamW(other, hyper(other)).state_tensors())
