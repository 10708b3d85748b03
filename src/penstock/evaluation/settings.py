"""Settings of an evaluation on held-out tokens."""

from dataclasses import dataclass

from penstock.settings import MAX_SEED, at_least, between


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The number of held-out tokens and of bootstrap resamples, and their seed."""

    eval_tokens: int = 100_000
    """Held-out tokens to evaluate on (the paper uses more than a million)."""
    bootstrap: int = 1000
    """Bootstrap resamples of the held-out sequences, for the 95% intervals."""
    eval_seed: int = 0
    """Seed of the choice of held-out sequences, and of the bootstrap."""

    def __post_init__(self) -> None:
        at_least("eval_tokens", self.eval_tokens, 1)
        at_least("bootstrap", self.bootstrap, 10)
        between("eval_seed", self.eval_seed, 0, MAX_SEED)
