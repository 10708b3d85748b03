"""Splitting of a run that does not fit into memory into parts, which are trained one after the other and joined.

    prepare(config, run_dir)  ->  split  ->  prepare and train each part in a separate folder  ->  join  ->  evaluate

`train_divided` does all of this except the evaluation.

Every part sees the same activations in the same order, and an SAE's random draws do not depend on the other SAEs. So an
SAE trains as in the whole run, except for rounding of CPU kernels if its share of the threads differs. Each part
harvests the activations again, so few parts are faster than many. Only training is split; `measure` limits the memory
of an evaluation.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from penstock.evaluation.arms import Arm
from penstock.files import write_whole
from penstock.language_models.loading import LanguageModel
from penstock.runs.estimate import Estimate, estimate
from penstock.runs.run_lock import locked
from penstock.runs.sweep import is_trained, prepare_once, train_to_end
from penstock.training.outcome import outcome_of
from penstock.training.settings import ResolvedRun, ResolvedSAE, RunConfig, SAEConfig
from penstock.training.settings.config_file import read_config

GIB = 2**30

Divide = Callable[[ResolvedRun], Sequence[ResolvedRun]]
"""Splits a run into parts; only one if the run fits into memory."""


def undivided(whole: ResolvedRun) -> Sequence[ResolvedRun]:
    """The whole run as its only part."""
    return (whole,)


def train_divided(config: RunConfig, run_dir: Path, model: LanguageModel, divide: Divide) -> None:
    """Prepare and train a run, skipping finished work. If `divide` splits it, train its parts in RUN/parts and join
    them.

    Args:
        config: The settings of the whole run.
        run_dir: The run's directory, which may hold finished work.
        model: The run's language model.
        divide: See `Divide`.

    Raises:
        ValueError: the folder of the run or of a part holds a run with other settings, an SAE does not fit into memory,
            or the settings do not fit the model.
        InterruptedError: a signal stopped training; finished work is kept.
    """
    decided = config.resolve(model)
    parts = divide(decided)
    if len(parts) > 1 and not is_trained(decided, run_dir):
        prepare_once(decided, run_dir, model)
        folders = [run_dir / "parts" / str(number) for number in range(len(parts))]
        for part, at in zip(parts, folders, strict=True):
            train_to_end(part, at, model)
        join(run_dir, folders)
    train_to_end(decided, run_dir, model)


def split(
    config: ResolvedRun, widths: Mapping[str, int], model_parameters: int, num_layers: int, max_bytes: int
) -> tuple[ResolvedRun, ...]:
    """Distribute the SAEs of a run to parts that each fit into memory, keeping SAEs together that are compared.

    SAEs of the same site and seed stay in one part if it has room. Otherwise neighbours stay together: SAEs at about
    the same position in the lists of their arms, from sparse to dense.

    Args:
        config: The settings of the whole run.
        widths: The d_in of each site of the run.
        model_parameters: The number of the language model's parameters.
        num_layers: The number of the language model's blocks.
        max_bytes: The upper limit on the `bytes_total` of a part's estimate.

    Returns:
        The settings of the parts, which differ only in their SAEs; `config` alone if it fits.

    Raises:
        ValueError: an SAE alone does not fit, or see `estimate`.
    """

    def cost(saes: Sequence[ResolvedSAE]) -> Estimate:
        return estimate(replace(config, saes=tuple(saes)), widths, model_parameters, num_layers)

    def fits(saes: Sequence[ResolvedSAE]) -> bool:
        return cost(saes).bytes_total <= max_bytes

    if fits(config.saes):
        return (config,)
    largest = max(config.saes, key=lambda sae: cost([sae]).bytes_total)
    if not fits([largest]):
        raise ValueError(_too_large(largest, cost([largest]), max_bytes))
    parts: list[list[ResolvedSAE]] = [[]]
    for group in _compared(config.saes):
        if parts[-1] and not fits([*parts[-1], *group]) and fits(group):
            parts.append([])
        for sae in group:
            if parts[-1] and not fits([*parts[-1], sae]):
                parts.append([])
            parts[-1].append(sae)
    return tuple(replace(config, saes=tuple(saes)) for saes in parts)


def join(run_dir: Path, parts: Sequence[Path]) -> None:
    """Move the SAEs of trained parts, or the messages of those that diverged, into their run, and join the logs.

    After an interruption, the same call completes the work.

    Args:
        run_dir: The directory of a prepared run, whose config.json lists all SAEs. On the same disk as the parts, each
            SAE is moved atomically.
        parts: Directories of trained parts. Their checkpoints are not moved, and may be deleted.

    Raises:
        FileNotFoundError: one of the folders does not hold a run.
        ValueError: a part has other settings than the run, or no part has one of the run's SAEs. Nothing is moved.
    """
    with locked(run_dir):
        _join(run_dir, parts)


def _join(run_dir: Path, parts: Sequence[Path]) -> None:
    config = read_config(run_dir)
    found: dict[str, Path] = {}
    for part in parts:
        own = read_config(part)
        # A part may have been trained on another machine.
        same = replace(own, saes=config.saes).on_device("cpu") == config.on_device("cpu")
        if not same or set(own.saes) - set(config.saes):
            raise ValueError(
                f"{part} is not a part of the run in {run_dir}: it has other settings or other SAEs. Leave it out, or "
                "train it again as `split` gives it."
            )
        outcome = outcome_of(own, part)
        found |= {name: part / "saes" / name for name in (*outcome.finished, *outcome.diverged)}
    to_move = outcome_of(config, run_dir).missing
    missing = [name for name in to_move if name not in found]
    if missing:
        raise ValueError(
            f"No part has {len(missing)} of {len(config.saes)} SAEs of the run in {run_dir} yet, e.g. {missing[0]}. "
            "Give all parts, and train each to its end: penstock train --resume PART"
        )
    # Written before the SAEs, whose presence marks the run as trained.
    logs = [part / "metrics.jsonl" for part in parts]
    write_whole(run_dir / "metrics.jsonl", "".join(log.read_text(encoding="utf-8") for log in logs if log.is_file()))
    (run_dir / "saes").mkdir(exist_ok=True)
    for name in to_move:
        found[name].rename(run_dir / "saes" / name)


def _compared(saes: Sequence[ResolvedSAE]) -> list[list[ResolvedSAE]]:
    """The SAEs of each site and seed, from sparse to dense.

    Sites are in the order of the run. Arms may have target L0s or coefficients, which cannot be compared. So SAEs are
    ordered by their relative position in the list of their arm, from sparse to dense.
    """
    groups: dict[tuple[str, int], dict[Arm, list[ResolvedSAE]]] = defaultdict(lambda: defaultdict(list))
    for sae in saes:
        groups[sae.site, sae.seed][Arm.of(vars(sae))].append(sae)
    sites = list(dict.fromkeys(site for site, _ in groups))
    ordered = []
    # The seeds of a site follow each other, so that a part harvests at few sites.
    for key in sorted(groups, key=lambda key: sites.index(key[0])):
        placed = [
            ((place + 0.5) / len(arm), sae)
            for arm in groups[key].values()
            for place, sae in enumerate(sorted(arm, key=from_sparse_to_dense))
        ]
        ordered.append([sae for _, sae in sorted(placed, key=lambda one: one[0])])
    return ordered


def from_sparse_to_dense(sae: SAEConfig) -> tuple[float, float]:
    """A sort key from sparse to dense, for SAEs that all have a target, all a coefficient, or all a lambda."""
    return sae.aimed_l0 or 0.0, -(sae.sparsity_coef or sae.paper_lambda or 0.0)


def _too_large(sae: SAEConfig, cost: Estimate, max_bytes: int) -> str:
    return (
        f"{sae.folder} alone needs up to {cost.bytes_total / GIB:.3g} GiB, more than the limit of "
        f"{max_bytes / GIB:.3g} GiB: {cost.bytes_language_model / GIB:.3g} for the language model, "
        f"{cost.bytes_activations / GIB:.3g} for activations, "
        f"{(cost.bytes_parameters + cost.bytes_optimiser) / GIB:.3g} for the SAE and its optimiser, "
        f"{cost.bytes_batch / GIB:.3g} for a step. Raise the limit, or lower buffer_tokens (cache_tokens), batch_size "
        "or d_sae."
    )
