"""The table of scheduling oracles: expected, got, tolerance, and naive variants that fail in the same harness.

    python sims/bench/oracles.py [--quick]
"""

from __future__ import annotations

import sys

from windtunnel.lab.validation.oracles.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
