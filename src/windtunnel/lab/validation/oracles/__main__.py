"""`python -m windtunnel.lab.validation.oracles [--quick]`: print the table of scheduling oracles; 1 if a row is not as it must be."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from windtunnel.lab.validation.oracles.table import measure, text, verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Limits, gates, queues and fairness held against closed forms; naive variants must fail.")
    parser.add_argument("--quick", action="store_true", help="fewer members and departures: seconds instead of minutes")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    given = parser.parse_args(arguments)
    rows = measure(short=given.quick, processes=given.processes)
    print(text(rows))
    print(f"\n{verdict(rows)}")
    return 0 if all(row.right for row in rows if row.check.judged) else 1


if __name__ == "__main__":
    sys.exit(main())
