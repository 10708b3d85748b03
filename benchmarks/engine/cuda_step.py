"""A whole training step of every library on a CUDA device in bf16, beside what the card can do.

    python cuda_step.py

Factors of the dense products are bf16 through autocast (penstock's `encoder_precision`), master weights float32. The
peers also run with torch.compile, where that works. The bound is the encoder product (bf16, float32 out) plus one read
and one write of parameters and second moment at the measured speed of a copy. `--device cpu` with a small --setting
only tries the script out.
"""

import sys
from typing import Any

import torch
from arms import ARMS, make_arm
from common import (
    Setting,
    Step,
    activations,
    option_parser,
    print_table,
    set_threads,
    time_in_turn,
    write_json,
)
from torch import Tensor

SETTING = "2304,131072,4096,64"
OURS = "penstock-gated"


def median_seconds(step: Step, *, repeats: int, device: str) -> float:
    """Median seconds of one thing by itself; the first run is not counted."""
    return time_in_turn({"it": step}, repeats=repeats, warm_up=2, device=device)["it"].median


def ceilings(setting: Setting, *, repeats: int, device: str) -> dict[str, float]:
    """Measured speeds: of a large bf16 product, of a large copy, and of this setting's encoder product."""
    side, numbers = (8192, 2**30) if device == "cuda" else (256, 2**20)
    square = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    product_s = median_seconds(lambda: square @ square, repeats=repeats, device=device)
    source = torch.zeros(numbers, device=device)
    target = torch.zeros_like(source)
    copy_s = median_seconds(lambda: target.copy_(source), repeats=repeats, device=device)
    del square, source, target
    x = activations(setting, device).bfloat16()
    W_enc = torch.randn(setting.d_sae, setting.d_in, device=device, dtype=torch.bfloat16).T
    encoder_s = median_seconds(lambda: encoder_product(x, W_enc), repeats=repeats, device=device)
    return {
        "flop_per_s": 2 * side**3 / product_s,
        "bytes_per_s": 2 * 4 * numbers / copy_s,  # read and written
        "encoder_product_s": encoder_s,
        "encoder_product_flop_per_s": setting.product_flops / encoder_s,
    }


def encoder_product(x: Tensor, W_enc: Tensor) -> Tensor:
    """bf16 factors, float32 out; torch has that for CUDA only."""
    return torch.mm(x, W_enc, out_dtype=torch.float32) if x.is_cuda else torch.mm(x, W_enc)


def measure(name: str, setting: Setting, *, repeats: int, device: str, compiled: bool) -> dict[str, Any] | None:
    """Seconds, L0 and sizes of one arm; None if there is nothing to compile, the error where it does not work."""
    x = activations(setting, device)
    arm = make_arm(name, setting, x, autocast=True)
    if compiled:
        if arm.compile_ is None:
            return None
        arm.compile_()
    try:
        timing = time_in_turn({name: lambda: arm.step(x)}, repeats=repeats, warm_up=3, device=device)[name]
    except Exception as error:
        # A peer that does not compile, or does not fit, is a result too; our own failure is not.
        if name.startswith("penstock"):
            raise
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return {**timing.as_json(), "l0": arm.l0(x[:256]), "state_bytes": arm.state_bytes()}


def compare(found: dict[str, dict[str, Any]], setting: Setting, limits: dict[str, float]) -> None:
    """Add to each arm its ratios, and its speeds as if it did one product and one pass over its state."""
    ours = found[OURS]
    limits["pass_over_state_s"] = 2 * ours["state_bytes"] / limits["bytes_per_s"]
    bound = limits["encoder_product_s"] + limits["pass_over_state_s"]
    for row in found.values():
        if "failed" not in row:
            row["of_penstock_gated"] = row["median_s"] / ours["median_s"]
            row["of_bound"] = row["median_s"] / bound
            row["flop_per_s"] = setting.product_flops / row["median_s"]
            row["bytes_per_s"] = 2 * ours["state_bytes"] / row["median_s"]


def show(found: dict[str, dict[str, Any]], limits: dict[str, float]) -> None:
    """Print the table and the ceilings."""
    rows = []
    for name, row in found.items():
        if "failed" in row:
            rows.append([name, row["failed"][:60], "", "", "", "", ""])
            continue
        cells = [name, f"{1e3 * row['median_s']:.4g}", f"{row['of_penstock_gated']:.2f}", f"{row['of_bound']:.2f}"]
        speeds = [f"{row['flop_per_s'] / 1e12:.3g}", f"{row['bytes_per_s'] / 1e9:.4g}"]
        rows.append([*cells, *speeds, f"{row['l0']:.1f}"])
    print_table(["step", "median ms", "/ penstock Gated", "/ bound", "TFLOP/s", "GB/s", "L0"], rows)
    print(
        f"Measured ceilings: {limits['flop_per_s'] / 1e12:.3g} TFLOP/s (bf16), {limits['bytes_per_s'] / 1e9:.4g} GB/s."
    )
    product, state = 1e3 * limits["encoder_product_s"], 1e3 * limits["pass_over_state_s"]
    print(f"Bound: encoder product {product:.4g} ms + parameters and second moment read and written {state:.4g} ms.")


def main() -> None:
    """Measure, print and write; only where there is a GPU."""
    parser = option_parser(main.__doc__ or "", name="cuda", repeats=20)
    parser.add_argument("--setting", type=Setting.parse, default=Setting.parse(SETTING))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args()
    if OURS not in args.arms:
        parser.error(f"--arms {' '.join(args.arms)} lacks {OURS}, which the others are compared with")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("cuda: skipped, torch sees no CUDA device here")
        sys.exit(0)
    set_threads(args.threads)
    options = {"repeats": args.repeats, "device": args.device}
    limits = ceilings(args.setting, **options)
    found: dict[str, dict[str, Any]] = {}
    for name in args.arms:
        for compiled in (False, True):
            row = measure(name, args.setting, compiled=compiled, **options)
            if args.device == "cuda":
                torch.cuda.empty_cache()
            if row is not None:
                found[f"{name}, compiled" if compiled else name] = row
    compare(found, args.setting, limits)
    print(f"\n{args.setting}, bf16\n")
    show(found, limits)
    print(f"written to {write_json(args.name, {**args.setting._asdict(), 'ceilings': limits, 'arms': found})}")


if __name__ == "__main__":
    main()
