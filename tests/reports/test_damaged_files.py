"""Files that disks and other hands have damaged: only errors of ours come out, of one line that names the file."""

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fake_run import write_fake_run

from penstock.evaluation.sums import read_sums
from penstock.formats import SAEFileError, load_sae, read_facts, save_sae
from penstock.json_files import FileError, read_object, read_rows
from penstock.language_models.loading import LanguageModel
from penstock.reports.data.run_data import read_published
from penstock.reports.pages.report import write_report
from penstock.saes import SAE
from penstock.studies.shared.ratios_to_run import comparisons_of
from penstock.studies.shared.study_records import read_or_make
from penstock.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from penstock.training.metrics_log import MetricsLog
from penstock.training.settings import EvalConfig, RunConfig
from penstock.training.settings.config_file import config_to_json, read_config

OURS = (FileError, SAEFileError, CheckpointError, FileNotFoundError, ValueError)
"""Not their subclasses: those of ValueError are Python's own, of a decoder or a codec."""

DEEP = "DEEP"
"""Stands for lists within each other, a thousand deep; Python's own writer would break at them."""

VALUES: list[Any] = [
    *(None, [], {}, -1, -2.5, 0, 0.5, True, "x", "", "\ud800", "a\nb", 10**400, math.inf, math.nan, DEEP),
    *([[]], [1, 2], {"a": 1}, {"a": {"b": [None]}}, 1e308, 2**60),
]
"""Replacements for a value in a damaged file."""

SEED = 12
MUTATIONS = 30
"""For each file and reader."""


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a document, the document itself first."""
    yield path
    if isinstance(document, dict):
        for key in document:
            yield from places(document[key], (*path, key))
    elif isinstance(document, list):
        for index in range(min(3, len(document))):
            yield from places(document[index], (*path, index))


def mutated_value(document: Any, generator: random.Random) -> str:
    """JSON of the document with one of its values replaced, left out or moved."""
    document = json.loads(json.dumps(document))
    path = generator.choice(list(places(document)))
    value = generator.choice(VALUES)
    if not path:
        document = value
    else:
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        if generator.random() < 0.1:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
    return json.dumps(document).replace(f'"{DEEP}"', "[" * 1000 + "]" * 1000)


def mutated_text(text: str, generator: random.Random) -> bytes:
    """The bytes of a file cut short, with a byte changed, or with something else in its place."""
    data = bytearray(text.encode())
    how = generator.randrange(4)
    if how == 0:
        return bytes(data[: generator.randrange(len(data))])
    if how == 1:
        data[generator.randrange(len(data))] = generator.randrange(256)
        return bytes(data)
    if how == 2:
        return bytes(data) + b"\x00" * 40
    return generator.choice([b"", b"\n", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b"[" * 5000 + b"]" * 5000])


def mutations(text: str, lines: bool) -> Iterator[bytes]:
    """Many damaged versions of a file of JSON, or of JSON lines; the same ones every time."""
    generator = random.Random(SEED)
    for _ in range(MUTATIONS):
        if generator.random() < 0.25:
            yield mutated_text(text, generator)
        elif lines:
            rows = text.splitlines()
            number = generator.randrange(len(rows))
            rows[number] = mutated_value(json.loads(rows[number]), generator)
            yield ("\n".join(rows) + "\n").encode()
        else:
            yield mutated_value(json.loads(text), generator).encode()


class Door(NamedTuple):
    """A file, and what reads it."""

    file: str
    read: Callable[[Path], object]
    """Takes the directory that the file lies in, or one above it."""


def read_log(run: Path) -> None:
    MetricsLog(run / "metrics.jsonl", every=1, last_step=10**6).start(10**6)


def read_study(run: Path) -> None:
    read_or_make(run, "toy", EvalConfig(), lambda: [{"name": "made again"}])


DOORS = {
    "cfg.json": Door("saes/a/cfg.json", lambda run: load_sae(run / "saes" / "a")),
    "config.json": Door("config.json", read_config),
    "metrics.jsonl": Door("metrics.jsonl", read_log),
    "records.jsonl, report": Door("records.jsonl", write_report),
    "metrics.jsonl, report": Door("metrics.jsonl", write_report),
    "comparison.json, report": Door("comparison.json", write_report),
    "config.json, report": Door("config.json", write_report),
    "environment.json, report": Door("environment.json", write_report),
    "published.json": Door("published.json", read_published),
    "study's settings.json": Door("studies/toy/settings.json", read_study),
    "study's records.jsonl": Door("studies/toy/records.jsonl", read_study),
    "study's comparison.json": Door("studies/toy/comparison.json", lambda run: comparisons_of(run, "toy")),
    "state.json": Door(
        "checkpoints/step_00000003/state.json", lambda run: load_checkpoint(run / "checkpoints" / "step_00000003")
    ),
}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
    random_sae: Callable[..., SAE],
    tiny_run: Callable[..., RunConfig],
    tiny_lm: LanguageModel,
) -> Path:
    """A run's directory with all files that are read."""
    run = tmp_path_factory.mktemp("whole") / "run"
    records = write_fake_run(run, target_l0s=(4, 16), seeds=(0,))
    log = run / "metrics.jsonl"
    # Few rows, for each mutation reads them all.
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:20]))
    published = [{"name": "gated", "arch": "gated", "d_sae": 10, "site": "resid_post.2", "l0": 8.0}]
    (run / "published.json").write_text(json.dumps(published))
    save_sae(random_sae("gated"), run / "saes" / "a", {"name": "a", "site": "resid_post.0", "lr": 0.1})
    (run / "config.json").write_text(config_to_json(tiny_run().resolve(tiny_lm)))
    read_or_make(run, "toy", EvalConfig(), lambda: records[:2])
    (run / "studies" / "toy" / "comparison.json").write_text((run / "comparison.json").read_text())
    save_checkpoint(run / "checkpoints", 3, {"W": torch.ones(3)}, {"scales": {"a": 1.5}, "saes": {"a": [1, None]}})
    return run


