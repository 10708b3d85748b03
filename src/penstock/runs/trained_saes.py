"""Trained SAEs on disk, for evaluation and studies: those of a run, or single ones."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from penstock.evaluation.evaluate import Candidate
from penstock.evaluation.measuring import Described
from penstock.formats import load_sae, read_facts
from penstock.saes import SAE
from penstock.shell import resume_command
from penstock.training.outcome import outcome_of
from penstock.training.settings import RunConfig
from penstock.training.trainer import DivergenceError

logger = logging.getLogger(__name__)


class SavedSAEs(Mapping[str, SAE]):
    """SAEs on disk by name, in the dtype that they were saved in.

    Each access reads the SAE from disk. It is not cached, so memory does not limit the number of SAEs.
    """

    def __init__(self, folders: Mapping[str, Path], device: str) -> None:
        self._folders = dict(folders)
        self._device = device

    def __getitem__(self, name: str) -> SAE:
        return load_sae(self._folders[name], device=self._device).sae

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)

    def __contains__(self, name: object) -> bool:
        # The inherited method would read the SAE.
        return name in self._folders


class FoundSAEs(NamedTuple):
    """SAEs on disk, with the information saved with them."""

    saes: SavedSAEs
    about: dict[str, Mapping[str, Any]]
    """The part of each SAE's record that is not measured, by the SAE's name."""
    metadata: dict[str, dict[str, Any]]
    """The metadata saved with each SAE, by the SAE's name."""
    diverged: dict[str, str]
    """The messages of the run's SAEs that diverged and are left out, by name."""

    def described(self) -> Iterator[Described]:
        """Yield all SAEs as candidates for measurement, reading one at a time."""
        for name, sae in self.saes.items():
            yield Described(Candidate.of(name, self.about[name]["site"], sae), self.about[name])


def load_run(config: RunConfig, run_dir: Path) -> FoundSAEs:
    """The SAEs of a trained run. Those that diverged are left out, with a warning in the log.

    Raises:
        ValueError: training is not finished, or an SAE cannot be read.
        DivergenceError: all SAEs diverged.
    """
    found = outcome_of(config, run_dir)
    if found.missing:
        raise ValueError(
            f"The run in {run_dir} is not finished: it has no {found.missing[0]} yet. Continue with: "
            f"{resume_command(run_dir)}"
        )
    if not found.finished:
        raise DivergenceError(
            f"There is nothing to measure: all SAEs of the run in {run_dir} have diverged ({len(found.diverged)} in "
            f"all). {next(iter(found.diverged.values()))}"
        )
    for message in found.diverged.values():
        logger.warning("Left out: %s", message)
    folders = [run_dir / "saes" / name for name in found.finished]
    return read_saes(folders, device=config.language_model.device)._replace(diverged=found.diverged)


def read_saes(folders: Sequence[Path], *, device: str) -> FoundSAEs:
    """The SAEs in some folders, whose weights are not read yet. An SAE whose name is taken gets its folder as name.

    Raises:
        ValueError: a folder does not hold an SAE, or the SAE's metadata has no site.
    """
    found: dict[str, Path] = {}
    about: dict[str, Mapping[str, Any]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for folder in folders:
        facts = read_facts(folder)
        if "site" not in facts.metadata:
            raise ValueError(
                f"{folder}/cfg.json does not name the site that the SAE was trained on. Add it to `metadata`, e.g. "
                '"site": "resid_post.2".'
            )
        name = facts.metadata.get("name", folder.name)
        name = str(folder) if name in found else name
        found[name] = folder
        about[name] = about_sae(facts.arch, facts.d_in, facts.d_sae, {**facts.metadata, "name": name})
        metadata[name] = facts.metadata
    return FoundSAEs(SavedSAEs(found, device), about, metadata, {})


def about_sae(arch: str, d_in: int, d_sae: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an SAE's record that is not measured."""
    kept = (
        "recipe", "model", "site", "sparsity_coef", "paper_lambda", "target_l0", "coef_path", "seed", "lr",
        "lr_rule", "steps", "batch_size", "tokens_trained", "unique_tokens", "passes", "train_seconds", "resampled",
        "warnings",
    )  # fmt: skip
    about = {key: metadata.get(key) for key in kept}
    return {"name": metadata["name"], "arch": arch, "d_in": d_in, "d_sae": d_sae, **about}
