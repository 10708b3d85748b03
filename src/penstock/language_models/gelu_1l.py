"""Neel Nanda's GELU-1L, `NeelNanda/GELU_1L512W_C4_Code` on the Hub, as a GPT-2 of Hugging Face `transformers`.

The repository does not hold a Hugging Face model but the state dict of a TransformerLens model. It has learned
positions, layer norms before attention and MLP, heads scaled by 1 / sqrt(d_head), and a separate unembedding. So it
computes the same function as a GPT-2 with untied embeddings, and its weights only need another layout. To use it, put
these files into one folder:

    config.json, model_final.pth                               from NeelNanda/GELU_1L512W_C4_Code
    tokenizer.json, tokenizer_config.json,
    special_tokens_map.json                                    from NeelNanda/gpt-neox-tokenizer-digits

and call `convert_gelu_1l`; `LanguageModel.load` loads its output. GELU-2L, -3L and -4L have the same layout.

Sources: TransformerLens 3.5.1 (`convert_neel_model_config` and `get_pretrained_state_dict` in
`loading_from_pretrained.py` for what is read from the files, `components/` for the computation), and the code that
trained the model (neelnanda-io/solu_project at 2e76d17, `solu/transformer.py` and `solu/training/train_model_ddp.py`).
They agree on keys and shapes, W_U without a bias, and n_layers 1, d_model 512, d_mlp 2048, 8 heads of 64, n_ctx 1024
and d_vocab 48262. Two things differ:

* `act_fn` "gelu": the training code computes its tanh approximation, but TransformerLens (and results published with
  it) the exact function. Here "gelu" is exact; write "gelu_new" into config.json for the approximation.
* The epsilon of the layer norms: TransformerLens always uses 1e-5; here `ln_eps` of config.json decides. The training
  code's default is 1e-5.

Not confirmed, because the published files were not available: the values in their config.json, and the dtype on disk.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

_SIZES = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "d_vocab")

# TransformerLens and `transformers` have the same names for the exact function and its tanh approximation.
_ACT_FNS = ("gelu", "gelu_new")

# Required values of settings, if present, for the model to be a GPT-2. Only the training code knows the neurons' scale
# and temperature.
_AS_IN_GPT2: dict[str, Any] = {
    "attn_only": False,
    "shortformer_pos": False,
    "positional_embedding_type": "standard",
    "normalization": "LN",
    "normalization_type": "LN",
    "final_rms": False,
    "attention_dir": "causal",
    "use_attn_scale": True,
    "use_local_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "parallel_attn_mlp": False,
    "gated_mlp": False,
    "neuron_scale": 1,
    "neuron_temp": 1,
}

_TOKENIZER_SOURCE = "NeelNanda/gpt-neox-tokenizer-digits"


def convert_gelu_1l(folder_in: Path, folder_out: Path) -> None:
    """Write the model in a folder of TransformerLens files as a Hugging Face folder, tokenizer included.

    Args:
        folder_in: Folder with config.json, the weights (one .pth or .safetensors file, or several of which one has a
            name that ends in "final"), and tokenizer.json with the tokenizer's other files.
        folder_out: Another folder; created if needed. Files with the same names are replaced.

    Raises:
        FileNotFoundError: the folder does not exist, or a file is missing from it.
        ValueError: both folders are the same, several files may hold the weights, a file is damaged, or the tokenizer
            has more tokens than the model; also for the reasons of `gelu_1l_from_state_dict`.
    """
    from safetensors.torch import save_file

    if not folder_in.is_dir():
        raise FileNotFoundError(f"No folder {str(folder_in)!r} to convert.")
    if folder_in.resolve() == folder_out.resolve():
        raise ValueError(f"folder_out is folder_in, {str(folder_in)!r}, whose config.json would be lost. Give another.")
    model = gelu_1l_from_state_dict(_state_dict(_weights_file(folder_in)), _config(folder_in))
    tokenizer = _tokenizer(folder_in)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"The tokenizer in {str(folder_in)!r} has {len(tokenizer)} tokens, but the model embeds "
            f"{model.config.vocab_size}. Use the model's own tokenizer, {_TOKENIZER_SOURCE}."
        )
    folder_out.mkdir(parents=True, exist_ok=True)
    # Not the model's own save_pretrained, which draws a progress bar.
    model.config.save_pretrained(folder_out)
    save_file(model.state_dict(), folder_out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder_out)


def gelu_1l_from_state_dict(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> "GPT2LMHeadModel":
    """Return the GPT-2 that computes exactly the same function as a TransformerLens state dict.

    Args:
        state: Weights under TransformerLens' names, without folded layer norms. They may include causal masks
            (`attn.mask`, `attn.IGNORE`) and an unembedding bias of zero.
        config: Contents of config.json.

    Returns:
        The model in evaluation mode, in the dtype of `embed.W_E`.

    Raises:
        ValueError: a size in the config is missing or not a positive integer, the config requires something that a
            GPT-2 does not have, weights are missing, unknown or of another shape, or the unembedding has a bias.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {name: _size(config, name) for name in _SIZES}
    _check_is_gpt2(config, sizes)
    _check_weights(state, _shapes(sizes))
    gpt2_config = GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=sizes["d_vocab"],
        n_positions=sizes["n_ctx"],
        n_embd=sizes["d_model"],
        n_layer=sizes["n_layers"],
        n_head=sizes["n_heads"],
        n_inner=sizes["d_mlp"],
        activation_function=config["act_fn"],
        layer_norm_epsilon=config.get("ln_eps", config.get("eps", 1e-5)),
        tie_word_embeddings=False,
        # GPT-2's own ids lie outside this vocabulary; the tokenizer knows the right ones.
        bos_token_id=None,
        eos_token_id=None,
    )
    # All weights drawn here are replaced, so the global random state should not change.
    with torch.random.fork_rng(devices=[]):
        model: Any = GPT2LMHeadModel(gpt2_config)
    model.to(state["embed.W_E"].dtype).load_state_dict(_gpt2_weights(state, sizes["n_layers"]))
    return model.eval()


