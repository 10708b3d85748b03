"""Reading and replacing activations while a language model runs, with PyTorch's forward hooks.

Models pass activations in several forms: alone or first in a tuple, by position or by keyword. Some flatten
sequences and positions into one axis (OPT's MLP). Here all of them become [sequences, positions, d_in], and a
replacement is returned in the original form.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from penstock.language_models.sites import Site
from penstock.shapes import SequenceActs

Edit = Callable[[SequenceActs], SequenceActs]


class _AllCaptured(Exception):
    """Raised inside the forward pass to end it when no later result is needed."""


@contextmanager
def captured(model: nn.Module, sites: Mapping[str, Site], shape: tuple[int, int]) -> Iterator[dict[str, SequenceActs]]:
    """Collect activations from the forward pass in the `with` block, and end the block with the last of them.

    Args:
        model: The language model.
        sites: Sites to collect, by their names in the result.
        shape: Sequences and positions of the tokens that the model is about to read.

    Yields:
        A dict that is complete when the block ends.

    Raises:
        ValueError: a site was never computed, was computed a second time, or holds no activation per position.
    """
    found: dict[str, SequenceActs] = {}

    def capture(name: str) -> Callable[[Tensor], Tensor]:
        def hook(activation: Tensor) -> Tensor:
            if name in found:
                raise runs_again(name)
            # A copy, because some models later add to the tensor in place.
            found[name] = by_position(activation, shape, name).clone()
            if len(found) == len(sites):
                raise _AllCaptured
            return activation

        return hook

    try:
        with _hooked(model, {name: (site, capture(name)) for name, site in sites.items()}):
            yield found
    except _AllCaptured:
        return
    _check_all_computed(sites, found)


@contextmanager
def spliced(
    model: nn.Module, sites: Mapping[str, Site], edits: Mapping[str, Edit], shape: tuple[int, int]
) -> Iterator[None]:
    """Replace activations by the results of edits in the forward pass in the `with` block.

    Args:
        model: The language model.
        sites: Site of each edit, by the edit's name.
        edits: Functions from an activation to its replacement, with the same shape and on any device.
        shape: Sequences and positions of the tokens that the model is about to read.

    Raises:
        ValueError: a site was never computed, was computed a second time, holds no activation per position, or its
            edit returned something of another shape or not in floating point.
    """
    found: set[str] = set()

    def splice(name: str) -> Callable[[Tensor], Tensor]:
        def hook(activation: Tensor) -> Tensor:
            if name in found:
                raise runs_again(name)
            found.add(name)
            before = by_position(activation, shape, name)
            after = edits[name](before)
            _check_edit(name, before, after)
            # A copy, because some models later add to the tensor in place, and the edit may use it again.
            return after.to(activation, copy=True).reshape(activation.shape)

        return hook

    with _hooked(model, {name: (site, splice(name)) for name, site in sites.items()}):
        yield
    _check_all_computed(sites, found)


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, tuple[Site, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
    """Pass the activation at each site through a function inside the `with` block."""
    with ExitStack() as stack:
        for name, (site, function) in hooks.items():
            module = model.get_submodule(site.module)
            if site.side == "input":
                handle = module.register_forward_pre_hook(_on_input(name, function), with_kwargs=True)
            else:
                handle = module.register_forward_hook(_on_output(name, function))
            stack.callback(handle.remove)
        yield


def _on_input(name: str, function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args and isinstance(args[0], Tensor):
            return (function(args[0]), *args[1:]), kwargs
        for key, value in kwargs.items():
            if isinstance(value, Tensor):
                return args, {**kwargs, key: function(value)}
        raise ValueError(f"Site {name!r}: {type(module).__name__} takes no tensor as its first input.")

    return hook


def _on_output(name: str, function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, output: object) -> object:
        if isinstance(output, Tensor):
            return function(output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (function(output[0]), *output[1:])
        raise ValueError(
            f"Site {name!r}: {type(module).__name__} returns {type(output).__name__}, not an activation "
            f"or a tuple that begins with one."
        )

    return hook


def first_input(args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first tensor that a module takes, by position or by keyword."""
    if args and isinstance(args[0], Tensor):
        return args[0]
    return next((value for value in kwargs.values() if isinstance(value, Tensor)), None)


def first_output(output: object) -> Tensor | None:
    """Return the tensor that a module returns, alone or first in a tuple."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) else None


def runs_again(name: str) -> ValueError:
    """Make the error for a site whose module runs more than once in a forward pass."""
    return ValueError(
        f"Site {name!r}: the module runs more than once in a forward pass, because layers share it or the model "
        f"repeats it, so the site has no single activation for each token. Choose a module that runs once."
    )


def by_position(activation: Tensor, shape: tuple[int, int], name: str) -> SequenceActs:
    """Return an activation as [sequences, positions, d_in].

    Raises:
        ValueError: the tensor does not hold one activation for each position.
    """
    if not is_by_position(activation, shape):
        sequences, positions = shape
        raise ValueError(
            f"Site {name!r} holds {activation.dtype} of shape {list(activation.shape)}, not one activation "
            f"for each of the {sequences} x {positions} tokens. Choose the input or output of another module."
        )
    return activation.reshape(*shape, -1)


def is_by_position(activation: Tensor, shape: tuple[int, int]) -> bool:
    """Return whether a tensor holds one activation per position, with sequences and positions in one axis or two."""
    is_flat = activation.ndim == 2 and len(activation) == shape[0] * shape[1]
    return activation.is_floating_point() and (is_flat or (activation.ndim >= 3 and activation.shape[:2] == shape))


def _check_edit(name: str, before: Tensor, after: object) -> None:
    if not isinstance(after, Tensor):
        raise ValueError(f"The edit at {name!r} must return a tensor, got {type(after).__name__}.")
    if after.shape != before.shape or not after.is_floating_point():
        raise ValueError(
            f"The edit at {name!r} must return floating point of shape {list(before.shape)}, "
            f"[sequences, positions, d_in], as it was given; got {after.dtype} of shape {list(after.shape)}."
        )


def _check_all_computed(sites: Mapping[str, Site], found: Mapping[str, Tensor] | set[str]) -> None:
    missing = [name for name in sites if name not in found]
    if missing:
        raise ValueError(
            f"The model's forward pass over text never computes {', '.join(map(repr, missing))}. Choose another site."
        )
