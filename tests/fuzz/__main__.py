"""The long suite: `make fuzz`, or `python -m fuzz --cases 20000 --seed 20260101` with tests/ on Python's path."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from fuzz import circuit_files, onnx_files
from fuzz.driver import case, run, save

KINDS = {"onnx": onnx_files.write, "circuits": circuit_files.write}


def main() -> int:
    """Run the cases; 1 where one went wrong."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=f"{' or '.join(KINDS)}; default: both")
    p.add_argument("--cases", type=int, default=20_000, help="of each kind (default: %(default)s)")
    p.add_argument("--seed", type=int, default=int(time.strftime("%Y%m%d")), help="of the cases (default: the day)")
    p.add_argument("--one", type=int, help="run this seed only, in this process, and show what is wrong")
    p.add_argument("--failures", type=Path, default=Path("out/fuzz"), help="where the files of wrong cases are kept")
    options = p.parse_args()
    wrong = 0
    for kind in options.kinds:
        if options.one is not None:
            print(case(KINDS[kind], options.one))
            continue
        codes: Counter[int] = Counter()
        first = options.seed * 100_000
        for n, outcome in enumerate(run(KINDS[kind], range(first, first + options.cases)), 1):
            codes[outcome.code] += 1
            if outcome.wrong:
                wrong += 1
                save(options.failures, kind, KINDS[kind], outcome)
            if n % 1000 == 0 or n == options.cases:
                print(f"{kind}: {n} cases, exit codes {dict(sorted(codes.items()))}, {wrong} wrong", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
