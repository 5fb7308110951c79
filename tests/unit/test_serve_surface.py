"""The HTTP surface is frozen: a change of `tests/surface/routes.txt` is a decision, not an accident."""

from __future__ import annotations

from pathlib import Path

from nanochat.serve.app import create_app
from nanochat.serve.stub import StubEngine, StubPrompts

SURFACE = Path(__file__).parents[1] / "surface" / "routes.txt"


def test_the_routes_are_those_of_the_surface_file():
    app = create_app(StubEngine(), StubPrompts(), model_id="stub")
    found = sorted(
        (route.path, ",".join(sorted(route.methods))) for route in app.routes if hasattr(route, "methods")
    )
    assert [f"{methods} {path}" for path, methods in found] == SURFACE.read_text().splitlines()
