"""Names, units and totals for people: what a figure is called, what a machine costs, how long a run took.

Knows nothing of Markdown or HTML.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nanochat.errors import ConfigError
from nanochat.report.collect import COLUMNS, Run, Score
from nanochat.run.record import Record
from nanochat.shape import Preset, resolve

PRICES_USD_PER_GPU_HOUR = {"H200": 3.5, "H100": 3.0, "A100": 1.79, "V100": 0.55}
"""Assumed on-demand prices (2026-01); a machine that is not listed is taken as your own."""

_LABELS = {
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    "generated_mc": "Generated multiple choice",
    "spelling": "Spelling",
    "arithmetic": "Arithmetic with the calculator",
    "identity": "Knows who it is",
    "ends_turn": "Ends its turn by itself",
    "chatcore": "ChatCORE",
    "val_bpb": "validation bits per byte",
    "val_loss": "validation loss",
}
_SOURCES = {
    "wiki": "encyclopedia",
    "chitchat": "chit-chat",
    "bible_basic": "Basic-English Bible",
    "bible_web": "World English Bible",
    "plays": "Shakespeare",
}
_WHOLE = {"arc_easy": 2376, "arc_challenge": 1172, "mmlu": 14042, "gsm8k": 1319, "humaneval": 164}


def label(name: str) -> str:
    """Return what a figure is called, e.g. `bits per byte, encyclopedia`."""
    if name.startswith("bpb/"):
        source = name.removeprefix("bpb/")
        return f"bits per byte, {_SOURCES.get(source, source)}"
    if name.startswith("centred_mean("):
        tasks = name[len("centred_mean(") : -1].split(",")
        return "Centred mean of " + ", ".join(label(task) for task in tasks)
    if name.startswith("gsm8k_"):
        return f"GSM8K-{name.removeprefix('gsm8k_')}"
    return _LABELS.get(name, name.replace("_", " "))


def unit(name: str) -> str:
    """Return a unit in words: `bpb` and `nats` are what events write."""
    return {"bpb": "bits per byte", "nats": "nats per token"}.get(name, name)


def problems(name: str, n: int | None) -> str:
    """Return how many problems a figure stands on: `100 of 2,376` for a part of a public set."""
    if n is None:
        return ""
    part = name.removeprefix("gsm8k_")
    whole = int(part) if part != name and part.isdigit() else _WHOLE.get(name)
    return f"{n:,} of {whole:,}" if whole and n < whole else f"{n:,}"


def figure(score: Score | None) -> str:
    """Return a figure with its unit: accuracies in per cent, `-` when missing."""
    if score is None:
        return "-"
    return f"{score.value:.1%}" if score.unit == "accuracy" else f"{score.value:.4f}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the summary table: a metric and its figure in each column."""

    name: str
    figures: dict[str, Score | None]

    @property
    def any(self) -> Score:
        """The first figure there is."""
        return next(score for score in self.figures.values() if score is not None)


def summary(run: Run) -> list[Row]:
    """Return the rows of the summary table, in the order in which the evaluations list them."""
    by_column = {column: {s.name: s for s in run.scores.get(stage, [])} for column, stage in COLUMNS.items()}
    names = dict.fromkeys(name for scores in by_column.values() for name in scores)
    return [Row(name, {column: by_column[column].get(name) for column in COLUMNS}) for name in names]


def _compression(run: Run) -> list[dict[str, Any]]:
    record = run.records.get("tok_eval")
    rows = record.metrics.get("compression", []) if record else []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("bytes_per_token"), dict)]


def vocabularies(run: Run) -> list[str]:
    """Return the vocabularies that the tokenizer was compared with, ours first; none without `tok_eval`."""
    labels = dict.fromkeys(label for row in _compression(run) for label in row["bytes_per_token"])
    return sorted(labels, key=lambda label: label != "ours")


def compression(run: Run) -> list[list[str]]:
    """Return text, bytes and the bytes a token of each vocabulary, as cells."""
    labels = vocabularies(run)
    return [
        [
            _SOURCES.get(row["text"], str(row["text"])),
            f"{row.get('utf8_bytes', 0):,}",
            *(f"{row['bytes_per_token'].get(name, 0.0):.2f}" for name in labels),
        ]
        for row in _compression(run)
    ]


