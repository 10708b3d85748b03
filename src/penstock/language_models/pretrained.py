"""Loads a Hugging Face model and its tokenizer by name, with errors that name the request."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from penstock.language_models.model_source import ALLOWED, find_source, tell_code

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pretrained(
    name: str,
    *,
    dtype: str,
    device: str | torch.device,
    device_map: str | Mapping[str, Any] | None,
    revision: str | None,
    trust_remote_code: bool,
) -> tuple[Any, "PreTrainedTokenizerBase"]:
    """Load a causal language model and its tokenizer; arguments and errors are the same as for `LanguageModel.load`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    if device_map is not None and str(device) != "cpu":
        raise ValueError(
            f"device_map ({device_map!r}) places the model, so device ({device!r}) has no effect. Give one of them."
        )
    _check_device(device)
    source, only_local = find_source(name, revision=revision)
    if trust_remote_code:
        tell_code(source, revision)
    options: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": only_local,
    }
    try:
        with _no_bars_without_a_terminal():
            config = AutoConfig.from_pretrained(source, **options)
            _check_is_causal(config)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            _check_makes_tokens(tokenizer)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=DTYPES[dtype],
                device_map=device_map,
                output_loading_info=True,
                **options,
            )
        module, report = loaded
        _check_is_complete(report["missing_keys"])
        return module if device_map is not None else module.to(device), tokenizer
    # Damaged files raise a plain Exception in tokenizers and other types in safetensors.
    except Exception as error:
        raise ValueError(f"Cannot load the language model {name!r}: {error}\n({ALLOWED})") from error


@contextmanager
def _no_bars_without_a_terminal() -> Iterator[None]:
    """Keep the progress bars of `transformers` out of log files, then restore its setting."""
    from transformers.utils import logging

    silence = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if silence:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if silence:
            logging.enable_progress_bar()


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    # A torch built without CUDA asserts.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here: {error}") from error


def _check_is_causal(config: "PretrainedConfig") -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    brings_code = "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    is_known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not is_encoder and not config.is_encoder_decoder
    if not is_known and not brings_code:
        if hasattr(config, "vision_config") or hasattr(config, "audio_config"):
            inner = config.get_text_config()
            raise ValueError(
                f"it is a {config.model_type!r} model, which wraps a language model ({inner.model_type!r}) to read "
                f"images or sound as well. Save the language model in it by itself (`model.language_model` or "
                f"`model.model.language_model` with its head), or give the text model that it was made from."
            )
        raise ValueError(
            f"it is a {config.model_type!r} model, not a causal language model (one that reads from left to "
            f"right, such as GPT-2 or Llama)."
        )
    text = config.get_text_config()
    both_ways = {
        "use_bidirectional_attention": getattr(text, "use_bidirectional_attention", None) in (True, "all"),
        "is_causal": False in (getattr(config, "is_causal", None), getattr(text, "is_causal", None)),
    }
    if any(both_ways.values()):
        names = " and ".join(name for name, is_set in both_ways.items() if is_set)
        raise ValueError(
            f"it does not read from left to right: by {names} in its config, each token sees those after it. Its "
            f"cross-entropy, and what a replacement costs, would mean nothing. Choose a causal language model."
        )


def _check_makes_tokens(tokenizer: "PreTrainedTokenizerBase") -> None:
    # If files are missing, transformers may return a tokenizer without a vocabulary.
    if not tokenizer("text", add_special_tokens=False)["input_ids"]:
        raise ValueError("its tokenizer makes no tokens of text; the tokenizer's files are missing or damaged.")


def _check_is_complete(missing_keys: Iterable[str]) -> None:
    missing = sorted(missing_keys)
    if missing:
        raise ValueError(
            f"the checkpoint lacks {len(missing)} weights, which would be left random "
            f"({', '.join(missing[:3])}). Is it the checkpoint of a causal language model, head included?"
        )
