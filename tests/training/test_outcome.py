"""The outcome of each SAE, read from a run's directory."""

from pathlib import Path

from penstock.training.outcome import outcome_of
from penstock.training.settings import DataConfig, RunConfig, SAEConfig


def test_each_sae_is_finished_or_diverged_or_missing(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "e")
    saes = [SAEConfig(arch="relu", site="s", d_sae=4, target_l0=1.0, name=name) for name in names]
    config = RunConfig(saes=tuple(saes), data=DataConfig(tokens=10_000))
    for name, files in {"a": ["cfg.json"], "b": ["diverged.txt"], "c": [], "e": ["cfg.json", "diverged.txt"]}.items():
        (tmp_path / "saes" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "saes" / name / file).write_text(f"{name} is NaN.\n")
    # Of e the message came later than the weights, which are of an earlier training.
    assert outcome_of(config, tmp_path) == (["a"], {"b": "b is NaN.", "e": "e is NaN."}, ["c", "d"])
