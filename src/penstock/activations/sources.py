"""Sources of training batches: a shuffle buffer over a stream, or a cache that is used many times.

Both mix token by token, keep the sites of a token together, and resume bit for bit after a stop.
A stream is a function that yields the activations of the training text from a given position on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from penstock.activations.screening import NONE_LEFT_OUT, LeftOutTokens
from penstock.files import PickedRows
from penstock.language_models.stdlib_corpus import Place
from penstock.language_models.tokens import Position
from penstock.shapes import Acts

SCALE_TOKENS = 2**16
"""Activations over which the scale of a site is measured."""

SiteActs = Mapping[str, Acts]


class Harvest(NamedTuple):
    """The activations of a few rows of tokens, without masked positions."""

    acts: dict[str, Tensor]
    """Activations [tokens, d_in] for each site, of the same tokens in the same order."""
    position: Position
    """Position in the text at which the stream continues."""
    left_out: LeftOutTokens = NONE_LEFT_OUT
    """Tokens of these rows that were left out."""


Stream = Callable[[Position], Iterator[Harvest]]
"""Function that yields the harvests from a position to the end of the texts."""


@runtime_checkable
class ActivationSource(Protocol):
    """An endless supply of shuffled batches."""

    @property
    def passes(self) -> float:
        """Number of times the source has gone through its activations."""
        ...

    @property
    def unique_tokens(self) -> int:
        """Number of different activations returned so far."""
        ...

    @property
    def left_out(self) -> LeftOutTokens:
        """Number of tokens left out because of their activations, over all passes."""
        ...

    def next_batch(self, batch_size: int) -> dict[str, Tensor]:
        """Return the next activations [batch_size, d_in] for each site."""
        ...

    def sample(self, num_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return random activations [at most num_tokens, d_in] for each site, without advancing the source."""
        ...

    def state(self) -> dict[str, Tensor | PickedRows]:
        """Return the state that a checkpoint needs to continue with the same batches."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that `state()` returned, read back from a file."""
        ...


