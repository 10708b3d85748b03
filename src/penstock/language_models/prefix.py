"""Starts a forward pass in the middle: blocks whose output is known return it without computing anything.

An evaluation runs the same tokens many times with different replacements at one site. The output before the site is
always the same, so it is computed once and each run begins at the site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from penstock.language_models.sites import Site


class Prefix(NamedTuple):
    """Output of the first blocks of a model for some tokens."""

    blocks: tuple[str, ...]
    """Paths of the blocks, from the first on."""
    outcome: Any
    """Output of the last of these blocks, in its own form: a tensor, or a tuple that begins with one."""


def blocks_before(site: Site, named: Mapping[str, Site], num_layers: int) -> tuple[str, ...]:
    """Return the blocks that a replacement at `site` does not affect, in the order in which they run.

    A block whose own output is replaced is included. The result is empty if the model's blocks are not known by name,
    or the site lies outside them.
    """
    if "resid_post.0" not in named:
        return ()
    blocks = [named[f"resid_post.{layer}"].module for layer in range(num_layers)]
    for layer, block in enumerate(blocks):
        if site == Site(block, "output"):
            return tuple(blocks[: layer + 1])
        if site.module == block or site.module.startswith(f"{block}."):
            return tuple(blocks[:layer])
    return ()


@contextmanager
def recorded(model: nn.Module, blocks: tuple[str, ...]) -> Iterator[list[Prefix]]:
    """Record the prefix of blocks in the forward pass in the `with` block, which ends after the last of them."""
    found: list[Prefix] = []

    def record(module: nn.Module, args: tuple, output: Any) -> None:
        found.append(Prefix(blocks, _copied(output)))
        raise _Recorded

    handle = model.get_submodule(blocks[-1]).register_forward_hook(record)
    try:
        yield found
    except _Recorded:
        return
    finally:
        handle.remove()


@contextmanager
def replayed(model: nn.Module, prefix: Prefix) -> Iterator[None]:
    """Let the prefix's blocks return their recorded output inside the `with` block; hooks on them still run."""
    with ExitStack() as stack:
        # Earlier blocks may return anything of the right form, because the last one ignores it.
        for path in prefix.blocks:
            _replace_forward(model.get_submodule(path), lambda *args, **kwargs: _copied(prefix.outcome), stack)
        yield


class _Recorded(Exception):
    """Raised inside the forward pass to end it."""


def _copied(output: Any) -> Any:
    """Return a copy of the output's tensor, because some models later add to it in place."""
    return output.clone() if isinstance(output, Tensor) else (output[0].clone(), *output[1:])


def _replace_forward(module: nn.Module, forward: Callable[..., Any], stack: ExitStack) -> None:
    # An instance may already have its own `forward` (accelerate's, for weights on another device).
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward

    def restore() -> None:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own

    stack.callback(restore)
