"""Loading models: what comes out of it, and what a user is told when it fails."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock.language_models import loading, model_source
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
        # Rows of another length may be summed in another order.
        torch.testing.assert_close(long[site][:, :9], short[site], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lm.logits(padded)[:, :9], lm.logits(tokens), rtol=1e-4, atol=1e-4)


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


def test_a_text_one_row_and_one_site_give_what_rows_and_sites_give(tiny_lm: LanguageModel) -> None:
    row = tiny_lm.tokens("abcd")
    bos = tiny_lm.tokenizer.bos_token_id
    assert row.tolist() == [bos, *tiny_lm.tokenizer("abcd", add_special_tokens=False)["input_ids"]]
    expected = tiny_lm.activations(row[None], ["resid_post.0"])["resid_post.0"][0]
    for tokens in ("abcd", row):
        assert torch.equal(tiny_lm.activations(tokens, "resid_post.0"), expected)
        assert torch.equal(tiny_lm.activations(tokens, ["resid_post.0"])["resid_post.0"], expected)
    assert torch.equal(tiny_lm.activations(row[None], "resid_post.0")[0], expected)
    assert len(tiny_lm.tokens("a" * 1000)) == tiny_lm.context
    with pytest.raises(ValueError, match="has no tokens"):
        tiny_lm.tokens("")


def test_a_model_without_a_stated_context_has_its_tokenizers(gpt2: LanguageModel) -> None:
    class NoLimit:
        pass

    assert loading._context(NoLimit(), gpt2.tokenizer) == gpt2.tokenizer.model_max_length  # pyright: ignore


def test_the_embedded_model_is_an_ordinary_folder(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_source, "EMBEDDED_FOLDER", model_folder("llama"))

    model = LanguageModel.load("embedded")

    assert model.name == "embedded"
    assert model.site_names[-1] == "resid_post.2"


def test_an_installation_without_the_embedded_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        monkeypatch.setattr(model_source, "EMBEDDED_FOLDER", folder)
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
def test_a_name_that_is_neither_a_folder_nor_in_the_cache_is_told_what_is_allowed() -> None:
    with pytest.raises(
        ValueError,
        match=r"language model 'nobody/has-this-model': there is no folder(.|\n)*\"embedded\", a local folder",
    ):
        LanguageModel.load("nobody/has-this-model")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that the Hub is asked for; it never answers."""
    import huggingface_hub

    addresses: list[str] = []

    def ask(url: str, **options: object) -> None:
        addresses.append(url)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    return addresses


@pytest.mark.parametrize("name", ["models/tiny-lama", "tiny-lama"])
def test_a_mistyped_folder_asks_the_hub_once_and_is_told_the_nearest(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).with_name("tiny-llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match=r"no folder .*\(did you mean '.*tiny-llama'\?\), and the Hub does not answer"):
        LanguageModel.load(name)

    assert len(asked) == 1


@pytest.mark.parametrize("name", ["a/folder/far/away", "no name at all", "models\\tiny"])
def test_a_name_that_cannot_be_on_the_hub_is_a_folder(asked: list[str], name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        LanguageModel.load(name)

    assert not asked


def test_a_model_in_the_cache_is_read_though_the_hub_does_not_answer(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: "cache/config.json")

    assert model_source.find_source("some/model", revision=None) == ("some/model", True)
    assert "some/model (Name or service not known); it is read from the cache" in caplog.text


def test_an_adapter_on_the_hub_is_told_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def ask(url: str, **options: object) -> None:
        if not url.endswith("adapter_config.json"):
            raise EntryNotFoundError("no such file")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)

    with pytest.raises(ValueError, match=r"'some/adapter' is an adapter \(PEFT\), not a model"):
        LanguageModel.load("some/adapter")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"adapter_config.json": '{"base_model_name_or_path": "gpt2"}'}, r"an adapter \(PEFT\) of gpt2, not a model"),
        ({"cfg.json": "{}", "sae.safetensors": ""}, "a sparse autoencoder, not a language model"),
        ({"config.json": '{"saes": []}'}, "a run of penstock, not a language model"),
        ({"model-q4.gguf": ""}, "GGUF files, which are not read"),
    ],
)
def test_a_folder_of_something_else_is_told_what_it_holds(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    with pytest.raises(ValueError, match=f"the folder holds {message}"):
        LanguageModel.load(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_told_to_be_one(copied_model: Path, file: str) -> None:
    (copied_model / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")

    with pytest.raises(ValueError, match=rf"{file} is a pointer of Git LFS.*`git lfs pull`"):
        LanguageModel.load(copied_model)


@pytest.mark.parametrize("config", ["Qwen2VLConfig", "LlavaConfig"])
def test_a_vision_language_wrapper_is_told_to_be_one(copied_model: Path, config: str) -> None:
    import transformers

    getattr(transformers, config)().save_pretrained(copied_model)

    with pytest.raises(ValueError, match="which wraps a language model .* to read images or sound as well"):
        LanguageModel.load(copied_model)


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


def test_code_that_comes_with_a_model_is_named_before_it_runs(
    copied_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((copied_model / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.HomemadeConfig"}}
    (copied_model / "config.json").write_text(json.dumps(config))
    (copied_model / "code.py").write_text("raise RuntimeError('it ran')")

    with pytest.raises(ValueError, match="it ran"):
        LanguageModel.load(copied_model, trust_remote_code=True)

    assert f"comes with the model in {copied_model} (trust_remote_code): code.py" in caplog.text


def test_a_model_without_code_is_not_told_to_run_any(copied_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    LanguageModel.load(copied_model, trust_remote_code=True)

    assert not caplog.messages


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
