"""A tiny random model of every family, saved to disk as users have them and loaded back."""

import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from packaging.version import Version

from penstock.language_models.loading import LanguageModel

# Lets the tests of this folder import `tiny_families`, which lies beside them.
sys.path.insert(0, str(Path(__file__).parent))

from tiny_families import FAMILIES, VOCAB_SIZE, Family  # noqa: E402

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHARACTERS = string.ascii_letters


def skip_if_too_new(family: Family) -> None:
    """Skip the test if the installed transformers does not know the family."""
    import transformers

    if Version(transformers.__version__) < Version(family.since):
        pytest.skip(f"{family.config} needs transformers {family.since}, here is {transformers.__version__}")


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
        skip_if_too_new(FAMILIES[name])
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
def model_types() -> set[str]:
    """The text models' `model_type` of all tiny models."""
    import transformers

    for family in FAMILIES.values():
        skip_if_too_new(family)
    configs = [getattr(transformers, family.config)(**family.settings) for family in FAMILIES.values()]
    return {config.get_text_config().model_type for config in configs}


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
