"""Whole runs on a tiny model: many SAEs on one stream, what is saved, and how a run ends and goes on."""

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from penstock.activations.sources import ShuffleBuffer
from penstock.formats import load_sae
from penstock.kernels.threads import workers_for
from penstock.language_models.loading import LanguageModel
from penstock.training.batches import activation_source
from penstock.training.checkpoint import CheckpointError, latest_checkpoint
from penstock.training.metrics_log import MetricsLog, SAERows
from penstock.training.run import TrainingRun
from penstock.training.settings import DataConfig, ResamplingConfig, RunConfig, SAEConfig
from penstock.training.settings.config_file import config_from_json, config_to_json
from penstock.training.settings.defaults import PlannedModel
from penstock.training.trainer import DivergenceError, SAETrainer

MakeRun = Callable[..., RunConfig]

GATED = "gated-paper-resid_post.0-48-l0_1-lr_0.03-seed0"
RELU = "relu-norm_weighted-resid_post.1-32-coef_0.6-seed0"


class Hooked(MetricsLog):
    """A log that calls something at one step."""

    hook: tuple[int, Callable[[], object]] = (-1, lambda: None)

    def write(self, step: int, tokens: int, rows: SAERows) -> None:
        super().write(step, tokens, rows)
        if step == self.hook[0]:
            self.hook[1]()


def train(
    config: RunConfig,
    folder: Path,
    model: LanguageModel,
    *,
    at: int = -1,
    then: Callable[[], object] = lambda: None,
) -> TrainingRun:
    """Start or resume a run in `folder` and train it to its end; calls `then` after step `at`."""
    folder.mkdir(exist_ok=True)
    run = TrainingRun.begin(config.resolve(model), folder, model)
    log = Hooked(folder / "metrics.jsonl", every=config.log_steps, last_step=config.num_steps)
    log.hook = (at, then)
    run.train(log)
    run.save_saes()
    return run


def results(folder: Path) -> dict[str, object]:
    """All that a run's SAEs are, to the bit, but for the time they took."""
    found: dict[str, object] = {}
    for path in sorted((folder / "saes").iterdir()):
        if (path / "diverged.txt").exists():
            assert [file.name for file in path.iterdir()] == ["diverged.txt"]
            continue
        found[path.name] = (path / "sae.safetensors").read_bytes()
        cfg = json.loads((path / "cfg.json").read_text())
        del cfg["metadata"]["train_seconds"]
        found[path.name + "/cfg"] = cfg
    return found


