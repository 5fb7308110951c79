"""The HTTP surface is frozen: a change of a file in `tests/surface` is a decision, not an accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.serve.app import create_app
from nanochat.serve.page import load_page
from nanochat.serve.stub import StubEngine, StubPrompts

SURFACE = Path(__file__).parents[1] / "surface"


@pytest.fixture
def app():
    return create_app(StubEngine(), StubPrompts(), model_id="stub")


def test_the_routes_are_those_of_the_surface_file(app):
    found = sorted(
        (route.path, ",".join(sorted(route.methods))) for route in app.routes if hasattr(route, "methods")
    )
    lines = [f"{methods} {path}" for path, methods in found]
    assert lines == (SURFACE / "routes.txt").read_text().splitlines()


def test_the_metrics_are_those_of_the_surface_file(app):
    families = app.state.context.metrics.registry.collect()
    lines = sorted(f"{family.name} {family.type}" for family in families)
    assert lines == (SURFACE / "metrics.txt").read_text().splitlines()


def test_the_page_needs_nothing_from_elsewhere():
    page = load_page()
    text = page.html.decode()
    for mark in (
        "http://",
        "https://",
        "//cdn",
        "@import",
        "url(",
        " src=",
        '<link rel="stylesheet',
        " style=",
    ):
        assert mark not in text.replace("http://www.w3.org/", "")
    assert "innerHTML" not in text
    assert "eval(" not in text
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert text.count("<script>") == 2
    assert policy.count("'sha256-") == text.count("<script>") + text.count("<style>")
