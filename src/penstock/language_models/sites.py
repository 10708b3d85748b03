"""Sites: the places in a language model whose activations can be read and replaced.

A site is the input or the output of one module, written `MODULE.input` or `MODULE.output`, for example
`model.layers.0.mlp.down_proj.input`. That works in every model. For the families in `families.py` there are also
names that mean the same in all of them; L counts the layers from 0:

    resid_pre.L    the residual stream that enters block L
    attn_z.L       the concatenated outputs of the heads: the input of W_O, the attention's output projection
    attn_out.L     the attention's contribution to the residual stream
    mlp_act.L      the MLP's neurons after the nonlinearity (and after the gate, if there is one):
                   the input of the MLP's output projection
    mlp_out.L      the MLP's contribution to the residual stream
    resid_post.L   the residual stream that leaves block L

so resid_pre.L + attn_out.L + mlp_out.L = resid_post.L, unless `families.py` says otherwise. A layer only has the names
whose modules exist: a layer with several experts has no mlp_act, and a layer without attention no attn_z.

TransformerLens' names for these sites also work: `blocks.1.hook_resid_post` is `resid_post.1`.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import nn

from penstock.language_models.families import FAMILIES

# Where the blocks of a text model lie inside a model that reads images too.
_INSIDE_A_WRAPPER = ("model.language_model.", "language_model.model.")

# What TransformerLens calls the named sites, inside `blocks.L.`.
_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out",
    "mlp.hook_post": "mlp_act",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}
_TRANSFORMER_LENS_NAME = re.compile(r"(?:blocks\.(\d+)\.)?((?:\w+\.)?hook_\w+)")

Side = Literal["input", "output"]
SIDES: tuple[Side, ...] = ("input", "output")


class Site(NamedTuple):
    """One place in a model: a module, and its input or output."""

    module: str
    """Path of the module, as in `model.named_modules()`."""
    side: Side


def named_sites(model: nn.Module, model_type: str, num_layers: int) -> dict[str, Site]:
    """Return the named sites of a model, layer by layer in the order in which they are computed.

    Args:
        model: The language model.
        model_type: The `model_type` of its Hugging Face text config.
        num_layers: The number of its blocks.

    Returns:
        Name to site, for the modules that the model has; empty if `model_type` is not in `FAMILIES`.
    """
    modules = {path for path, _ in model.named_modules(remove_duplicate=False)}
    found: dict[str, Site] = {}
    for layer in range(num_layers):
        for kind, paths in FAMILIES.get(model_type, {}).items():
            places = [_parse(path.replace(".L.", f".{layer}.")) for path in _with_wrapped(paths)]
            there = [place for place in places if place.module in modules]
            if there:
                found[f"{kind}.{layer}"] = there[0]
    return found


def _with_wrapped(paths: tuple[str, ...]) -> list[str]:
    inside = [
        path.replace("model.", root, 1) for path in paths for root in _INSIDE_A_WRAPPER if path.startswith("model.")
    ]
    return [*paths, *inside]


def site_name(site: str) -> str:
    """Translate TransformerLens' name of a site to ours; any other name is returned unchanged.

    Raises:
        ValueError: TransformerLens' name is of a place without a name here; says which path to use instead.
    """
    match = _TRANSFORMER_LENS_NAME.fullmatch(site)
    if match is None:
        return site
    layer, hook = match.groups()
    if layer is not None and hook in _TRANSFORMER_LENS:
        return f"{_TRANSFORMER_LENS[hook]}.{layer}"
    if layer is not None and hook == "hook_resid_mid":
        raise ValueError(
            f"{site!r} is the residual stream between attention and MLP. No module takes or returns it for both the "
            f"MLP and the next block, so it cannot be replaced here. Choose resid_pre.{layer} or resid_post.{layer}, "
            f"or read the input of the norm before the MLP by its path (in GPT-2 'transformer.h.{layer}.ln_2.input')."
        )
    known = ", ".join(f"blocks.L.{name}" for name in _TRANSFORMER_LENS)
    raise ValueError(
        f"{site!r} looks like a name of TransformerLens, of which these are understood: {known}. Give the path of the "
        f"module instead, followed by .input or .output."
    )


def find_site(site: str, named: Mapping[str, Site], model: nn.Module) -> Site:
    """Look up a site by its name or by a module's path.

    Args:
        site: A key of `named`, its name in TransformerLens, or the path of any module of `model` followed by `.input`
            or `.output`.
        named: The named sites of `model`.
        model: The language model.

    Raises:
        ValueError: `model` has no such site.
    """
    name = site_name(site)
    if name in named:
        return named[name]
    paths = {f"{path}.{side}" for path, _ in model.named_modules(remove_duplicate=False) if path for side in SIDES}
    if name in paths:
        return _parse(name)
    close = difflib.get_close_matches(name, [*named, *paths], n=1)
    raise ValueError(
        f"This model has no site {site!r}."
        + (f" Did you mean {close[0]!r}?" if close else "")
        + f" Its sites are {_abbreviated(named)}the input or output of any of its modules, for example "
        f"{example_path(model)!r}."
    )


def _parse(path: str) -> Site:
    module, _, side = path.rpartition(".")
    return Site(module, "input" if side == "input" else "output")


def _abbreviated(named: Mapping[str, Site]) -> str:
    """Abbreviate names to `resid_pre.0 ... resid_pre.11, ...`, so that a deep model's list fits on a screen."""
    layers: dict[str, list[str]] = {}
    for name in named:
        layers.setdefault(name.split(".")[0], []).append(name)
    ranges = [names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}" for names in layers.values()]
    return ", ".join(ranges) + "; and " if ranges else ""


def example_path(model: nn.Module) -> str:
    """Return the path of a site deep inside the model, as an example."""
    paths = [path for path, _ in model.named_modules() if re.search(r"\.\d+\.", path)]
    everything = [path for path, _ in model.named_modules() if path]
    return f"{(paths or everything)[-1]}.output"
