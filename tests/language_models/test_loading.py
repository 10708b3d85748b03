"""Loading models: what comes out of it, and what a user is told when it fails."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock.language_models import loading, pretrained
from penstock.language_models.loading import LanguageModel


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub out of reach, as it is without a network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def copied_model(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder with a tiny model that a test may damage."""
    return shutil.copytree(model_folder("llama"), tmp_path / "a_model")


def test_a_loaded_model_knows_its_sizes(
    lm: LanguageModel, model_folder: Callable[[str], Path], family_name: str
) -> None:
    assert lm.name == str(model_folder(family_name))
    assert (lm.num_layers, lm.vocab_size, lm.context) == (3, 64, 32)
    assert lm.dtype == torch.float32
    assert lm.device == torch.device("cpu")
    assert lm.tokenizer("abc", add_special_tokens=False)["input_ids"] == [3, 4, 5]


def test_a_model_is_in_evaluation_mode_and_takes_no_gradients(lm: LanguageModel) -> None:
    assert not lm.module.training
    assert not any(parameter.requires_grad for parameter in lm.module.parameters())


def test_logits_are_those_of_the_model_called_by_hand(lm: LanguageModel, tokens: Tensor) -> None:
    logits = lm.logits(tokens)

    assert logits.shape == (2, 9, 64)
    assert torch.equal(logits, lm.module(input_ids=tokens).logits)


def test_padding_on_the_right_changes_nothing_before_it(lm: LanguageModel, tokens: Tensor) -> None:
    padded = torch.nn.functional.pad(tokens, (0, 7), value=0)
    sites = lm.site_names

    short, long = lm.activations(tokens, sites), lm.activations(padded, sites)

    for site in sites:
        torch.testing.assert_close(long[site][:, :9], short[site])
    torch.testing.assert_close(lm.logits(padded)[:, :9], lm.logits(tokens))


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt"])
def test_a_model_in_bfloat16_reads_and_splices_in_bfloat16(
    load_tiny: Callable[..., LanguageModel], tokens: Tensor, name: str
) -> None:
    model = load_tiny(name, dtype="bfloat16")
    clean = model.logits(tokens)
    acts = model.activations(tokens, model.site_names)

    assert model.dtype == clean.dtype == torch.bfloat16
    for site in model.site_names:
        assert acts[site].dtype == torch.bfloat16
        # An SAE computes in float32; what it returns is cast.
        assert torch.equal(model.logits(tokens, {site: lambda x: x.float()}), clean)


