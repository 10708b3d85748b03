"""A whole training step of every library in one process, beside the encoder product alone (float32, CPU).

    python step.py                                                             # as users run it
    MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_MMAP_THRESHOLD_=17179869184 \\
        python step.py --name step_kept_blocks                                 # glibc keeps large blocks

Run it in an environment that has penstock and both peers: see `make bench`.
"""

from typing import Any

from arms import ARMS, encoder_products, make_arm
from common import Setting, activations, option_parser, print_table, set_threads, time_in_turn, write_json

SETTINGS = ("768,16384,4096,64", "768,16384,4096,200", "512,8192,2048,64")
OURS = "penstock-gated"


def measure(setting: Setting, names: list[str], *, repeats: int) -> dict[str, Any]:
    """Timings of these arms and of the encoder product at one setting."""
    x = activations(setting)
    arms = {name: make_arm(name, setting, x) for name in names}
    steps = {name: (lambda arm=arm: arm.step(x)) for name, arm in arms.items()}
    timings = time_in_turn({**encoder_products(setting, x), **steps}, repeats=repeats)
    rows = {}
    for name, timing in timings.items():
        rows[name] = timing.as_json()
        if name in arms:
            rows[name]["l0"] = arms[name].l0(x)
        if OURS in timings:
            rows[name]["of_penstock_gated"] = timing.median / timings[OURS].median
        for product in ("product-torch", "product-numpy"):
            rows[name][f"of_{product}"] = timing.median / timings[product].median
    return {**setting._asdict(), "arms": rows}


def show(found: dict[str, Any]) -> None:
    """Print one setting's table."""
    rows = []
    for name, row in found["arms"].items():
        cells = [name, f"{row['median_s']:.3g}", f"{row['min_s']:.3g} to {row['max_s']:.3g}"]
        for key in ("of_penstock_gated", "of_product-torch", "of_product-numpy", "l0"):
            cells.append(f"{row[key]:.2f}" if key in row else "")
        rows.append([*cells, f"{row['page_faults']:,}"])
    head = ["step", "median s", "min to max", "/ penstock Gated", "/ torch product", "/ numpy product", "L0", "faults"]
    print_table(head, rows)


def main() -> None:
    """Measure, print and write every setting."""
    parser = option_parser(main.__doc__ or "", name="step", repeats=3)
    parser.add_argument("--settings", nargs="+", type=Setting.parse, default=[Setting.parse(s) for s in SETTINGS])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    args = parser.parse_args()
    set_threads(args.threads)
    results = []
    for setting in args.settings:
        print(f"\n{setting}\n")
        results.append(measure(setting, args.arms, repeats=args.repeats))
        show(results[-1])
    print(f"written to {write_json(args.name, results)}")


if __name__ == "__main__":
    main()
