"""How penstock's Gated step grows with d_sae, batch and L0, beside the encoder product alone: a table and a plot.

    python scaling.py            # about four minutes on two cores

One quantity is varied at a time, the others stay at d_in 768, d_sae 16384, batch 2048, L0 64. The product is the faster
of torch's and numpy's. `--plot-only` draws the plot again from the JSON file.
"""

import json
from typing import Any

from arms import encoder_products, make_arm
from common import RESULTS, Setting, activations, option_parser, print_table, set_threads, time_in_turn, write_json

BASE = Setting(768, 16384, 2048, 64)
VARIED = {
    "d_sae": [2**power for power in range(12, 18)],
    "batch": [2**power for power in range(9, 14)],
    "l0": [2**power for power in range(4, 10)],
}
LABELS = {"d_sae": "d_sae (latents)", "batch": "batch (tokens)", "l0": "L0 (latents that fire)"}
STEP_COLOUR, PRODUCT_COLOUR = "#0072B2", "#D55E00"  # of Okabe and Ito's colour-blind safe set


def measure(setting: Setting, *, repeats: int) -> dict[str, Any]:
    """Seconds of the step and of the product at one setting."""
    x = activations(setting)
    arm = make_arm("penstock-gated", setting, x)
    timings = time_in_turn({**encoder_products(setting, x), "step": lambda: arm.step(x)}, repeats=repeats)
    medians = {name.replace("-", "_"): timing.median for name, timing in timings.items()}
    product = min(medians["product_torch"], medians["product_numpy"])
    return {**setting._asdict(), **medians, "product": product, "measured_l0": arm.l0(x)}


def plot(found: dict[str, list[dict[str, Any]]], name: str) -> None:
    """Draw the three sweeps, log-log, into results/NAME.png and .svg."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    plt.rcParams["svg.hashsalt"] = "penstock"  # the same file for the same numbers
    figure, panels = plt.subplots(1, len(found), figsize=(12, 4), sharey=True, layout="constrained")
    for panel, (varied, rows) in zip(panels, found.items(), strict=True):
        sizes = [row[varied] for row in rows]
        panel.loglog(sizes, [row["step"] for row in rows], "o-", color=STEP_COLOUR)
        panel.loglog(sizes, [row["product"] for row in rows], "s--", color=PRODUCT_COLOUR)
        panel.set_xlabel(LABELS[varied])
        panel.xaxis.set_major_locator(FixedLocator(sizes))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
        panel.tick_params(axis="x", labelsize=8)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        fixed = [f"{key} {getattr(BASE, key):,}" for key in ("d_in", *found) if key != varied]
        panel.set_title(", ".join(fixed).replace("l0", "L0"), fontsize=9)
    panels[0].set_ylabel("seconds")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    first = found["d_sae"]
    for key, label, row, offset, side, colour in (
        ("step", "whole Gated step", first[-2], (-8, 6), "right", STEP_COLOUR),
        ("product", "encoder product alone", first[1], (8, -8), "left", PRODUCT_COLOUR),
    ):
        place = (row["d_sae"], row[key])
        panels[0].annotate(label, place, offset, textcoords="offset points", ha=side, color=colour)
    figure.savefig(RESULTS / f"{name}.png", dpi=150)
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})


def main() -> None:
    """Measure every sweep, print, write and plot."""
    parser = option_parser(main.__doc__ or "", name="scaling", repeats=3)
    parser.add_argument("--plot-only", action="store_true", help="draw results/NAME.json again")
    parser.add_argument("--largest", type=int, default=2**17, help="leave out larger d_sae and batch (%(default)s)")
    args = parser.parse_args()
    if args.plot_only:
        plot(json.loads((RESULTS / f"{args.name}.json").read_text())["results"], args.name)
        return
    set_threads(args.threads)
    found, rows = {}, []
    for varied, sizes in VARIED.items():
        settings = [BASE._replace(**{varied: size}) for size in sizes if size <= args.largest]
        found[varied] = [measure(setting, repeats=args.repeats) for setting in settings]
        for row in found[varied]:
            ratio = row["step"] / row["product"]
            rows.append([f"{varied} {row[varied]}", f"{row['step']:.3g}", f"{row['product']:.3g}", f"{ratio:.2f}"])
            print(rows[-1], flush=True)
    print(f"\nfrom {BASE}\n")
    print_table(["varied", "step s", "product s", "step / product"], rows)
    print(f"written to {write_json(args.name, found)}")
    plot(found, args.name)


if __name__ == "__main__":
    main()
