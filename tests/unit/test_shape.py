"""Sizes, horizons and presets against the published table."""

import itertools
from dataclasses import dataclass

import pytest

from nanochat.errors import ConfigError
from nanochat.shape import PRESETS, Shape, default_device_batch, horizon, preset, resolve, shards_needed


@dataclass
class Spec:
    preset: str = "speedrun"
    depth: int | None = None
    device_batch_size: int | None = None
    steps: int | None = None


def modern(depth: int) -> Shape:
    return Shape.from_depth(depth, vocab_size=2**15, seq_len=2048)


TABLE = [
    # depth, width, total M, N M, D ratio 12, log2 B, steps 12, steps 8, total FLOPs
    (4, 256, 36.7, 11.5, 0.138e9, 18, 528, 352, 1.11e16),
    (8, 512, 125.8, 41.9, 0.503e9, 18, 1920, 1280, 1.49e17),
    (12, 768, 286.3, 110.1, 1.321e9, 19, 2520, 1680, 1.00e18),
    (16, 1024, 536.9, 234.9, 2.819e9, 19, 5376, 3584, 4.47e18),
    (20, 1280, 896.5, 435.2, 5.222e9, 20, 4980, 3320, 1.51e19),
    (24, 1536, 1384, 729.8, 8.758e9, 20, 8352, 5568, 4.18e19),
    (26, 1664, 1682, 918.4, 11.02e9, 20, 10510, 7007, 6.60e19),
    (32, 2048, 2819, 1678, 20.13e9, 21, 9600, 6400, 2.17e20),
]


@pytest.mark.parametrize(("depth", "width", "total", "n", "d", "log_b", "steps", "steps8", "flops"), TABLE)
def test_sizes_and_horizons_equal_the_published_table(depth, width, total, n, d, log_b, steps, steps8, flops):
    shape = modern(depth)
    law = horizon(shape)

    assert (shape.width, shape.heads) == (width, width // 128)
    assert shape.parameter_counts()["total"] / 1e6 == pytest.approx(total, rel=5e-4)
    assert shape.scaling_params() / 1e6 == pytest.approx(n, rel=4e-3)
    assert 12 * shape.scaling_params() == pytest.approx(d, rel=3e-3)
    assert law.total_batch_tokens == 2**log_b
    assert law.steps == steps
    assert horizon(shape, ratio=8).steps == steps8
    assert shape.flops_per_token() * 12 * shape.scaling_params() == pytest.approx(flops, rel=5e-3)


@pytest.mark.parametrize(
    ("depth", "flops"), [(12, 7.597e8), (16, 1.586e9), (20, 2.886e9), (24, 4.775e9), (26, 5.991e9)]
)
def test_flops_per_token_equal_the_published_table(depth, flops):
    assert modern(depth).flops_per_token() == pytest.approx(flops, rel=5e-4)


@pytest.mark.parametrize(
    ("depth", "decay"), [(4, 1.8899), (8, 0.5197), (12, 0.28), (20, 0.1002), (32, 0.0368)]
)
def test_weight_decay_shrinks_with_the_horizon(depth, decay):
    assert horizon(modern(depth)).weight_decay == pytest.approx(decay, abs=6e-5)


@pytest.mark.parametrize(("depth", "total", "steps"), [(20, 561e6, 21_400), (32, 1.879e9, 71_680)])
def test_classic_sizes_equal_the_published_runs(depth, total, steps):
    shape = Shape.from_depth(depth, arch="classic", vocab_size=2**16, seq_len=2048)
    assert shape.parameter_counts()["total"] == pytest.approx(total, rel=1e-3)
    assert horizon(shape, ratio=20).steps == steps
    assert shape.flops_per_token() == pytest.approx({20: 3.4918e9, 32: 1.2079e10}[depth], rel=1e-3)


def test_an_explicit_horizon_wins_over_flops_and_flops_over_the_ratio():
    shape = modern(12)
    assert horizon(shape, steps=7, target_flops=1e18).steps == 7
    assert horizon(shape, target_flops=2e18).steps == round(2e18 / shape.flops_per_token() / 2**19)


@pytest.mark.parametrize(
    ("seq_len", "depth", "windows"),
    [
        (2048, 5, (512, 512, 512, 2048, 2048)),
        (2048, 4, (512, 512, 512, 2048)),
        (2048, 1, (2048,)),
        (1024, 2, (256, 1024)),
        (256, 4, (128, 128, 128, 256)),
        (128, 3, (128, 128, 128)),
        (48, 2, (48, 48)),
    ],
)
def test_windows_tile_the_pattern_and_the_last_layer_sees_everything(seq_len, depth, windows):
    assert Shape.from_depth(depth, vocab_size=64, seq_len=seq_len).windows() == windows


def test_value_embeddings_sit_on_every_second_layer_and_on_the_last():
    for depth in range(1, 9):
        layers = [modern(depth).has_value_embedding(i) for i in range(depth)]
        assert layers[-1]
        assert all(a != b for a, b in itertools.pairwise(layers))


def test_every_depth_has_a_shape_that_survives_json():
    for depth in range(1, 41):
        shape = modern(depth)
        assert shape.width % 128 == 0
        assert shape.width >= 64 * depth
        assert Shape.from_json(shape.to_json()) == shape


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"kv_heads": 3}, "kv_heads is 3"),
        ({"window_pattern": "SX"}, "SX"),
        ({"arch": "modem"}, "modem"),
        ({"vocabulary": 5}, "vocabulary"),
    ],
)
def test_a_wrong_model_config_names_its_field(values, named):
    with pytest.raises(ConfigError, match=named):
        Shape.from_json(modern(4).to_json() | values)


