"""From which density on whole matrix products are faster than loops over the support: sets `DENSE_ABOVE`.

    python density.py

Times a Gated loss, forward and backward, once with every product of a code taken dense and once on the support, at
equal density. The encoder product and its selection are the same in both. The machine's noise only ever adds, so the
minima of interleaved repetitions are compared. On CUDA: --device cuda.
"""

import math
from typing import Any
from unittest.mock import patch

import torch
from common import Setting, activations, option_parser, print_table, threshold, time_in_turn, write_json

from penstock.kernels import dispatch
from penstock.saes import DECODER_RULES, GatedSAE

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
SHAPES = ((192, 1024, 512), (512, 8192, 1024), (768, 16384, 1024))
"""d_in, d_sae, batch."""


def compare(setting: Setting, *, repeats: int, device: str) -> dict[str, Any]:
    """Seconds of both ways at one density."""
    x = activations(setting, device)
    sae = GatedSAE(setting.d_in, setting.d_sae).to(device)
    with torch.no_grad():
        sae.b_gate.fill_(-threshold(x, sae.W_enc, setting.l0))
    density = 0.0

    def loss(dense_above: float) -> None:
        nonlocal density
        sae.zero_grad()
        with patch.dict(dispatch.DENSE_ABOVE, {device: dense_above}):
            found = sae.loss(x, 0.1, DECODER_RULES["unit"])
            found.total.backward()
        density = found.acts.support.density

    steps = {"dense": lambda: loss(0.0), "on_support": lambda: loss(1.0)}
    seconds = {
        name: min(timing.seconds) for name, timing in time_in_turn(steps, repeats=repeats, device=device).items()
    }
    return {"density": density, **seconds, "ratio": seconds["on_support"] / seconds["dense"]}


def crossover(rows: list[dict[str, Any]]) -> float | None:
    """The density at which both take equally long, between measured ones in logs; None if they never do."""
    for before, after in zip(rows, rows[1:], strict=False):
        if before["ratio"] < 1 <= after["ratio"]:
            low, high = math.log(before["ratio"]), math.log(after["ratio"])
            share = -low / (high - low)
            return before["density"] ** (1 - share) * after["density"] ** share
    return None


def main() -> None:
    """Measure every shape at every density and number of threads."""
    parser = option_parser(main.__doc__ or "", name="density", repeats=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--shapes", nargs="+", help="d_in,d_sae,batch")
    args = parser.parse_args()
    shapes = [tuple(int(n) for n in text.split(",")) for text in args.shapes] if args.shapes else SHAPES
    threads = [args.threads] if args.threads else sorted({1, torch.get_num_threads()})
    found, table = [], []
    for count in threads:
        torch.set_num_threads(count)
        for d_in, d_sae, batch in shapes:
            settings = [Setting(d_in, d_sae, batch, density * d_sae) for density in args.densities]
            rows = [compare(setting, repeats=args.repeats, device=args.device) for setting in settings]
            at = crossover(rows)
            shape = {"d_in": d_in, "d_sae": d_sae, "batch": batch}
            found.append({"threads": count, **shape, "crossover": at, "densities": rows})
            ratios = [f"{row['ratio']:.2f}" for row in rows]
            table.append([f"{d_in} / {d_sae} / {batch}", str(count), *ratios, "none" if at is None else f"{at:.3f}"])
            print(table[-1], flush=True)
    head = ["d_in / d_sae / batch", "threads", *(f"{density:g}" for density in args.densities), "crossover"]
    print("Seconds on the support divided by seconds dense, by density:\n")
    print_table(head, table)
    print(f"written to {write_json(args.name, found)}")


if __name__ == "__main__":
    main()
