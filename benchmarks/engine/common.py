"""What the engine's benchmarks share: settings, timing in turn, the record of the machine, JSON and tables.

Repetitions are interleaved: everything that is compared runs once per round, so a slow spell of the machine falls on
all of it. Medians are reported, with the fastest and the slowest repetition beside them.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

RESULTS = Path(__file__).parent / "results"

PACKAGES = ("torch", "numpy", "numba", "triton", "penstock", "sae-lens", "dictionary-learning")

ALLOCATOR = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS", "LD_PRELOAD")
"""Environment variables that change timings; recorded with every result."""

LOAD_BEFORE = os.getloadavg()[0]
"""What else ran in the minute before the benchmark: well under 1 on a quiet machine."""

Step = Callable[[], object]


class Setting(NamedTuple):
    """Sizes of a step: widths, tokens in the batch, and mean number of latents that fire."""

    d_in: int
    d_sae: int
    batch: int
    l0: float

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """From `d_in,d_sae,batch,l0`, e.g. `768,16384,4096,64`."""
        d_in, d_sae, batch, l0 = text.split(",")
        return cls(int(d_in), int(d_sae), int(batch), float(l0))

    def __str__(self) -> str:
        return f"d_in {self.d_in}, d_sae {self.d_sae}, batch {self.batch}, L0 {self.l0:g}"

    @property
    def product_flops(self) -> int:
        """Floating-point operations of one dense product of batch x d_in x d_sae."""
        return 2 * self.batch * self.d_in * self.d_sae


class Timing(NamedTuple):
    """What one step took, over its repetitions."""

    seconds: list[float]
    page_faults: int
    """Median per repetition: pages of 4 KiB that the operating system had to hand out."""

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Median, extremes, and every repetition, in seconds."""
        seconds = {"median_s": self.median, "min_s": min(self.seconds), "max_s": max(self.seconds)}
        return {**seconds, "seconds": self.seconds, "page_faults": self.page_faults}


def set_threads(threads: int | None) -> None:
    """As many threads for numpy's BLAS as for torch."""
    if threads is not None:
        torch.set_num_threads(threads)
    threadpool_limits(torch.get_num_threads(), user_api="blas")


def time_in_turn(
    steps: Mapping[str, Step], *, repeats: int, warm_up: int = 1, device: str = "cpu"
) -> dict[str, Timing]:
    """Time each step `repeats` times, round by round, after `warm_up` rounds that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    faults: dict[str, list[int]] = {name: [] for name in steps}
    clock = _cuda_seconds if device == "cuda" else _cpu_seconds
    for round_number in range(warm_up + repeats):
        for name, step in steps.items():
            if device == "cpu":
                # The last one's BLAS threads wait actively for a while, on cores that this one needs.
                time.sleep(0.3)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            taken = clock(step)
            if round_number >= warm_up:
                seconds[name].append(taken)
                faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {name: Timing(seconds[name], int(statistics.median(faults[name]))) for name in steps}


def _cpu_seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _cuda_seconds(step: Step) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def activations(setting: Setting, device: str = "cpu") -> Tensor:
    """A batch of random activations of mean squared norm 1, [batch, d_in]; the same for every library."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(setting.batch, setting.d_in, generator=generator) / setting.d_in**0.5
    return x.to(device)


@torch.no_grad()
def threshold(x: Tensor, W_enc: Tensor, l0: float) -> float:
    """The value that a share l0 / d_sae of the encoder products x @ W_enc exceeds."""
    products = (x[:256] @ W_enc).flatten()
    kept = max(1, round(len(products) * l0 / W_enc.shape[1]))
    return products.kthvalue(len(products) - kept + 1).values.item()


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, memory, threads, versions, and the allocator's settings."""
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "cpu": proc_value("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "threads": torch.get_num_threads(),
        "load_before": round(LOAD_BEFORE, 2),
        "python": platform.python_version(),
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
        "environment": {name: os.environ[name] for name in ALLOCATOR if name in os.environ},
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def proc_value(path: str, key: str) -> str | None:
    """What a file of /proc says after `key:`; None where there is no such file or line."""
    if not Path(path).is_file():
        return None
    lines = (line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)
    return next((value.strip() for name, value in lines if name.strip() == key), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_json(name: str, found: object) -> Path:
    """Write a result, with the machine, to results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": found}, indent=1, allow_nan=False) + "\n")
    return path


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown, columns aligned."""
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print(flush=True)


def option_parser(description: str, *, name: str, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has: --threads, --repeats, --name."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, help="torch's and numpy's; torch's own choice if left out")
    parser.add_argument("--repeats", type=int, default=repeats, help="counted repetitions (%(default)s)")
    parser.add_argument("--name", default=name, help="of the file in results/ (%(default)s)")
    return parser
