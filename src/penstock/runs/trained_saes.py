"""Trained SAEs on disk, for evaluation and studies: those of a run, or single ones."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from penstock.evaluation.evaluate import Candidate
from penstock.evaluation.measuring import Described
from penstock.evaluation.sae_record import AboutSAE, about_sae
from penstock.formats import load_sae, read_facts
from penstock.saes import SAE
from penstock.shell import resume_command
from penstock.training.outcome import outcome_of
from penstock.training.settings import RunConfig
from penstock.training.trainer import DivergenceError

logger = logging.getLogger(__name__)


class LazySAEs(Mapping[str, SAE]):
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


class TrainedSAEs(NamedTuple):
    """SAEs on disk, with the information saved with them."""

    saes: LazySAEs
    about: dict[str, AboutSAE]
    """The part of each SAE's record that is not measured, by the SAE's name."""
    metadata: dict[str, dict[str, Any]]
    """The metadata saved with each SAE, by the SAE's name."""
    diverged: dict[str, str]
    """The messages of the run's SAEs that diverged and are left out, by name."""

    def described(self) -> Iterator[Described]:
        """Yield all SAEs as candidates for measurement, reading one at a time."""
        for name, sae in self.saes.items():
            yield Described(Candidate.of(name, self.about[name]["site"], sae), self.about[name])


def load_run(config: RunConfig, run_dir: Path) -> TrainedSAEs:
    """The SAEs of a trained run. Those that diverged are left out, with a warning in the log.

    Raises:
        ValueError: training is not finished, or an SAE cannot be read.
        DivergenceError: all SAEs diverged.
    """
    outcome = outcome_of(config, run_dir)
    if outcome.missing:
        raise ValueError(
            f"The run in {run_dir} is not finished: it has no {outcome.missing[0]} yet. Continue with: "
            f"{resume_command(run_dir)}"
        )
    if not outcome.finished:
        raise DivergenceError(
            f"There is nothing to measure: all SAEs of the run in {run_dir} have diverged ({len(outcome.diverged)} in "
            f"all). {next(iter(outcome.diverged.values()))}"
        )
    for message in outcome.diverged.values():
        logger.warning("Left out: %s", message)
    folders = [run_dir / "saes" / name for name in outcome.finished]
    return read_saes(folders, device=config.language_model.device)._replace(diverged=outcome.diverged)


def read_saes(folders: Sequence[Path], *, device: str) -> TrainedSAEs:
    """The SAEs in some folders, whose weights are not read yet. An SAE whose name is taken gets its folder as name.

    Raises:
        ValueError: a folder does not hold an SAE, or the SAE's metadata has no site.
    """
    by_name: dict[str, Path] = {}
    about: dict[str, AboutSAE] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for folder in folders:
        facts = read_facts(folder)
        if "site" not in facts.metadata:
            raise ValueError(
                f"{folder}/cfg.json does not name the site that the SAE was trained on. Add it to `metadata`, e.g. "
                '"site": "resid_post.2".'
            )
        name = facts.metadata.get("name", folder.name)
        name = str(folder) if name in by_name else name
        by_name[name] = folder
        about[name] = about_sae(facts.arch, facts.d_in, facts.d_sae, {**facts.metadata, "name": name}, facts.settings)
        metadata[name] = facts.metadata
    return TrainedSAEs(LazySAEs(by_name, device), about, metadata, {})