def test_the_width_of_a_site_is_measured_once(load_tiny: Callable[..., LanguageModel]) -> None:
    model = load_tiny("gpt2")

    assert model.d_in("mlp_act.1") == 24
    model.module = None  # pyright: ignore[reportAttributeAccessIssue]

    assert model.d_in("mlp_act.1") == 24


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[3] * 33], "rows have 33 tokens, but .* takes at most 32"),
        ([[3, 64]], "takes token ids from 0 to 63, got 3 to 64"),
        ([[-1, 3]], "got -1 to 3"),
    ],
)
def test_tokens_the_model_does_not_take_are_an_error(gpt2: LanguageModel, rows: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt2.logits(torch.tensor(rows))
    with pytest.raises(ValueError, match=message):
        gpt2.activations(torch.tensor(rows), ["resid_post.0"])


def test_no_tokens_and_no_sites_are_errors(gpt2: LanguageModel, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="got no tokens"):
        gpt2.logits(torch.zeros(0, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one site"):
        gpt2.activations(tokens, [])


def test_a_model_without_a_stated_context_has_its_tokenizers(gpt2: LanguageModel) -> None:
    class NoLimit:
        pass

    assert loading._context(NoLimit(), gpt2.tokenizer) == gpt2.tokenizer.model_max_length  # pyright: ignore


def test_the_embedded_model_is_an_ordinary_folder(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "EMBEDDED_FOLDER", model_folder("llama"))

    model = LanguageModel.load("embedded")

    assert model.name == "embedded"
    assert model.site_names[-1] == "resid_post.2"


def test_an_installation_without_the_embedded_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        monkeypatch.setattr(pretrained, "EMBEDDED_FOLDER", folder)
        with pytest.raises(FileNotFoundError, match="embedded language model is not in this installation.*no weights"):
            LanguageModel.load("embedded")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_with_a_file_missing_is_told_which(copied_model: Path, file: str) -> None:
    (copied_model / file).unlink()

    with pytest.raises(
        FileNotFoundError,
        match=rf"'.*a_model': the folder has no \w+ \(.*{file.split('.')[-1]}.*\"embedded\"",
    ):
        LanguageModel.load(copied_model)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_an_error_that_names_the_model(copied_model: Path, file: str) -> None:
    (copied_model / file).write_bytes((copied_model / file).read_bytes()[:50])

    with pytest.raises(ValueError, match="Cannot load the language model '.*a_model': "):
        LanguageModel.load(copied_model)


def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", "./nothing", "~/nothing"):
        with pytest.raises(FileNotFoundError, match="Language model .*: no folder .*nothing.*a local folder"):
            LanguageModel.load(path)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["nobody/has-this-model", "no name at all"])
def test_a_name_the_hub_does_not_have_is_told_what_is_allowed(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"Cannot load the language model '{name}'(.|\n)*\"embedded\", a local folder"
    ):
        LanguageModel.load(name)


@pytest.mark.parametrize("config", ["T5Config", "BertConfig", "BartConfig"])
def test_a_model_that_is_not_a_causal_language_model_is_an_error(copied_model: Path, config: str) -> None:
    import transformers

    getattr(transformers, config)().save_pretrained(copied_model)

    with pytest.raises(ValueError, match=f"it is a '{config[:-6].lower()}' model, not a causal language model"):
        LanguageModel.load(copied_model)


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [
        ("gemma3_text", "use_bidirectional_attention", True),
        ("gemma4_text", "use_bidirectional_attention", "all"),
        ("gemma", "use_bidirectional_attention", True),
        ("llama", "is_causal", False),
    ],
)
def test_a_decoder_made_bidirectional_is_an_error_with_the_reason(
    model_folder: Callable[[str], Path], tmp_path: Path, family: str, setting: str, value: object
) -> None:
    folder = shutil.copytree(model_folder(family), tmp_path / "both_ways")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {setting: value}))

    with pytest.raises(ValueError, match=f"does not read from left to right: by .*{setting}.* in its config"):
        LanguageModel.load(folder)


def test_weights_that_the_checkpoint_lacks_are_an_error(copied_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied_model / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, copied_model / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match=r"lacks 1 weights.*random .model\.layers\.1\.mlp\.down_proj\.weight"):
        LanguageModel.load(copied_model)


def test_a_tokenizer_that_makes_no_tokens_is_an_error(copied_model: Path) -> None:
    tokenizer = json.loads((copied_model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {"<pad>": 0, "<s>": 1, "<unk>": 2}
    tokenizer["model"]["unk_token"] = None
    (copied_model / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(ValueError, match="its tokenizer makes no tokens"):
        LanguageModel.load(copied_model)


def test_code_that_comes_with_a_model_does_not_run_unasked(copied_model: Path) -> None:
    config = json.loads((copied_model / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.HomemadeConfig"}}
    (copied_model / "config.json").write_text(json.dumps(config))
    (copied_model / "code.py").write_text(f"open({str(copied_model / 'it_ran')!r}, 'w')")

    with pytest.raises(ValueError, match="trust_remote_code"):
        LanguageModel.load(copied_model)

    assert not (copied_model / "it_ran").exists()


@pytest.mark.parametrize("dtype", ["float64", "int8", "bf16", ""])
def test_an_unknown_dtype_is_told_the_known_ones(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"dtype must be one of float32, bfloat16, float16; got '{dtype}'"):
        LanguageModel.load("embedded", dtype=dtype)


def test_devices_that_are_not_there_or_have_no_effect_are_errors(copied_model: Path) -> None:
    with pytest.raises(ValueError, match="device 'abacus' cannot be used here"):
        LanguageModel.load(copied_model, device="abacus")
    with pytest.raises(ValueError, match=r"device_map \('auto'\) places the model"):
        LanguageModel.load(copied_model, device="cuda", device_map="auto")


def test_a_device_map_without_accelerate_says_what_to_install(
    copied_model: Path, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        model = LanguageModel.load(copied_model, device_map={"": "cpu"})
    except ValueError as error:
        assert "accelerate" in str(error)
    else:
        assert torch.equal(model.logits(tokens), LanguageModel.load(copied_model).logits(tokens))
