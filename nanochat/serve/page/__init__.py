"""The web page: `index.html` with its style and script put in, served as one self-contained document.

Knows no route. The policy allows nothing from elsewhere and names the page's own scripts and style by hash,
so that even text injected into the page could not run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent

_STYLE = re.compile(r'<link rel="stylesheet" href="([\w.]+)">')
_SCRIPT = re.compile(r'<script src="([\w.]+)"></script>')
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """The page's bytes and the headers it is served with."""

    html: bytes
    headers: dict[str, str]


def load_page() -> Page:
    """Read the page that is packaged with this module."""
    html = _read("index.html")
    html = _STYLE.sub(lambda link: f"<style>\n{_read(link[1])}</style>", html)
    html = _SCRIPT.sub(lambda script: f"<script>\n{_read(script[1])}</script>", html)
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(hashes["script"]),
            "style-src " + " ".join(hashes["style"]),
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    return Page(
        html.encode(),
        {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        },
    )


def _read(name: str) -> str:
    return (FOLDER / name).read_bytes().decode()
