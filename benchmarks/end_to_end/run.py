"""Tokens per second from text to a trained Gated SAE: penstock beside SAELens and dictionary_learning.

    python run.py --out results.jsonl              every comparison, in one process, one library after the other
    python run.py --out results.jsonl --table      only the table, from the file

One line of --out per run; a run that is there already is not repeated.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before torch and the libraries look at them. Nothing here may reach for the network.
os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "WANDB_MODE": "disabled"}

import torch  # noqa: E402
from libraries import LIBRARIES  # noqa: E402
from workload import Workload, model_folder, workloads  # noqa: E402

KEYS = ("workload", "library", "tokens", "threads", "repeat")
"""What makes two runs the same run."""


def main() -> None:
    options = parse_args()
    torch.set_num_threads(options.threads)
    works = [work for work in workloads(options.embedded_tokens, options.gpt2_tokens) if work.model in options.models]
    if not options.table:
        measure(works, options)
    rows = [row for row in read(options.out) if row["threads"] == options.threads]
    print(table(works, rows))


def measure(works: list[Workload], options: argparse.Namespace) -> None:
    """Run what --out does not have yet, libraries in turn so that a slow spell of the machine meets all of them."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    done = {tuple(row[key] for key in KEYS) for row in read(options.out)}
    warm: set[str] = set()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for repeat in range(options.repeats):
        for work in works:
            for library in options.libraries:
                about = {"workload": work.name, "library": library, "tokens": work.tokens}
                about |= {"threads": options.threads, "repeat": repeat}
                if tuple(about[key] for key in KEYS) in done:
                    continue
                if library not in warm:
                    warm_up(library, options.cache)
                    warm.add(library)
                row = about | one_run(library, work, options.cache)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{work.name}: {library} {row['tokens_per_second']:,.0f} tokens/s", flush=True)


def one_run(library: str, work: Workload, cache: Path) -> dict[str, Any]:
    """Train once with one library."""
    package, train = LIBRARIES[library]
    folder = model_folder(work.model, cache)
    with tempfile.TemporaryDirectory() as out:
        timing = train(work, folder, Path(out) / "run")
    allocator = {name: os.environ[name] for name in os.environ if name.startswith("MALLOC_")}
    return {
        "seconds": round(timing.seconds, 2),
        "harvest_seconds": round(timing.harvest_seconds, 2),
        "tokens_per_second": round(timing.tokens / timing.seconds, 1),
        "final_l0": timing.final_l0,
        "d_in": work.d_in,
        "d_sae": work.d_sae,
        "batch_size": work.batch_size,
        "steps": work.steps,
        "buffer_tokens": work.buffer_tokens,
        "allocator": allocator,
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "date": date.today().isoformat(),
        "versions": {"torch": torch.__version__, package: version(package)},
    }


def warm_up(library: str, cache: Path) -> None:
    """A few steps of a small SAE, so that imports and compiled kernels are in place when the clock starts."""
    work = workloads(4096, 4096)[1]
    assert work.model == "embedded"
    one_run(library, work, cache)


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a results file; none if there is no file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(works: list[Workload], rows: list[dict[str, Any]]) -> str:
    """Medians of the runs as a Markdown table."""
    lines = [
        "| setting | tokens | library | tokens/s | seconds | of which harvest | penstock is faster by |",
        "|---|---|---|---|---|---|---|",
    ]
    for work in works:
        runs = [row for row in rows if (row["workload"], row["tokens"]) == (work.name, work.tokens)]
        speeds = {name: _median(runs, name, "tokens_per_second") for name in LIBRARIES}
        for name, speed in speeds.items():
            if speed is None:
                continue
            own = speeds["penstock"]
            ratio = f"{own / speed:.1f}x" if own is not None and name != "penstock" else ""
            seconds, harvest = _median(runs, name, "seconds"), _median(runs, name, "harvest_seconds")
            lines.append(
                f"| {work.name} | {work.tokens:,} | {name} | {speed:,.0f} | {seconds:.1f} | {harvest:.1f} | {ratio} |"
            )
    return "\n".join(lines)


def _median(rows: list[dict[str, Any]], library: str, key: str) -> float | None:
    values = [row[key] for row in rows if row["library"] == library]
    return statistics.median(values) if values else None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "end_to_end.jsonl")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "penstock_benchmarks")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--models", nargs="+", choices=("embedded", "gpt2"), default=["embedded", "gpt2"])
    parser.add_argument("--embedded-tokens", type=int, default=2**19)
    parser.add_argument("--gpt2-tokens", type=int, default=16 * 4096)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="only print the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
