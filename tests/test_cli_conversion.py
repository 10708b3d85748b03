"""`penstock convert-gelu-1l`: from published files to a model that the other commands take."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock.cli import main
from penstock.language_models.loading import LanguageModel

# No two are the same, so that none can stand for another.
SIZES = {"n_layers": 1, "d_model": 6, "n_heads": 2, "d_head": 3, "d_mlp": 10, "n_ctx": 130, "d_vocab": 7}


def random_state() -> dict[str, Tensor]:
    """A random TransformerLens state dict."""
    d_model, heads, d_head, d_mlp = (SIZES[name] for name in ("d_model", "n_heads", "d_head", "d_mlp"))
    block: dict[str, tuple[int, ...]] = {
        **{f"attn.W_{kind}": (heads, d_model, d_head) for kind in "QKV"},
        **{f"attn.b_{kind}": (heads, d_head) for kind in "QKV"},
        **{"attn.W_O": (heads, d_head, d_model), "attn.b_O": (d_model,)},
        **{"mlp.W_in": (d_model, d_mlp), "mlp.b_in": (d_mlp,), "mlp.W_out": (d_mlp, d_model), "mlp.b_out": (d_model,)},
        **{f"{norm}.{kind}": (d_model,) for norm in ("ln1", "ln2") for kind in "wb"},
    }
    shapes = {
        **{"embed.W_E": (SIZES["d_vocab"], d_model), "pos_embed.W_pos": (SIZES["n_ctx"], d_model)},
        **{f"blocks.0.{name}": shape for name, shape in block.items()},
        **{"ln_final.w": (d_model,), "ln_final.b": (d_model,), "unembed.W_U": (d_model, SIZES["d_vocab"])},
    }
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Weights, config.json and tokenizer in one folder, as they are downloaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "published files"
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(["<|BOS|>", *"abct"])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|BOS|>").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(SIZES | {"act_fn": "gelu"}))
    torch.save(random_state(), folder / "model_final.pth")
    return folder


def test_the_converted_model_is_loaded_and_the_next_command_takes_it(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made for it" / "gelu 1l"
    assert main(["convert-gelu-1l", str(published), str(out)]) == 0
    where, following = capsys.readouterr().out.splitlines()
    assert where == f"model: {out}"
    program, *arguments = shlex.split(following.removeprefix("next: "))
    assert (program, *arguments) == ("penstock", "reproduce", "gelu-1l", "--model", str(out))
    assert main([*arguments, "--dry-run"]) == 0

    model = LanguageModel.load(out)
    assert (model.d_in("mlp_act.0"), model.context, model.vocab_size) == (10, 130, 7)
    # A neuron at a lone first token, by hand: attention then takes the value of that token itself.
    weights = {name.removeprefix("blocks.0."): weight.double() for name, weight in random_state().items()}
    resid = weights["embed.W_E"][2] + weights["pos_embed.W_pos"][0]
    normed = (resid - resid.mean()) / (resid.var(correction=0) + 1e-5).sqrt() * weights["ln1.w"] + weights["ln1.b"]
    for head in range(2):
        resid = resid + (normed @ weights["attn.W_V"][head] + weights["attn.b_V"][head]) @ weights["attn.W_O"][head]
    resid = resid + weights["attn.b_O"]
    normed = (resid - resid.mean()) / (resid.var(correction=0) + 1e-5).sqrt() * weights["ln2.w"] + weights["ln2.b"]
    before = normed @ weights["mlp.W_in"] + weights["mlp.b_in"]
    expected = before / 2 * (1 + torch.erf(before / 2**0.5))
    acts = model.activations(torch.tensor([[2]]), ["mlp_act.0"])["mlp_act.0"]
    torch.testing.assert_close(acts.double().flatten(), expected, rtol=1e-4, atol=1e-5)


def test_what_is_wrong_with_the_files_is_said(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def error(folder: Path, to: Path = out) -> str:
        assert main(["convert-gelu-1l", str(folder), str(to)]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("error: ") == 1 and "Traceback" not in captured.err
        return captured.err

    assert "No folder" in error(tmp_path / "nowhere")
    assert "folder_out is folder_in" in error(published, published)
    (published / "config.json").write_text(json.dumps(SIZES | {"act_fn": "solu_ln"}))
    assert "act_fn in config.json must be one of gelu, gelu_new; got 'solu_ln'" in error(published)
    (published / "model_final.pth").unlink()
    assert "The weights are model_final.pth in NeelNanda/GELU_1L512W_C4_Code" in error(published)
    assert not out.exists()


def test_both_folders_have_to_be_given(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["convert-gelu-1l", str(published)])
    assert "OUT" in capsys.readouterr().err