def test_a_missing_field_of_a_model_config_is_named():
    values = modern(4).to_json()
    del values["width"]
    with pytest.raises(ConfigError, match="width"):
        Shape.from_json(values)


def test_every_preset_resolves_on_one_and_eight_ranks():
    for name, row in PRESETS.items():
        for world_size in (1, 8):
            got = resolve(Spec(name), world_size=world_size)
            rows = got.accumulation(world_size) * got.device_batch_size * world_size
            assert rows * got.shape.seq_len == row.total_batch_tokens
        assert (row.base_steps, row.mid_steps, row.sft_steps) > (0, 0, 0)


def test_the_published_presets_keep_their_lengths():
    assert (preset("speedrun").base_steps, preset("speedrun").total_batch_tokens) == (5568, 2**20)
    assert (preset("classic-d20").base_steps, preset("classic-d20").total_batch_tokens) == (21_400, 2**19)
    assert round(preset("speedrun").lr_warmup_fraction * 5568) == 40


def test_depth_is_the_one_dial():
    row = resolve(Spec("speedrun", depth=26, device_batch_size=16))
    assert row.shape == modern(26)
    assert row.base_steps == 7007
    assert row.accumulation(8) == 4


def test_a_depth_below_eight_keeps_the_batch_and_steps_of_its_preset():
    row, tiny = resolve(Spec("tiny", depth=6)), preset("tiny")
    assert row.shape.width == 384
    assert (row.base_steps, row.total_batch_tokens) == (tiny.base_steps, tiny.total_batch_tokens)


def test_steps_replace_the_length_of_every_training_stage():
    row = resolve(Spec("smoke", steps=3))
    assert (row.base_steps, row.mid_steps, row.sft_steps) == (3, 3, 3)


@pytest.mark.parametrize(
    ("spec", "world_size", "message", "hint"),
    [
        (Spec("spedrun"), 1, "spedrun", "`speedrun`"),
        (Spec("speedrun", depth=0), 1, "depth is 0", "1 or more"),
        (Spec("speedrun", device_batch_size=12), 1, "12", "8 or 16"),
        (Spec("speedrun", device_batch_size=100), 8, "100", "--device-batch-size 64"),
        (Spec("speedrun"), 7, "7 ranks", "4 or 8"),
        (Spec("smoke", steps=0), 1, "steps is 0", ""),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_nearest_that_can(spec, world_size, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(spec, world_size=world_size)
    assert hint in (caught.value.hint or "")


def test_default_device_batches_fit_80_gb_and_twice_as_many_rows_often_do_not():
    for depth, rows in ((12, 32), (19, 32), (20, 16), (26, 16), (28, 8), (32, 8)):
        shape = modern(depth)
        assert default_device_batch(shape) == rows
        assert shape.memory_bytes(rows, world_size=8)["total"] < 76 * 2**30
    assert modern(20).memory_bytes(32)["total"] > 74 * 2**30
    assert modern(28).memory_bytes(16)["total"] > 76 * 2**30


def test_shards_cover_the_tokens_and_leave_one_for_validation():
    assert shards_needed(1, bytes_per_token=4.0) == 2
    assert 140 <= shards_needed(5_838_471_168) <= 175
