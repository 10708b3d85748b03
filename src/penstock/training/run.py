"""A training run: many SAEs on one stream of activations. It can continue after a kill.

config.json  environment.json  metrics.jsonl  checkpoints/step_N/  saes/NAME/{cfg.json, sae.safetensors | diverged.txt}
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from torch import Tensor

from penstock.activations.screening import outlier_warning, passes_warning
from penstock.activations.sources import SCALE_TOKENS, ActivationCache, ActivationSource, measure_scale
from penstock.files import PickedRows
from penstock.kernels.buffers import single_threaded_blas
from penstock.kernels.threads import workers_for
from penstock.language_models.loading import LanguageModel
from penstock.shell import resume_command
from penstock.training.batches import activation_source, training_text, validation_cache
from penstock.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from penstock.training.interrupts import Interrupts
from penstock.training.metrics_log import MetricsLog
from penstock.training.outcome import write_diverged, write_finished
from penstock.training.schedules import Schedule
from penstock.training.settings import ResolvedRun, ResolvedSAE
from penstock.training.trainer import DivergenceError, SAETrainer

logger = logging.getLogger(__name__)


class TrainingRun:
    """The state of a run between two steps."""

    def __init__(
        self,
        config: ResolvedRun,
        run_dir: Path,
        model: LanguageModel,
        source: ActivationSource,
        validation: ActivationCache | None,
        scales: Mapping[str, float],
        outliers: Mapping[str, str | None],
    ) -> None:
        """Make a run at step 0. Use `begin` to make one from its settings and its last checkpoint.

        Args:
            config: The run's settings.
            run_dir: The run's directory, which must exist.
            model: The language model of `config.language_model`, loaded.
            source: The source of the batches.
            validation: Activations to steer L0 on, or None to steer on the training batches alone.
            scales: The factor for each site that gives its activations unit mean squared norm.
            outliers: For each site a warning if a few tokens have most of its squared norm, otherwise None.
        """
        self.config = config
        self.run_dir = run_dir
        self.model = model
        self.step = 0
        self.saved_step: int | None = None
        self.between_steps = True
        self.source = source
        self.validation = validation
        self.scales = dict(scales)
        self.outliers = dict(outliers)
        # Computed before training, so that a checkpoint cannot fail because of it.
        self.text_fingerprint = training_text(self.config, model).fingerprint
        self.trainers = [self._trainer(sae) for sae in self.config.saes]
        self.diverged: dict[str, str] = {}
        self.seconds = {trainer.config.folder: 0.0 for trainer in self.trainers}
        self.workers = workers_for(len(self.trainers), self.config.threads, self.config.language_model.device)

    @classmethod
    def begin(cls, config: ResolvedRun, run_dir: Path, model: LanguageModel) -> "TrainingRun":
        """A run at its last checkpoint, or at step 0 if it has none. Harvests the first activations.

        Args:
            config: The run's settings.
            run_dir: The run's directory, which must exist.
            model: The language model of `config.language_model`, loaded.

        Raises:
            CheckpointError: the checkpoint is damaged.
            ValueError: the model does not have a site, or the text or its activations cannot be used.
        """
        source, validation = activation_source(config, model), validation_cache(config, model)
        path = latest_checkpoint(run_dir / "checkpoints")
        if path is None:
            if config.data.cache_tokens is None:
                tokens, sites = f"{config.data.buffer_tokens:,}", ", ".join(config.sites)
                logger.info("Filling the shuffle buffer with %s activations at %s", tokens, sites)
            sample = source.sample(SCALE_TOKENS, _generator(config.data.shuffle_seed, 0))
            scales = {site: measure_scale([sample[site]]) for site in config.sites}
            outliers = {site: outlier_warning(sample[site], site) for site in config.sites}
            return cls(config, run_dir, model, source, validation, scales, outliers)
        checkpoint = load_checkpoint(path)
        try:
            numbers = checkpoint.numbers
            run = cls(config, run_dir, model, source, validation, numbers["scales"], numbers["outliers"])
            run._go_on_from(checkpoint)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"The checkpoint {path} does not fit the run's settings or this version of penstock ({error!r}). "
                "Restore config.json, or remove the checkpoints to train from the start."
            ) from error
        return run

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        self._check_text(checkpoint.numbers["text_fingerprint"])
        self.step = self.saved_step = checkpoint.step
        self.source.load_state(checkpoint.tensors.under("source/"))
        if self.validation:
            self.validation.load_state(checkpoint.tensors.under("validation/"))
        self.seconds = checkpoint.numbers["seconds"]
        self._leave_out(checkpoint.numbers["diverged"])
        for trainer in self.trainers:
            name = trainer.config.folder
            trainer.load(checkpoint.tensors.under(f"{name}/"), checkpoint.numbers["saes"][name])

    def _check_text(self, fingerprint: str) -> None:
        if fingerprint != self.text_fingerprint:
            raise ValueError(
                f"The text {self.config.data.text!r} is not the one that this run was started with: files were added, "
                "removed or changed. Restore the old text, or train from the start with: penstock train "
                f"--from {self.run_dir}/config.json --out ANOTHER_FOLDER"
            )

    def train(self, log: MetricsLog) -> None:
        """Take the remaining steps. Saves checkpoints at intervals, after a signal, after an error, and at the end.

        An SAE whose loss becomes NaN or infinite is left out from that step on. The others are not affected.

        Raises:
            DivergenceError: all SAEs diverged.
            InterruptedError: a signal stopped training; the state is saved.
            Exception: any error of the text, the log or a tracker; the state is saved, and a line is logged.
        """
        try:
            self._train(log)
        except (InterruptedError, CheckpointError):
            # The state is already saved, or cannot be saved.
            raise
        except Exception:
            self._save_before_error()
            raise

    def _train(self, log: MetricsLog) -> None:
        log.start(self.step)
        saved_at = time.monotonic()
        # Set here, because the kernels run in the threads that step the SAEs (see single_threaded_blas).
        with (
            single_threaded_blas,
            Interrupts() as interrupts,
            log.progress(self.config.num_steps, self.step) as show,
        ):
            while self.step < self.config.num_steps:
                rows = self._step()
                log.write(self.step, self.step * self.config.optim.batch_size, rows)
                show(rows)
                if self._checkpoint_is_due(saved_at) or interrupts.pending:
                    self.checkpoint()
                    saved_at = time.monotonic()
                if interrupts.pending:
                    raise InterruptedError(
                        f"Stopped by {interrupts.pending} at step {self.step} of {self.config.num_steps}; "
                        f"the state is saved. Continue with: {resume_command(self.run_dir)}"
                    )
        if self.saved_step != self.step:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Save the state of the run.

        Raises:
            CheckpointError: the checkpoint cannot be written.
        """
        tensors: dict[str, Tensor | PickedRows] = {f"source/{key}": v for key, v in self.source.state().items()}
        if self.validation:
            tensors |= {f"validation/{key}": v for key, v in self.validation.state().items()}
        numbers: dict[str, Any] = {"scales": self.scales, "seconds": self.seconds, "saes": {}}
        numbers |= {"diverged": self.diverged, "outliers": self.outliers, "text_fingerprint": self.text_fingerprint}
        for trainer in self.trainers:
            name = trainer.config.folder
            tensors |= {f"{name}/{key}": value for key, value in trainer.tensors().items()}
            numbers["saes"][name] = trainer.numbers()
        save_checkpoint(self.run_dir / "checkpoints", self.step, tensors, numbers)
        self.saved_step = self.step

    def save_saes(self) -> list[Path]:
        """Save every SAE in its final form (see `write_finished`), or the message of one that diverged.

        Returns:
            The folders of the SAEs.

        Raises:
            OSError: the disk is full or not writable.
        """
        live = {trainer.config.folder: trainer for trainer in self.trainers}
        folders = []
        for name in (sae.folder for sae in self.config.saes):
            folder = self.run_dir / "saes" / name
            try:
                if name in live:
                    trainer = live[name]
                    write_finished(trainer.sae, self.scales[trainer.config.site], folder, self._metadata(trainer))
                else:
                    write_diverged(folder, self.diverged[name])
            except (OSError, SafetensorError) as error:
                raise OSError(
                    f"The SAE could not be written to {folder}: {error}. Its training is saved. Make room or give "
                    f"write permission, then continue with: {resume_command(self.run_dir)}"
                ) from error
            folders.append(folder)
        return folders

    def _step(self) -> dict[str, dict[str, float]]:
        self._resample_where_due()
        batch = self.source.next_batch(self.config.optim.batch_size)
        # Until all SAEs have taken the step, the state cannot be saved as a checkpoint.
        self.between_steps = False
        scaled, validation = self._scaled(batch), self._validation_batch()
        results = list(self.workers.map(lambda trainer: self._train_one(trainer, scaled, validation), self.trainers))
        named = {trainer.config.folder: result for trainer, result in zip(self.trainers, results, strict=True)}
        self._leave_out({name: str(result) for name, result in named.items() if isinstance(result, DivergenceError)})
        if not self.trainers:
            self._stop()
        self.step += 1
        self.between_steps = True
        return {name: result for name, result in named.items() if not isinstance(result, DivergenceError)}

    def _scaled(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {site: acts * self.scales[site] for site, acts in batch.items()}

    def _validation_batch(self) -> dict[str, Tensor]:
        """Return the validation batch of this step, scaled; empty if no SAE wants one."""
        if self.validation is None or not any(trainer.compares_l0(self.step) for trainer in self.trainers):
            return {}
        batch_size = min(self.config.optim.batch_size, self.validation.num_tokens)
        return self._scaled(self.validation.next_batch(batch_size))

    def _train_one(
        self, trainer: SAETrainer, scaled: Mapping[str, Tensor], validation: Mapping[str, Tensor]
    ) -> dict[str, float] | DivergenceError:
        started = time.perf_counter()
        try:
            site = trainer.config.site
            row = trainer.step(
                scaled[site], self.step, validation.get(site) if trainer.compares_l0(self.step) else None
            )
        except DivergenceError as error:
            # Returned rather than raised, because the other SAEs must take their step.
            return error
        self.seconds[trainer.config.folder] += time.perf_counter() - started
        return row

    def _leave_out(self, diverged: Mapping[str, str]) -> None:
        """Remove diverged SAEs, given with their messages, from training."""
        self.diverged |= diverged
        self.trainers = [trainer for trainer in self.trainers if trainer.config.folder not in diverged]
        if self.trainers:
            for message in diverged.values():
                logger.warning("%s It is left out, and the others continue.", message)

    def _stop(self) -> NoReturn:
        """Save the messages of all SAEs, because the run may be a part of another, and raise DivergenceError."""
        self.save_saes()
        last = latest_checkpoint(self.run_dir / "checkpoints")
        *before, message = self.diverged.values()
        reason = f"The last of {len(self.diverged)} SAEs has diverged, too. {message}" if before else message
        raise DivergenceError(f"{reason} The last good checkpoint: {last or 'none yet'}.")

    def _save_before_error(self) -> None:
        """Save the state if it is between two steps, and log how to continue."""
        if self.between_steps and self.saved_step != self.step:
            try:
                self.checkpoint()
            except CheckpointError as error:
                logger.error("%s", error)
                return
        if self.saved_step is not None and self.trainers:
            logger.error(
                "The training stopped at step %d of %d; the state of step %d is saved. Continue with: %s",
                *(self.step, self.config.num_steps, self.saved_step, resume_command(self.run_dir)),
            )

    def _resample_where_due(self) -> None:
        due = [trainer for trainer in self.trainers if self.step in trainer.schedule.dips]
        if not due:
            return
        inputs, seed = self.config.resampling.inputs, self.config.data.shuffle_seed
        candidates = self.source.sample(inputs, _generator(seed, self.step))
        for trainer in due:
            site = trainer.config.site
            # A separate generator, so that an SAE's draws do not depend on the other SAEs of the run.
            trainer.resample(candidates[site] * self.scales[site], _generator(trainer.config.seed, self.step))

    def _checkpoint_is_due(self, saved_at: float) -> bool:
        if self.config.checkpoint_steps is not None:
            return self.step % self.config.checkpoint_steps == 0
        minutes = self.config.checkpoint_minutes
        return minutes is not None and time.monotonic() - saved_at > 60 * minutes

    def _trainer(self, sae: ResolvedSAE) -> SAETrainer:
        optim, resampling = self.config.optim, self.config.resampling
        return SAETrainer(
            sae,
            Schedule.of(self.config, sae),
            d_in=self.model.d_in(sae.site),
            beta2=optim.beta2,
            encoder_precision=optim.encoder_precision,
            dead_window=resampling.window_tokens,
            encoder_scale=resampling.encoder_scale,
            device=self.config.language_model.device,
            scale=self.scales[sae.site],
        )

    def _metadata(self, trainer: SAETrainer) -> dict[str, Any]:
        sae = trainer.config
        return {
            "name": sae.folder,
            "model": self.config.language_model.model,
            "revision": self.config.language_model.revision,
            "site": sae.site,
            "text": self.config.data.text,
            "text_field": self.config.data.text_field,
            "packing": self.config.data.packing,
            "context": self.config.data.context,
            "mask_special_tokens": self.config.data.mask_special_tokens,
            "max_norm_multiple": self.config.data.max_norm_multiple,
            "skip_nonfinite": self.config.data.skip_nonfinite,
            "recipe": sae.recipe,
            "seed": sae.seed,
            "sparsity_coef": trainer.trained_coef,
            "paper_lambda": sae.paper_lambda,
            "target_l0": sae.target_l0,
            "coef_path": trainer.controller.path if trainer.controller else None,
            "validation_l0_ratio": trainer.controller.validation_ratio if trainer.controller else None,
            "lr": sae.lr,
            "lr_rule": sae.lr_rule,
            "scale": self.scales[sae.site],
            "steps": self.step,
            "batch_size": self.config.optim.batch_size,
            "tokens_trained": self.step * self.config.optim.batch_size,
            "unique_tokens": self.source.unique_tokens,
            "passes": self.source.passes,
            "left_out_tokens": asdict(self.source.left_out),
            "train_seconds": self.seconds[sae.folder],
            "resampled": trainer.resampled,
            "warnings": [
                *trainer.warnings(),
                *filter(None, (self.outliers[sae.site], passes_warning(self.source.passes))),
            ],
        }


def _generator(seed: int, step: int) -> torch.Generator:
    """A generator that depends only on seed and step, so that checkpoints need not store its state."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
