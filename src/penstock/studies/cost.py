"""The cost of a Gated SAE compared with its baseline: time and operations of training and encoding, and memory.

According to the paper (section 3.2.1 and appendix D), a Gated step costs at most 1.5 times a baseline step, because the
decoder runs twice, and inference costs about the same. Here both are measured at the sizes of a run, on its
activations.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penstock.activations.sources import measure_scale
from penstock.charts.lines_by_l0 import Value, arm_series, at_site, draw_lines, grid, legend, line_of, sites_of
from penstock.evaluation.sae_record import Records
from penstock.runs.estimate import step_flops, training_bytes
from penstock.runs.finished_run import FinishedRun
from penstock.saes import ARCHITECTURES, BASELINE, SAE, TrainableSAE, training_of
from penstock.shapes import Acts
from penstock.studies.shared.declaration import Study, columns
from penstock.training.optimisers import make_optimiser
from penstock.training.settings import ResolvedSAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    repeats: int = 20
    """Number of repetitions, in which the SAEs take turns; the median is reported."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats={self.repeats} is out of range: it must be at least 1.")


def cost(run: FinishedRun, config: CostConfig) -> Records:
    """The cost of a training step and of encoding one batch of the run's size, for every trained SAE of a run.

    Returns:
        A record for each SAE with these keys. `step_seconds`, `encode_seconds` and, for a Gated SAE,
        `encode_seconds_as_jumprelu` are medians, with quartiles under `step_seconds_q25`, `_q75` and so on.
        `step_flops` counts operations on the support, `step_flops_dense` as if every product were dense; a
        multiplication and addition are two operations. `parameter_bytes` is measured. `training_bytes` is the
        calculated memory for SAE, optimiser and step. A Gated SAE also has the `baseline` of its width and site nearest
        in L0, if there is one, and ratios to it.
    """
    batch_size = run.config.optim.batch_size
    settings = {sae.folder: sae for sae in run.config.saes}
    acts = {site: x[:batch_size] for site, x in run.activations(batch_size).items()}
    rows = {name: _counted(run, settings[name], acts[run.about[name]["site"]]) for name in run.saes}
    for names in _groups(list(rows.values()), run.max_bytes):
        tasks: dict[tuple[str, str], Callable[[], object]] = {}
        for name in names:
            sae, x = run.saes[name], acts[run.about[name]["site"]]
            tasks[name, "step_seconds"] = _training_step(run, sae, settings[name], x)
            tasks[name, "encode_seconds"] = lambda sae=sae, x=x: sae.encode_sparse(x)
            inference_form = ARCHITECTURES[sae.arch].inference_form
            if inference_form is not None:
                exported = inference_form(sae)
                tasks[name, "encode_seconds_as_jumprelu"] = lambda sae=exported, x=x: sae.encode_sparse(x)
        for (name, key), quartiles in _quartiles(tasks, config.repeats, run.config.language_model.device).items():
            rows[name] |= dict(zip((f"{key}_q25", key, f"{key}_q75"), quartiles, strict=True))
    for row in rows.values():
        row |= _ratios(row, list(rows.values()))
    return list(rows.values())


def _counted(run: FinishedRun, settings: ResolvedSAE, x: Acts) -> dict[str, Any]:
    """The part of an SAE's record that is counted rather than timed."""
    name = settings.folder
    sae = run.saes[name]
    l0 = sae.encode_sparse(x).l0.double().mean().item()
    about = {key: run.about[name][key] for key in ("arch", "recipe", "site", "d_sae", "seed")}
    row = {"name": name, **about, "l0": l0, "batch_size": len(x), **_counts(sae, settings, len(x), l0)}
    return row | {"training_bytes": training_bytes(settings, run.config, sae.d_in)}


def _groups(rows: Records, max_bytes: int | None) -> list[list[str]]:
    """Groups of names of SAEs that are timed together: all of them, or neighbours in L0 as many as memory holds."""
    if max_bytes is None:
        return [[row["name"] for row in rows]]
    groups: list[list[str]] = [[]]
    held = 0
    for row in sorted(rows, key=lambda row: row["l0"]):
        # The SAE, its inference form, and the copy that is trained.
        needed = 2 * row["parameter_bytes"] + row["training_bytes"]
        if groups[-1] and held + needed > max_bytes:
            groups.append([])
            held = 0
        groups[-1].append(row["name"])
        held += needed
    return groups


def _training_step(run: FinishedRun, sae: SAE, settings: ResolvedSAE, x: Acts) -> Callable[[], None]:
    """A training step (loss, gradients, optimiser) at learning rate 0, so that every repetition does the same work."""
    trained = copy.deepcopy(sae).float().requires_grad_(True)
    assert isinstance(trained, TrainableSAE), f"{settings.folder} holds an architecture that cannot be trained"
    scale = measure_scale([x])
    trained.fold_input_scale_(1 / scale)
    rule, coef = settings.rule, run.coef_of(settings.folder)
    optimiser = make_optimiser(settings, trained, beta2=run.config.optim.beta2, unit_rows=rule.decoder_norm == "unit")
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    scaled = scale * x

    def step() -> None:
        loss = trained.loss(scaled, coef, rule)
        loss.total.backward()
        optimiser.update(loss.acts.support.latents)
        optimiser.zero_grad()

    return step


