"""A tiny random model of every family, saved to disk as users have them and loaded back."""

import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from penstock.language_models.loading import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHARACTERS = string.ascii_letters
VOCAB_SIZE = 64
NUM_LAYERS = 3


class Family(NamedTuple):
    """How to build a model of a family, and where its parts are; not read from the library's table."""

    config: str
    settings: dict[str, Any]
    blocks: str
    attn_projection: str
    mlp_projection: str
    is_sum: bool = True
    """Whether the block adds attention and MLP to the residual stream and does nothing else to it."""


_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_GEMMA = _GROUPED | {"head_dim": 8}
_GEMMA2 = _GEMMA | {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_OPT = {key: value for key, value in _COMMON.items() if key != "intermediate_size"} | {"ffn_dim": 24}
_LLAMA_PARTS = ("model.layers", "self_attn.o_proj", "mlp.down_proj")
_OPT_PARTS = ("model.decoder.layers", "self_attn.out_proj", "fc2")

FAMILIES = {
    "gpt2": Family(
        "GPT2Config",
        {
            "vocab_size": VOCAB_SIZE,
            "n_embd": 16,
            "n_layer": NUM_LAYERS,
            "n_head": 4,
            "n_inner": 24,
            "n_positions": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "transformer.h",
        "attn.c_proj",
        "mlp.c_proj",
    ),
    "gpt_neox": Family("GPTNeoXConfig", _COMMON, "gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h"),
    "gpt_neox_sequential": Family(
        "GPTNeoXConfig",
        _COMMON | {"use_parallel_residual": False},
        "gpt_neox.layers",
        "attention.dense",
        "mlp.dense_4h_to_h",
    ),
    "llama": Family("LlamaConfig", _GROUPED, *_LLAMA_PARTS),
    "mistral": Family("MistralConfig", _GROUPED | {"sliding_window": 4}, *_LLAMA_PARTS),
    "qwen2": Family("Qwen2Config", _GROUPED, *_LLAMA_PARTS),
    "qwen3": Family("Qwen3Config", _GROUPED | {"head_dim": 8}, *_LLAMA_PARTS),
    "phi3": Family("Phi3Config", _GROUPED | {"sliding_window": 4}, *_LLAMA_PARTS),
    "gemma": Family("GemmaConfig", _GEMMA, *_LLAMA_PARTS),
    "gemma2": Family("Gemma2Config", _GEMMA2, *_LLAMA_PARTS),
    "gemma3_text": Family("Gemma3TextConfig", _GEMMA2, *_LLAMA_PARTS),
    "gemma3": Family(
        "Gemma3Config",
        {
            "text_config": _GEMMA2,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 63,
        },
        "model.language_model.layers",
        "self_attn.o_proj",
        "mlp.down_proj",
    ),
    "opt": Family("OPTConfig", _OPT, *_OPT_PARTS),
    "opt_350m": Family(
        "OPTConfig",
        _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 8},
        *_OPT_PARTS,
        is_sum=False,
    ),
}


def save_tiny_model(family: Family, folder: Path) -> None:
    """Write config, random weights and tokenizer to `folder`."""
    import transformers

    config = getattr(transformers, family.config)(**family.settings)
    module = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Norms and biases too: as they are initialised, many mistakes would not show.
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    module.save_pretrained(folder)
    build_tokenizer(bos=True, pad=True).save_pretrained(folder)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small take several times longer on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build_tokenizer(*, bos: bool, pad: bool, eos: bool = False) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {character: id for id, character in enumerate(["<pad>", "<s>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"unk_token": "<unk>"} | ({"bos_token": "<s>"} if bos else {}) | ({"pad_token": "<pad>"} if pad else {})
    if eos:
        special["eos_token"] = "<unk>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """Makes a tokenizer of one token a letter: <pad> is 0, <s> 1, <unk> 2, a 3, b 4, c 5, and so on."""

    def make(*, bos: bool = True, pad: bool = True, eos: bool = False) -> "PreTrainedTokenizerFast":
        """With `eos`, <unk> is the end of text, too."""
        return build_tokenizer(bos=bos, pad=pad, eos=eos)

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny model, written when it is first asked for."""
    root = tmp_path_factory.mktemp("tiny_models")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            save_tiny_model(FAMILIES[name], root / name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def load_tiny(model_folder: Callable[[str], Path]) -> Callable[..., LanguageModel]:
    """Loads a family's tiny model afresh, for tests that change it."""

    def load(name: str, *, dtype: str = "float32") -> LanguageModel:
        return LanguageModel.load(model_folder(name), dtype=dtype)

    return load


@pytest.fixture(scope="session", params=FAMILIES)
def family_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def family(family_name: str) -> Family:
    return FAMILIES[family_name]


@pytest.fixture(scope="session")
def lm(family_name: str, load_tiny: Callable[..., LanguageModel]) -> LanguageModel:
    """The tiny model of each family in turn; not to be changed."""
    return load_tiny(family_name)


@pytest.fixture(scope="session")
def gpt2(load_tiny: Callable[..., LanguageModel]) -> LanguageModel:
    """One tiny model for what does not depend on the family; not to be changed."""
    return load_tiny("gpt2")


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """Two rows of nine tokens: longer than the tiny models' sliding window of four."""
    return torch.randint(3, VOCAB_SIZE - 1, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def count_calls() -> Callable[[list[torch.nn.Module]], list[int]]:
    """Starts a count for each module of how often it runs, without hooks."""

    def start(modules: list[torch.nn.Module]) -> list[int]:
        counts = [0] * len(modules)

        def counting(index: int, forward: Callable[..., object]) -> Callable[..., object]:
            def counted(*args: object, **kwargs: object) -> object:
                counts[index] += 1
                return forward(*args, **kwargs)

            return counted

        for index, module in enumerate(modules):
            module.forward = counting(index, module.forward)
        return counts

    return start
