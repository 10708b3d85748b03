"""Starting a forward pass in the middle: blocks whose outcome is known return it without computing anything.

An evaluation runs the same tokens many times with another replacement at one site. What comes before the site is the
same every time: it is computed once, and each run begins at the site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from penstock.language_models.sites import Site


class Prefix(NamedTuple):
    """What the first blocks of a model make of some tokens."""

    blocks: tuple[str, ...]
    """Paths of the blocks, from the first on."""
    outcome: Any
    """What the last of them returned, in its own form: a tensor, or a tuple that begins with one."""


def blocks_before(site: Site, named: Mapping[str, Site], num_layers: int) -> tuple[str, ...]:
    """The blocks that a replacement at `site` does not reach, in the order in which they run.

    A block whose own output is replaced is one of them. Empty where the model's blocks are not known by name, or the
    site lies in none of them.
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
    """Run blocks in the `with` block, which ends after the last of them; fills in their prefix."""
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
    """Let the prefix's blocks return its outcome, while the `with` block lasts; hooks on them still run."""
    with ExitStack() as stack:
        # The earlier ones may return anything of the right form, as the last one does not look at it.
        for path in prefix.blocks:
            _replace_forward(model.get_submodule(path), lambda *args, **kwargs: _copied(prefix.outcome), stack)
        yield


class _Recorded(Exception):
    """Raised inside the forward pass to end it."""


def _copied(output: Any) -> Any:
    """With a tensor of its own, because some models go on to add to it in place."""
    return output.clone() if isinstance(output, Tensor) else (output[0].clone(), *output[1:])


def _replace_forward(module: nn.Module, forward: Callable[..., Any], stack: ExitStack) -> None:
    # An instance may have a `forward` of its own already (accelerate's, for weights that lie elsewhere).
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward

    def restore() -> None:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own

    stack.callback(restore)
