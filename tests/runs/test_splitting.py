"""Runs split by hand-computed bytes, and parts that are trained and joined against the whole run."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from penstock.formats import load_sae
from penstock.language_models.loading import LanguageModel
from penstock.paper.presets import PRESETS
from penstock.runs.estimate import estimate
from penstock.runs.finished_run import FinishedRun
from penstock.runs.run_evaluation import evaluate_run
from penstock.runs.splitting import GIB, join, split
from penstock.runs.sweep import prepare, train
from penstock.training.settings import DataConfig, OptimConfig, ResolvedRun, RunConfig, SAEConfig
from penstock.training.settings.config_file import read_config
from penstock.training.settings.defaults import PlannedModel

MakeRun = Callable[..., RunConfig]

D_IN, SITE = 6, "resid_post.0"

# By hand, for a model of 1,000 parameters and Gated SAEs of 10 latents at d_in 6, in batches of 8 from a buffer of 20.
# Once: the model; three buffers; the batch, raw and scaled; a step (gradients, 10 tensors of 40 pairs, 5 of the batch's
# size, a block).
ONCE = 4 * 1000 + 4 * 3 * 20 * 6 + 4 * 2 * 8 * 6 + 4 * (156 + 10 * 40 + 5 * 48 + 80)
# For each SAE: parameters and second moments, a count of steps, two numbers for each latent.
EACH = 4 * 156 + 4 * 156 + 8 + 16 * 10


def room_for(count: int) -> int:
    return ONCE + count * EACH


def sae(name: str, seed: int = 0, site: str = SITE, *, arch: str = "gated", **aim: float) -> SAEConfig:
    return SAEConfig(
        arch=arch, site=site, d_sae=10, recipe="paper", seed=seed, name=name, **(aim or {"target_l0": 3.0})
    )


def run_of(*saes: SAEConfig) -> ResolvedRun:
    data = DataConfig(tokens=800, buffer_tokens=20)
    run = RunConfig(saes=saes, data=data, optim=OptimConfig(batch_size=8), threads=1)
    return run.resolve(PlannedModel("model", 128, dict.fromkeys(run.sites, D_IN)))


def names(parts: Sequence[RunConfig]) -> list[str]:
    """Each part's SAEs in one text."""
    return [" ".join(sae.folder for sae in part.saes) for part in parts]


def dealt(max_bytes: int, *saes: SAEConfig) -> list[str]:
    return names(split(run_of(*saes), {one.site: D_IN for one in saes}, 1000, 4, max_bytes))


def of_seeds(letters: str, *seeds: int) -> list[SAEConfig]:
    return [sae(f"{letter}{seed}", seed) for letter in letters for seed in seeds]


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [
        (room_for(5), ["a0 b0 c0 d0 e0"]),
        (room_for(5) - 1, ["a0 b0 c0 d0", "e0"]),
        (room_for(2), ["a0 b0", "c0 d0", "e0"]),
        (room_for(2) - 1, ["a0", "b0", "c0", "d0", "e0"]),
        (room_for(1), ["a0", "b0", "c0", "d0", "e0"]),
    ],
)
def test_a_part_is_filled_up_to_the_limit(max_bytes: int, expected: list[str]) -> None:
    assert dealt(max_bytes, *of_seeds("abcde", 0)) == expected


def test_a_run_that_fits_stays_as_it_is() -> None:
    config = run_of(*of_seeds("abc", 1, 0))
    assert split(config, {SITE: D_IN}, 1000, 4, room_for(6)) == (config,)


def test_parts_share_all_other_settings() -> None:
    config = replace(run_of(*of_seeds("abc", 0)), log_steps=7, threads=1)
    parts = split(config, {SITE: D_IN}, 1000, 4, room_for(1))
    assert [replace(part, saes=config.saes) for part in parts] == [config] * 3


def test_an_sae_that_does_not_fit_alone_is_an_error_with_its_remedy() -> None:
    with pytest.raises(ValueError, match=r"a0 alone needs up to .* GiB, more than the limit .* lower buffer_tokens"):
        dealt(room_for(1) - 1, *of_seeds("ab", 0))
    # The largest is named, so that what holds it holds all.
    config = run_of(sae("small"), replace(sae("larger"), d_sae=999), replace(sae("large"), d_sae=1000))
    with pytest.raises(ValueError, match="large alone needs"):
        split(config, {SITE: D_IN}, 1000, 4, room_for(3))