def _gpt2_weights(state: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    weights = {
        "transformer.wte.weight": state["embed.W_E"],
        "transformer.wpe.weight": state["pos_embed.W_pos"],
        "transformer.ln_f.weight": state["ln_final.w"],
        "transformer.ln_f.bias": state["ln_final.b"],
        "lm_head.weight": state["unembed.W_U"].T,
    }
    for layer in range(n_layers):
        prefix = f"blocks.{layer}."
        block = {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
        weights |= {f"transformer.h.{layer}.{name}": weight for name, weight in _gpt2_block(block).items()}
    return weights


def _gpt2_block(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a block's weights; those of attention and MLP stay [in, out], as in GPT-2's `Conv1D`."""
    # [heads, d_model, d_head] becomes [d_model, heads * d_head]: all queries, then all keys, then all values.
    queries_keys_values = [block[f"attn.W_{kind}"].transpose(0, 1).flatten(start_dim=1) for kind in "QKV"]
    return {
        "ln_1.weight": block["ln1.w"],
        "ln_1.bias": block["ln1.b"],
        "attn.c_attn.weight": torch.cat(queries_keys_values, dim=1),
        "attn.c_attn.bias": torch.cat([block[f"attn.b_{kind}"].flatten() for kind in "QKV"]),
        "attn.c_proj.weight": block["attn.W_O"].flatten(end_dim=1),
        "attn.c_proj.bias": block["attn.b_O"],
        "ln_2.weight": block["ln2.w"],
        "ln_2.bias": block["ln2.b"],
        "mlp.c_fc.weight": block["mlp.W_in"],
        "mlp.c_fc.bias": block["mlp.b_in"],
        "mlp.c_proj.weight": block["mlp.W_out"],
        "mlp.c_proj.bias": block["mlp.b_out"],
    }


def _shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight, by its name in TransformerLens."""
    n_layers, d_model, heads, d_head, d_mlp, n_ctx, d_vocab = (sizes[name] for name in _SIZES)
    block: dict[str, tuple[int, ...]] = {
        **{f"attn.W_{kind}": (heads, d_model, d_head) for kind in "QKV"},
        **{f"attn.b_{kind}": (heads, d_head) for kind in "QKV"},
        "attn.W_O": (heads, d_head, d_model),
        "attn.b_O": (d_model,),
        "mlp.W_in": (d_model, d_mlp),
        "mlp.b_in": (d_mlp,),
        "mlp.W_out": (d_mlp, d_model),
        "mlp.b_out": (d_model,),
        **{f"{norm}.{part}": (d_model,) for norm in ("ln1", "ln2") for part in "wb"},
    }
    return {
        "embed.W_E": (d_vocab, d_model),
        "pos_embed.W_pos": (n_ctx, d_model),
        **{f"blocks.{layer}.{name}": shape for layer in range(n_layers) for name, shape in block.items()},
        "ln_final.w": (d_model,),
        "ln_final.b": (d_model,),
        "unembed.W_U": (d_model, d_vocab),
    }


def _check_weights(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    masks = {name for name in state if name.startswith("blocks.") and name.endswith((".attn.mask", ".attn.IGNORE"))}
    missing = [name for name in shapes if name not in state]
    unknown = [name for name in state if name not in {*shapes, *masks, "unembed.b_U"}]
    if missing or unknown:
        raise ValueError(
            f"The state dict lacks {len(missing)} weights ({', '.join(missing[:3]) or 'none'}) and has {len(unknown)} "
            f"unknown weights ({', '.join(unknown[:3]) or 'none'}). It must be one of "
            f"NeelNanda/GELU_*L512W_C4_Code as published: not a SoLU model, not the '_old' layout, and not saved by "
            f"TransformerLens with folded layer norms."
        )
    for name, shape in shapes.items():
        if state[name].shape != shape or not state[name].is_floating_point():
            raise ValueError(
                f"{name} must be floating point of shape {list(shape)} by the sizes in config.json; got "
                f"{state[name].dtype} of shape {list(state[name].shape)}. Weights and config.json must belong together."
            )
    if "unembed.b_U" in state and state["unembed.b_U"].any():
        raise ValueError(
            "unembed.b_U is not zero, but a GPT-2 has no bias on its logits. GELU-1L is published without one; "
            "TransformerLens makes one when it folds the last layer norm, so save the weights unfolded."
        )


def _check_is_gpt2(config: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    if config.get("act_fn") not in _ACT_FNS:
        raise ValueError(f"act_fn in config.json must be one of {', '.join(_ACT_FNS)}; got {config.get('act_fn')!r}.")
    for name, required in _AS_IN_GPT2.items():
        if config.get(name, required) != required:
            raise ValueError(
                f"{name} in config.json is {config[name]!r}, but a GPT-2 can only stand for a model with "
                f"{required!r}, as GELU-1L has it. Convert NeelNanda/GELU_1L512W_C4_Code."
            )
    d_model, heads, d_head = sizes["d_model"], sizes["n_heads"], sizes["d_head"]
    if heads * d_head != d_model:
        raise ValueError(
            f"In a GPT-2 n_heads * d_head is d_model, but config.json has {heads} * {d_head} = {heads * d_head} and "
            f"d_model {d_model}. Convert NeelNanda/GELU_1L512W_C4_Code, which has 8 * 64 = 512."
        )


def _size(config: Mapping[str, Any], name: str) -> int:
    size = config.get(name)
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"config.json must give {name}, a positive integer; got {size!r}. Download it again.")
    return size


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{str(folder)!r} has no config.json. Download it next to the weights.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}. Download it again.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, not a {type(config).__name__}. Download it again.")
    return config


def _weights_file(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.suffix in (".pth", ".safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{str(folder)!r} has no .pth or .safetensors file. The weights are model_final.pth in "
            f"NeelNanda/GELU_1L512W_C4_Code."
        )
    chosen = files if len(files) == 1 else [path for path in files if path.stem.endswith("final")]
    if len(chosen) != 1:
        raise ValueError(
            f"{str(folder)!r} has several files of weights, {', '.join(path.name for path in files)}, of which "
            f"{len(chosen)} have a name that ends in 'final'. Leave only the one to convert."
        )
    return chosen[0]


def _state_dict(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        # Nothing but tensors is unpickled.
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    # Damaged files raise many types of exceptions, including safetensors' plain Exception.
    except Exception as error:
        raise ValueError(f"Cannot read weights from {str(path)!r}: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(weight, Tensor) for weight in state.values()):
        raise ValueError(f"{str(path)!r} must hold a state dict, weights by their names, and nothing else.")
    return dict(state)


def _tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").exists():
        raise FileNotFoundError(
            f"{str(folder)!r} has no tokenizer.json. Put the tokenizer's files there, from {_TOKENIZER_SOURCE}."
        )
    try:
        # Not AutoTokenizer: since transformers 5, GPTNeoXTokenizer, which a published tokenizer_config.json names,
        # replaces the pre-tokenizer of tokenizer.json by its own, which does not split numbers into digits.
        return PreTrainedTokenizerFast.from_pretrained(folder)
    # Damaged files raise a plain Exception in tokenizers.
    except Exception as error:
        raise ValueError(f"Cannot read the tokenizer in {str(folder)!r}: {error}") from error
