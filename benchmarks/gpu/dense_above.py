"""From which density on dense products are faster on this GPU, with and without TF32: sets `DENSE_ABOVE["cuda"]`.

python benchmarks/gpu/dense_above.py
"""

import argparse
import sys

import torch

sys.path.append(f"{__file__.rsplit('/', 2)[0]}/engine")
from common import Setting, print_table  # noqa: E402
from density import compare, crossover  # noqa: E402

SHAPES = ((768, 16384, 4096), (2304, 131072, 1024))
DENSITIES = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.3)


def main() -> None:
    """Print milliseconds on the support and dense at each density."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dry", action="store_true", help="toy sizes on the CPU")
    args = parser.parse_args()
    device, shapes = ("cpu", ((32, 64, 16),)) if args.dry else ("cuda", SHAPES)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        for d_in, d_sae, batch in shapes:
            rows = [
                compare(Setting(d_in, d_sae, batch, density * d_sae), repeats=3, device=device) for density in DENSITIES
            ]
            print(f"\nfloat32 products: {precision}; d_in {d_in}, d_sae {d_sae}, batch {batch}\n")
            print_table(
                ["density", "on the support, ms", "dense, ms", "ratio"],
                [
                    [
                        f"{r['density']:.4g}",
                        f"{1e3 * r['on_support']:.4g}",
                        f"{1e3 * r['dense']:.4g}",
                        f"{r['ratio']:.3g}",
                    ]
                    for r in rows
                ],
            )
            at = crossover(rows)
            print("equal at", "no density measured" if at is None else f"{at:.3g}", flush=True)


if __name__ == "__main__":
    main()
