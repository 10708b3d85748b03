"""Time to quality: FVU and loss recovered at L0 8 against steps and seconds of training, penstock and its peers.

    python run.py --out results.jsonl               train what the file lacks, then draw and print
    python run.py --out results.jsonl plot          only draw the figure and print the tables, from the file

A run is one line of --out, written when it is done: a killed run goes on where it stopped.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

# Before torch is imported here and in the workers: one thread each, no network, no bars.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "WANDB_MODE": "disabled"}

from figure import draw, tables  # noqa: E402
from search import PEER_LRS, SETTINGS, Chain, Row, Setting, is_penstock, read, row_of  # noqa: E402

from training import SITE, Job, Judge, run  # noqa: E402

RECIPES = Path(__file__).parents[1] / "recipes"

MOST_WORK_FIRST = ("saelens-gated", "dl-gated", "saelens-standard", "dl-relu", "penstock-gated", "penstock-relu")


def main() -> None:
    options = parse_args()
    if options.what == "all":
        options.out.parent.mkdir(parents=True, exist_ok=True)
        if not options.activations.exists():
            harvest(options.activations, options.train_rows)
        train(options)
    rows = read(options.out)
    print(tables(rows))
    for path in draw(rows, options.out.with_suffix("")):
        print(path)


def harvest(path: Path, train_rows: int) -> None:
    """Write the activations file that every arm trains on."""
    print(f"Writing {path}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(RECIPES / "harvest.py"), "--site", SITE, "--tokens", str(train_rows)]
    subprocess.run([*command, "--held-out", "4096", "--out", str(path)], check=True)


def train(options: argparse.Namespace) -> None:
    """Run the chain of every arm, as many side by side as there are cores, each on a core of its own."""
    arms = [arm for arm in MOST_WORK_FIRST if arm in options.arms]
    settings = {name: shortened(SETTINGS[name], options.max_steps) for name in options.settings}
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in options.cores:
        cores.put(core)
    with context.Pool(len(options.cores), initializer=_settle, initargs=(cores, options)) as pool:
        jobs = [pool.apply_async(_run_chain, (arm, settings)) for arm in arms]
        for job in jobs:
            job.get()
        pool.close()
        pool.join()


def shortened(setting: Setting, max_steps: int | None) -> Setting:
    """The setting without its runs of more than `max_steps`."""
    if max_steps is None:
        return setting
    return replace(
        setting,
        peer_steps=tuple(steps for steps in setting.peer_steps if steps <= max_steps),
        penstock_steps=tuple(steps for steps in setting.penstock_steps if steps <= max_steps),
        tune_at=setting.tune_at and min(setting.tune_at, max_steps),
    )


_options: argparse.Namespace
"""In a worker: the command line."""


def _settle(cores: "multiprocessing.Queue[int]", options: argparse.Namespace) -> None:
    """Tie a worker to one core and one thread."""
    import torch

    global _options
    _options = options
    os.sched_setaffinity(0, {cores.get()})
    torch.set_num_threads(1)


def _run_chain(arm: str, settings: dict[str, Setting]) -> None:
    """All runs of one arm that the results lack."""
    from common import append_line, load_activations

    acts = load_activations(_options.activations)
    judge = Judge(_options.eval_tokens)
    # Imports, compiled kernels and first touches are nobody's training time.
    knob = 8.0 if is_penstock(arm) else 3.0
    lr = None if is_penstock(arm) else 1e-3
    warm_up = Job(setting="warm-up", arm=arm, lr=lr, knob=knob, steps=20, batch_size=64, d_sae=64)
    run(warm_up, acts, judge)

    def one(job: Job) -> Row:
        row = row_of(job, run(job, acts, judge))
        append_line(_options.out, row)
        shown = ("setting", "arm", "lr", "knob", "steps", "l0", "fvu", "loss_recovered", "cpu_seconds")
        print(json.dumps({key: row[key] for key in shown}), flush=True)
        return row

    Chain(arm, read(_options.out), one).finish(settings, _options.peer_lrs)


def parse_args() -> argparse.Namespace:
    scratch = Path(tempfile.gettempdir()) / "penstock_benchmarks"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "plot"), default="all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "convergence.jsonl")
    parser.add_argument(
        "--activations",
        type=Path,
        default=scratch / "resid_post.2.safetensors",
        help="written with --train-rows if it does not exist",
    )
    parser.add_argument("--train-rows", type=int, default=600_000)
    parser.add_argument("--eval-tokens", type=int, default=8_000)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--arms", nargs="+", choices=MOST_WORK_FIRST, default=list(MOST_WORK_FIRST))
    parser.add_argument("--peer-lrs", nargs="+", type=float, default=PEER_LRS, help="the peers' grid; more are added")
    parser.add_argument("--cores", nargs="+", type=int, default=sorted(os.sched_getaffinity(0)))
    parser.add_argument("--max-steps", type=int, help="leave out longer runs, to try the machinery")
    return parser.parse_args()


if __name__ == "__main__":
    main()