@pytest.mark.parametrize("name", DOORS)
def test_a_damaged_file_is_read_or_refused_in_one_line_that_names_it(name: str, whole: Path, tmp_path: Path) -> None:
    door = DOORS[name]
    run = shutil.copytree(whole, tmp_path / "run")
    file = run / door.file
    text = file.read_text()
    door.read(run)
    refused = 0
    for data in mutations(text, file.suffix == ".jsonl"):
        file.write_bytes(data)
        try:
            door.read(run)
        except Exception as error:
            refused += 1
            assert type(error) in OURS, f"{error!r} for {data[:2000]!r}"
            message = str(error)
            assert message.isprintable(), message
            assert file.parent.name in message, message
            assert len(message) < 1000, message
    # Mutations of numbers may be harmless, those of types are not; and a study's settings are only compared.
    assert refused > MUTATIONS / 10 or name == "study's settings.json"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"d_in": None}, "d_in must be a whole number of at least 1, found null"),
        ({"d_sae": -3}, "d_sae must be a whole number of at least 1, found -3"),
        ({"architecture": {"a": 1}}, 'architecture must be a text, found {"a": 1}'),
        ({"metadata": [1, 2]}, r"metadata must be an object, found \[1, 2\]"),
        ({"d_in": math.inf}, "NaN or infinite"),
    ],
)
def test_an_error_about_an_sae_says_file_key_expected_and_found(
    whole: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    folder = shutil.copytree(whole / "saes" / "a", tmp_path / "a")
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | change))
    with pytest.raises(SAEFileError, match=f"{folder}/cfg.json.*{told}"):
        read_facts(folder)


def test_sums_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "sums.safetensors"
    for tensors in (
        {"a/tokens": torch.ones(3, dtype=torch.float64), "a/l0": torch.ones(2, dtype=torch.float64)},
        {"a/tokens": torch.ones(3)},
        {"a/tokens": torch.ones(3, 1, dtype=torch.float64)},
        {"tokens": torch.ones(3, dtype=torch.float64)},
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=f"{path} is damaged: .*Delete it"):
            read_sums(path)


def test_rows_lose_only_a_last_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for torn in ("{", '{"a": {"b": 2}', "\x00" * 20, "nul"):
        path.write_text('{"a": 1}\n' + torn)
        assert read_rows(path) == ([{"a": 1}], 0, True)
        path.write_text(torn + '\n{"a": 1}\n')
        with pytest.raises(FileError, match="log.jsonl, line 1 is not valid JSON"):
            read_rows(path)
    path.write_text('{"a": NaN}\n{"a": [1e999, 2]}')
    assert read_rows(path) == ([{"a": None}, {"a": [None, 2]}], 2, False)


def test_an_object_with_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1e999}')
    with pytest.raises(FileError, match="NaN or infinite"):
        read_object(path)
