from importlib import import_module
from inspect import signature

import pytest
import torch

from penstock.kernels import cpu, dispatch, forced, reference
from penstock.kernels.dispatch import kernels_for, kernels_on
from penstock.kernels.protocol import Kernels
from penstock.sparse import SparseCode


def test_a_tensor_decides_which_kernels_it_gets() -> None:
    assert kernels_for(torch.zeros(1)) is cpu
    assert kernels_for(torch.zeros(1, dtype=torch.float64)) is cpu
    # numpy has no bfloat16, and no kernel is written for other devices.
    assert kernels_for(torch.zeros(1, dtype=torch.bfloat16)) is reference
    assert kernels_for(torch.zeros(1, device="meta")) is reference


def test_the_density_of_a_support_decides_between_loops_and_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "DENSE_ABOVE", {"cpu": 0.25})
    x = torch.zeros(1)
    for firing, expected in ((0, cpu), (1, cpu), (2, reference), (4, reference)):
        acts = torch.zeros(1, 4)
        acts[0, :firing] = 1.0
        assert kernels_on(SparseCode.from_dense(acts).support, x) is expected


def test_a_path_can_be_forced_and_is_let_go_again() -> None:
    x = torch.zeros(1)
    dense = SparseCode.from_dense(torch.ones(1, 4)).support
    with forced("cpu"):
        assert kernels_on(dense, x) is cpu
        with forced("reference"):
            assert kernels_for(x) is reference
        assert kernels_for(x) is cpu
    assert kernels_on(dense, x) is reference


@pytest.mark.parametrize("name", ["reference", "cpu", "cuda"])
def test_every_module_of_kernels_has_the_functions_of_the_protocol(name: str) -> None:
    if name == "cuda":
        pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    module = import_module(f"penstock.kernels.{name}")
    functions = [function for function in Kernels.__dict__ if not function.startswith("_")]
    assert len(functions) == 7
    for function in functions:
        _, *wanted = signature(getattr(Kernels, function)).parameters.values()
        found = signature(getattr(module, function)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in found] == [(p.name, p.kind, p.default) for p in wanted]
