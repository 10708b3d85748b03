"""Settings of an evaluation on held-out tokens."""

from dataclasses import dataclass

from penstock.settings import MAX_SEED, at_least, between


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How SAEs are evaluated: on how many held-out tokens, with how many bootstrap resamples."""

    eval_tokens: int = 100_000
    """Held-out tokens to evaluate on (the paper uses more than a million)."""
    bootstrap: int = 1000
    """Resamples of the held-out sequences for the 95% intervals."""
    eval_seed: int = 0
    """Decides which held-out rows are used, and the bootstrap."""

    def __post_init__(self) -> None:
        at_least("eval_tokens", self.eval_tokens, 1)
        at_least("bootstrap", self.bootstrap, 10)
        between("eval_seed", self.eval_seed, 0, MAX_SEED)
