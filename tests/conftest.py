"""Shared set-up: a tier marker by folder, one compute thread, no unexplained skip in CI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # two threads beside any other busy process collapse

ROOT = Path(__file__).parent
TIERS = ("unit", "integration", "cluster", "gpu")
KNOWN_SKIPS = ("no GPU", "no ../shared/specs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(ROOT).parts[0]
        if tier in TIERS:
            item.add_marker(getattr(pytest.mark, tier))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(known in reason for known in KNOWN_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI for a reason that is not on the list: {reason}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for group in terminalreporter.stats.values() for report in group]
    times = [report.duration for report in reports if "rung_a" in getattr(report, "keywords", ())]
    if times:
        terminalreporter.write_line(f"rung (a): what is rendered, against its schemas: {sum(times):.1f} s")
