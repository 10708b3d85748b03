"""Everything that is worth knowing of a GPU, most valuable first, within a budget of seconds.

    python benchmarks/gpu/run.py --budget 480 --out gpu-results

Each step is a process of its own with a limit. Its output goes to OUT/STEP.log and its outcome to OUT/gpu.json as soon
as it ends, so that a machine that is taken away leaves what was measured. Called again with the same --out, it
repeats only what has not succeeded. `--dry` runs every step at toy size on the CPU, the kernels in Triton's
interpreter.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ENGINE = HERE.parent / "engine"
LARGE, MEDIUM = "2304,131072,4096,64", "768,16384,4096,64"
OURS = ("--arms", "penstock-gated", "penstock-relu")
PEERS = ("--arms", "penstock-gated", "saelens-gated", "saelens-relu", "dl-gated", "dl-relu")


class Step(NamedTuple):
    """One process: what it runs, and the seconds after which it is stopped."""

    name: str
    limit: int
    command: tuple[str, ...]
    dry: tuple[str, ...] = ()
    """What is added for a dry run; a step without it is left out there."""


def python(script: Path, *arguments: str) -> tuple[str, ...]:
    """A command that runs one of our scripts."""
    return (sys.executable, str(script), *arguments)


PYTEST = (sys.executable, "-m", "pytest", "-q", "-o", "filterwarnings=default", "-p", "no:cacheprovider")
# A dry run has a result file of its own: it must not replace what a card gave.
TOY = ("--setting", "32,64,16,4", "--repeats", "1", "--device", "cpu", "--name", "dry")

STEPS = (
    Step("kernel tests", 150, (*PYTEST, "tests/kernels/test_cuda.py", "--maxfail", "20"), ("-k", "adam")),
    Step("training agrees", 90, python(HERE / "agreement.py"), ("--dry",)),
    Step("step, large", 60, python(ENGINE / "cuda_step.py", "--setting", LARGE, "--name", "cuda", *OURS), TOY),
    Step("step, medium", 60, python(ENGINE / "cuda_step.py", "--setting", MEDIUM, "--name", "cuda_medium", *OURS), TOY),
    Step("profile", 60, python(HERE / "profile_step.py", "--setting", LARGE), ("--dry",)),
    Step("end to end", 150, python(HERE / "end_to_end.py"), ("--dry",)),
    Step(
        "peers, medium",
        150,
        python(ENGINE / "cuda_step.py", "--setting", MEDIUM, "--name", "cuda_medium_peers", "--repeats", "10", *PEERS),
    ),
    Step(
        "peers, large",
        200,
        python(ENGINE / "cuda_step.py", "--setting", LARGE, "--name", "cuda_peers", "--repeats", "5", *PEERS),
    ),
    Step("memory", 60, python(HERE / "memory.py"), ("--dry",)),
    Step("density", 90, python(HERE / "dense_above.py"), ("--dry",)),
)


def main() -> None:
    """Run the steps that still fit into the budget, and print where each stands."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--budget", type=float, default=480, help="seconds for all steps together (%(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of logs and results (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps alone")
    parser.add_argument(
        "--workers", type=int, default=8, help="processes for the kernel tests, if pytest-xdist is there"
    )
    parser.add_argument("--dry", action="store_true", help="toy sizes on the CPU, to try the scripts out")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "gpu.json"
    done: dict[str, dict[str, object]] = json.loads(record.read_text()) if record.is_file() else {}
    end = time.monotonic() + args.budget
    for step in STEPS:
        if args.only and step.name not in args.only or args.dry and not step.dry:
            continue
        if done.get(step.name, {}).get("state") == "passed":
            continue
        left = end - time.monotonic()
        if left < 20:
            print(f"--- {step.name}: not begun, {left:.0f} s are left", flush=True)
            continue
        done[step.name] = run(step, min(step.limit, left), args.out, dry=args.dry, workers=args.workers)
        record.write_text(json.dumps(done, indent=1) + "\n")
    for name, outcome in done.items():
        print(f"{name}: {outcome['state']}, {outcome['seconds']} s")
    if any(outcome["state"] != "passed" for outcome in done.values()):
        sys.exit(1)


def run(step: Step, limit: float, out: Path, *, dry: bool, workers: int) -> dict[str, object]:
    """Run one step; its last lines are printed, all of it is in its log."""
    command = [*step.command, *(step.dry if dry else ())]
    if "pytest" in command and not dry and workers > 1:
        command += ["-n", str(workers)]
    environment = dict(os.environ)
    if dry:
        environment["TRITON_INTERPRET"] = "1"
    print(f"=== {step.name} (at most {limit:.0f} s)", flush=True)
    log = out / f"{step.name.replace(', ', '-').replace(' ', '-')}.log"
    started = time.monotonic()
    with log.open("w") as file:
        try:
            ran = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=limit, env=environment, cwd=HERE.parents[1]
            )
            state = "passed" if ran.returncode == 0 else f"failed with {ran.returncode}"
        except subprocess.TimeoutExpired:
            state = f"stopped after {limit:.0f} s"
    print("\n".join(log.read_text(errors="replace").splitlines()[-40:]), flush=True)
    return {"state": state, "seconds": round(time.monotonic() - started, 1)}


if __name__ == "__main__":
    main()
