"""The command line, end to end on a tiny model, and every way in which it refuses."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import penstock
from penstock import cli
from penstock.cli import main
from penstock.cli.runs import Sweep
from penstock.formats import load_sae, save_sae
from penstock.language_models.loading import LanguageModel
from penstock.paper.presets import PRESETS
from penstock.runs.sweep import run_sweep
from penstock.saes import GatedSAE
from penstock.studies import STUDIES
from penstock.training.settings import ResamplingConfig, RunConfig, SAEConfig

PACKAGE = Path(penstock.__file__).parent
COMMANDS = ("sweep", "train", "eval", "report", "info", "study", "reproduce", "convert-gelu-1l")

Told = Callable[..., tuple[int, str, str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs a command line; gives its exit code, and what it printed on stdout and on stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            assert isinstance(error.code, int)
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def options(model: Path, corpus: Path, out: Path, more: str = "") -> list[str]:
    """Some 30 steps on the tiny model."""
    given = (
        f"--model {model} --text {corpus} --context 32 --tokens 1920 --batch-size 64 --buffer-tokens 512 "
        f"--model-batch-rows 8 --eval-tokens 200 --bootstrap 20 --log-steps 5 --threads 1 --out {out} {more}"
    )
    return shlex.split(given)


@pytest.fixture(scope="module")
def trained(tiny_lm_folder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of `penstock train`."""
    out = tmp_path_factory.mktemp("cli") / "run"
    more = "--site resid_post.0 --d-sae 32 --target-l0 4 --resampling.unit steps --resample-at 10 20"
    assert main(["train", *options(tiny_lm_folder, corpus, out, more)]) == 0
    return out


def sae_folder(run: Path) -> Path:
    (folder,) = (run / "saes").iterdir()
    return folder


