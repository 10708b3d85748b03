"""Peak memory of a Gated step on a GPU, above parameters, second moment and batch.

python benchmarks/gpu/memory.py
"""

import argparse
import sys

import torch

sys.path.append(f"{__file__.rsplit('/', 2)[0]}/engine")
from arms import make_arm  # noqa: E402
from common import Setting, activations, print_table  # noqa: E402

SETTINGS = tuple(Setting(2304, d_sae, 4096, 64) for d_sae in (131_072, 524_288, 1_048_576))


def main() -> None:
    """Print one row for each number of latents."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dry", action="store_true", help="toy size on the CPU")
    args = parser.parse_args()
    rows = []
    for setting in [Setting(32, 64, 16, 4)] if args.dry else SETTINGS:
        device = "cpu" if args.dry else "cuda"
        x = activations(setting, device)
        try:
            arm = make_arm("penstock-gated", setting, x, autocast=True)
            if not args.dry:
                torch.cuda.reset_peak_memory_stats()
            for _ in range(2):
                arm.step(x)
        except torch.OutOfMemoryError as error:
            rows.append([str(setting), "", "", f"does not fit: {str(error).splitlines()[0][:80]}"])
            continue
        peak = 0 if args.dry else torch.cuda.max_memory_allocated()
        gib = 2**30
        state = arm.state_bytes()
        rows.append([str(setting), f"{state / gib:.2f}", f"{peak / gib:.2f}", f"{peak / max(1, state):.2f}"])
        del arm
        if not args.dry:
            torch.cuda.empty_cache()
    print_table(["setting", "parameters and second moment, GiB", "peak, GiB", "peak / state"], rows)


if __name__ == "__main__":
    main()
