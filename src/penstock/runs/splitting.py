"""A run too large for a machine's memory as several, trained one after the other and joined again.

    prepare(config, run_dir)  ->  split  ->  prepare and train each part in a folder of its own  ->  join  ->  evaluate

`train_divided` does all of it but the evaluation.

Every part sees the same activations in the same order, and what an SAE draws does not depend on which others are in
its run. So it trains as it would in the whole run, except for the rounding of CPU kernels if its share of the threads
differs. Each part harvests again, so few parts are faster than many. Only training is split; `measure` bounds the
memory of an evaluation.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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
"""The runs that a run is trained in; more than one where memory does not hold it."""


def undivided(whole: ResolvedRun) -> Sequence[ResolvedRun]:
    """The run itself, however much memory it needs."""
    return (whole,)


def train_divided(config: RunConfig, run_dir: Path, model: LanguageModel, divide: Divide) -> None:
    """Prepare a run and train it, whatever of that is missing; in parts below RUN/parts, joined, if it is divided.

    Args:
        config: The whole run.
        run_dir: Its directory, new or with what was done of it.
        model: Its language model.
        divide: See `Divide`.

    Raises:
        ValueError: the folder, or one of a part, holds a run with other settings; an SAE does not fit alone; the
            settings do not fit the model.
        InterruptedError: a signal asked to stop; what was done is kept.
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
    """Deal the SAEs of a run out to runs that each fit into memory, those that are compared side by side.

    SAEs of one site and seed stay in one part where a part has room for them. Else neighbours stay together: SAEs at
    about the same place, from sparse to dense, in the lists of their arms.

    Args:
        config: The whole run.
        widths: For each of its sites the d_in.
        model_parameters: Of the language model.
        num_layers: Blocks of the language model.
        max_bytes: The most that the `bytes_total` of a part's estimate may be.

    Returns:
        The parts, which share every setting but the SAEs; `config` alone if it fits.

    Raises:
        ValueError: an SAE does not fit alone; and as for `estimate`.
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
    """Move the SAEs of trained parts into the run that they are parts of, and join their logs; can be done again.

    Of an SAE that has diverged the message is moved.

    Args:
        run_dir: A prepared run: its config.json lists all SAEs. On the same disk as the parts, each SAE is moved at
            once, so that a kill leaves it here or there.
        parts: Directories of trained parts; their checkpoints stay where they are and may be deleted.

    Raises:
        FileNotFoundError: there is no run in one of the folders.
        ValueError: a part has other settings than the run, or an SAE of the run is in no part. Nothing is moved.
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
            f"{len(missing)} of {len(config.saes)} SAEs of the run in {run_dir} are in no part yet, e.g. {missing[0]}. "
            "Give all parts, and train each to its end: penstock train --resume PART"
        )
    # Before the SAEs, whose presence says that the run is trained.
    logs = [part / "metrics.jsonl" for part in parts]
    write_whole(run_dir / "metrics.jsonl", "".join(log.read_text(encoding="utf-8") for log in logs if log.is_file()))
    (run_dir / "saes").mkdir(exist_ok=True)
    for name in to_move:
        found[name].rename(run_dir / "saes" / name)


def _compared(saes: Sequence[ResolvedSAE]) -> list[list[ResolvedSAE]]:
    """The SAEs of each site and seed, in the order in which these first come; in each from sparse to dense.

    An arm lists its L0s ascending and its coefficients descending, and only the place in that list is common to both:
    the first of one arm is compared with the first of another.
    """
    groups: dict[tuple[str, int], dict[tuple[object, ...], list[ResolvedSAE]]] = defaultdict(lambda: defaultdict(list))
    for sae in saes:
        groups[sae.site, sae.seed][sae.arch, sae.recipe, sae.d_sae].append(sae)
    sites = list(dict.fromkeys(site for site, _ in groups))
    ordered = []
    # A site's seeds one after the other: a part then harvests at few sites.
    for key in sorted(groups, key=lambda key: sites.index(key[0])):
        placed = [
            ((place + 0.5) / len(arm), sae)
            for arm in groups[key].values()
            for place, sae in enumerate(sorted(arm, key=from_sparse_to_dense))
        ]
        ordered.append([sae for _, sae in sorted(placed, key=lambda one: one[0])])
    return ordered


def from_sparse_to_dense(sae: SAEConfig) -> tuple[float, float]:
    """Ascending from sparse to dense, for SAEs that all have a target, all a coefficient, or all a lambda."""
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