def test_a_seed_stays_in_one_part_where_it_fits() -> None:
    # Room for four, in which two seeds of two fit, but one of three only once.
    assert dealt(room_for(4), *of_seeds("ab", 0, 1, 2)) == ["a0 b0 a1 b1", "a2 b2"]
    assert dealt(room_for(4), *of_seeds("abc", 0, 1)) == ["a0 b0 c0", "a1 b1 c1"]


def test_a_seed_too_large_for_a_part_fills_what_is_left_of_the_last_one() -> None:
    assert dealt(room_for(2), *of_seeds("abc", 0, 1)) == ["a0 b0", "c0 a1", "b1 c1"]


def test_seeds_of_one_site_come_before_another_site() -> None:
    saes = [sae(f"{letter}{seed}", seed, site) for seed in (0, 1) for letter, site in (("a", SITE), ("b", "mlp_out.1"))]
    assert dealt(room_for(2), *saes) == ["a0 a1", "b0 b1"]
    # Two sites need the buffer and the batch of both.
    assert dealt(room_for(4), *saes) == ["a0 a1", "b0 b1"]
    assert dealt(room_for(4) + 4 * 3 * 20 * 6 + 4 * 2 * 8 * 6, *saes) == ["a0 b0 a1 b1"]


def test_neighbours_in_sparsity_are_together_whatever_they_aim_at() -> None:
    arms = [
        *(sae(f"g{l0}", target_l0=float(l0)) for l0 in (3, 1, 2)),
        *(sae(f"r{coef:g}", arch="relu", sparsity_coef=coef) for coef in (0.3, 0.1, 0.2)),
    ]
    # Sparsest first: small targets, large coefficients. A ReLU SAE has 10 parameters less of each kind and a smaller
    # step, so room for two Gated ones is not enough for three of any kind.
    assert dealt(room_for(2), *arms) == ["g1 r0.3", "g2 r0.2", "g3 r0.1"]


def test_an_arm_with_fewer_saes_is_spread_over_the_parts() -> None:
    arms = [
        *(sae(f"g{l0}", target_l0=float(l0)) for l0 in (1, 2, 3, 4)),
        *(sae(f"r{l0}", arch="relu", target_l0=float(l0)) for l0 in (5, 6)),
    ]
    # Places 1/8, 3/8, 5/8, 7/8 and 1/4, 3/4.
    assert dealt(room_for(3), *arms) == ["g1 r5 g2", "g3 r6 g4"]


@pytest.mark.parametrize("gib", [96, 141, 200])
def test_gemmas_largest_site_is_split_into_parts_that_fit(gib: int) -> None:
    preset = PRESETS["gemma-7b"]
    (place,) = [place for place, site in enumerate(preset.sites) if site.name == "attn_z.20"]
    config = preset.run_configs(device="cuda")[place].resolve(preset.planned_model())
    about = {"attn_z.20": 4096}, preset.model_parameters.value, preset.num_layers.value
    parts = split(config, *about, gib * GIB)
    assert sorted(names([replace(config, saes=(one,)) for part in parts for one in part.saes])) == sorted(
        one.folder for one in config.saes
    )
    used = [estimate(part, *about).bytes_total for part in parts]
    assert max(used) <= gib * GIB
    # Only the last may have room for another.
    largest = 4 * (2 * 4096 * 196_608) * 2 * 1.001
    assert all(total + largest > gib * GIB for total in used[:-1])


def _room_for_one(config: ResolvedRun) -> int:
    """Enough for each of the run's SAEs, not for two."""
    widths = {site: 16 for site in config.sites}
    return max(estimate(replace(config, saes=(one,)), widths, 1000, 2).bytes_total for one in config.saes)


