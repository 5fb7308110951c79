"""The command line, `nanochat ...`: arguments in, results on stdout, talk and errors on stderr.

Knows which function does the work, and imports it only when its command runs.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line; the entry point of the console script."""
    import sys

    from nanochat_platform.cli.app import run

    sys.exit(run(sys.argv[1:]))