def test_train_leaves_a_run_with_a_report_and_prints_the_numbers(
    told: Told, tiny_lm_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    more = "--arch relu --site mlp_out.1 --d-sae 24 --sparsity-coef 0.1 --recipe paper --seed 3"
    code, out, err = told("train", *options(tiny_lm_folder, corpus, tmp_path / "run", more))
    assert code == 0
    name = "relu-paper-mlp_out.1-24-coef_0.1-seed3"
    assert out.splitlines()[0].split() == [
        *("name", "l0", "loss_recovered", "delta_ce", "fvu", "reconstruction_bias", "frac_alive")
    ]
    assert out.splitlines()[1].startswith(name)
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out
    assert f"SAE: {tmp_path / 'run' / 'saes' / name}\n" in out
    assert "facts = penstock.load_sae(" in out
    assert load_sae(tmp_path / "run" / "saes" / name).sae.d_sae == 24
    assert (tmp_path / "run" / "pareto.svg").exists()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"]["tokens"], config["optim"]["batch_size"], config["threads"]) == (1920, 64, 1)
    assert "error" not in err


def test_settings_reach_the_run(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    (sae,) = config["saes"]
    assert (sae["arch"], sae["site"], sae["target_l0"], sae["resample_at"]) == (
        *("gated", "resid_post.0", 4.0),
        [10.0, 20.0],
    )
    assert config["resampling"]["unit"] == "steps"
    assert config["eval"] == {"eval_tokens": 200, "bootstrap": 20, "eval_seed": 0}


def test_sweep_trains_every_combination_and_compares(
    told: Told, tiny_lm_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    more = "--site resid_post.0 mlp_out.1 --arch gated relu --d-sae 16 --target-l0 2 4 --seed 1"
    code, out, _ = told("sweep", *options(tiny_lm_folder, corpus, tmp_path / "run", more))
    assert code == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    trained = {
        (record["site"], record["arch"], record["target_l0"], record["seed"]) for record in records if record["recipe"]
    }
    assert trained == {
        (site, arch, target, 1)
        for site in ("resid_post.0", "mlp_out.1")
        for arch in ("gated", "relu")
        for target in (2.0, 4.0)
    }
    comparisons = json.loads((tmp_path / "run" / "comparison.json").read_text())["comparisons"]
    assert {one["site"] for one in comparisons} == {"resid_post.0", "mlp_out.1"}
    assert all(record["name"] in out for record in records)


def test_the_papers_lambdas_are_for_gated_saes_alone(told: Told, tmp_path: Path) -> None:
    sweep = Sweep(paper_lambda=(8e-4, 5e-4), target_l0=(8.0,), d_sae=(64,), site=("resid_post.2",))
    model = LanguageModel.load("embedded")
    assert [(sae.arch, sae.paper_lambda, sae.target_l0) for sae in sweep.saes(model)] == [
        *[("gated", None, 8.0), ("gated", 8e-4, None), ("gated", 5e-4, None)],
        ("relu", None, 8.0),
    ]
    alone = Sweep(paper_lambda=(8e-4,), arch=("gated",), d_sae=(64,), site=("resid_post.2",))
    assert [sae.paper_lambda for sae in alone.saes(model)] == [8e-4]
    code, _, err = told("sweep", "--paper-lambda", "8e-4", "--out", str(tmp_path / "run"))
    assert code == 2 and "only for gated" in err and not (tmp_path / "run").exists()


def test_what_is_left_open_has_the_documented_default_and_nothing_is_drawn_without_a_terminal(
    told: Told, tiny_lm_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    code, out, err = told("train", *options(tiny_lm_folder, corpus, tmp_path / "run"))
    assert code == 0
    (sae,) = json.loads((tmp_path / "run" / "config.json").read_text())["saes"]
    assert (sae["arch"], sae["site"], sae["d_sae"], sae["target_l0"]) == ("gated", "resid_post.1", 128, 32.0)
    for text in (out, err):
        assert "\r" not in text
        assert "%|" not in text


def test_a_run_is_evaluated_again_to_the_same_records(told: Told, trained: Path) -> None:
    before = (trained / "records.jsonl").read_text()
    (trained / "records.jsonl").unlink()
    code, out, _ = told("eval", trained)
    assert code == 0
    assert (trained / "records.jsonl").read_text() == before
    assert f"report: {trained / 'report.html'}" in out


def test_a_saved_sae_is_evaluated_with_settings_of_its_own(told: Told, trained: Path) -> None:
    code, out, _ = told("eval", sae_folder(trained), "--eval-tokens", "100", "--bootstrap", "10")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert out.splitlines()[1].startswith(sae_folder(trained).name)


def test_a_run_takes_no_other_settings_when_it_is_evaluated(told: Told, trained: Path) -> None:
    code, _, err = told("eval", trained, "--eval-tokens", "100", "--text", "x.txt")
    assert code == 2
    assert "--text, --eval-tokens would have no effect" in err
    assert f"{trained}/saes/NAME" in err


def test_there_must_be_something_to_evaluate(told: Told) -> None:
    code, _, err = told("eval")
    assert code == 2
    assert "Give a run's directory or folders of SAEs" in err


def test_an_sae_does_not_fit_a_model_of_another_width(
    told: Told, trained: Path, tmp_path: Path, tiny_lm_folder: Path
) -> None:
    metadata = load_sae(sae_folder(trained)).metadata
    save_sae(GatedSAE(24, 30), tmp_path / "wide", metadata)
    code, _, err = told("eval", tmp_path / "wide", "--model", tiny_lm_folder, "--eval-tokens", "100")
    assert code == 1
    assert re.search(r"takes activations of width 24, but resid_post\.0 of .* has width 16", err)


def test_a_damaged_sae_is_an_error(told: Told, trained: Path, tmp_path: Path) -> None:
    save_sae(GatedSAE(16, 30), tmp_path / "sae", load_sae(sae_folder(trained)).metadata)
    (tmp_path / "sae" / "sae.safetensors").write_bytes(b"no")
    code, _, err = told("eval", tmp_path / "sae")
    assert code == 1
    assert "error: The SAE in" in err


def test_report_writes_the_report_and_the_figure(told: Told, trained: Path) -> None:
    for name in ("report.html", "pareto.png", "pareto.csv"):
        (trained / name).unlink()
    code, out, _ = told("report", trained)
    assert code == 0
    assert all((trained / name).exists() for name in ("report.html", "pareto.png", "pareto.csv"))
    assert str(trained / "report.html") in out


def test_report_of_no_run_is_an_error(told: Told, tmp_path: Path) -> None:
    code, _, err = told("report", tmp_path / "none")
    assert code == 1
    assert "There is no run directory" in err


def test_info_of_a_model_runs_it_once(told: Told, tiny_lm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    original = LanguageModel._forward
    monkeypatch.setattr(LanguageModel, "_forward", lambda model, tokens: runs.append(1) or original(model, tokens))

    code, out, _ = told("info", "--model", tiny_lm_folder, "--dtype", "bfloat16", "--device", "cpu")

    assert code == 0
    assert len(runs) == 1
    shown = re.search(r"for example (\S+)$", out.strip())
    assert shown is not None
    assert LanguageModel.load(tiny_lm_folder).d_in(shown[1]) > 0


def test_info_of_a_model_that_states_no_context_says_so(
    told: Told, tiny_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.language_models.loading._context", lambda config, tokenizer: int(1e30))

    assert "2 layers, context not stated, vocabulary 64" in told("info", "--model", tiny_lm_folder)[1]


def test_info_refuses_settings_of_a_model_where_there_is_none(told: Told, trained: Path) -> None:
    code, _, err = told("info", trained, "--dtype", "bfloat16")

    assert code == 2
    assert "--dtype would have no effect without a language model" in err


def test_what_a_file_says_is_not_enough_to_run_code(told: Told, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "handed_over")
    config = json.loads((run / "config.json").read_text())
    config["language_model"]["trust_remote_code"] = True
    (run / "config.json").write_text(json.dumps(config))

    for command in (
        ["eval", run],
        ["train", "--resume", run],
        ["train", "--from", run, "--out", tmp_path / "again"],
        ["pursuit", run],
    ):
        code, _, err = told(*command)
        assert code in (1, 2)
        assert "A settings file is not enough" in err
        assert "add --trust-remote-code to this command" in err
    assert told("train", "--resume", run, "--trust-remote-code")[0] == 0


def test_info_says_what_things_are(told: Told, trained: Path, tiny_lm_folder: Path) -> None:
    code, out, _ = told("info")
    assert code == 0
    assert "penstock: " in out
    assert "torch: " in out

    code, out, _ = told("info", "--model", tiny_lm_folder)
    assert code == 0
    assert "2 layers, context 32, vocabulary 64" in out
    assert re.search(r"resid_post\.1 +d_in 16", out)

    code, by_folder, _ = told("info", tiny_lm_folder)
    assert (code, by_folder) == (0, out)

    code, out, _ = told("info", trained)
    assert code == 0
    assert "a run of 1 SAEs, 30 steps\nstate: finished\n" in out
    (record,) = [one for one in map(json.loads, (trained / "records.jsonl").read_text().splitlines()) if one["recipe"]]
    assert f"  {record['name']}  L0 {record['l0']:.4g}  lr " in out

    code, out, _ = told("info", sae_folder(trained))
    assert code == 0
    assert "gated, d_in 16, d_sae 32" in out
    assert "site: resid_post.0" in out

    code, _, err = told("info", trained / "none")
    assert code == 1
    assert "is not an SAE" in err


def test_a_run_is_repeated_from_its_config(told: Told, trained: Path, tmp_path: Path) -> None:
    code, _, err = told("train", "--from", trained / "config.json", "--out", tmp_path / "again")
    assert code == 0, err
    name = sae_folder(trained).name
    weights = [(run / "saes" / name / "sae.safetensors").read_bytes() for run in (trained, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_a_finished_run_can_be_resumed(told: Told, trained: Path) -> None:
    before = (sae_folder(trained) / "sae.safetensors").read_bytes()
    code, _, err = told("train", "--resume", trained)
    assert code == 0, err
    assert (sae_folder(trained) / "sae.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--batch-size", "32", "--seed", "1"], "--batch-size, --seed"),
        (["--resampling.inputs", "5"], "--resampling.inputs"),
        (["--model", "gpt2"], "--model"),
        (["--eval-tokens", "5"], "--eval-tokens"),
    ],
)
def test_resume_and_from_take_no_other_setting(
    told: Told, trained: Path, tmp_path: Path, more: list[str], named: str
) -> None:
    for start in (["--resume", str(trained)], ["--from", str(trained), "--out", str(tmp_path / "x")]):
        code, _, err = told("train", *start, *more)
        assert code == 2
        assert f"{start[0]} takes every setting from the run's config.json" in err
        for name in named.split(", "):
            assert re.search(rf"{name}[, ].*would have no effect", err)
    assert not (tmp_path / "x").exists()


def test_resume_takes_no_out_and_no_from(told: Told, trained: Path, tmp_path: Path) -> None:
    for more in (["--out", str(tmp_path / "x")], ["--from", str(trained)]):
        code, _, err = told("sweep", "--resume", trained, *more)
        assert code == 2
        assert f"so {more[0]} would have no effect" in err


def test_a_stored_config_with_an_unknown_key_is_refused(told: Told, trained: Path, tmp_path: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    config["optim"]["batch_sise"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, err = told("train", "--from", tmp_path / "config.json", "--out", tmp_path / "x")
    assert code == 2
    assert "no setting batch_sise: did you mean batch_size?" in err


def test_a_damaged_checkpoint_is_an_error(told: Told, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("saes"))
    checkpoint = run / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    code, _, err = told("train", "--resume", run)
    assert code == 1
    assert f"error: The checkpoint {checkpoint} is damaged" in err
    assert "Remove that folder to train from the start" in err


# What cannot be, and the code and part of the message with which it is refused.
REFUSED = {
    "no --out": ("train", 2, "--out is missing"),
    "a site it lacks": ("train --out {out} --site resid_post.9 --d-sae 40", 2, "resid_post.1"),
    "a site it lacks, width open": ("train --out {out} --site resid_pots.1", 2, "resid_post.1"),
    "a dtype it lacks": ("train --out {out} --dtype float8", 2, "float32, bfloat16, float16"),
    "no such model": ("train --out {out} --model {out}/none", 2, "none"),
    "no such text": ("train --out {out} --text {out}.txt", 2, "No text source"),
    "no such run": ("train --resume {out}", 2, "Start one with penstock train"),
    "no such config": ("train --from {out} --out {out}2", 2, "does not exist"),
    "both aims": ("train --out {out} --target-l0 8 --sparsity-coef 1", 2, "got sparsity_coef and target_l0"),
    "out of range": ("train --out {out} --lr -1", 2, "lr=-1.0 is out of range"),
    "out of range width": ("train --out {out} --d-sae 0", 2, "d_sae=0 is out of range"),
    "context too long": ("sweep --out {out} --context 33", 2, "context=33 is more than the 32 positions"),
    "batch too large": ("sweep --out {out} --buffer-tokens 9", 2, "buffer_tokens=9 is less than batch_size"),
    "no effect": ("train --out {out} --decoder-init-norm 0.5 --recipe paper", 2, "has no effect"),
    "no choice": ("train --out {out} --arch gate", 2, "gated"),
    "no number": ("train --out {out} --d-sae many", 2, "many"),
    "below a file": ("train --out {file}/run --d-sae 8 --target-l0 2", 2, "is a file. Choose another --out"),
    "no command": ("", 2, "sweep"),
    "no such command": ("trian", 2, "train"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_a_reason_and_leaves_nothing_behind(
    told: Told, tiny_lm_folder: Path, corpus: Path, tmp_path: Path, case: str
) -> None:
    line, expected_code, expected = REFUSED[case]
    out, file = tmp_path / "run", tmp_path / "file"
    file.write_text("")
    arguments = shlex.split(line.format(out=out, file=file))
    for flag, value in (("--model", tiny_lm_folder), ("--text", corpus)):
        if "--out" in arguments and "--from" not in arguments and flag not in arguments:
            arguments += [flag, str(value)]
    code, _, err = told(*arguments)
    assert code == expected_code, err
    assert expected in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_holds_a_run_is_not_run_over(
    told: Told, trained: Path, tiny_lm_folder: Path, corpus: Path
) -> None:
    before = sorted(path for path in trained.rglob("*"))
    code, _, err = told("train", *options(tiny_lm_folder, corpus, trained))
    assert code == 2
    assert f"{trained} already holds a run. Continue it with: penstock train --resume {trained}" in err
    assert sorted(path for path in trained.rglob("*")) == before


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [("--traget-l0", "--target-l0"), ("--batchsize", "--batch-size"), ("--resampling.imputs", "--resampling.inputs")],
)
def test_a_mistyped_option_suggests_the_right_one(told: Told, mistyped: str, meant: str) -> None:
    code, _, err = told("train", mistyped, "3")
    assert code == 2
    assert "Perhaps you meant" in err
    assert meant in err


def test_ctrl_c_outside_the_training_ends_with_a_message(
    told: Told, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LanguageModel, "load", interrupt)
    code, _, err = told("info", "--model", "any")
    assert code == 1
    assert "error: stopped by Ctrl-C" in err


SECTION_FIELDS = {"language_model", "data", "optim", "resampling", "eval", "settings", "refit"}
"""Fields that hold a section, whose own fields are what is told."""


def documented_fields(path: Path, names: set[str]) -> dict[str, dict[str, str]]:
    """For each class the texts under its fields, read from the source and not from the parser."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(path.read_text()).body:
        if not (isinstance(node, ast.ClassDef) and node.name in names):
            continue
        found[node.name] = {}
        for statement, below in zip(node.body, node.body[1:], strict=False):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            field = statement.target.id
            if field not in SECTION_FIELDS:
                assert isinstance(below, ast.Expr), f"{node.name}.{field} has no text under it"
                assert isinstance(below.value, ast.Constant)
                found[node.name][field] = str(below.value.value)
    return found


SECTIONS = {"LanguageModelConfig", "DataConfig", "OptimConfig", "ResamplingConfig", "EvalConfig"}


@pytest.mark.parametrize(
    ("command", "classes"),
    [
        ("train", {"_Run", "Train"} | SECTIONS),
        ("sweep", {"_Run", "Sweep"} | SECTIONS),
        ("eval", {"Eval", "EvalConfig"}),
        ("report", {"Report"}),
        ("info", {"Info"}),
        ("study pursuit", {"PursuitConfig"}),
        ("study pruning", {"PruningConfig"}),
        ("study refit", {"RefitStudyConfig", "RefitConfig"}),
        ("study dictionaries", {"DictionariesConfig"}),
        ("study concepts", {"ConceptsConfig"}),
        ("study cost", {"CostConfig"}),
        ("study shrinkage", {"ShrinkageConfig"}),
        ("study ablations", {"AblationsConfig"}),
        ("study sensitivity", {"SensitivityConfig"}),
        ("reproduce", {"Reproduce"}),
    ],
)
def test_help_tells_what_every_setting_is(
    told: Told, monkeypatch: pytest.MonkeyPatch, command: str, classes: set[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = told(*command.split(), "--help-all")
    assert code == 0
    words = " ".join(out.split())
    files = (*PACKAGE.glob("cli/*.py"), *PACKAGE.glob("studies/*.py"), *PACKAGE.glob("*/settings.py"))
    files = (*files, *PACKAGE.glob("training/settings/*.py"), PACKAGE / "posthoc" / "refitting.py")
    sources = {name: texts for file in files for name, texts in documented_fields(file, classes).items()}
    checked = 0
    for name in classes:
        for field, text in sources[name].items():
            assert " ".join(text.split()) in words, f"{name}.{field}"
            flag = field.rstrip("_").replace("_", "-")
            prefix = {"ResamplingConfig": "resampling.", "RefitConfig": "refit."}.get(name, "")
            assert f"--{prefix}{flag} " in words or field in (
                "path",
                "run",
                "preset",
                "trust_remote_code",
                "keep_checkpoints",
                "quick",
                "dry_run",
            ), flag
            checked += 1
    assert checked >= len(classes)


def test_help_lists_the_commands(told: Told) -> None:
    code, out, _ = told("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decay-share", "2"], "decay_share=2.0 is out of range"),
        (["--tokens", "1000", "--cache-tokens", "30000"], "cache_tokens=30000 is more than tokens=1000"),
    ],
)
def test_a_setting_that_its_section_refuses_is_a_usage_error(told: Told, arguments: list[str], message: str) -> None:
    code, _, err = told("train", *arguments, "--out", "nowhere")
    assert code == 2
    assert err.startswith("error: ") and message in err


@pytest.fixture(scope="module")
def studied(tiny_run: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both arms at one site."""
    saes = [SAEConfig(arch=arch, site="resid_post.0", d_sae=32, target_l0=3.0, name=arch) for arch in ("gated", "relu")]
    folder = tmp_path_factory.mktemp("studied") / "run"
    run_sweep(tiny_run(*saes, steps=60, cached=True, resampling=ResamplingConfig(window_tokens=64)), folder)
    return folder


@pytest.mark.parametrize(
    ("name", "settings", "shown"),
    [
        ("pursuit", ["--num-latents", "2"], "gated-pursuit_2"),
        ("pruning", ["--quantiles", "0.5", "--l0-shares", "--prices"], "relu-quantile_0.5-rescaled"),
        ("cost", ["--repeats", "1"], "encode_seconds_as_jumprelu_ratio"),
        ("shrinkage", ["--most-apart", "100"], "share_below_1"),
        ("ablations", ["--ablations", "untied"], "gated-untied"),
        ("sensitivity", ["--lr", "2", "--sparsity-coef", "--d-sae", "--warmup-share"], "lost_ratio"),
        ("dictionaries", ["--most-apart", "100"], "hungarian_cosine"),
        ("concepts", ["--min-firings", "2"], "context-dependent"),
    ],
)
def test_a_study_prints_its_numbers_and_leaves_its_files(
    told: Told, studied: Path, name: str, settings: list[str], shown: str
) -> None:
    code, out, err = told("study", name, str(studied), *settings)
    assert code == 0, err
    assert shown in out
    measured = {"sums.safetensors", "comparison.json"} if STUDIES[name].measures_saes else set()
    files = {path.name for path in (studied / "studies" / name).iterdir() if path.is_file()}
    assert files == {".lock", "settings.json", "records.jsonl", "table.csv", "figure.png", "figure.svg", *measured}


def test_a_study_may_be_called_without_the_command_before_it(told: Told, studied: Path) -> None:
    _, before, _ = told("study", "pursuit", str(studied), "--num-latents", "2")
    assert told("pursuit", str(studied), "--num-latents", "2")[:2] == (0, before)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_a_folder_without_a_run_is_an_error_that_says_so(told: Told, tmp_path: Path, name: str) -> None:
    code, _, err = told("study", name, str(tmp_path / "nowhere"))
    assert code == 1
    assert "there is no run to read" in err


@pytest.mark.parametrize("preset", ["embedded", "gelu-1l", "pythia-2.8b", "gemma-7b"])
def test_a_dry_run_tells_what_a_preset_would_do_without_its_weights(told: Told, preset: str, tmp_path: Path) -> None:
    code, out, _ = told("reproduce", preset, "--dry-run", "--out", str(tmp_path / "nothing"))
    assert code == 0
    assert "tokens in" in out and "GiB" in out and "training: at least" in out and "deviations from the paper" in out
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("preset", ["embedded", "gelu-1l", "pythia-2.8b", "gemma-7b"])
def test_a_dry_run_begins_with_what_the_paper_leaves_open(told: Told, preset: str) -> None:
    _, out, _ = told("reproduce", preset, "--dry-run")
    before, stated = out.split("stated in the paper or ours, each with its source:\n")
    _, heading, unstated = before.partition("not stated in the paper, chosen here:\n")
    assert all("not stated in the paper; chosen: " in line for line in unstated.splitlines())
    assert "not stated in the paper" not in stated
    # No experiment of the paper is on the embedded model: nothing is left open.
    assert bool(heading) == bool(unstated) == (preset != "embedded")
    shown = [line.split(": ")[0].strip() for line in (unstated + stated).splitlines()]
    expected = [path for path in PRESETS[preset].cited() if not path.endswith(".published")]
    assert sorted(shown) == sorted(expected)


def test_what_was_stopped_says_how_to_go_on(told: Told, studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, "sweep", (cli.Sweep, stopped))
    monkeypatch.setattr("penstock.cli.studies.make_study", stopped)
    _, _, err = told("study", "pursuit", str(studied))
    assert err == "error: stopped by Ctrl-C. Saved work is kept. Continue with: the same command.\n"
    _, _, err = told("sweep", "--out", str(studied))
    assert err.endswith(f"Continue with: penstock train --resume {studied}\n")
    # Before the run's directory is made there is nothing to resume.
    _, _, err = told("sweep", "--out", str(studied / "none"))
    assert err.endswith("Continue with: the same command.\n")


def test_a_reader_who_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m penstock reproduce gemma-7b --dry-run | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("gemma-7b: google/gemma-7b, 12 runs") and done.stderr == ""


def test_info_tells_the_state_of_a_run(
    told: Told, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("records.jsonl"))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])

    _, out, _ = told("info", run)
    assert f"state: trained, not evaluated. Evaluate with: penstock eval {run}\n" in out
    assert f"L0 {last['l0']:.4g} in training" in out

    (saved,) = (run / "saes").iterdir()
    (saved / "cfg.json").rename(tmp_path / "cfg.json")
    _, out, _ = told("info", run)
    assert f"state: stopped, step 30 is the last one logged. Continue with: penstock train --resume {run}\n" in out

    monkeypatch.setattr("penstock.cli.eval_report_info.is_locked", lambda _: True)
    _, out, _ = told("info", run)
    assert "state: running, step 30 or later\n" in out
    monkeypatch.undo()

    (saved / "diverged.txt").write_text("too high a learning rate\n")
    _, out, _ = told("info", run)
    assert "state: diverged\n" in out and f"{saved.name}  diverged" in out

    (run / "metrics.jsonl").unlink()
    (saved / "diverged.txt").unlink()
    _, out, _ = told("info", run)
    assert "L0 not measured yet" in out


def test_every_output_survives_a_stream_that_knows_only_ascii(
    tiny_lm_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    sweep = ["sweep", *options(tiny_lm_folder, corpus, tmp_path / "run", "--site mlp_out.1 --d-sae 16 --target-l0 2")]
    commands = [["--help"], ["info"], sweep, ["report", "\u2022"], ["train", "--d-sae", "\u2022"]]
    code = f"""
import sys
from penstock.cli import run
for sys.argv[1:] in {ascii(commands)}:
    try:
        run()
    except SystemExit as end:
        print("exit", end.code, flush=True)
"""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert re.findall(r"^exit (\d)$", done.stdout, flags=re.MULTILINE) == ["0", "0", "0", "1", "2"], done.stderr
    assert "There is no run directory ?" in done.stderr
