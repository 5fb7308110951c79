"""Arithmetic through the API: is the calculator run on the right expression, and is its result told?

Asks held-out sums (operands 10 to 999, + - x, pairs split by hash) in five phrasings, two of them never
trained. Speaks HTTP alone; of our code it knows the questions, nothing of the model.
Run: `python tests/bench/arithmetic.py --url http://127.0.0.1:8000`
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from nanochat.tasks.arithmetic import CANONICAL, UNSEEN, held_out_problems  # noqa: E402
from nanochat.tasks.problem import Problem  # noqa: E402
from tests.bench.row import Row  # noqa: E402  (this file is also run by its path)

SUMS = 100
BOUND = 50
CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one sum."""

    problem: Problem
    phrasing: str
    text: str
    runs: list[dict[str, Any]]

    @property
    def right(self) -> bool:
        """The tool ran on the right expression, and its right result stands in the answer."""
        wanted = self.problem.answer
        ran = any(
            run["expression"].replace(" ", "") == self.problem.expression and run["result"] == wanted
            for run in self.runs
        )
        return ran and re.search(rf"(?<![\d.-]){re.escape(wanted)}(?!\.?\d)", self.text) is not None


def ask(client: httpx.Client, model: str, index: int, problem: Problem) -> Answer:
    """Ask one sum, greedily."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": problem.question}],
        "temperature": 0,
        "max_tokens": 64,
        "nanochat_tools": True,
    }
    choice = client.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]
    runs = choice.get("nanochat_tools") or []
    return Answer(problem, CANONICAL[index % len(CANONICAL)], choice["message"]["content"] or "", runs)


def measure(url: str, sums: int = SUMS) -> list[Answer]:
    """Ask `sums` held-out sums of the server's model, eight at a time."""
    problems = list(enumerate(held_out_problems(sums)))
    with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(CONCURRENCY) as pool:
        model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        return list(pool.map(lambda item: ask(client, model, *item), problems))


def rows(url: str, sums: int = SUMS) -> list[Row]:
    """Return the bar: right sums of 100; the note counts the phrasings that were never trained."""
    answers = measure(url, sums)
    unseen = [answer for answer in answers if answer.phrasing in UNSEEN]
    return [
        Row(
            name="arithmetic through the API",
            figure=100 * sum(answer.right for answer in answers) / len(answers),
            unit="of 100 held-out sums",
            bound=BOUND,
            better="higher",
            command="python tests/bench/arithmetic.py",
            notes=f"{sum(a.right for a in unseen)} of {len(unseen)} in two phrasings that are never trained",
        )
    ]


def main() -> None:
    """Print one line a phrasing and the wrong answers; with --json everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--sums", type=int, default=SUMS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    answers = measure(args.url, args.sums)
    if args.json:
        made = [
            {"question": a.problem.question, "text": a.text, "runs": a.runs, "right": a.right}
            for a in answers
        ]
        print(
            json.dumps(
                {"right": sum(a.right for a in answers), "of": len(answers), "answers": made}, indent=1
            )
        )
        return
    for phrasing in CANONICAL:
        asked = [answer for answer in answers if answer.phrasing == phrasing]
        kind = "never trained" if phrasing in UNSEEN else "trained"
        print(f"{sum(a.right for a in asked):3d} of {len(asked)}  {kind:13s}  {phrasing}")
    for answer in answers:
        if not answer.right:
            runs = ", ".join(f"{run['expression']} = {run['result']}" for run in answer.runs) or "no tool"
            print(f"wrong: {answer.problem.question!r} -> {answer.text!r} ({runs})")
    print(f"{sum(a.right for a in answers)} of {len(answers)} right, at least {BOUND} of 100 are needed")


if __name__ == "__main__":
    main()
