"""Peak memory of a training step above parameters and optimiser state, each arm in a process of its own.

    python memory.py                            # d_in 768, d_sae 131072, batch 4096: the peers may not fit
    python memory.py --setting 768,131072,512,64

Counted is the peak of the resident set over all steps, less what was resident before anything large was made, less
parameters, optimiser state and the batch. So gradients count, and work arrays that a library keeps between steps. A
process that asks for more than --limit-gib (by default 85% of what is free) is stopped, and said to need more.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from arms import ARMS, make_arm
from common import Setting, activations, option_parser, print_table, proc_value, set_threads, write_json

SETTING = "768,131072,4096,64"
SMALL = Setting(64, 512, 64, 8)
GIB = 2**30

OUT_OF_MEMORY = ("can't allocate memory", "Unable to allocate", "MemoryError")
"""How torch, numpy and Python say it."""


def resident(key: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process, in bytes."""
    value = proc_value("/proc/self/status", key)
    assert value is not None, "needs Linux: /proc/self/status"
    return 1024 * int(value.split()[0])


def measure(name: str, setting: Setting, steps: int, limit_gib: float) -> dict[str, Any]:
    """Peak memory of this process while it makes `steps` steps, in bytes."""
    make_arm(name, SMALL, activations(SMALL)).step(activations(SMALL))  # libraries loaded, kernels compiled
    before = resident("VmRSS")
    limit = int(limit_gib * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    x = activations(setting)
    arm = make_arm(name, setting, x)
    arm.step(x[:64])  # makes the optimiser's state
    kept = arm.state_bytes() + x.numel() * x.element_size()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(steps):
        arm.step(x)
    return {"above": resident("VmHWM") - before - kept, "kept": kept, "l0": arm.l0(x[:256])}


def run_apart(name: str, args: argparse.Namespace, limit_gib: float) -> dict[str, Any]:
    """`measure` in a fresh process."""
    setting = ",".join(str(number) for number in args.setting)
    command = [sys.executable, __file__, "--only", name, "--setting", setting, "--limit-gib", str(limit_gib)]
    steps = args.repeats if name.startswith("penstock") else args.peer_steps
    command += ["--repeats", str(steps), *(["--threads", str(args.threads)] if args.threads else [])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
    if done.returncode == 0:
        return {"steps": steps, **json.loads(done.stdout.splitlines()[-1])}
    if any(message in done.stderr for message in OUT_OF_MEMORY):
        return {"steps": steps, "needs_more_than": limit_gib * GIB}
    raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr}")


def available_gib() -> float:
    """Memory that is free now."""
    value = proc_value("/proc/meminfo", "MemAvailable")
    assert value is not None, "needs Linux: /proc/meminfo"
    return int(value.split()[0]) / 2**20


def main() -> None:
    """Measure every arm, print and write."""
    parser = option_parser(main.__doc__ or "", name="memory", repeats=3)
    parser.add_argument("--setting", type=Setting.parse, default=Setting.parse(SETTING))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--peer-steps", type=int, default=1, help="steps of a peer, all alike and slow (%(default)s)")
    parser.add_argument("--limit-gib", type=float, help="data a process may hold; 85%% of free memory if left out")
    parser.add_argument("--only", choices=ARMS, help=argparse.SUPPRESS)  # how it starts itself
    args = parser.parse_args()
    if args.only:
        set_threads(args.threads)
        print(json.dumps(measure(args.only, args.setting, args.repeats, args.limit_gib)))
        return
    found, rows = {}, []
    for name in args.arms:
        limit = args.limit_gib or 0.85 * available_gib()
        found[name] = result = run_apart(name, args, limit)
        if "needs_more_than" in result:
            rows.append([name, f"does not fit into {limit:.1f} in all", ""])
        else:
            rows.append([name, f"{result['above'] / GIB:.2f}", f"{result['kept'] / GIB:.2f}"])
        print(rows[-1], flush=True)
    print(f"\n{args.setting}\n")
    print_table(["step", "peak above, GiB", "parameters, state, batch, GiB"], rows)
    print(f"written to {write_json(args.name, {**args.setting._asdict(), 'arms': found})}")


if __name__ == "__main__":
    main()