_FIGURES = (
    ("model", str, "{}"),
    ("documents", int, "{:,} documents"),
    ("conversations", int, "{:,} conversations"),
    ("utf8_bytes", int, "{:,} bytes"),
    ("vocab_size", int, "vocabulary {:,}"),
    ("compared_with", str, "compared with {}"),
    ("bytes_per_token", float, "{:.2f} bytes a token"),
    ("steps", int, "{:,} steps"),
    ("tokens", int, "{:,} tokens"),
    ("tok_per_s", float, "{:,.0f} tokens/s"),
    ("mfu", float, "MFU {:.1%}"),
    ("dtype", str, "{}"),
    ("loss", float, "loss {:.3f}"),
    ("val_bpb", float, "validation {:.4f} bits per byte"),
)
"""Metrics of records that the stage table shows, in this order."""


def figures(metrics: dict[str, Any]) -> str:
    """Return the figures of a stage that matter most, on one line."""
    return ", ".join(
        form.format(metrics[name]) for name, kind, form in _FIGURES if isinstance(metrics.get(name), kind)
    )


def duration(seconds: float) -> str:
    """Return seconds as `42 s`, `3 min 07 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float) -> str:
    """Return a large count as `3.4 M` or `1.2 G`."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:,.0f}"


def day(unix_s: float) -> str:
    """Return a time as `2026-01-31 14:05 UTC`."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _main_record(run: Run) -> Record | None:
    return run.records.get("base_train") or next(iter(run.records.values()), None)


def hardware(run: Run) -> str:
    """Return the machine that trained the base model, in one line."""
    record = _main_record(run)
    facts = record.hardware if record else {}
    parts = []
    if gpus := facts.get("gpus"):
        parts.append(f"{len(gpus)} x {gpus[0]}")
    if processor := facts.get("processor"):
        parts.append(str(processor))
    if cores := facts.get("cores"):
        parts.append(f"{cores} cores")
    if memory := facts.get("memory_bytes"):
        parts.append(f"{memory / 2**30:.0f} GiB")
    return ", ".join(parts) or "not recorded"


def cost(run: Run) -> str:
    """Return what the run's wall time costs at the assumed price of its GPUs."""
    record = _main_record(run)
    gpus = (record.hardware.get("gpus") or []) if record else []
    price = next((p for name, p in PRICES_USD_PER_GPU_HOUR.items() if gpus and name in str(gpus[0])), None)
    if price is None:
        return "nothing: no rented accelerator" if not gpus else "not known: this GPU has no listed price"
    dollars = price * len(gpus) * run.wall_s / 3600
    return f"{dollars:,.2f} USD at {price:.2f} USD per GPU hour"


def _preset(run: Run) -> Preset | None:
    try:
        return resolve(run.spec)
    except ConfigError:
        return None


def model(run: Run) -> str:
    """Return the model in one line; empty for a preset this version does not know."""
    preset = _preset(run)
    if preset is None:
        return ""
    shape = preset.shape
    vocabulary = _metric(run, "tok_train", "vocab_size") or shape.vocab_size
    total = _metric(run, "base_train", "parameters") or shape.parameter_counts()["total"]
    return (
        f"{shape.arch}, {shape.depth} layers x {shape.width}, vocabulary {vocabulary:,},"
        f" context {shape.seq_len:,}, {count(total)} parameters"
    )


def _metric(run: Run, stage: str, name: str) -> int | None:
    record = run.records.get(stage)
    value = record.metrics.get(name) if record else None
    return value if isinstance(value, int) else None


def training(run: Run) -> str:
    """Return the length of base training in one line; empty for a preset this version does not know."""
    preset = _preset(run)
    if preset is None:
        return ""
    tokens = preset.base_steps * preset.total_batch_tokens
    flops = tokens * preset.shape.flops_per_token()
    return (
        f"{preset.base_steps:,} steps of {preset.total_batch_tokens:,} tokens = {count(tokens)} tokens,"
        f" {flops:.2e} FLOPs"
    )


def header(run: Run) -> list[tuple[str, str]]:
    """Return the facts above everything else, as (name, value)."""
    first = min((r.started for r in run.records.values()), default=0.0)
    revisions = list(dict.fromkeys(record.revision for record in run.records.values()))
    machines = run.records.get("base_train")
    facts = [
        ("Started", day(first) if first else "not recorded"),
        ("Wall time", duration(run.wall_s)),
        ("Cost", cost(run)),
        ("Hardware", hardware(run)),
        ("System", str(machines.hardware.get("system", "")) if machines else ""),
        ("Code revision", ", ".join(revisions)),
        ("Preset", f"{run.spec.preset}, seed {run.spec.seed}"),
        ("Data", run.spec.source),
        ("Model", model(run)),
        ("Base training", training(run)),
    ]
    return [(name, value) for name, value in facts if value]
