"""A run whose SAEs are trained, as the studies that look at them afterwards need it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from penstock.activations.harvest import fill_cache, masked_acts
from penstock.evaluation.measuring import Described, Measured, measure
from penstock.language_models.loading import LanguageModel
from penstock.language_models.tokens import TokenRows
from penstock.runs.load_model import config_to_measure, load_model
from penstock.runs.splitting import Divide, undivided
from penstock.runs.trained_saes import load_run
from penstock.saes import SAE
from penstock.shapes import Acts
from penstock.training.batches import training_stream, training_text
from penstock.training.settings import ResolvedRun

MODEL_ROWS = 8
"""Rows in one forward pass of the language model."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The SAEs of a run with their language model and their text."""

    run_dir: Path
    config: ResolvedRun
    """Its settings, without the SAEs that have diverged."""
    model: LanguageModel
    saes: Mapping[str, SAE]
    """By name, in the order of the settings: raw activations in and out. From disk each time they are asked for."""
    about: Mapping[str, Mapping[str, Any]]
    """The part of each SAE's record that is not measured, by the SAE's name."""
    metadata: Mapping[str, dict[str, Any]]
    """For each SAE's name all that was saved with it."""
    divide: Divide = undivided
    """Trains a study's own run."""
    max_bytes: int | None = None
    """Most bytes of SAEs' weights in memory during an evaluation (see `measure`)."""

    @classmethod
    def load(
        cls,
        run_dir: Path,
        divide: Divide = undivided,
        max_bytes: int | None = None,
        *,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> "FinishedRun":
        """Read a run; its SAEs are read one by one when they are asked for.

        Args:
            run_dir: Its directory.
            divide: As of the field.
            max_bytes: As of the field.
            device: Where the language model and the SAEs go; by default where they were trained, or to the CPU, with a
                warning, if this machine has no such device.
            trust_remote_code: Whether code that comes with the language model may run, if the run's settings ask for
                it.

        Raises:
            FileNotFoundError: there is no run in `run_dir`.
            ValueError: its training is not over, or its settings or what is said of one of its SAEs cannot be read.
            DivergenceError: all its SAEs have diverged.
        """
        config = config_to_measure(run_dir, device)
        loaded = load_run(config, run_dir)
        return cls(
            run_dir=run_dir,
            config=replace(config, saes=tuple(sae for sae in config.saes if sae.folder in loaded.saes)),
            model=load_model(config, trust_remote_code=trust_remote_code),
            saes=loaded.saes,
            about=loaded.about,
            metadata=loaded.metadata,
            divide=divide,
            max_bytes=max_bytes,
        )

    def coef_of(self, name: str) -> float:
        """The coefficient that an SAE ended with; 0 for one whose loss has no penalty."""
        return self.about[name]["sparsity_coef"] or 0.0

    def activations(self, num_tokens: int) -> dict[str, Acts]:
        """For each site the first activations [at most num_tokens, d_in] that the run was trained on, raw units."""
        stream = training_stream(self.config, self.model)
        return fill_cache(stream, min(num_tokens, self.config.data.tokens), seed=0).acts

    def held_out(self) -> TokenRows:
        """The rows that the run is evaluated on."""
        text = training_text(self.config, self.model)
        return text.held_out(self.config.eval.eval_tokens, seed=self.config.eval.eval_seed)

    def held_out_activations(self) -> dict[str, Acts]:
        """For each site the activations [tokens, d_in] of the held-out positions that count, row by row."""
        rows, device = self.held_out(), self.config.language_model.device
        parts = [
            masked_acts(self.model, TokenRows(tokens, mask), self.config.sites, device)
            for tokens, mask in zip(rows.tokens.split(MODEL_ROWS), rows.mask.split(MODEL_ROWS), strict=True)
        ]
        return {site: torch.cat([part[site] for part in parts]) for site in self.config.sites}

    def measure(self, described: Iterable[Described]) -> Measured:
        """Measure candidates on the run's own held-out tokens, to be compared with what the run has found."""
        return measure(training_text(self.config, self.model), self.config.eval, described, self.max_bytes)