class ActivationCache:
    """All activations in memory; every pass over them is a new permutation."""

    def __init__(self, acts: SiteActs, *, seed: int, left_out: LeftOutTokens = NONE_LEFT_OUT) -> None:
        """
        Args:
            acts: Activations [tokens, d_in] for each site, at least one token.
            seed: Seed of the permutations; a pass's permutation depends only on it and the number of the pass.
            left_out: Tokens that were left out while harvesting.
        """
        self.left_out = left_out
        self.acts = dict(acts)
        self.num_tokens = len(next(iter(self.acts.values())))
        self.seed = seed
        self.served = 0
        self._order = self._permutation(0)

    @property
    def passes(self) -> float:
        return self.served / self.num_tokens

    @property
    def unique_tokens(self) -> int:
        return min(self.served, self.num_tokens)

    def next_batch(self, batch_size: int) -> dict[str, Tensor]:
        picked: list[Tensor] = []
        missing = batch_size
        while missing:
            at = self.served % self.num_tokens
            if at == 0:
                self._order = self._permutation(self.served // self.num_tokens)
            picked.append(self._order[at : at + missing])
            self.served += len(picked[-1])
            missing -= len(picked[-1])
        rows = torch.cat(picked)
        return {site: acts[rows] for site, acts in self.acts.items()}

    def sample(self, num_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randperm(self.num_tokens, generator=generator, device="cpu")[:num_tokens]
        return {site: acts[rows] for site, acts in self.acts.items()}

    def state(self) -> dict[str, Tensor | PickedRows]:
        return {"served": torch.tensor(self.served, device="cpu")}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.served = int(state["served"])
        self._order = self._permutation(self.served // self.num_tokens)

    def _permutation(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return torch.randperm(self.num_tokens, generator=generator, device="cpu")


class ShuffleBuffer:
    """A window over a stream: batches are drawn at random from it, and it is refilled when half empty."""

    _COUNTERS = ("served", "restarts", "harvested_first_pass", "_harvested_this_pass")

    def __init__(self, stream: Stream, *, capacity: int, seed: int, device: str = "cpu") -> None:
        """
        Args:
            stream: Stream of activations; started again from the beginning whenever it ends.
            capacity: Number of activations held, i.e. the mixing depth.
            seed: Seed of the order.
            device: Where the stream's activations are.
        """
        self.stream = stream
        self.device = device
        self.capacity = capacity
        self.generator = torch.Generator().manual_seed(seed)
        self.served = 0
        self.restarts = 0
        self.position = Position()
        self.left_out = NONE_LEFT_OUT
        self.harvested_first_pass = 0
        self._harvests = stream(self.position)
        self._harvested_this_pass = 0
        self._acts: dict[str, Tensor] = {}
        self._order = torch.empty(0, dtype=torch.long, device="cpu")

    @property
    def passes(self) -> float:
        # Until the text has ended once, its length is unknown, and nothing was returned twice.
        return max(1.0, self.served / self.harvested_first_pass) if self.restarts else 1.0

    @property
    def unique_tokens(self) -> int:
        return min(self.served, self.harvested_first_pass)

    def next_batch(self, batch_size: int) -> dict[str, Tensor]:
        wanted = max(self.capacity, batch_size)
        if len(self._order) < wanted and len(self._order) - batch_size < self.capacity // 2:
            self._refill(wanted)
        picked, self._order = self._order[:batch_size], self._order[batch_size:]
        self.served += batch_size
        return {site: acts[picked] for site, acts in self._acts.items()}

    def sample(self, num_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        if not len(self._order):
            self._refill(self.capacity)
        rows = self._order[torch.randperm(len(self._order), generator=generator, device="cpu")[:num_tokens]]
        return {site: acts[rows] for site, acts in self._acts.items()}

    def state(self) -> dict[str, Tensor | PickedRows]:
        return {
            "counters": torch.tensor(self._counters(), device="cpu"),
            "generator": self.generator.get_state(),
            # Only rows that were not served yet, in the order in which they will be served.
            **{f"acts/{site}": PickedRows(acts, self._order) for site, acts in self._acts.items()},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._set_counters(state["counters"].tolist())
        self.generator.set_state(state["generator"])
        # A checkpoint is loaded to the CPU. One at a time: reading a large file lazily must not hold it twice.
        self._acts = {key.removeprefix("acts/"): state[key].to(self.device) for key in state if key.startswith("acts/")}
        held = len(next(iter(self._acts.values()))) if self._acts else 0
        # Older checkpoints also hold served rows, and the order of the others.
        self._order = state["order"] if "order" in state else torch.arange(held, device="cpu")
        self._harvests = self.stream(self.position)

    def _refill(self, wanted: int) -> None:
        """Fill the buffer up to `wanted` with fresh activations, and draw a new order over all."""
        kept = {site: [acts[self._order]] for site, acts in self._acts.items()}
        held = len(self._order)
        counters = self._counters()
        try:
            held += self._harvest(kept, wanted - held)
        except BaseException:
            # The last harvest is lost, so the counters must not include it: a checkpoint follows.
            self._set_counters(counters)
            self._harvests = self.stream(self.position)
            raise
        self._acts = {site: torch.cat(parts) for site, parts in kept.items()}
        self._order = torch.randperm(held, generator=self.generator, device="cpu")

    def _harvest(self, kept: dict[str, list[Tensor]], missing: int) -> int:
        """Append at least `missing` fresh activations of each site, and return their number."""
        fresh = 0
        while fresh < missing:
            harvest = next(self._harvests, None)
            if harvest is None:
                self._start_again()
                continue
            for site, acts in harvest.acts.items():
                kept.setdefault(site, []).append(acts)
            self.position = harvest.position
            self.left_out += harvest.left_out
            count = len(next(iter(harvest.acts.values())))
            self._harvested_this_pass += count
            fresh += count
            if not self.restarts:
                self.harvested_first_pass += count
        return fresh

    def _counters(self) -> list[int]:
        return [
            *(getattr(self, name) for name in self._COUNTERS),
            self.left_out.nonfinite,
            self.left_out.high_norm,
            *self.position.place,
            self.position.token,
        ]

    def _set_counters(self, numbers: Sequence[int]) -> None:
        *counters, nonfinite, high_norm, file, document, token = numbers
        if len(counters) != len(self._COUNTERS):
            raise ValueError(
                "The checkpoint does not hold the document at which its text continues: an older version of penstock "
                "wrote it. Train the run again from the start, or resume it with that version."
            )
        for name, number in zip(self._COUNTERS, counters, strict=True):
            setattr(self, name, number)
        self.left_out = LeftOutTokens(nonfinite, high_norm)
        self.position = Position(Place(file, document), token)

    def _start_again(self) -> None:
        if not self._harvested_this_pass:
            raise ValueError(
                "The text gave no activations to train on: it has no tokens that count (BOS and padding do "
                "not). Check data.text, and that its documents are longer than one token."
            )
        self.restarts += 1
        self.position = Position()
        self._harvested_this_pass = 0
        self._harvests = self.stream(self.position)


def measure_scale(samples: Sequence[Tensor]) -> float:
    """Return the factor that gives activations a mean squared norm of 1: 1 / sqrt(E |x|^2).

    Raises:
        ValueError: the activations are all zero, or contain NaN or infinity.
    """
    squares = sum(acts.double().square().sum().item() for acts in samples)
    mean_square = squares / sum(len(acts) for acts in samples)
    if not 0 < mean_square < float("inf"):
        raise ValueError(
            f"The mean squared norm of the activations is {mean_square}; training needs a finite number above 0. "
            "Check the site, and dtype (float16 overflows in many models: use bfloat16 or float32)."
        )
    return mean_square**-0.5
