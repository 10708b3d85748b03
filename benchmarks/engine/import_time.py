"""Seconds that `import penstock` takes after `import torch`, and the peers' imports, each in fresh processes.

python import_time.py
"""

import statistics
import subprocess
import sys

from common import option_parser, print_table, write_json

MODULES = ("penstock", "sae_lens", "dictionary_learning")
PROGRAM = """
import time, torch
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def seconds(module: str) -> float:
    """One import of a module in a fresh process that already has torch."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(module=module)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"import {module} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Time every module in turn, print and write."""
    parser = option_parser(main.__doc__ or "", name="import", repeats=7)
    parser.add_argument("--modules", nargs="+", default=MODULES)
    args = parser.parse_args()
    found = {module: [] for module in args.modules}
    for round_number in range(1 + args.repeats):
        for module, times in found.items():
            taken = seconds(module)
            if round_number:  # the first fills the file cache
                times.append(taken)
    rows = [[m, f"{statistics.median(t):.2f}", f"{min(t):.2f} to {max(t):.2f}"] for m, t in found.items()]
    print_table(["import", "median s after torch", "min to max"], rows)
    result = {m: {"median_s": statistics.median(times), "seconds": times} for m, times in found.items()}
    print(f"written to {write_json(args.name, result)}")


if __name__ == "__main__":
    main()
