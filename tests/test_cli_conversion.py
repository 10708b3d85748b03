"""`penstock convert-gelu-1l`: from published files to a model that the other commands take."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock.cli import main
from penstock.language_models.loading import LanguageModel

Published = tuple[Path, dict[str, Tensor]]


@pytest.fixture
def published(write_gelu_1l: Callable[[Path], dict[str, Tensor]], tmp_path: Path) -> Published:
    """The folder of the downloaded files, and the weights in it."""
    folder = tmp_path / "published files"
    return folder, write_gelu_1l(folder)


def test_the_converted_model_is_loaded_and_the_next_command_takes_it(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made for it" / "gelu 1l"
    folder, state = published
    assert main(["convert-gelu-1l", str(folder), str(out)]) == 0
    where, following = capsys.readouterr().out.splitlines()
    assert where == f"model: {out}"
    program, *arguments = shlex.split(following.removeprefix("next: "))
    assert (program, *arguments) == ("penstock", "reproduce", "gelu-1l", "--model", str(out))
    assert main([*arguments, "--dry-run"]) == 0

    model = LanguageModel.load(out)
    assert (model.d_in("mlp_act.0"), model.context, model.vocab_size) == (10, 130, 7)
    # A neuron at a lone first token, by hand: attention then takes the value of that token itself.
    weights = {name.removeprefix("blocks.0."): weight.double() for name, weight in state.items()}
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
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published_files, out = published[0], tmp_path / "out"

    def error(folder: Path, to: Path = out) -> str:
        assert main(["convert-gelu-1l", str(folder), str(to)]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("error: ") == 1 and "Traceback" not in captured.err
        return captured.err

    assert "No folder" in error(tmp_path / "nowhere")
    assert "folder_out is folder_in" in error(published_files, published_files)
    sizes = json.loads((published_files / "config.json").read_text())
    (published_files / "config.json").write_text(json.dumps(sizes | {"act_fn": "solu_ln"}))
    assert "act_fn in config.json must be one of gelu, gelu_new; got 'solu_ln'" in error(published_files)
    (published_files / "model_final.pth").unlink()
    assert "The weights are model_final.pth in NeelNanda/GELU_1L512W_C4_Code" in error(published_files)
    assert not out.exists()


def test_both_folders_have_to_be_given(published: Published, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["convert-gelu-1l", str(published[0])])
    assert "OUT" in capsys.readouterr().err
