"""Training of one SAE: its steps, schedules, and state for checkpoints."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from penstock.saes import ARCHITECTURES, training_of
from penstock.shapes import Acts
from penstock.training.convergence import LossTrend
from penstock.training.optimisers import make_optimiser
from penstock.training.resampling import DeadCounter, choose_inputs, resample_
from penstock.training.schedules import Schedule
from penstock.training.settings.defaults import coefficient
from penstock.training.settings.sae_config import ResolvedSAE
from penstock.training.steering import STEER_FROM, L0Controller

MANY_DEAD = 0.1
"""The share of dead latents above which an SAE is warned about."""

MISSED_IN_TRAINING = 0.1
"""The relative distance of the final L0 from its target above which an SAE is warned about."""


PAIRS_AT_ONCE = {"cpu": 2**23, "cuda": 2**26}
"""The most (token, latent) pairs in one forward and backward pass, by device type. About ten tensors of this size exist
at once."""


class DivergenceError(RuntimeError):
    """A loss term became NaN or infinite."""


class SAETrainer:
    """Trains one SAE. Holds it with its optimiser, schedule, L0 controller and counter of dead latents."""

    def __init__(
        self,
        config: ResolvedSAE,
        schedule: Schedule,
        *,
        d_in: int,
        beta2: float,
        encoder_precision: Literal["float32", "bfloat16"],
        dead_window: int,
        encoder_scale: float,
        device: str,
        scale: float = 1.0,
    ) -> None:
        """
        Args:
            config: The SAE's settings.
            schedule: The SAE's schedule.
            d_in: Width of the site.
            beta2: Decay of Adam's second moment.
            encoder_precision: See `OptimConfig`.
            dead_window: Number of tokens without firing after which a latent counts as dead.
            encoder_scale: Norm of a resampled encoder vector relative to the living ones.
            device: The SAE's device.
            scale: The factor by which activations are scaled; needed to convert a `paper_lambda`.
        """
        self.config = config
        self.schedule = schedule
        self.lr = config.lr
        self.dead_window = dead_window
        self.encoder_scale = encoder_scale
        self.rounded = encoder_precision == "bfloat16"
        self.rule = config.rule
        generator = torch.Generator().manual_seed(config.seed)
        sae = ARCHITECTURES[config.arch].make_trainable(
            d_in, config.d_sae, config.own_settings, decoder_norm=config.decoder_init_norm, generator=generator
        )
        self.sae = sae.to(device)
        self.optimiser = make_optimiser(config, self.sae, beta2=beta2, unit_rows=self.rule.decoder_norm == "unit")
        self.coef = config.sparsity_coef
        if config.paper_lambda is not None:
            self.coef = coefficient(config.paper_lambda, d_in, scale)
        self.controller: L0Controller | None = None
        if config.target_l0 is not None:
            initial_coef = training_of(config.arch).initial_coef
            assert initial_coef is not None, f"{config.arch} takes a target_l0 but does not declare initial_coef"
            self.controller = L0Controller(
                config.target_l0,
                initial_coef,
                num_steps=schedule.num_steps,
                # Steering must not start while the coefficient is warmed up.
                steer_from=max(round(STEER_FROM * schedule.num_steps), schedule.sparsity_warmup),
                lr=self.lr,
            )
        self.dead_counter = DeadCounter(config.d_sae, self.sae.W_dec.device)
        # The share of (token, latent) pairs in the support of the last batch; half for a random dictionary.
        self.density = 0.5
        self.resampled = 0
        steady = schedule.steady_steps()
        self.loss_trend = LossTrend(steady.start, steady.stop)

    @property
    def sparsity_coef(self) -> float | None:
        """The coefficient before its warm-up factor; None if the architecture's own settings decide the L0."""
        return self.controller.coef if self.controller else self.coef

    @property
    def trained_coef(self) -> float | None:
        """The coefficient to record: the given one, or if it is steered, the mean over the last tenth of the run."""
        return self.controller.trained_coef if self.controller else self.coef

    def compares_l0(self, step: int) -> bool:
        """Whether a step wants a validation batch: one in a few of a steered SAE, from the start of the steering on."""
        controller = self.controller
        return controller is not None and controller.compares(step)

    def step(self, x: Acts, step: int, validation: Acts | None = None) -> dict[str, float]:
        """Take one optimiser step.

        Args:
            x: Scaled activations [batch, d_in].
            step: The number of the step.
            validation: Scaled activations [tokens, d_in] that are not trained on, to steer L0 on; see `compares_l0`.

        Returns:
            The step's loss terms and their sum `loss`, `l0`, `dead_share`, `sparsity_coef` (as applied) and `lr`.

        Raises:
            DivergenceError: a term of the loss is NaN or infinite; the SAE is not changed.
        """
        coef = (self.sparsity_coef or 0.0) * self.schedule.sparsity_factor(step)
        lr = self.lr * self.schedule.lr_factor(step)
        validation_l0 = None if validation is None else self._mean_l0(validation)
        try:
            passed = self._backward(x, coef, step)
            for group in self.optimiser.param_groups:
                group["lr"] = lr
            self.optimiser.update(passed.reached.nonzero().flatten())
        finally:
            # Freed at once, so that the next SAE's gradients reuse the memory while it is in the CPU's cache.
            self.optimiser.zero_grad()

        l0 = passed.firing.sum().item() / len(x)
        self.dead_counter.update(passed.firing > 0, len(x))
        if self.controller:
            if validation_l0 is not None:
                self.controller.compare(l0, validation_l0)
            self.controller.update(step, l0, lr=lr, applied=coef)
        dead = self.dead_counter.dead(self.dead_window)
        self.loss_trend.add(step, passed.terms, coef)
        return {
            **passed.terms,
            "l0": l0,
            "dead_share": dead.double().mean().item(),
            "sparsity_coef": coef,
            "lr": lr,
        }

    def resample(self, candidates: Acts, generator: torch.Generator) -> None:
        """Resample the latents that count as dead now. `candidates` are scaled activations [batch, d_in]."""
        dead = self.dead_counter.dead(self.dead_window)
        if not dead.any():
            return

        def errors_of(part: Acts) -> Tensor:
            return self.sae.loss(part, self.sparsity_coef or 0.0, self.rule).errors

        chosen = choose_inputs(candidates, errors_of, int(dead.sum()), generator)
        resample_(self.sae, dead, chosen, self.optimiser, encoder_scale=self.encoder_scale)
        self.dead_counter.tokens_since[dead] = 0
        self.resampled += int(dead.sum())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors for a checkpoint, by name."""
        tensors = {f"sae/{name}": value for name, value in self.sae.state_dict().items()}
        for name, parameter in self.sae.named_parameters():
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"adam/{name}/{key}"] = value
        tensors["tokens_since_fired"] = self.dead_counter.tokens_since
        return tensors

    def numbers(self) -> dict[str, Any]:
        """The rest of the state for a checkpoint, in types that JSON has."""
        controller = self.controller.state() if self.controller else None
        numbers = {"controller": controller, "resampled": self.resampled, "density": self.density}
        return {**numbers, "loss_trend": self.loss_trend.state(), "coef": self.coef}

    def warnings(self) -> list[str]:
        """Warnings about the trained SAE: still improving, many dead latents, or a missed target L0."""
        found = []
        trend = self.loss_trend.trend()
        if trend and trend.still_improving:
            found.append(
                f"still improving: before the learning rate decayed, the loss fell by {trend.fall:.1%} with each "
                "doubling of the steps. Train on more tokens before comparing it."
            )
        dead = self.dead_counter.dead(self.dead_window).double().mean().item()
        if dead > MANY_DEAD:
            found.append(f"dead latents: {dead:.0%} have not fired on the last {self.dead_window:,} tokens.")
        if self.controller and abs(self.controller.steered_l0 / self.controller.target_l0 - 1) > MISSED_IN_TRAINING:
            found.append(
                f"target missed: the mean L0 at the end is {self.controller.steered_l0:.3g}, but the target is "
                f"{self.controller.target_l0:g}. Train for more steps."
            )
        return found

    def load(self, tensors: Mapping[str, Tensor], numbers: dict[str, Any]) -> None:
        """Restore the results of `tensors()` and `numbers()`, reading one tensor at a time."""
        for name in self.sae.state_dict():
            self.sae.load_state_dict({name: tensors[f"sae/{name}"]}, strict=False)
        for name, parameter in self.sae.named_parameters():
            prefix = f"adam/{name}/"
            before = self.optimiser.state[parameter]
            self.optimiser.state[parameter] = {
                key: _placed_like(parameter, tensors[prefix + key], before.get(key))
                for key in [one.removeprefix(prefix) for one in tensors if one.startswith(prefix)]
            }
        self.dead_counter.tokens_since = tensors["tokens_since_fired"].to(self.sae.W_dec.device)
        if self.controller and numbers["controller"]:
            self.controller.load_state(numbers["controller"])
        self.loss_trend.load_state(numbers["loss_trend"])
        self.coef = numbers["coef"]
        self.resampled = int(numbers["resampled"])
        self.density = float(numbers["density"])

    def _backward(self, x: Acts, coef: float, step: int) -> "_Passed":
        """Compute the gradients of the batch's mean loss, in parts if the codes are too dense for memory."""
        nothing = torch.zeros_like(self.dead_counter.tokens_since)
        passed = _Passed({}, firing=nothing, reached=nothing.bool())
        pairs = 0
        for part in self._parts(x):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.rounded):
                loss = self.sae.loss(part, coef, self.rule)
            share = len(part) / len(x)
            for name, term in {**loss.terms, "loss": loss.total}.items():
                passed.terms[name] = passed.terms.get(name, 0.0) + share * self._finite(name, term.item(), step)
            (share * loss.total).backward()
            passed.firing.add_(loss.acts.firing)
            passed.reached[loss.acts.support.latents] = True
            pairs += len(loss.acts.values)
        self.density = max(1, pairs) / (len(x) * self.config.d_sae)
        return passed

    def _parts(self, x: Acts) -> tuple[Tensor, ...]:
        """Cut a batch so that the support of each part fits into memory."""
        limit = PAIRS_AT_ONCE.get(x.device.type, PAIRS_AT_ONCE["cpu"])
        return x.split(max(1, int(limit / (self.density * self.config.d_sae))))

    @torch.no_grad()
    def _mean_l0(self, x: Acts) -> float:
        """Return the mean number of latents that fire."""
        firing = 0.0
        for part in self._parts(x):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.rounded):
                firing += self.sae.encode_sparse(part).firing.sum().item()
        return firing / len(x)

    def _finite(self, name: str, term: float, step: int) -> float:
        if not math.isfinite(term):
            raise DivergenceError(
                f"The {name} loss of {self.config.folder} is {term} at step {step}. Its learning rate is {self.lr:g}: "
                "try a third of it (lr)."
            )
        return term


class _Passed(NamedTuple):
    """The results of a step's forward and backward pass, besides the gradients."""

    terms: dict[str, float]
    """The loss terms and their sum `loss`, as means over the batch."""
    firing: Int[Tensor, " d_sae"]
    """The number of tokens on which each latent fired."""
    reached: Bool[Tensor, " d_sae"]
    """Whether each latent has a gradient."""


def _placed_like(parameter: Tensor, value: Tensor, before: Tensor | None) -> Tensor:
    """A parameter's optimiser state from a file, on the optimiser's device and in the parameter's memory layout.

    PyTorch's fused Adam has its step counter on the parameter's device, and no state before its first step. LatentAdam
    has its counter on the CPU, and its state from the start.
    """
    if value.ndim == 0:
        return value.to(parameter.device if before is None else before.device, copy=True)
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
