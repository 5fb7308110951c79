"""Stage `base_eval`: bits per byte of the base model on every held-out source, and samples.

Knows nothing of how text is scored or generated.
"""

from __future__ import annotations

from nanochat.data.shards import read_texts
from nanochat.engine.engine import Engine
from nanochat.engine.request import SamplingParams
from nanochat.evals.bpb import bits_per_byte
from nanochat.evals.model import LoadedModel, load_model
from nanochat.run.context import StageContext, StageResult
from nanochat.shape import resolve

SAMPLE_TOKENS = 48


def run(context: StageContext) -> StageResult:
    """Score the whole held-out split of each source and continue the preset's prompts greedily.

    Raises:
        DataError: the model or a held-out file is damaged.
    """
    loaded = load_model(context.home, context.input("base_train"))
    paths = sorted((context.dataset_dir / "heldout").glob("*.parquet"))
    scores = []
    for index, path in enumerate(paths):
        made = bits_per_byte(
            loaded.model, loaded.tokenizer, read_texts(path), seq_len=loaded.seq_len, device=loaded.device
        )
        score = {
            "name": f"bpb/{path.stem}",
            "value": round(made.value, 6),
            "unit": "bits per byte",
            "utf8_bytes": made.utf8_bytes,
        }
        context.emit("eval", **score)
        context.emit("step", step=index + 1, steps=len(paths), unit="source")
        scores.append(score)
    _samples(context, loaded)
    return StageResult(metrics={"model": loaded.id, "scores": scores})


def _samples(context: StageContext, loaded: LoadedModel) -> None:
    prompts = resolve(context.spec).prompts
    ids = [[loaded.tokenizer.bos, *loaded.tokenizer.encode(prompt)] for prompt in prompts]
    engine = Engine(loaded.model, loaded.tokenizer)
    params = SamplingParams(temperature=0.0, max_tokens=SAMPLE_TOKENS)
    for prompt, made in zip(prompts, engine.generate(ids, params), strict=True):
        context.emit("sample", prompt=prompt, text=made.text)