def _quartiles(
    tasks: Mapping[tuple[str, str], Callable[[], object]], repeats: int, device: str
) -> dict[tuple[str, str], list[float]]:
    """The first quartile, median and third quartile of the seconds of each task.

    The tasks take turns, so that a temporary slowdown affects all of them. The first round is not counted.
    """
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in tasks}
    for _ in range(repeats + 1):
        for key, task in tasks.items():
            started = time.perf_counter()
            task()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            seconds[key].append(time.perf_counter() - started)
    return {key: np.quantile(values[1:], [0.25, 0.5, 0.75]).tolist() for key, values in seconds.items()}


def _counts(sae: SAE, settings: ResolvedSAE, batch: int, l0: float) -> dict[str, float]:
    """Operations of a training step, on the support and if every product were dense, and bytes of parameters.

    A dense ReLU step has 6 products: encoder, decoder, and the gradients of the code, of W_dec, of W_enc, and of b_dec
    through the encoder. A dense Gated step has 8: it adds the auxiliary reconstruction and the gradient of its code.
    """
    dense = 4 + 2 * training_of(settings.arch).codes_decoded
    return {
        "step_flops": step_flops(settings, sae.d_in, batch, l0),
        "step_flops_dense": dense * 2.0 * batch * sae.d_in * sae.d_sae,
        "parameter_bytes": float(sum(p.numel() * p.element_size() for p in sae.parameters())),
    }


def _ratios(row: Mapping[str, Any], rows: Records) -> dict[str, Any]:
    """The costs of an SAE divided by those of the baseline of its width and site nearest in L0.

    Empty for baselines, and if there is no such baseline.
    """
    baselines = [
        other
        for other in rows
        if other["arch"] == BASELINE and all(other[key] == row[key] for key in ("site", "d_sae"))
    ]
    if row["arch"] == BASELINE or not baselines:
        return {}
    baseline = min(baselines, key=lambda other: abs(other["l0"] - row["l0"]))
    keys = (
        *("step_seconds", "encode_seconds", "step_flops", "step_flops_dense"),
        *("parameter_bytes", "training_bytes"),
    )
    ratios = {"baseline": baseline["name"]} | {f"{key}_ratio": row[key] / baseline[key] for key in keys}
    if "encode_seconds_as_jumprelu" in row:
        ratios["encode_seconds_as_jumprelu_ratio"] = row["encode_seconds_as_jumprelu"] / baseline["encode_seconds"]
    return ratios


def draw_cost(records: Records) -> "Figure":
    figure, axes = grid(len(sites_of(records)), 2, width=8.4)
    for (step, encode), site in zip(axes, sites_of(records), strict=True):
        series = arm_series(at_site(records, site))
        exported = [
            one._replace(label=f"{one.label}, exported to JumpReLU", dashes="--", filled=False)
            for one in series
            if any(record.get("encode_seconds_as_jumprelu") is not None for record in one.records)
        ]
        step.set_title(f"Training step, {site}")
        draw_lines(step, [line_of(one, _milliseconds("step_seconds")) for one in series])
        encode.set_title(f"Encoding, {site}")
        lines = [line_of(one, _milliseconds("encode_seconds")) for one in series]
        draw_lines(encode, lines + [line_of(one, _milliseconds("encode_seconds_as_jumprelu")) for one in exported])
        for ax in (step, encode):
            ax.set_ylabel("milliseconds per batch")
            ax.set_ylim(bottom=0)
    legend(figure, axes.flat)
    return figure


def _milliseconds(key: str) -> Value:
    return lambda record: None if record.get(key) is None else 1000 * record[key]


STUDY = Study(
    name="cost",
    title="Cost",
    question="What do a training step and encoding cost, for Gated SAEs, their JumpReLU export, and baselines?",
    source="section 3.2.1, appendix D",
    reading="Median seconds of a training step and of encoding one batch on this machine. Ratios are to the baseline "
    "of the same width that is nearest in L0. `step_flops_dense` counts operations as if every product were dense. "
    "`training_bytes` is the peak memory of the SAE, its optimiser and a step, calculated rather than measured.",
    settings=CostConfig,
    records=cost,
    table=columns(
        *("name", "l0", "step_seconds", "encode_seconds", "encode_seconds_as_jumprelu", "step_seconds_ratio"),
        *("encode_seconds_ratio", "encode_seconds_as_jumprelu_ratio", "step_flops_dense_ratio"),
        *("parameter_bytes_ratio", "training_bytes_ratio"),
    ),
    figure=draw_cost,
)
