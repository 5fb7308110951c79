"""Stages `mid_eval`, `chat_eval` and later `rl_eval`: what the chat model of the stage they read can do.

Knows nothing of how answers are made or judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanochat.engine.engine import Engine, Limits
from nanochat.errors import ConfigError
from nanochat.evals import choice, generative
from nanochat.evals.model import LoadedModel, load_model
from nanochat.evals.scores import Score, centred_mean
from nanochat.run.context import StageContext, StageResult
from nanochat.run.record import Record
from nanochat.shape import resolve
from nanochat.tasks import mixture, read
from nanochat.tasks.problem import questions
from nanochat.tasks.stable import fraction

READS = {"mid_eval": "mid_train", "chat_eval": "chat_sft", "rl_eval": "chat_rl"}
"""Which stage's model each of them evaluates."""
MAX_TOKENS = {"arithmetic": 48, "spelling": 48}
WORD_PROBLEM_TOKENS = 256
WORD_PROBLEM_SHARE = 4  # a word problem takes ten times the tokens of a sum: a quarter of them
IDENTITY_QUESTIONS = 10
OPENINGS = 10
TALK_TOKENS = 96
SHOWN = 4  # openings among the samples
ROWS = 32  # answers generated side by side


def run(context: StageContext) -> StageResult:
    """Score every task of the dataset and the generated ones; emit each score and a few answers.

    Raises:
        ConfigError: the stage reads no chat model.
        DataError: the model or an evaluation file is damaged.
    """
    loaded = load_model(context.home, _trained(context))
    limit = context.spec.max_problems or resolve(context.spec).max_problems
    held = mixture.held_out(context.dataset_dir, limit=limit)
    engine = Engine(loaded.model, loaded.tokenizer, limits=Limits(max_running=ROWS))
    tasks = len(held.choice) + len(held.generative) + 1
    scores: list[Score] = []

    def done(made: Sequence[Score]) -> None:
        scores.extend(made)
        for score in made:
            context.emit("eval", **score.fields())
        context.emit("step", step=min(len(scores), tasks), steps=tasks, unit="task")

    for task, problems in held.choice.items():
        chosen = choice.choose(
            loaded.model, loaded.tokenizer, problems, seq_len=loaded.seq_len, device=loaded.device
        )
        done([choice.score(task, problems, chosen)])
    for task, asked in held.generative.items():
        part = asked
        if task not in MAX_TOKENS and limit is not None:
            part = asked[: max(1, len(asked) // WORD_PROBLEM_SHARE)]
        answers = generative.answers(
            engine,
            loaded.tokenizer,
            [problem.question for problem in part],
            context=loaded.seq_len,
            max_tokens=MAX_TOKENS.get(task, WORD_PROBLEM_TOKENS),
        )
        done([generative.score(task, part, answers)])
        if task == "arithmetic" and part:
            context.emit("sample", prompt=part[0].question, text=answers[0].text)
    talk = _conversation(context, engine, loaded)
    mean = centred_mean([score for score in scores if score.task not in MAX_TOKENS])
    done(talk)
    return StageResult(metrics={"model": loaded.id, "scores": _fields(context, scores, mean)})


def _trained(context: StageContext) -> Record:
    stage = context.config.stage
    if stage not in READS:
        raise ConfigError(f"stage `{stage}` does not evaluate a chat model")
    return context.input(READS[stage])


def _conversation(context: StageContext, engine: Engine, loaded: LoadedModel) -> list[Score]:
    """Ask who the model is and open a few held-out conversations."""
    identity = mixture.identity_conversations(context.dataset_dir)
    own = generative.identity_questions(identity, IDENTITY_QUESTIONS)
    openings = _openings(context)
    answers = generative.answers(
        engine, loaded.tokenizer, [*own, *openings], context=loaded.seq_len, max_tokens=TALK_TOKENS
    )
    shown = list(zip([*own, *openings], answers, strict=True))
    for prompt, made in shown[:1] + shown[len(own) : len(own) + SHOWN]:
        context.emit("sample", prompt=prompt, text=made.text)
    return [
        generative.identity_score(identity, answers[: len(own)]),
        generative.ends_turn_score(answers),
    ]


def _openings(context: StageContext) -> list[str]:
    """Return how held-out conversations begin, as many of each chat task."""
    paths = sorted((context.dataset_dir / "chat").glob("*-test.jsonl"))
    chosen: list[str] = []
    for path in paths:
        first = {
            asked[0]: None for _, row in read.rows(path) if "messages" in row and (asked := questions(row))
        }
        order = sorted(first, key=lambda text: fraction("opening", text))
        chosen += order[: OPENINGS // len(paths)]
    return chosen


def _fields(
    context: StageContext, scores: Sequence[Score], mean: tuple[str, float] | None
) -> list[dict[str, Any]]:
    """Return the record's figures: every score and the mean of the public tasks under its honest name."""
    fields: list[dict[str, Any]] = [score.fields() for score in scores]
    if mean is not None:
        fields.append({"name": mean[0], "value": round(mean[1], 6), "unit": "centred"})
        context.emit("eval", **fields[-1])
    return fields
