"""Observes one forward pass over a few tokens: how often each module runs, and how wide each activation is."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from penstock.language_models.hooks import by_position, first_input, first_output, is_by_position, runs_again
from penstock.language_models.sites import Side, Site
from penstock.shapes import Logits, Tokens


@dataclass(frozen=True)
class Survey:
    """Observations of every module of a model."""

    model: nn.Module
    shape: tuple[int, int]
    """Sequences and positions of the tokens."""
    runs: Counter[nn.Module] = field(default_factory=Counter)
    """How often each module ran."""
    tensors: dict[tuple[nn.Module, Side], Tensor] = field(default_factory=dict)
    """The tensor at each side of each module; on the device `meta`, so it has a shape and a dtype but no values."""

    def width(self, name: str, site: Site) -> int:
        """Return the width of the activation at a site, which is called `name` in errors.

        Raises:
            ValueError: its module does not run, runs more than once, or has no activation for each token there.
        """
        module = self.model.get_submodule(site.module)
        if self.runs[module] > 1:
            raise runs_again(name)
        if not self.runs[module]:
            raise ValueError(f"The model's forward pass over text never computes {name!r}. Choose another site.")
        if (module, site.side) not in self.tensors:
            raise ValueError(
                f"Site {name!r}: the {site.side} of {type(module).__name__} does not begin with a tensor. Choose "
                f"another module."
            )
        return by_position(self.tensors[module, site.side], self.shape, name).shape[-1]

    def has_activations(self, site: Site) -> bool:
        """Return whether a site holds one activation for each token, from a module that runs once."""
        module = self.model.get_submodule(site.module)
        tensor = self.tensors.get((module, site.side))
        return self.runs[module] == 1 and tensor is not None and is_by_position(tensor, self.shape)


@torch.no_grad()
def survey(model: nn.Module, forward: Callable[[Tokens], Logits], tokens: Tokens) -> Survey:
    """Run a model over some tokens and note what every module takes and returns.

    Args:
        model: The language model.
        forward: Its forward pass.
        tokens: Two rows that differ only in the last token. They have at least three positions, so that no two axes of
            an activation can be confused.

    Raises:
        ValueError: the last token changes what the model predicts before it.
    """
    found = Survey(model, (tokens.shape[0], tokens.shape[1]))
    with _watched(found):
        logits = forward(tokens).float()
    first, second = logits[0, :-1], logits[1, :-1]
    tolerance = max(1e-3, 8 * torch.finfo(next(model.parameters()).dtype).eps)
    if (first - second).abs().max() > tolerance * first.abs().max():
        raise ValueError(
            "This model does not read from left to right: the last token of a row changes what it predicts before "
            "that token. Its attention sees both sides, so its cross-entropy and what a replacement costs would mean "
            "nothing. Choose a causal language model, such as GPT-2 or Llama."
        )
    return found


@contextmanager
def _watched(found: Survey) -> Iterator[None]:
    """Note what modules take and return inside the `with` block."""

    def note(side: Side, module: nn.Module, tensor: Tensor | None) -> None:
        if tensor is not None:
            found.tensors[module, side] = tensor.to("meta")

    def on_input(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        found.runs[module] += 1
        note("input", module, first_input(args, kwargs))

    def on_output(module: nn.Module, args: tuple, output: object) -> None:
        note("output", module, first_output(output))

    with ExitStack() as stack:
        for module in found.model.modules():
            stack.callback(module.register_forward_pre_hook(on_input, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(on_output).remove)
        yield