@pytest.fixture(scope="module")
def whole(tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two SAEs at two sites, trained at once; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    prepare(tiny_run(steps=30), folder, tiny_lm)
    train(folder, tiny_lm)
    return folder


@pytest.fixture(scope="module")
def trained(tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run prepared, and below it its trained parts; not to be changed."""
    folder = tmp_path_factory.mktemp("parted") / "run"
    config = prepare(tiny_run(steps=30), folder, tiny_lm)
    parts = split(config, {site: 16 for site in config.sites}, 1000, 2, _room_for_one(config))
    for number, part in enumerate(parts):
        prepare(part, folder / "parts" / str(number), tiny_lm)
        train(folder / "parts" / str(number), tiny_lm)
    return folder


@pytest.fixture
def parted(trained: Path, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A prepared run and its two trained parts."""
    folder = shutil.copytree(trained, tmp_path / "run")
    return folder, [folder / "parts" / str(number) for number in range(2)]


def test_joined_saes_are_those_of_the_whole_run_bit_for_bit(whole: Path, parted: tuple[Path, list[Path]]) -> None:
    folder, parts = parted
    join(folder, parts)
    assert read_config(folder) == read_config(whole)
    for one in read_config(whole).saes:
        expected, found = (load_sae(at / "saes" / one.folder) for at in (whole, folder))
        assert found.sae.arch == expected.sae.arch
        for name, value in expected.sae.state_dict().items():
            assert torch.equal(found.sae.state_dict()[name], value), name
        timeless = [{key: v for key, v in sae.metadata.items() if key != "train_seconds"} for sae in (expected, found)]
        assert timeless[0] == timeless[1]
    rows = [[json.loads(line) for line in (at / "metrics.jsonl").read_text().splitlines()] for at in (whole, folder)]
    by_sae = [sorted((row["sae"], row["step"], row["loss"]) for row in found) for found in rows]
    assert by_sae[0] == by_sae[1]


def test_a_joined_run_is_evaluated_and_studied_like_any_other(
    parted: tuple[Path, list[Path]], tiny_lm: LanguageModel
) -> None:
    folder, parts = parted
    join(folder, parts)
    saes = [one.folder for one in read_config(folder).saes]
    assert [record["name"] for record in evaluate_run(folder, tiny_lm)][:2] == saes
    assert list(FinishedRun.load(folder).saes) == saes


def test_a_join_that_was_killed_is_done_again(parted: tuple[Path, list[Path]]) -> None:
    folder, parts = parted
    first, second = (one.folder for one in read_config(folder).saes)
    (folder / "saes").mkdir()
    (parts[0] / "saes" / first).rename(folder / "saes" / first)
    join(folder, parts)
    join(folder, parts)
    assert {path.name for path in (folder / "saes").iterdir()} == {first, second}
    assert {json.loads(line)["sae"] for line in (folder / "metrics.jsonl").read_text().splitlines()} == {first, second}


def test_nothing_is_moved_while_an_sae_is_missing(parted: tuple[Path, list[Path]]) -> None:
    folder, parts = parted
    second = read_config(folder).saes[1].folder
    with pytest.raises(ValueError, match=rf"No part has 1 of 2 SAEs of the run in .* yet, e.g. {second}"):
        join(folder, parts[:1])
    (parts[1] / "saes" / second / "cfg.json").unlink()
    with pytest.raises(ValueError, match=f"yet, e.g. {second}"):
        join(folder, parts)
    assert not (folder / "saes").exists() and not (folder / "metrics.jsonl").exists()


@pytest.mark.parametrize("changed", ["other settings", "another SAE"])
def test_a_part_of_another_run_is_refused(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path, changed: str
) -> None:
    config = tiny_run()
    prepare(config, tmp_path / "run", tiny_lm)
    other = replace(config, data=replace(config.data, shuffle_seed=1))
    if changed == "another SAE":
        other = replace(config, saes=(*config.saes, replace(config.saes[0], seed=1)))
    prepare(other, tmp_path / "part", tiny_lm)
    with pytest.raises(ValueError, match="part is not a part of the run in .*: it has other settings or other SAEs"):
        join(tmp_path / "run", [tmp_path / "part"])


def test_folders_without_a_run_are_said(tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        join(tmp_path, [])
    prepare(tiny_run(), tmp_path, tiny_lm)
    with pytest.raises(FileNotFoundError, match="no_part"):
        join(tmp_path, [tmp_path / "no_part"])
