"""A trained run with everything that studies need."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penstock.activations.harvest import fill_cache, rows_acts
from penstock.evaluation.measuring import Described, Measured, measure
from penstock.evaluation.sae_record import AboutSAE
from penstock.language_models.loading import LanguageModel
from penstock.language_models.tokens import TokenRows
from penstock.runs.load_model import config_to_measure, load_model
from penstock.runs.splitting import Divide, undivided
from penstock.runs.trained_saes import load_run
from penstock.saes import SAE
from penstock.shapes import Acts
from penstock.training.batches import training_stream, training_text
from penstock.training.settings import ResolvedRun


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A trained run: its SAEs, language model and text."""

    run_dir: Path
    config: ResolvedRun
    """The run's settings, without SAEs that diverged."""
    model: LanguageModel
    saes: Mapping[str, SAE]
    """The SAEs by name, in the order of the settings. They take and return raw activations, and are read from disk at
    each access."""
    about: Mapping[str, AboutSAE]
    """The part of each SAE's record that is not measured, by the SAE's name."""
    metadata: Mapping[str, dict[str, Any]]
    """The metadata saved with each SAE, by the SAE's name."""
    divide: Divide = undivided
    """Splits the runs that studies train into parts that fit into memory."""
    max_bytes: int | None = None
    """The largest number of bytes for SAEs' weights during an evaluation (see `measure`)."""

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
        """Load a trained run. Its SAEs are only read when they are accessed.

        Args:
            run_dir: The run's directory.
            divide: See the field.
            max_bytes: See the field.
            device: Device of the language model and the SAEs. By default the one that they were trained on, or the CPU,
                with a warning, if this machine does not have it.
            trust_remote_code: Whether code that comes with the language model may run, if the run's settings request
                it.

        Raises:
            FileNotFoundError: `run_dir` does not hold a run.
            ValueError: training is not finished, or the settings or the facts of an SAE cannot be read.
            DivergenceError: all SAEs diverged.
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
        """The final sparsity coefficient of an SAE; 0 if its loss has no penalty."""
        return self.about[name]["sparsity_coef"] or 0.0

    def activations(self, num_tokens: int) -> dict[str, Acts]:
        """The first activations that the run was trained on, by site: [at most num_tokens, d_in], in raw units."""
        stream = training_stream(self.config, self.model)
        return fill_cache(stream, min(num_tokens, self.config.data.tokens), seed=0).acts

    def held_out(self) -> TokenRows:
        """The sequences that the run is evaluated on."""
        text = training_text(self.config, self.model)
        return text.held_out(self.config.eval.eval_tokens, seed=self.config.eval.eval_seed)

    def held_out_activations(self) -> dict[str, Acts]:
        """The activations [tokens, d_in] at the held-out positions that count, by site, in their order."""
        return rows_acts(self.model, self.held_out(), self.config.sites, self.config.language_model.device)

    def measure(self, described: Iterable[Described]) -> Measured:
        """Measure candidates on the run's held-out tokens, so that they can be compared with the run's SAEs."""
        return measure(training_text(self.config, self.model), self.config.eval, described, self.max_bytes)
