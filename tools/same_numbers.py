"""Print SHA-256 digests of the results of a tiny sweep and its studies, which a refactoring must not change.

    python tools/same_numbers.py > /tmp/before; edit; python tools/same_numbers.py | diff /tmp/before -

There is a line for each tensor of each SAE, for each kind of sum, and for each key of the records, of the comparison
and of the studies' records, so the diff shows what changed. Values that depend on time, path or version are left out.
The sweep has two architectures, two recipes, resampling and a target L0, on the embedded language model with one
thread, and takes about a minute. Digests are only equal on the same machine with the same libraries.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from penstock import DataConfig, EvalConfig, OptimConfig, ResamplingConfig, RunConfig, SAEConfig, run_sweep
from penstock.posthoc.refitting import RefitConfig
from penstock.studies.concepts import ConceptsConfig
from penstock.studies.dictionaries import DictionariesConfig
from penstock.studies.pruning import PruningConfig
from penstock.studies.pursuit import PursuitConfig
from penstock.studies.refit import RefitStudyConfig
from penstock.studies.shrinkage import ShrinkageConfig
from penstock.studies.study_run import study_run

STUDIES = {
    "shrinkage": ShrinkageConfig(resamples=20, most_apart=4.0, min_together=5),
    "refit": RefitStudyConfig(refit=RefitConfig(steps=10, batch_size=256), fit_tokens=2_000),
    "pursuit": PursuitConfig(num_latents=(4,)),
    "pruning": PruningConfig(fit_tokens=2_000, quantiles=(0.5,), l0_shares=(0.5,), prices=(1.0,)),
    "dictionaries": DictionariesConfig(most_apart=4.0),
    "concepts": ConceptsConfig(min_firings=5, most_apart=4.0),
}
"""Small settings of the studies that neither train SAEs nor measure time."""

VARYING = ("seconds", "date", "started", "version", "path", "command")
"""A key with one of these words in it is left out."""


def tiny_sweep() -> RunConfig:
    """Four SAEs of 128 latents, 100 steps."""
    saes = tuple(
        SAEConfig(arch=arch, recipe=recipe, site="resid_post.2", d_sae=128, target_l0=8.0, resample_at=resample_at)
        for arch in ("gated", "relu")
        for recipe, resample_at in (("paper_clipped", (0.5,)), ("norm_weighted", None))
    )
    return RunConfig(
        saes=saes,
        data=DataConfig(tokens=51_200, cache_tokens=12_800),
        optim=OptimConfig(batch_size=512),
        resampling=ResamplingConfig(window_tokens=5_120),
        eval=EvalConfig(eval_tokens=2_500, bootstrap=20),
        threads=1,
    )


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(without_varying(value), sort_keys=True).encode()).hexdigest()


def without_varying(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_varying(inner) for key, inner in value.items() if not any(w in key for w in VARYING)}
    return [without_varying(inner) for inner in value] if isinstance(value, list) else value


def of_tensors(file: Path) -> Iterator[str]:
    """A line for each tensor, or for each of the sums that all candidates have."""
    contents: dict[str, Any] = {}
    for name, tensor in sorted(load_file(file).items()):
        content = contents.setdefault(name.rpartition("/")[2], hashlib.sha256())
        content.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for name, content in sorted(contents.items()):
        yield f"{content.hexdigest()}  {name}"


def of_records(records: list[dict[str, Any]]) -> Iterator[str]:
    for key in sorted({key for record in records for key in record}):
        if not any(word in key for word in VARYING):
            yield f"{digest([record.get(key) for record in records])}  {key}"


def print_digests(run_dir: Path) -> None:
    """Print a line for each tensor and each key, file by file."""
    for file in sorted(run_dir.rglob("*")):
        about = file.relative_to(run_dir)
        if "checkpoints" in about.parts:
            continue
        if file.suffix == ".safetensors":
            lines = of_tensors(file)
        elif file.name == "records.jsonl":
            lines = of_records([json.loads(line) for line in file.read_text().splitlines()])
        elif file.name == "comparison.json":
            lines = of_records([json.loads(file.read_text())])
        else:
            continue
        for line in lines:
            digested, name = line.split("  ")
            print(f"{digested}  {about}: {name}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run_sweep(tiny_sweep(), run_dir)
        for name, settings in STUDIES.items():
            study_run(run_dir, name, settings)
        print_digests(run_dir)


if __name__ == "__main__":
    main()
