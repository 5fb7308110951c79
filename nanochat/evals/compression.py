"""How many bytes a token stands for, text by text and vocabulary by vocabulary, and whether nothing is lost.

Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanochat.errors import DataError
from nanochat.evals.vocabularies import Encoder
from nanochat.tokenizer import Tokenizer

OURS = "ours"
SAMPLES = {
    "code": (
        "def mean(values: list[float]) -> float:\n"
        '    """Return the arithmetic mean; 0.0 for an empty list."""\n'
        "    total = 0.0\n"
        "    for value in values:\n"
        "        total += value\n"
        "    return total / len(values) if values else 0.0\n\n\n"
        "class Counter:\n"
        "    def __init__(self) -> None:\n"
        "        self.counts: dict[str, int] = {}\n\n"
        "    def add(self, key: str, n: int = 1) -> None:\n"
        "        self.counts[key] = self.counts.get(key, 0) + n\n"
    ),
    "mathematics": (
        "Let $f: \\mathbb{R} \\to \\mathbb{R}$ be continuous on $[a, b]$. Then there is a point "
        "$\\xi \\in (a, b)$ with $\\int_a^b f(x)\\,dx = f(\\xi)\\,(b - a)$. For $n = 1024$ and "
        "$h = (b - a)/n = 0.0078125$ the error of the trapezoidal rule is at most "
        "$\\frac{(b - a)^3}{12 n^2} \\max_{x} |f''(x)|$, so $E \\le 3.2 \\cdot 10^{-6}$."
    ),
    "Chinese": "语言模型逐个预测下一个词元。给定一段文字，它会计算每个可能的续写的概率，然后选择其中一个。",
    "Korean": "언어 모델은 다음에 올 토큰을 하나씩 예측한다. 가능한 이어짐의 확률을 계산한다.",
    "German": "Ein Sprachmodell sagt Token für Token voraus, wie ein Text wahrscheinlich weitergeht.",
    "Arabic": "يتنبأ النموذج اللغوي بالرمز التالي واحدا تلو الآخر، ويحسب احتمال كل تتمة ممكنة للنص.",
}
"""Short texts of kinds that a corpus may lack; our own."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text: its bytes, and the bytes a token of each vocabulary."""

    text: str
    utf8_bytes: int
    bytes_per_token: dict[str, float]


def cut(texts: Sequence[str], limit_bytes: int) -> list[str]:
    """Return the first texts, whole, up to about `limit_bytes`."""
    kept, size = [], 0
    for text in texts:
        if size >= limit_bytes:
            break
        kept.append(text)
        size += len(text.encode())
    return kept


def compare(
    tokenizer: Tokenizer, others: Mapping[str, Encoder], texts: Mapping[str, Sequence[str]]
) -> list[Row]:
    """Encode all texts with every vocabulary and check that ours gives them back.

    Raises:
        DataError: a text does not come back from our tokens byte for byte.
    """
    rows = []
    for name, documents in texts.items():
        size = sum(len(document.encode()) for document in documents)
        ids = tokenizer.encode_batch(list(documents))
        for document, tokens in zip(documents, ids, strict=True):
            if tokenizer.decode_bytes(tokens) != document.encode():
                raise DataError(f"the tokenizer does not give back a document of `{name}`: {document[:60]!r}")
        counts = {OURS: sum(map(len, ids))}
        counts |= {
            label: sum(map(len, encoder.encode_batch(list(documents)))) for label, encoder in others.items()
        }
        rows.append(Row(name, size, {label: size / max(1, count) for label, count in counts.items()}))
    return rows