def logged(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


class Crash(BaseException):
    """Like a kill: nothing of ours may answer it."""


def crash() -> None:
    raise Crash


@pytest.fixture(scope="module", params=[False, True], ids=["buffer", "cache"])
def uninterrupted(
    request: pytest.FixtureRequest,
    tiny_run: MakeRun,
    tiny_lm: LanguageModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunConfig, Path]:
    """A run of 60 steps that nothing disturbed, in both ways of feeding it."""
    config = tiny_run(cached=request.param)
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train(config, folder, tiny_lm)
    return config, folder


def same_as(folder: Path, other: tuple[RunConfig, Path]) -> bool:
    return results(folder) == results(other[1]) and logged(folder) == logged(other[1])


def test_in_the_tiny_run_all_that_a_checkpoint_carries_matters(uninterrupted: tuple[RunConfig, Path]) -> None:
    _, folder = uninterrupted
    gated = results(folder)["gated-paper-resid_post.0-48-l0_1-lr_0.03-seed0/cfg"]
    assert isinstance(gated, dict)
    assert gated["metadata"]["resampled"] > 3
    assert gated["metadata"]["sparsity_coef"] != 0.3


@pytest.mark.parametrize("stop", [3, 20, 33, 59])
def test_a_run_that_crashed_goes_on_to_the_same_bits(
    uninterrupted: tuple[RunConfig, Path], tiny_lm: LanguageModel, tmp_path: Path, stop: int
) -> None:
    config, _ = uninterrupted
    with pytest.raises(Crash):
        train(config, tmp_path / "run", tiny_lm, at=stop, then=crash)
    assert not (tmp_path / "run" / "saes").exists()
    train(config, tmp_path / "run", tiny_lm)
    assert same_as(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_of_that_very_step(
    uninterrupted: tuple[RunConfig, Path], tiny_lm: LanguageModel, tmp_path: Path, number: signal.Signals
) -> None:
    config, _ = uninterrupted
    folder = tmp_path / "run"
    with pytest.raises(InterruptedError) as caught:
        train(config, folder, tiny_lm, at=27, then=lambda: signal.raise_signal(number))
    assert str(caught.value) == (
        f"Stopped by {number.name} at step 27 of 60; the state is saved. Continue with: penstock train --resume "
        f"{folder}"
    )
    latest = latest_checkpoint(folder / "checkpoints")
    assert latest is not None
    assert latest.name == "step_00000027"
    train(config, folder, tiny_lm)
    assert same_as(folder, uninterrupted)


class Dropped(Exception):
    """What a library for streaming may raise, of no type that we know."""


def drop(source: Any, at: int) -> None:
    """Make the text of a source fail at its row `at`, counted from now on, and go on with that row when asked again."""
    stream, seen = source.stream, 0

    def failing(start: Any) -> Any:
        nonlocal seen
        for harvest in stream(start):
            seen += 1
            if seen == at:
                raise Dropped("the connection was dropped")
            yield harvest

    source.stream = failing
    source._harvests = failing(source.position)


@pytest.mark.parametrize("at", [5, 6, 11])
@pytest.mark.parametrize("uninterrupted", [False], ids=["buffer"], indirect=True)
def test_a_text_that_fails_loses_no_step_and_the_error_says_how_to_go_on(
    uninterrupted: tuple[RunConfig, Path],
    tiny_lm: LanguageModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    at: int,
) -> None:
    config = replace(uninterrupted[0], checkpoint_steps=None)
    folder = tmp_path / "a run"
    folder.mkdir()
    run = TrainingRun.begin(config.resolve(tiny_lm), folder, tiny_lm)
    drop(run.source, at)
    with pytest.raises(Dropped):
        run.train(MetricsLog(folder / "metrics.jsonl", every=5, last_step=60))
    assert run.step > 0
    latest = latest_checkpoint(folder / "checkpoints")
    assert latest == folder / "checkpoints" / f"step_{run.step:08d}"
    told = f"The training stopped at step {run.step} of 60; the state of step {run.step} is saved. Continue with: "
    assert f"{told}penstock train --resume '{folder}'" in caplog.messages
    train(config, folder, tiny_lm)
    assert same_as(folder, uninterrupted)


def test_a_text_that_was_replaced_is_not_gone_on_with(
    tiny_run: MakeRun, tiny_lm: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    config = tiny_run(steps=25)
    text = tmp_path / "text.jsonl"
    text.write_bytes(corpus.read_bytes())
    config = replace(config, data=replace(config.data, text=str(text)))
    with pytest.raises(Crash):
        train(config, tmp_path / "run", tiny_lm, at=22, then=crash)
    text.write_text(text.read_text().swapcase().replace('"TEXT"', '"text"'))
    with pytest.raises(ValueError, match=r"text\.jsonl' is not the one that this run was started with.*--from"):
        train(config, tmp_path / "run", tiny_lm)
    text.write_bytes(corpus.read_bytes())
    assert train(config, tmp_path / "run", tiny_lm).step == 25


def test_an_error_in_the_middle_of_a_step_saves_no_half_step_and_names_the_last_whole_one(
    uninterrupted: tuple[RunConfig, Path],
    tiny_lm: LanguageModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, _ = uninterrupted
    folder = tmp_path / "run"
    step = SAETrainer.step

    def no_memory(trainer: SAETrainer, x: torch.Tensor, now: int, *validation: Any) -> dict[str, float]:
        if now == 33 and trainer.config.arch == "relu":
            raise MemoryError("out of memory")
        return step(trainer, x, now, *validation)

    monkeypatch.setattr(SAETrainer, "step", no_memory)
    with pytest.raises(MemoryError):
        train(config, folder, tiny_lm)
    monkeypatch.undo()
    assert latest_checkpoint(folder / "checkpoints") == folder / "checkpoints" / "step_00000020"
    assert any("stopped at step 33 of 60; the state of step 20 is saved" in message for message in caplog.messages)
    train(config, folder, tiny_lm)
    assert same_as(folder, uninterrupted)


def test_a_checkpoint_of_other_settings_is_an_error_with_the_remedy(
    uninterrupted: tuple[RunConfig, Path], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    config, _ = uninterrupted
    folder = tmp_path / "run"
    with pytest.raises(Crash):
        train(config, folder, tiny_lm, at=25, then=crash)
    other = replace(config, saes=(*config.saes, replace(config.saes[0], seed=1)))
    with pytest.raises(CheckpointError, match="step_00000020 does not fit the run's settings.*Restore config.json"):
        train(other, folder, tiny_lm)


def test_a_finished_run_resumes_to_itself(
    uninterrupted: tuple[RunConfig, Path], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    config = replace(uninterrupted[0], checkpoint_steps=25)
    folder = tmp_path / "run"
    train(config, folder, tiny_lm)
    latest = latest_checkpoint(folder / "checkpoints")
    assert latest is not None
    assert latest.name == "step_00000060"
    train(config, folder, tiny_lm)
    assert same_as(folder, uninterrupted)


def test_a_disk_that_fills_up_during_the_run_loses_nothing(
    uninterrupted: tuple[RunConfig, Path],
    tiny_lm: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, _ = uninterrupted
    folder = tmp_path / "run"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="step 40 could not .* No space left .*step_00000020. Make room"):
        train(config, folder, tiny_lm, at=30, then=lambda: monkeypatch.setattr(os, "fsync", full))
    monkeypatch.undo()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000020"]
    train(config, folder, tiny_lm)
    assert same_as(folder, uninterrupted)


def test_a_disk_that_is_really_full_loses_nothing(
    uninterrupted: tuple[RunConfig, Path], tiny_lm: LanguageModel, small_disk: Path
) -> None:
    config, _ = uninterrupted
    ballast = small_disk / "ballast"

    def fill() -> None:
        with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    with pytest.raises((CheckpointError, OSError), match="could not be written.*No space left.*Make room"):
        train(config, small_disk / "run", tiny_lm, at=30, then=fill)
    ballast.unlink()
    assert latest_checkpoint(small_disk / "run" / "checkpoints") is not None
    train(config, small_disk / "run", tiny_lm)
    assert same_as(small_disk / "run", uninterrupted)


def test_saes_that_find_no_room_are_saved_by_resuming(
    uninterrupted: tuple[RunConfig, Path], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    config, _ = uninterrupted
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "saes").write_text("in the way")
    with pytest.raises(OSError, match="could not be written to .*Its training is saved. Make room or give"):
        train(config, folder, tiny_lm)
    (folder / "saes").unlink()
    train(config, folder, tiny_lm)
    assert same_as(folder, uninterrupted)


def test_a_damaged_checkpoint_stops_the_resume_and_removing_it_goes_on_from_the_one_before(
    uninterrupted: tuple[RunConfig, Path], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    config, _ = uninterrupted
    folder = tmp_path / "run"
    with pytest.raises(Crash):
        train(config, folder, tiny_lm, at=45, then=crash)
    damaged = folder / "checkpoints" / "step_00000040"
    (damaged / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="step_00000040 is damaged.*continue from step_00000020"):
        train(config, folder, tiny_lm)
    for path in (*damaged.iterdir(),):
        path.unlink()
    damaged.rmdir()
    train(config, folder, tiny_lm)
    assert same_as(folder, uninterrupted)


def test_many_saes_on_one_stream_have_the_weights_that_each_gets_alone(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"d_sae": 48, "recipe": "paper", "target_l0": 1.0, "lr": 0.03}
    saes = (
        SAEConfig(arch="gated", site="resid_post.0", resample_at=(0.3, 0.6), **shared),
        SAEConfig(arch="relu", site="resid_post.0", resample_at=(0.6,), **shared),
        SAEConfig(arch="gated", site="resid_post.1", resample_at=(0.6,), seed=1, **shared),
        SAEConfig(arch="relu", site="resid_post.1", d_sae=40, recipe="norm_weighted", sparsity_coef=0.6),
    )
    together = train(tiny_run(*saes), tmp_path / "together", tiny_lm)
    assert all(trainer.resampled > 0 for trainer in together.trainers[:3])
    for number, sae in enumerate(saes):
        resampling = ResamplingConfig(inputs=300 if sae.recipe == "paper" else 819_200, window_tokens=64)
        alone = train(tiny_run(sae, resampling=resampling), tmp_path / f"alone{number}", tiny_lm)
        expected = alone.trainers[0].tensors()
        for name, value in together.trainers[number].tensors().items():
            assert torch.equal(value, expected[name]), (sae.folder, name)


def test_a_saved_sae_on_raw_activations_is_the_trained_one_on_scaled_ones(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    run = train(tiny_run(cached=True), tmp_path / "run", tiny_lm)
    for trainer in run.trainers:
        scale = run.scales[trainer.config.site]
        raw = run.source.sample(200, torch.Generator())[trainer.config.site]
        saved, facts = load_sae(tmp_path / "run" / "saes" / trainer.config.folder)
        assert facts.metadata["scale"] == scale
        assert not 0.9 < scale < 1.1
        torch.testing.assert_close(saved(raw), trainer.sae(raw * scale) / scale, rtol=1e-4, atol=1e-5)
        norms = trainer.sae.W_dec.norm(dim=1)
        code = trainer.sae.encode(raw * scale) * norms / scale
        torch.testing.assert_close(saved.encode(raw), code, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(saved.W_dec.norm(dim=1), torch.ones(trainer.sae.d_sae))


def test_the_scale_gives_each_site_unit_mean_squared_norm(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    run = TrainingRun.begin(tiny_run(cached=True).resolve(tiny_lm), tmp_path, tiny_lm)
    acts = run.source.sample(10**6, torch.Generator())
    for site in ("resid_post.0", "resid_post.1"):
        assert (acts[site] * run.scales[site]).square().sum(dim=1).mean() == pytest.approx(1.0, rel=1e-5)


def test_a_saved_sae_says_how_it_was_made(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path, corpus: Path
) -> None:
    run = train(tiny_run(cached=True), tmp_path / "run", tiny_lm)
    metadata = load_sae(tmp_path / "run" / "saes" / run.trainers[0].config.folder).metadata
    assert metadata["model"] == tiny_lm.name
    assert (metadata["text"], metadata["context"], metadata["packing"]) == (str(corpus), 32, "packed")
    assert (metadata["steps"], metadata["batch_size"], metadata["tokens_trained"]) == (60, 64, 3840)
    assert (metadata["unique_tokens"], metadata["passes"]) == (1500, 3840 / 1500)
    assert (metadata["recipe"], metadata["target_l0"], metadata["lr"]) == ("paper", 1.0, run.trainers[0].lr)
    # A steered coefficient moves: the mean over the last tenth is what trained the SAE.
    assert metadata["sparsity_coef"] == pytest.approx(metadata["coef_path"][-1])
    assert metadata["train_seconds"] > 0
    assert isinstance(metadata["warnings"], list)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_divergence_names_the_step_the_term_the_sae_and_the_last_checkpoint(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path, bad: float
) -> None:
    alone = tiny_run().saes[1]
    config = tiny_run(alone, cached=True, resampling=ResamplingConfig(window_tokens=64))
    folder = tmp_path / "run"
    folder.mkdir()
    run = TrainingRun.begin(config.resolve(tiny_lm), folder, tiny_lm)
    log = Hooked(folder / "metrics.jsonl", every=5, last_step=60)
    (trainer,) = run.trainers
    next_batch = run.source.next_batch

    def poisoned(batch_size: int) -> dict[str, torch.Tensor]:
        batch = next_batch(batch_size)
        batch["resid_post.1"][0] = bad
        return batch

    log.hook = (31, lambda: setattr(run.source, "next_batch", poisoned))
    with pytest.raises(DivergenceError) as caught:
        run.train(log)
    message = str(caught.value)
    told = (folder / "saes" / RELU / "diverged.txt").read_text().rstrip("\n")
    assert told.startswith(f"The reconstruction loss of {RELU} is") and "at step 31. Its learning rate is" in told
    assert message == f"{told} The last good checkpoint: {folder / 'checkpoints' / 'step_00000020'}."
    assert all(torch.isfinite(value).all() for value in trainer.tensors().values())


@pytest.mark.parametrize(("diverging", "other"), [("gated", RELU), ("relu", GATED)])
def test_a_neighbour_that_diverges_changes_no_bit_of_the_others(
    uninterrupted: tuple[RunConfig, Path],
    tiny_lm: LanguageModel,
    tmp_path: Path,
    diverge: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    diverging: str,
    other: str,
) -> None:
    diverge(diverging, 27)
    config, alone = uninterrupted
    train(config, tmp_path / "run", tiny_lm)
    assert results(tmp_path / "run") == {key: v for key, v in results(alone).items() if key.startswith(other)}
    gone = GATED if other == RELU else RELU
    told = (tmp_path / "run" / "saes" / gone / "diverged.txt").read_text()
    assert told.startswith(f"The reconstruction loss of {gone} is nan at step 27.") and told.endswith("(lr).\n")
    assert f"{told.rstrip()} It is left out, and the others continue." in caplog.messages
    # A row's step is counted after it: that of step 25 is the last one before the NaN.
    expected = [row for row in logged(alone) if row["sae"] == other or row["step"] <= 25]
    assert logged(tmp_path / "run") == expected


def test_what_has_diverged_is_not_tried_again_after_a_crash(
    uninterrupted: tuple[RunConfig, Path], tiny_lm: LanguageModel, tmp_path: Path, diverge: Callable[..., None]
) -> None:
    diverge("relu", 27)
    config, _ = uninterrupted
    folder = tmp_path / "run"
    train(config, tmp_path / "whole", tiny_lm)
    with pytest.raises(Crash):
        train(config, folder, tiny_lm, at=45, then=crash)
    run = train(config, folder, tiny_lm)
    assert [trainer.config.folder for trainer in run.trainers] == [GATED]
    assert results(folder) == results(tmp_path / "whole") and logged(folder) == logged(tmp_path / "whole")
    told = [(at / "saes" / RELU / "diverged.txt").read_text() for at in (folder, tmp_path / "whole")]
    assert told[0] == told[1]


def test_a_run_stops_when_no_sae_is_left(
    uninterrupted: tuple[RunConfig, Path], tiny_lm: LanguageModel, tmp_path: Path, diverge: Callable[..., None]
) -> None:
    diverge("gated", 12)
    diverge("relu", 27)
    folder = tmp_path / "run"
    with pytest.raises(DivergenceError) as caught:
        train(uninterrupted[0], folder, tiny_lm)
    last = (folder / "saes" / RELU / "diverged.txt").read_text().rstrip()
    assert str(caught.value) == (
        f"The last of 2 SAEs has diverged, too. {last} The last good checkpoint: "
        f"{folder / 'checkpoints' / 'step_00000020'}."
    )
    assert results(folder) == {}
    assert "nan at step 12" in (folder / "saes" / GATED / "diverged.txt").read_text()


def test_what_diverged_elsewhere_and_not_here_is_saved(
    uninterrupted: tuple[RunConfig, Path], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    (tmp_path / "run" / "saes" / GATED).mkdir(parents=True)
    (tmp_path / "run" / "saes" / GATED / "diverged.txt").write_text("On another machine.\n")
    train(uninterrupted[0], tmp_path / "run", tiny_lm)
    assert same_as(tmp_path / "run", uninterrupted)


def test_a_site_that_the_model_lacks_lists_those_it_has(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    sae = SAEConfig(arch="relu", site="resid_pots.0", d_sae=8, recipe="paper", target_l0=2.0)
    with pytest.raises(ValueError, match=r"(?s)resid_pots\.0.*resid_post"):
        TrainingRun.begin(tiny_run(sae).resolve(tiny_lm), tmp_path, tiny_lm)


def test_settings_that_do_not_fit_the_model_or_each_other_are_refused(
    tiny_run: MakeRun, tiny_lm: LanguageModel
) -> None:
    config = tiny_run()
    long = replace(config, data=replace(config.data, context=33))
    with pytest.raises(ValueError, match="context=33 is more than the 32 positions of .*Lower it"):
        long.resolve(tiny_lm)
    small = replace(config, data=replace(config.data, buffer_tokens=63))
    with pytest.raises(ValueError, match="buffer_tokens=63 is less than batch_size=64.*Raise buffer_tokens or lower"):
        small.resolve(tiny_lm)


def test_settings_of_a_resampling_that_never_happens_are_refused(tiny_run: MakeRun, tiny_lm: LanguageModel) -> None:
    def decided(recipe: str, **settings: Any) -> RunConfig:
        sae = SAEConfig(arch="relu", site="resid_post.0", d_sae=8, recipe=recipe, target_l0=2.0)
        return tiny_run(sae, resampling=ResamplingConfig(**settings)).resolve(tiny_lm)

    decided("norm_weighted", window_tokens=100)
    decided("paper", lr_dip=0.5)
    with pytest.raises(ValueError, match=r"^resampling.lr_dip=0.5 has no effect: no SAE .* set resample_at"):
        decided("norm_weighted", lr_dip=0.5)
    # The paper's own moments are shares of the run: another unit alone would switch resampling off.
    with pytest.raises(ValueError, match="resampling.unit='steps' has no effect"):
        decided("paper", unit="steps")


def test_what_is_left_open_is_decided_once_and_for_all(tiny_run: MakeRun, tiny_lm: LanguageModel) -> None:
    config = tiny_run(data=DataConfig(text="x.jsonl"), threads=None, resampling=ResamplingConfig())
    decided = config.resolve(tiny_lm)
    assert decided.data.context == 32
    assert decided.data.buffer_tokens == 2**18
    assert decided.threads == torch.get_num_threads()
    assert decided.optim.encoder_precision == "float32"
    on_cuda = replace(config, language_model=replace(config.language_model, device="cuda:1"))
    planned = PlannedModel(tiny_lm.name, tiny_lm.context, {site: tiny_lm.d_in(site) for site in config.sites})
    assert on_cuda.resolve(planned).optim.encoder_precision == "bfloat16"
    assert decided.resampling.window_tokens == config.data.tokens // 16
    assert decided.resampling.lr_dip_steps == 1000
    assert decided.data.text_field == "text"
    again = config_from_json(config_to_json(decided), "config.json")
    assert type(again) is RunConfig
    assert again.resolve(tiny_lm) == decided == decided.resolve(tiny_lm)


def test_a_short_run_harvests_little_more_than_it_trains_on(tiny_run: MakeRun, tiny_lm: LanguageModel) -> None:
    """The default buffer once made a run of 4,096 tokens harvest 269,231."""
    config = tiny_run(steps=10)
    config = replace(config, data=replace(config.data, buffer_tokens=None)).resolve(tiny_lm)
    source = activation_source(config, tiny_lm)
    assert isinstance(source, ShuffleBuffer)
    for _ in range(config.num_steps):
        source.next_batch(config.optim.batch_size)
    assert source.served == 640 <= source.harvested_first_pass <= 2 * 640 and not source.restarts


def test_saes_at_the_same_step_of_resampling_see_an_lr_dip(
    tiny_run: MakeRun, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(tiny_run(log_steps=1), folder, tiny_lm)
    rates = [row["lr"] for row in logged(folder) if row["sae"].startswith("gated")]
    # Resampling before step 18 (from 0), which is the row of step 19; back to full after 60 // 16 steps.
    assert rates[18] == pytest.approx(0.1 * rates[17])
    assert rates[21] == pytest.approx(rates[17])


@pytest.mark.parametrize(
    ("saes", "threads", "device", "expected"), [(2, 6, "cpu", 3), (4, 2, "cpu", 1), (2, 6, "cuda", 6)]
)
def test_workers_divide_the_threads_of_a_run(saes: int, threads: int, device: str, expected: int) -> None:
    before = torch.get_num_threads()
    workers = workers_for(saes, threads, device)

    def threads_after_an_operation() -> int:
        torch.ones(2**16).add(1)
        return torch.get_num_threads()

    number = min(saes, threads) if device == "cpu" else 1
    together = Barrier(number, timeout=60)
    found = [workers.submit(lambda: (together.wait(), threads_after_an_operation())[1]) for _ in range(number)]
    assert [one.result() for one in found] == number * [expected]
    workers.shutdown()
    assert torch.get_num_threads() == before
