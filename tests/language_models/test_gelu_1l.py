"""GELU-1L's adapter, against a forward pass written from TransformerLens' definition in float64."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.language_models.gelu_1l import convert_gelu_1l, gelu_1l_from_state_dict
from penstock.language_models.loading import LanguageModel

SPECIAL = {"bos_token": "<|BOS|>", "eos_token": "<|EOS|>", "pad_token": "<|PAD|>"}
VOCAB = [*SPECIAL.values(), "a", "b", "c", "1", "2", "12", "t"]
# No two sizes are the same, so that a mistaken transposition cannot pass.
CONFIG = {
    "n_layers": 1,
    "d_model": 12,
    "n_heads": 4,
    "d_head": 3,
    "d_mlp": 20,
    "n_ctx": 16,
    "d_vocab": len(VOCAB),
    "act_fn": "gelu",
    "attn_only": False,
    "normalization": "LN",
    "shortformer_pos": False,
    "ln_eps": 1e-5,
    "neuron_scale": 1.0,
    "neuron_temp": 1.0,
    "tokenizer_name": "NeelNanda/gpt-neox-tokenizer-digits",
}
TOKENS = torch.tensor([[0, 3, 4, 4, 5, 8, 3, 6], [0, 7, 7, 7, 7, 7, 7, 7]])


def random_state(config: Mapping[str, Any] = CONFIG, *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Weights as the training code saves them, buffers included."""
    generator = torch.Generator().manual_seed(0)
    d_model, d_mlp, n_ctx, d_vocab = (config[name] for name in ("d_model", "d_mlp", "n_ctx", "d_vocab"))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    state = {"embed.W_E": draw(d_vocab, d_model), "pos_embed.W_pos": draw(n_ctx, d_model)}
    state |= {"ln_final.w": draw(d_model), "ln_final.b": draw(d_model)}
    for layer in range(config["n_layers"]):
        block = {"ln1.w": draw(d_model), "ln1.b": draw(d_model)}
        for kind in "QKV":
            block[f"attn.W_{kind}"] = 0.4 * draw(config["n_heads"], d_model, config["d_head"])
            block[f"attn.b_{kind}"] = draw(config["n_heads"], config["d_head"])
        block |= {"attn.W_O": draw(config["n_heads"], config["d_head"], d_model), "attn.b_O": draw(d_model)}
        block |= {"attn.mask": torch.ones(n_ctx, n_ctx).tril().bool(), "attn.IGNORE": torch.tensor(-1e5)}
        block |= {"ln2.w": draw(d_model), "ln2.b": draw(d_model)}
        block |= {"mlp.W_in": draw(d_model, d_mlp), "mlp.b_in": draw(d_mlp)}
        block |= {"mlp.W_out": draw(d_mlp, d_model), "mlp.b_out": draw(d_model)}
        state |= {f"blocks.{layer}.{name}": weight for name, weight in block.items()}
    return state | {"unembed.W_U": draw(d_model, d_vocab)}


class Reference:
    """The forward pass of TransformerLens' components, one head, query and key at a time where they matter."""

    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.weights = {name: weight.double() for name, weight in state.items()}
        self.config = config
        self.neurons: list[Tensor] = []

    def logits(self, tokens: Tensor) -> Tensor:
        weights = self.weights
        residual = weights["embed.W_E"][tokens] + weights["pos_embed.W_pos"][: tokens.shape[1]]
        for layer in range(self.config["n_layers"]):
            residual = residual + self.attention(f"blocks.{layer}.attn", self.norm(f"blocks.{layer}.ln1", residual))
            residual = residual + self.mlp(f"blocks.{layer}.mlp", self.norm(f"blocks.{layer}.ln2", residual))
        return torch.einsum("spd,dv->spv", self.norm("ln_final", residual), weights["unembed.W_U"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.config.get("ln_eps", 1e-5)).sqrt()
        return centred / scale * self.weights[f"{name}.w"] + self.weights[f"{name}.b"]

    def attention(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (
            torch.einsum("spd,hde->sphe", x, self.weights[f"{name}.W_{kind}"]) + self.weights[f"{name}.b_{kind}"]
            for kind in "QKV"
        )
        scores = torch.einsum("sqhe,skhe->shqk", q, k) / math.sqrt(self.config["d_head"])
        z = torch.zeros_like(q)
        for query in range(x.shape[1]):
            weight = scores[:, :, query, : query + 1].exp()
            z[:, query] = torch.einsum("shk,skhe->she", weight / weight.sum(-1, keepdim=True), v[:, : query + 1])
        return torch.einsum("sqhe,hed->sqd", z, self.weights[f"{name}.W_O"]) + self.weights[f"{name}.b_O"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        before = torch.einsum("spd,dm->spm", x, self.weights[f"{name}.W_in"]) + self.weights[f"{name}.b_in"]
        if self.config["act_fn"] == "gelu":
            after = before / 2 * (1 + torch.erf(before / math.sqrt(2)))
        else:
            after = before / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (before + 0.044715 * before**3)))
        self.neurons.append(after)
        return torch.einsum("spm,md->spd", after, self.weights[f"{name}.W_out"]) + self.weights[f"{name}.b_out"]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published tokenizer's three files, small: numbers are split into digits although "12" is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("digits")
    vocab = {token: id for id, token in enumerate(VOCAB)}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[("1", "2")]))
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPTNeoXTokenizer"}))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
    return folder


