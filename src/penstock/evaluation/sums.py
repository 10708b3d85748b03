"""Files with the sums behind the records, from which metrics of resamples and intervals of differences follow.

RUN/sums.safetensors                sums of a run's SAEs and controls
RUN/studies/NAME/sums.safetensors   sums of a study's candidates on the same held-out tokens

There is one float64 tensor [sequences] for each candidate and sum, called CANDIDATE/SUM. All sums are kept, because
each is needed by some metric of `metrics_of`. A million held-out tokens in rows of 128 take 0.9 MB per candidate.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from penstock.evaluation.evaluate import Evaluation
from penstock.files import safetensors_blocks, whole_file

SUMS_FILE = "sums.safetensors"

SequenceSums = Mapping[str, Float[Tensor, " sequences"]]
"""The sums of one candidate by their names in `penstock.metrics`, float64."""


def write_sums(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write the sums of an evaluation atomically, so that a killed process leaves no partial file.

    Args:
        path: Path of the file, in an existing folder.
        evaluations: Results of `evaluate`, by the candidates' names.

    Raises:
        OSError: the disk is full or not writable.
    """
    tensors = {
        f"{candidate}/{name}": values
        for candidate, evaluation in evaluations.items()
        for name, values in evaluation.sums.items()
    }
    with whole_file(path) as file:
        file.writelines(safetensors_blocks(tensors))


def read_sums(path: Path) -> dict[str, SequenceSums]:
    """Read the sums that `write_sums` wrote, by the candidates' names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Evaluate the run again (penstock eval RUN); for a study, delete its folder and "
            "make it again."
        )
    try:
        tensors = safetensors.torch.load(path.read_bytes())
        shapes = {values.shape for values in tensors.values()}
        if len(shapes) > 1 or any(values.ndim != 1 or values.dtype != torch.float64 for values in tensors.values()):
            raise ValueError("its tensors are not all float64 with one value for each sequence")
        if any("/" not in key for key in tensors):
            raise ValueError("a tensor has no candidate in its name")
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: {error}. Delete it, and evaluate the run or study again.") from error
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, values in tensors.items():
        # Names of candidates may contain a slash, names of sums may not.
        candidate, _, name = key.rpartition("/")
        found[candidate][name] = values
    return dict(found)
