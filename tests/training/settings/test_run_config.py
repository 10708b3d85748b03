"""What a run's settings refuse, and that they come back from config.json as they were."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from penstock.training.settings import (
    DataConfig,
    EvalConfig,
    LanguageModelConfig,
    OptimConfig,
    ResamplingConfig,
    ResolvedRun,
    RunConfig,
    SAEConfig,
)
from penstock.training.settings.config_file import config_from_json, config_to_json, resolved_from_json
from penstock.training.settings.defaults import PlannedModel
from penstock.training.settings.recipes import KNOWN_RECIPES
from penstock.training.settings.sae_config import resolve_sae

MODEL = PlannedModel("model", context=128, widths={"resid_post.1": 16})


def sae(**changes: Any) -> SAEConfig:
    settings = {"arch": "gated", "site": "resid_post.1", "d_sae": 64, "recipe": "paper", "target_l0": 8.0}
    return SAEConfig(**(settings | changes))


def run(**changes: Any) -> RunConfig:
    return RunConfig(**({"saes": (sae(),), "data": DataConfig(tokens=409_600)} | changes))


def resolved(**changes: Any) -> ResolvedRun:
    return run(**changes).resolve(MODEL)


def everything_set() -> RunConfig:
    """No setting has its default, but for one of two that exclude each other."""
    return RunConfig(
        saes=(
            sae(
                name="mine",
                seed=3,
                lr=1e-3 / 3,
                lr_rule="given",
                warmup_share=0.2,
                beta1=0.1,
                optimiser="adam",
                grad_clip=0.5,
                decoder_init_norm=1.0,
                resample_at=(10.0, 20.5),
            ),
            sae(arch="relu", recipe="norm_weighted", target_l0=None, sparsity_coef=0.1 + 0.2),
        ),
        language_model=LanguageModelConfig(
            model="gpt2",
            dtype="bfloat16",
            device="cuda",
            device_map="auto",
            revision="x",
            trust_remote_code=True,
        ),
        data=DataConfig(
            text="a.jsonl",
            text_field="body",
            packing="truncated",
            context=64,
            tokens=10_000,
            buffer_tokens=500,
            model_batch_rows=3,
            shuffle_seed=9,
            mask_special_tokens=True,
            max_norm_multiple=10.0,
            skip_nonfinite=True,
        ),
        optim=OptimConfig(
            batch_size=100,
            beta2=0.99,
            encoder_precision="bfloat16",
            warmup_share=0.1,
            decay_share=0.3,
            sparsity_warmup_share=0.2,
        ),
        resampling=ResamplingConfig(
            unit="steps", window_tokens=500, inputs=77, encoder_scale=0.3, lr_dip=0.2, lr_dip_steps=5
        ),
        eval=EvalConfig(eval_tokens=50, bootstrap=20, eval_seed=4),
        checkpoint_steps=7,
        keep_checkpoints=True,
        log_steps=2,
        threads=3,
    )


@pytest.mark.parametrize("config", [run(), everything_set()], ids=["defaults", "everything set"])
def test_settings_come_back_from_json_as_they_were(config: RunConfig) -> None:
    text = config_to_json(config)
    assert config_from_json(text, "config.json") == config
    assert json.loads(text) == json.loads(json.dumps(asdict(config)))


def test_everything_set_leaves_no_default() -> None:
    """Keeps the round trip above honest when a setting is added."""
    mine, default = everything_set(), run(data=DataConfig())
    sections = [(mine.saes[0], sae()), (mine, default), *zip(vars(mine).values(), vars(default).values(), strict=True)]
    for section, blank in sections:
        if not hasattr(section, "__dataclass_fields__"):
            continue
        same = {key for key, value in vars(section).items() if value == getattr(blank, key)}
        assert same <= {
            "arch",
            "settings",
            "site",
            "d_sae",
            "recipe",
            "target_l0",
            "sparsity_coef",
            "paper_lambda",
            "cache_tokens",
            "checkpoint_minutes",
        }


def stored(change: Callable[[dict[str, Any]], Any]) -> str:
    settings = json.loads(config_to_json(run()))
    change(settings)
    return json.dumps(settings)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s["optim"].update(batch_sise=3), "no setting batch_sise: did you mean batch_size?"),
        (lambda s: s["saes"][0].update(traget_l0=3), "no setting traget_l0: did you mean target_l0?"),
        (lambda s: s.update(zzz=3), "no setting zzz: remove it (known here: saes, language_model, data"),
        (lambda s: s["optim"].update(beta2=3.0), "beta2=3.0 is out of range: it must be between 0 and 0.999999"),
        (lambda s: s["saes"][0].update(lr=-1.0), "lr=-1.0 is out of range"),
        (lambda s: s["saes"][0].pop("arch"), "required field missing @ $.saes[0].arch"),
        (lambda s: s["saes"][0].update(arch=None), "null is not of type str @ $.saes[0].arch"),
        (lambda s: s["saes"][0].update(d_sae="64"), '"64" is not of type int @ $.saes[0].d_sae'),
        (lambda s: s["data"].update(tokens=1000.5), "1000.5 is not of type int @ $.data.tokens"),
        (lambda s: s["data"].update(packing="sliced"), "sliced"),
        (
            lambda s: s["language_model"].update(trust_remote_code="false"),
            '"false" is not of type bool @ $.language_model.trust_remote_code',
        ),
        (lambda s: s.update(data=None), "expected DataConfig @ $.data"),
        (lambda s: s.update(saes=[]), "saes is empty"),
    ],
)
def test_a_stored_setting_that_cannot_be_is_named(change: Callable[[dict[str, Any]], Any], expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        config_from_json(stored(change), "runs/a/config.json")
    assert str(caught.value).startswith("runs/a/config.json does not hold the settings of a run: ")
    assert expected in str(caught.value)


def test_every_problem_of_a_stored_config_is_told_at_once() -> None:
    def spoil(settings: dict[str, Any]) -> None:
        settings["optim"]["batch_sise"] = 3
        settings["saes"][0]["lr"] = -1.0

    with pytest.raises(ValueError, match=r"(?s)lr=-1\.0.*batch_sise"):
        config_from_json(stored(spoil), "config.json")


def test_whole_numbers_stand_for_floats_in_json() -> None:
    config = config_from_json(stored(lambda s: s["saes"][0].update(lr=1, resample_at=[])), "config.json")
    assert config.saes[0].lr == 1.0
    assert isinstance(config.saes[0].lr, float)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_a_file_that_is_no_config_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="^runs/a/config.json (is not valid JSON|must be an object)"):
        config_from_json(text, "runs/a/config.json")


OUT_OF_RANGE: list[tuple[Callable[[], object], str]] = [
    (lambda: sae(d_sae=1), "d_sae=1 is out of range: it must be at least 2"),
    (lambda: sae(target_l0=64.0), "target_l0=64.0 is out of range: it must be above 0 and below d_sae=64"),
    (lambda: sae(target_l0=0.0), "target_l0=0.0 is out of range"),
    (lambda: sae(target_l0=None, sparsity_coef=-0.1), "sparsity_coef=-0.1 is out of range: it must be"),
    (lambda: sae(target_l0=None, sparsity_coef=float("nan")), "sparsity_coef=nan is out of range"),
    (lambda: sae(lr=0.0), "lr=0.0 is out of range: it must be between 1e-09 and 10"),
    (lambda: sae(beta1=1.0), "beta1=1.0 is out of range: it must be between 0 and 0.9999"),
    (lambda: sae(grad_clip=-1.0), "grad_clip=-1.0 is out of range"),
    (lambda: sae(recipe="norm_weighted", decoder_init_norm=0.0), "decoder_init_norm=0.0 is out of range"),
    (lambda: sae(seed=-1), "seed=-1 is out of range: it must be between 0 and"),
    (lambda: sae(arch="gate"), "arch='gate' is not known: it must be one of gated, relu"),
    (lambda: sae(recipe="papers"), "recipe='papers' is not known: it must be one of norm_weighted, norm_wei"),
    (lambda: DataConfig(tokens=0), "tokens=0 is out of range: it must be at least 1"),
    (lambda: DataConfig(context=1), "context=1 is out of range: it must be at least 2"),
    (lambda: DataConfig(cache_tokens=0), "cache_tokens=0 is out of range"),
    (lambda: DataConfig(buffer_tokens=1), "buffer_tokens=1 is out of range"),
    (lambda: DataConfig(model_batch_rows=0), "model_batch_rows=0 is out of range"),
    (lambda: DataConfig(shuffle_seed=2**40), "shuffle_seed=1099511627776 is out of range"),
    (lambda: OptimConfig(batch_size=0), "batch_size=0 is out of range"),
    (lambda: OptimConfig(beta2=1.0), "beta2=1.0 is out of range"),
    (lambda: OptimConfig(warmup_share=-0.1), "warmup_share=-0.1 is out of range"),
    (lambda: OptimConfig(warmup_share=0.6, decay_share=0.6), "their sum must be at most 1"),
    (lambda: ResamplingConfig(inputs=0), "resampling.inputs=0 is out of range"),
    (lambda: ResamplingConfig(window_tokens=0), "resampling.window_tokens=0 is out of range"),
    (lambda: ResamplingConfig(lr_dip=0.0), "resampling.lr_dip=0.0 is out of range"),
    (lambda: ResamplingConfig(lr_dip=1.1), "resampling.lr_dip=1.1 is out of range"),
    (lambda: ResamplingConfig(lr_dip_steps=0), "resampling.lr_dip_steps=0 is out of range"),
    (lambda: ResamplingConfig(encoder_scale=0.0), "resampling.encoder_scale=0.0 is out of range"),
    (lambda: EvalConfig(eval_tokens=0), "eval_tokens=0 is out of range"),
    (lambda: EvalConfig(bootstrap=9), "bootstrap=9 is out of range: it must be at least 10"),
    (lambda: EvalConfig(eval_seed=-1), "eval_seed=-1 is out of range"),
    (lambda: run(log_steps=0), "log_steps=0 is out of range"),
    (lambda: run(checkpoint_steps=0), "checkpoint_steps=0 is out of range"),
    (lambda: run(checkpoint_minutes=-1.0), "checkpoint_minutes=-1.0 is out of range"),
    (lambda: run(threads=0), "threads=0 is out of range"),
    (lambda: run(data=DataConfig(tokens=4095)), "tokens=4095 is less than one batch of batch_size=4096"),
]


@pytest.mark.parametrize(("make", "expected"), OUT_OF_RANGE, ids=[text for _, text in OUT_OF_RANGE])
def test_a_value_out_of_range_is_named_with_what_is_allowed(make: Callable[[], object], expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert expected in str(caught.value)


def test_exactly_one_of_target_l0_and_sparsity_coef_is_wanted() -> None:
    with pytest.raises(ValueError, match="exactly one of .*, got sparsity_coef and target_l0"):
        sae(sparsity_coef=0.1)
    with pytest.raises(ValueError, match="got none. The easiest to choose is target_l0"):
        sae(target_l0=None)


NO_EFFECT: list[tuple[Callable[[], object], tuple[str, ...]]] = [
    (
        lambda: DataConfig(text_field="body"),
        ("text_field='body' has no effect with text='embedded'", "Leave it out, or name"),
    ),
    (lambda: DataConfig(text="b.txt", text_field="body"), ("no effect with text='b.txt'", "Leave it out")),
    (
        lambda: DataConfig(cache_tokens=1000, buffer_tokens=500),
        ("buffer_tokens=500 has no effect with cache_tokens=1000", "Leave one of them out"),
    ),
    (
        lambda: DataConfig(cache_tokens=1000, tokens=500),
        ("cache_tokens=1000 is more than tokens=500", "Lower cache_tokens or raise tokens"),
    ),
    (
        lambda: sae(decoder_init_norm=0.1),
        ("decoder_init_norm=0.1 has no effect with the recipe 'paper'", "Leave it out, or train another"),
    ),
    (
        lambda: run(saes=(sae(resample_at=(0.5, 1.0)),)),
        ("resample_at=1 (share) is step 100, but the run has 100 steps", "Choose a moment inside the run"),
    ),
    (
        lambda: run(saes=(sae(resample_at=(0.0,)),)),
        ("resample_at=0 (share) is step 0", "it would have no effect"),
    ),
    (
        lambda: run(saes=(sae(resample_at=(100.0,)),), resampling=ResamplingConfig(unit="steps")),
        ("resample_at=100 (steps) is step 100", "check resampling.unit (share, steps or tokens)"),
    ),
    (
        lambda: resolved(resampling=ResamplingConfig(window_tokens=409_600)),
        ("resampling.window_tokens=409600 is not below the 409600 tokens of the run", "Lower it (default: 25600)"),
    ),
    (
        lambda: resolved(resampling=ResamplingConfig(window_tokens=60_000)),
        ("resample_at=0.125 (share) is after 49152 tokens. Latents can count", "Choose a later moment"),
    ),
    (
        lambda: resolved(saes=(sae(resample_at=(0.05,)),)),
        ("resample_at=0.05 (share) is after 20480 tokens", "after resampling.window_tokens=25600"),
    ),
    (
        lambda: resolved(saes=(sae(resample_at=(0.5, 0.501)),)),
        ("resample_at=0.5 (share) has no effect, because another moment is the same step 50", "Leave one of them out"),
    ),
    (
        lambda: resolved(resampling=ResamplingConfig(lr_dip=1.0, lr_dip_steps=3)),
        ("resampling.lr_dip_steps=3 has no effect with resampling.lr_dip=1", "Leave one of them out"),
    ),
    (
        lambda: resolved(checkpoint_minutes=5.0, checkpoint_steps=10),
        ("checkpoint_minutes=5 has no effect with checkpoint_steps=10", "Leave one of them out"),
    ),
    (lambda: sae(lr_rule="mine"), ("lr_rule='mine' has no effect without lr", "Leave it out")),
    (
        lambda: resolved(language_model=LanguageModelConfig(revision="main")),
        ("revision='main' has no effect with model='embedded', which is part of the package", "Leave it out"),
    ),
    (
        lambda: resolved(language_model=LanguageModelConfig(trust_remote_code=True)),
        ("trust_remote_code=True has no effect with model='embedded'", "Leave it out"),
    ),
    (
        lambda: resolved(language_model=LanguageModelConfig(model=str(Path(__file__).parent), revision="main")),
        ("revision='main' has no effect with model=", "is a local folder", "Leave it out"),
    ),
]


@pytest.mark.parametrize(("make", "expected"), NO_EFFECT, ids=[texts[0] for _, texts in NO_EFFECT])
def test_a_setting_without_effect_is_refused_with_the_remedy(
    make: Callable[[], object], expected: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert all(part in str(caught.value) for part in expected), str(caught.value)


def test_two_saes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="the same SAE twice: gated-paper-resid_post.1-64-l0_8-seed0"):
        run(saes=(sae(), sae()))
    run(saes=(sae(), sae(seed=1), sae(name="other")))


def test_a_run_without_saes_is_refused() -> None:
    with pytest.raises(ValueError, match="saes is empty"):
        run(saes=())


@pytest.mark.parametrize(
    ("unit", "moments", "steps"),
    [
        ("share", (0.125, 0.5), (12, 50)),
        ("steps", (3.0, 99.0), (3, 99)),
        ("tokens", (8192.0, 40000.0), (2, 10)),
    ],
)
def test_resampling_moments_become_steps(unit: Any, moments: tuple[float, ...], steps: tuple[int, ...]) -> None:
    one = sae(resample_at=moments)
    assert run(saes=(one,), resampling=ResamplingConfig(unit=unit)).resampling_steps(one) == steps


def test_names_tell_the_saes_of_a_sweep_apart() -> None:
    variants = [
        sae(),
        sae(arch="relu"),
        sae(recipe="norm_weighted"),
        sae(site="mlp_out.1"),
        sae(d_sae=65),
        sae(target_l0=9.0),
        sae(target_l0=None, sparsity_coef=8.0),
        sae(seed=1),
        sae(lr=1e-3),
    ]
    assert len({one.folder for one in variants}) == len(variants)


def test_sites_come_once_each_in_the_order_of_the_saes() -> None:
    saes = (sae(site="b.1"), sae(site="a.1"), sae(site="b.1", seed=1))
    assert run(saes=saes).sites == ("b.1", "a.1")


@pytest.mark.parametrize("recipe", KNOWN_RECIPES)
def test_what_an_sae_leaves_open_is_the_recipes_and_what_it_sets_stays(recipe: str) -> None:
    open_sae = sae(recipe=recipe)
    decided = resolve_sae(open_sae, MODEL, num_steps=100, warmup_share=0.05)
    defaults = KNOWN_RECIPES[recipe]
    assert (decided.beta1, decided.grad_clip) == (defaults.beta1, defaults.grad_clip)
    assert (decided.decoder_init_norm, decided.resample_at) == (
        defaults.decoder_init_norm,
        defaults.resample_at,
    )
    assert decided.name == open_sae.folder
    assert decided.lr is not None
    assert decided.lr_rule not in (None, "given")
    assert resolve_sae(decided, MODEL, num_steps=100, warmup_share=0.05) == decided
    assert decided.as_config() == replace(open_sae, **{name: getattr(decided, name) for name in vars(open_sae)})
    assert resolve_sae(decided.as_config(lr=None, lr_rule=None), MODEL, num_steps=100, warmup_share=0.05) == decided

    own = replace(open_sae, lr=0.02, beta1=0.3, grad_clip=2.0, resample_at=(0.4,))
    chosen = resolve_sae(own, MODEL, num_steps=100, warmup_share=0.05)
    assert (chosen.lr, chosen.lr_rule) == (0.02, "given")
    assert (chosen.beta1, chosen.grad_clip, chosen.resample_at) == (0.3, 2.0, (0.4,))


def test_the_papers_moments_of_resampling_are_not_taken_for_steps_or_tokens() -> None:
    for unit in ("steps", "tokens"):
        decided = resolve_sae(sae(), MODEL, num_steps=100, warmup_share=0.05, unit=unit)
        assert decided.resample_at == ()


@pytest.mark.parametrize(
    ("asked", "decided"),
    [({}, (10.0, None)), ({"checkpoint_minutes": 0.0}, (0.0, None)), ({"checkpoint_steps": 7}, (None, 7))],
)
def test_a_run_saves_by_time_or_by_steps(asked: dict[str, Any], decided: tuple[Any, Any]) -> None:
    found = resolved(**asked)
    assert (found.checkpoint_minutes, found.checkpoint_steps) == decided
    text = config_to_json(found)
    assert resolved_from_json(text, "config.json") == found
    assert config_from_json(text, "config.json").resolve(MODEL) == found


def test_a_run_of_an_older_version_goes_on_with_settings_that_are_refused_now() -> None:
    """Such a version stored both ways to save, and took any window."""
    older = json.loads(config_to_json(resolved()))
    older |= {"checkpoint_minutes": 10.0, "checkpoint_steps": 7}
    older["resampling"]["window_tokens"] = 10**9
    found = resolved_from_json(json.dumps(older), "config.json")
    assert (found.checkpoint_minutes, found.checkpoint_steps) == (None, 7)
    assert found.resampling.window_tokens == 10**9


@pytest.mark.parametrize(("tokens", "held"), [(2**20, 2**18), (2**18, 2**18), (8 * 4096, 8 * 4096)])
def test_the_default_buffer_holds_no_more_than_the_run_trains_on(tokens: int, held: int) -> None:
    assert resolved(data=DataConfig(tokens=tokens)).data.buffer_tokens == held


def test_models_and_texts_on_disk_are_found_from_every_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A relative model path once became a name on the Hub from another directory."""
    (tmp_path / "model").mkdir()
    (tmp_path / "a.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    there = resolved(
        data=DataConfig(text="a.jsonl", tokens=409_600), language_model=LanguageModelConfig(model="./model")
    )
    assert (there.data.text, there.data.text_field) == (str(tmp_path / "a.jsonl"), "text")
    assert there.language_model.model == str(tmp_path / "model")
    elsewhere = resolved(
        data=DataConfig(text="datasets:a", tokens=409_600), language_model=LanguageModelConfig(model="gpt2")
    )
    assert (elsewhere.data.text, elsewhere.language_model.model) == ("datasets:a", "gpt2")
    assert (resolved().data.text, resolved().language_model.model) == ("embedded", "embedded")
