"""``python -m tests.fuzz [--cases N] [--seed N] [--engine cq|aio]``: hostile calls by hand.

Rule: starts a server of its own, prints what came of the run, exits 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.trial import Trial


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("cq", "aio"), default="cq")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        trial = Trial(Path(directory), asked.engine)
        try:
            trial.run(asked.seed, range(asked.cases))
            wrong = trial.judge()
        finally:
            trial.end()
    for name, count in trial.codes.most_common():
        print(f"{name:20} {count:>9}")
    print(trial.summary())
    print("\n".join(wrong) or "nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
