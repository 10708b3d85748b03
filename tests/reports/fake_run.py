"""Run directories with plausible numbers, made without training anything."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.evaluation.sae_record import SAERecord

D_IN, D_SAE, TOKENS = 128, 1024, 2_048_000
CE_CLEAN, CE_ZERO, CE_MEAN = 2.713, 9.482, 7.155

NASTY = "</script><script>document.title='broken out'</script>\n\"quoted\" & 'single' \u2028 $x$ 日本"
"""A text that breaks a careless template, script block, attribute or figure title."""


def write_fake_run(
    run_dir: Path,
    *,
    sites: Sequence[str] = ("resid_post.2",),
    archs: Sequence[str] = ("gated", "relu"),
    target_l0s: Sequence[float] = (4, 8, 16, 32),
    seeds: Sequence[int] = (0, 1),
    model: str = "embedded",
    warnings: bool = True,
    metrics: bool = True,
    comparison: bool = True,
) -> list[dict[str, Any]]:
    """Writes every file a report reads, and returns the records."""
    generator = random.Random(0)
    run_dir.mkdir(parents=True, exist_ok=True)
    records = [
        sae_record(generator, model, site, arch, target, seed)
        for site in sites
        for arch in archs
        for target in target_l0s
        for seed in seeds
    ]
    if warnings:
        records[-1]["warnings"] = ["dead latents: 131 of 1,024 never fired in the last 500,000 tokens"]
        for record in records[:2]:
            record["warnings"] = ["still improving: loss fell by 4.1% over the last tenth of the run"]
    records += [control for site in sites for control in control_records(model, site)]
    records = [record | {key: None for key in SAERecord.__required_keys__ if key not in record} for record in records]
    write_lines(run_dir / "records.jsonl", records)
    if metrics:
        saes = [record for record in records if record["seed"] is not None]
        write_lines(run_dir / "metrics.jsonl", [row for sae in saes for row in metric_rows(generator, sae)])
    if comparison:
        content = {"comparisons": [comparison_of(site) for site in sites], "warnings": []}
        write_json(run_dir / "comparison.json", content)
    write_json(run_dir / "config.json", CONFIG)
    write_json(run_dir / "environment.json", ENVIRONMENT)
    return records


def sae_record(
    generator: random.Random, model: str, site: str, arch: str, target: float, seed: int | None
) -> dict[str, Any]:
    """One SAE: the ReLU arm needs 1.8 times the latents of the others and shrinks, more so at low L0."""
    l0 = target * generator.uniform(0.97, 1.03)
    fvu = 0.42 * (l0 / (1.8 if arch == "relu" else 1.0)) ** -0.72 * generator.uniform(0.985, 1.015)
    delta_ce = 2.6 * fvu**1.2 * generator.uniform(0.98, 1.02)
    gamma = 1 - 0.21 * l0**-0.45 if arch == "relu" else generator.uniform(0.994, 1.004)
    recovered = 1 - delta_ce / (CE_ZERO - CE_CLEAN)
    values = {
        "l0": l0,
        "l0_median": round(0.93 * l0),
        "l0_p5": round(0.35 * l0),
        "l0_p95": round(2.1 * l0),
        "ce_clean": CE_CLEAN,
        "ce_spliced": CE_CLEAN + delta_ce,
        "ce_zero": CE_ZERO,
        "ce_mean": CE_MEAN,
        "delta_ce": delta_ce,
        "kl": 1.08 * delta_ce,
        "loss_recovered": recovered,
        "loss_recovered_mean": 1 - delta_ce / (CE_MEAN - CE_CLEAN),
        "fvu": fvu,
        "mse": 211.3 * fvu,
        "cosine": math.sqrt(1 - fvu),
        "reconstruction_bias": gamma,
        "l1": 3.1 * l0**0.6,
        "frac_alive": min(1.0, 0.9 + 0.025 * math.log2(l0)),
        "frac_dense": 0.0006 * l0,
    }
    widths = {"l0": 0.012, "delta_ce": 0.035, "fvu": 0.02, "reconstruction_bias": 0.0015}
    intervals = {key: [values[key] * (1 - width), values[key] * (1 + width)] for key, width in widths.items()}
    error = 0.035 * (1 - recovered)
    intervals["loss_recovered"] = [recovered - error, recovered + error]
    return {
        "name": f"{arch}-{site}-l0_{target:g}-seed{seed}",
        **identity_of(model, site, arch),
        "recipe": "norm_weighted" if arch == "gated" else "paper",
        "d_sae": D_SAE,
        "sparsity_coef": 0.9 * l0**-0.8,
        "target_l0": target,
        "seed": seed,
        "lr": 0.003,
        "lr_rule": "default for this arm and recipe at d_in 128 and 4,000 steps",
        "tokens_trained": TOKENS,
        "unique_tokens": TOKENS // 4,
        "passes": 4.0,
        "train_seconds": 371.2,
        **values,
        "intervals": intervals,
        "density_histogram": density_histogram(generator, l0, values["frac_alive"]),
        "warnings": [],
    }


def control_records(model: str, site: str) -> list[dict[str, Any]]:
    """Identity, zero, mean, and PCA with two numbers of components; many values are null."""
    rows = [
        ("identity", D_IN, float(D_IN), 0.0, 0.0, 1.0),
        ("zero", 0, 0.0, CE_ZERO - CE_CLEAN, 1.31, None),
        ("mean", 0, 0.0, CE_MEAN - CE_CLEAN, 1.0, 1.0),
        ("pca", 16, 16.0, 1.92, 0.348, 1.0),
        ("pca", 64, 64.0, 0.231, 0.072, 1.0),
    ]
    template = dict.fromkeys(sae_record(random.Random(0), model, site, "relu", 8, 0))
    return [
        template
        | identity_of(model, site, arch)
        | {
            "name": f"{arch}_{components}-{site}" if arch == "pca" else f"{arch}-{site}",
            "d_in": None,
            "d_sae": components,
            "l0": l0,
            "ce_clean": CE_CLEAN,
            "ce_spliced": CE_CLEAN + delta_ce,
            "delta_ce": delta_ce,
            "loss_recovered": 1 - delta_ce / (CE_ZERO - CE_CLEAN),
            "fvu": fvu,
            "reconstruction_bias": gamma,
            "intervals": {"l0": [l0, l0], "reconstruction_bias": None},
            "warnings": [],
        }
        for arch, components, l0, delta_ce, fvu, gamma in rows
    ]


def identity_of(model: str, site: str, arch: str) -> dict[str, Any]:
    return {
        "arch": arch,
        "model": model,
        "site": site,
        "d_in": D_IN,
        "tokens_evaluated": 259_072,
        "sequences_evaluated": 1024,
    }


def density_histogram(generator: random.Random, l0: float, alive: float) -> dict[str, Any]:
    edges = [round(-6 + 0.2 * index, 1) for index in range(31)]
    counts = [0] * 30
    fired = round(D_SAE * alive)
    for _ in range(fired):
        position = min(0.0, generator.gauss(math.log10(l0 / D_SAE) - 0.3, 0.55))
        counts[min(29, max(0, int((position + 6) / 0.2)))] += 1
    return {"log10_edges": edges, "counts": counts, "never_fired": D_SAE - fired}


def metric_rows(generator: random.Random, sae: dict[str, Any], steps: int = 240) -> list[dict[str, Any]]:
    """A log longer than the report draws, with a resampling dip in the dead share."""
    rows = []
    for index in range(steps):
        done = (index + 1) / steps
        l0 = sae["l0"] * (1 + 6 * math.exp(-14 * done)) * generator.uniform(0.96, 1.04)
        dead = 0.16 * (1 - math.exp(-9 * done)) if done < 0.6 else 0.03 + 0.02 * math.exp(-9 * (done - 0.6))
        rows.append(
            {
                "step": 10 * (index + 1),
                "tokens": round(TOKENS * done),
                "seconds": round(371.2 * done, 2),
                "sae": sae["name"],
                "loss": sae["fvu"] * 1.4,
                "reconstruction": sae["fvu"] * (1 + 5 * math.exp(-11 * done)) * generator.uniform(0.97, 1.03),
                "sparsity": 0.31,
                "l0": l0,
                "dead_share": dead,
                "sparsity_coef": sae["sparsity_coef"] * min(1.0, 6 * done),
                "lr": sae["lr"] * min(1.0, 5 * (1 - done)),
            }
        )
    return rows


def comparison_of(site: str) -> dict[str, Any]:
    grid = [
        {
            "value": 0.94 + 0.01 * step,
            "l0_arm": 4.3 * 1.45**step,
            "l0_baseline": 7.9 * 1.45**step * (1 + 0.01 * step),
            "ratio": 4.3 / 7.9 / (1 + 0.01 * step),
            "interval": [0.516 - 0.005 * step, 0.585 - 0.004 * step],
        }
        for step in range(5)
    ]
    return {
        "site": site,
        "arm": "gated",
        "arm_recipe": "norm_weighted",
        "arm_d_sae": D_SAE,
        "baseline": "relu",
        "baseline_recipe": "paper",
        "baseline_d_sae": D_SAE,
        "metric": "loss_recovered",
        "ratio": 0.5486,
        "interval": [0.5213, 0.5921],
        "overlap": [0.9312, 0.9806],
        "grid": grid,
        "reason": None,
    }


CONFIG = {
    "language_model": {"model": "embedded", "dtype": "float32", "device": "cpu"},
    "sites": ["resid_post.2"],
    "data": {"text": "embedded", "packing": "packed", "context": 256, "tokens": TOKENS},
    "optim": {"batch_size": 1024, "beta2": 0.999},
    "saes": [{"arch": "gated", "target_l0": 4}, {"arch": "relu", "target_l0": 4}],
}
ENVIRONMENT = {
    "penstock": "0.1.0",
    "python": "3.11.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "platform": "Linux x86_64",
    "cpu": "AMD EPYC 7B13",
    "threads": 2,
    "device": "cpu",
    "git_commit": "3f9c2ab4d1",
    "started": "2026-03-04T09:12:44+00:00",
    "command": "penstock sweep --model embedded --site resid_post.2 --arch gated relu "
    "--target-l0 4 8 16 32 --d-sae 1024 --out runs/demo",
}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