@pytest.fixture
def folder_in(tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A model and its tokenizer as they are downloaded."""
    folder = tmp_path / "gelu_1l"
    folder.mkdir()
    for path in tokenizer_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.save(random_state(dtype=torch.float32), folder / "model_final.pth")
    return folder


@pytest.fixture
def as_lm(tiny_tokenizer: Callable[..., Any]) -> Callable[..., LanguageModel]:
    def make(state: Mapping[str, Tensor], config: Mapping[str, Any] = CONFIG) -> LanguageModel:
        return LanguageModel(gelu_1l_from_state_dict(state, config), tiny_tokenizer(), "gelu-1l")

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"act_fn": "gelu_new"},
        {"ln_eps": 0.03},
        {"n_layers": 2},
        {"n_heads": 3, "d_head": 4},
    ],
)
def test_logits_and_neurons_are_those_of_the_definition(as_lm: Callable[..., LanguageModel], changes: dict) -> None:
    config = CONFIG | changes
    state = random_state(config)
    reference = Reference(state, config)
    expected = reference.logits(TOKENS)

    lm = as_lm(state, config)

    assert lm.dtype == torch.float64
    torch.testing.assert_close(lm.logits(TOKENS), expected, rtol=1e-10, atol=1e-10)
    for layer, neurons in enumerate(reference.neurons):
        acts = lm.activations(TOKENS, [f"mlp_act.{layer}"])[f"mlp_act.{layer}"]
        torch.testing.assert_close(acts, neurons, rtol=1e-10, atol=1e-12)


def test_the_epsilon_is_1e_5_where_the_config_has_none(as_lm: Callable[..., LanguageModel]) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "ln_eps"}
    state = random_state()

    torch.testing.assert_close(
        as_lm(state, config).logits(TOKENS), Reference(state, CONFIG).logits(TOKENS), rtol=1e-10, atol=1e-10
    )


def test_no_position_sees_a_later_token(as_lm: Callable[..., LanguageModel]) -> None:
    lm = as_lm(random_state())
    changed = TOKENS.clone()
    changed[:, 5] = 1

    before, after = lm.logits(TOKENS), lm.logits(changed)

    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=1e-12, atol=1e-12)
    assert ((after - before)[:, 5:].abs().amax(dim=-1) > 1e-3).all()


def test_only_the_position_embedding_tells_equal_tokens_apart(as_lm: Callable[..., LanguageModel]) -> None:
    state = random_state()
    same = torch.full((1, 16), 4)

    with_positions = as_lm(state).logits(same)[0]
    without = as_lm(state | {"pos_embed.W_pos": torch.zeros_like(state["pos_embed.W_pos"])}).logits(same)[0]

    torch.testing.assert_close(without, without[:1].expand_as(without), rtol=1e-12, atol=1e-12)
    assert ((with_positions - with_positions[:1])[1:].abs().amax(dim=-1) > 1e-3).all()


def test_the_models_dtype_is_the_weights(as_lm: Callable[..., LanguageModel]) -> None:
    assert as_lm(random_state(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_making_a_model_leaves_the_random_state_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)

    model = gelu_1l_from_state_dict(random_state(), CONFIG)

    assert torch.equal(torch.rand(3), expected)
    assert not model.training


def test_a_converted_folder_is_an_ordinary_language_model(folder_in: Path, tmp_path: Path) -> None:
    convert_gelu_1l(folder_in, tmp_path / "out" / "converted")

    lm = LanguageModel.load(tmp_path / "out" / "converted")

    assert lm.site_names == [
        f"{kind}.0" for kind in ("resid_pre", "attn_z", "attn_out", "mlp_act", "mlp_out", "resid_post")
    ]
    assert [lm.d_in(site) for site in lm.site_names] == [12, 12, 12, 20, 12, 12]
    assert (lm.num_layers, lm.vocab_size, lm.context) == (1, 10, 16)
    reference = Reference(random_state(dtype=torch.float32), CONFIG)
    torch.testing.assert_close(lm.logits(TOKENS).double(), reference.logits(TOKENS), rtol=1e-4, atol=1e-4)
    acts = lm.activations(TOKENS, ["mlp_act.0"])["mlp_act.0"]
    torch.testing.assert_close(acts.double(), reference.neurons[0], rtol=1e-4, atol=1e-4)


def test_converting_changes_no_weight_and_says_nothing(
    folder_in: Path, tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    convert_gelu_1l(folder_in, tmp_path / "converted")
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")

    loaded = LanguageModel.load(tmp_path / "converted").module.state_dict()
    expected = gelu_1l_from_state_dict(random_state(dtype=torch.float32), CONFIG).state_dict()

    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_the_tokenizer_keeps_its_digits_and_its_special_tokens(folder_in: Path, tmp_path: Path) -> None:
    convert_gelu_1l(folder_in, tmp_path / "converted")

    tokenizer = LanguageModel.load(tmp_path / "converted").tokenizer

    assert tokenizer("ab12c", add_special_tokens=False)["input_ids"] == [3, 4, 6, 7, 5]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)


def test_weights_may_come_as_safetensors_and_beside_others(folder_in: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.save({"of the beginning": torch.zeros(1)}, folder_in / "model_init.pth")
    convert_gelu_1l(folder_in, tmp_path / "from_pth")
    for path in folder_in.glob("*.pth"):
        path.unlink()
    save_file(random_state(dtype=torch.float32), folder_in / "weights.safetensors")
    convert_gelu_1l(folder_in, tmp_path / "from_safetensors")

    first, second = (LanguageModel.load(tmp_path / name).logits(TOKENS) for name in ("from_pth", "from_safetensors"))
    assert torch.equal(first, second)


def test_an_unembedding_bias_may_be_there_if_it_is_zero(as_lm: Callable[..., LanguageModel]) -> None:
    state = random_state()

    logits = as_lm(state | {"unembed.b_U": torch.zeros(10)}).logits(TOKENS)

    assert torch.equal(logits, as_lm(state).logits(TOKENS))
    for bias in (torch.ones(10), torch.eye(10)[3], torch.full((10,), float("nan"))):
        with pytest.raises(ValueError, match="unembed.b_U is not zero, but a GPT-2 has no bias"):
            gelu_1l_from_state_dict(state | {"unembed.b_U": bias}, CONFIG)


@pytest.mark.parametrize("name", ["embed.W_E", "blocks.0.attn.b_K", "blocks.0.ln2.b", "unembed.W_U"])
def test_a_missing_weight_is_named(name: str) -> None:
    state = random_state()
    del state[name]

    with pytest.raises(ValueError, match=rf"lacks 1 weights \({name}\) and has 0 unknown weights \(none\)"):
        gelu_1l_from_state_dict(state, CONFIG)


@pytest.mark.parametrize("name", ["blocks.0.mlp.ln.w", "blocks.1.ln1.w", "norm.w"])
def test_a_weight_without_a_place_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"lacks 0 weights \(none\) and has 1 unknown weights \({name}\)"):
        gelu_1l_from_state_dict(random_state() | {name: torch.ones(12)}, CONFIG)


@pytest.mark.parametrize(
    "name", ["embed.W_E", "unembed.W_U", "blocks.0.attn.W_Q", "blocks.0.attn.W_O", "blocks.0.mlp.W_in"]
)
def test_a_transposed_weight_is_an_error(name: str) -> None:
    state = random_state()
    shape = list(state[name].shape)

    with pytest.raises(ValueError, match=rf"{name} must be .* of shape \[{', '.join(map(str, shape))}\]"):
        gelu_1l_from_state_dict(state | {name: state[name].mT}, CONFIG)


def test_weights_must_be_floating_point() -> None:
    state = random_state()

    with pytest.raises(ValueError, match=r"embed.W_E must be floating point .* got torch.int32"):
        gelu_1l_from_state_dict(state | {"embed.W_E": state["embed.W_E"].int()}, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "solu_ln"}, "act_fn .* must be one of gelu, gelu_new; got 'solu_ln'"),
        ({"act_fn": None}, "act_fn .* got None"),
        ({"d_mlp": None}, "must give d_mlp, a positive integer; got None"),
        ({"n_ctx": 0}, "must give n_ctx, a positive integer; got 0"),
        ({"n_heads": 2}, r"n_heads \* d_head is d_model, but config.json has 2 \* 3 = 6 and d_model 12"),
        ({"attn_only": True}, "attn_only in config.json is True, but .* False"),
        ({"normalization": "RMS"}, "normalization in config.json is 'RMS', but .* 'LN'"),
        ({"shortformer_pos": True}, "shortformer_pos .* is True"),
        ({"final_rms": True}, "final_rms .* is True"),
        ({"use_attn_scale": False}, "use_attn_scale .* is False"),
        ({"neuron_temp": 2.0}, "neuron_temp .* is 2.0"),
    ],
)
def test_a_config_that_is_no_gpt2s_is_an_error(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gelu_1l_from_state_dict(random_state(), CONFIG | changes)


@pytest.mark.parametrize("name", ["config.json", "model_final.pth", "tokenizer.json"])
def test_a_missing_file_is_named_and_nothing_written(folder_in: Path, tmp_path: Path, name: str) -> None:
    (folder_in / name).unlink()

    with pytest.raises(FileNotFoundError, match=f"gelu_1l' has no .*{name.split('.')[-1]}"):
        convert_gelu_1l(folder_in, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("name", ["config.json", "model_final.pth", "tokenizer.json"])
def test_a_damaged_file_is_an_error(folder_in: Path, tmp_path: Path, name: str) -> None:
    (folder_in / name).write_bytes((folder_in / name).read_bytes()[:40])

    with pytest.raises(ValueError, match="gelu_1l.*"):
        convert_gelu_1l(folder_in, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_folders_that_cannot_be_converted_are_errors(folder_in: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No folder '.*nothing' to convert"):
        convert_gelu_1l(tmp_path / "nothing", tmp_path / "converted")
    with pytest.raises(ValueError, match="folder_out is folder_in"):
        convert_gelu_1l(folder_in, folder_in / ".." / "gelu_1l")
    (folder_in / "model_final.pth").rename(folder_in / "one.pth")
    torch.save({}, folder_in / "two.pth")
    with pytest.raises(ValueError, match="several files of weights, one.pth, two.pth, of which 0 "):
        convert_gelu_1l(folder_in, tmp_path / "converted")


def test_a_config_or_weights_of_the_wrong_kind_are_errors(folder_in: Path, tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], folder_in / "model_final.pth")
    with pytest.raises(ValueError, match="must hold a state dict"):
        convert_gelu_1l(folder_in, tmp_path / "converted")
    torch.save({"embed.W_E": 3}, folder_in / "model_final.pth")
    with pytest.raises(ValueError, match="must hold a state dict"):
        convert_gelu_1l(folder_in, tmp_path / "converted")
    (folder_in / "config.json").write_text("[1]")
    torch.save(random_state(), folder_in / "model_final.pth")
    with pytest.raises(ValueError, match="must hold a JSON object, not a list"):
        convert_gelu_1l(folder_in, tmp_path / "converted")


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(folder_in: Path, tmp_path: Path) -> None:
    config = CONFIG | {"d_vocab": 9}
    (folder_in / "config.json").write_text(json.dumps(config))
    torch.save(random_state(config), folder_in / "model_final.pth")

    with pytest.raises(ValueError, match="has 10 tokens, but the model embeds 9"):
        convert_gelu_1l(folder_in, tmp_path / "converted")


class Payload:
    """What a malicious file would hold."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_a_file_of_weights_does_not_run(folder_in: Path, tmp_path: Path) -> None:
    torch.save({"embed.W_E": Payload(tmp_path / "it_ran")}, folder_in / "model_final.pth")

    with pytest.raises(ValueError, match="Cannot read weights from"):
        convert_gelu_1l(folder_in, tmp_path / "converted")
    assert not (tmp_path / "it_ran").exists()
