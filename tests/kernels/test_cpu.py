"""Features of the CPU kernels: threads, reused buffers, and the BLAS that they share."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch import Tensor

import penstock
from penstock.kernels import buffers, cpu, reference
from penstock.kernels.buffers import borrow, single_threaded_blas
from penstock.kernels.protocol import AdamStep
from penstock.kernels.threads import cpu_threads, in_parallel, shares
from penstock.sparse import SparseCode

SHAPE = (3, 17)
"""Used by no other test, so that a buffer of it is nobody else's."""


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def codes(batch: int = 300, d_in: int = 70, d_sae: int = 500) -> tuple[Tensor, Tensor, SparseCode]:
    generator = torch.Generator().manual_seed(0)
    x, W = torch.randn(batch, d_in, generator=generator), torch.randn(d_sae, d_in, generator=generator)
    return x, W, cpu.select(x, W.T, torch.full((d_sae,), 1.4 * d_in**0.5))


@pytest.mark.parametrize(
    ("batch", "d_in", "d_sae"),
    [(300, 70, 500), (1, 70, 500), (7, 70, 500), (97, 33, 1100), (1500, 48, 4500)],
    ids=lambda number: str(number),
)
def test_the_number_of_threads_does_not_change_a_bit(
    batch: int, d_in: int, d_sae: int, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.kernels.threads.MIN_WORK", 1)
    monkeypatch.setattr(cpu, "PAIRS_PER_PART", 100)
    found = []
    for count in (1, 2, 3, 5):
        threads(count)
        x, W, code = codes(batch, d_in, d_sae)
        assert len(shares(code.support.offsets.numpy(), 1000)) == min(count, batch)
        decoded = cpu.decode(code.support, [code.values, 2 * code.values], W, x[0])
        gradients = cpu.value_gradients(code.support, decoded, W)
        weights = cpu.weight_gradient(code.support, gradients, decoded).clone()
        sums = cpu.sum_by_latent(code.support, gradients[0])
        rows, moment, latents = W.clone(), torch.ones_like(W), torch.arange(0, d_sae, 2)
        norms = cpu.squared_norms(weights, latents, rows)
        decay = torch.ones(len(latents))
        cpu.adam_rows_(rows, weights, moment, latents, decay, AdamStep(0.1, 0.9, 0.1, 1e-8), unit=True)
        support = [code.support.offsets, code.support.indices]
        found.append([code.values, *support, *decoded, *gradients, weights, sums, norms, rows, moment])
    for other in found[1:]:
        assert all(torch.equal(one, same) for one, same in zip(found[0], other, strict=True))


@pytest.mark.parametrize("batch", [0, 1, 2, 24, 97, 1024, 1025, 5000])
@pytest.mark.parametrize("d_sae", [1, 255, 300, 5000])
def test_tiles_cover_the_product_once_and_have_one_shape_but_at_its_edges(batch: int, d_sae: int) -> None:
    x = np.arange(1, batch + 1, dtype=np.float32)[:, None]
    tiles = cpu._tiles(x, d_sae)
    covered = np.zeros((batch, d_sae), np.int8)
    for tile in tiles:
        covered[tile.place, tile.columns] += 1
        rows = tile.place.stop - tile.place.start
        assert (tile.rows[:rows] == x[tile.place]).all() and not tile.rows[rows:].any()
        assert len(tile.rows) % cpu.ROW_UNIT == 0 or batch == 1
        assert len(tile.rows) <= cpu.ROWS + cpu.ROW_UNIT
        assert tile.columns.start == tile.number * cpu._width(d_sae)
    assert (covered == 1).all()


def test_blocks_of_columns_and_rows_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, W = torch.randn(29, 6, generator=generator), torch.randn(41, 6, generator=generator)
    cut = torch.randn(41, generator=generator)
    expected = reference.select(x, W.T, cut)
    monkeypatch.setattr(cpu, "ROWS", 4)
    monkeypatch.setattr(cpu, "ROW_UNIT", 3)
    monkeypatch.setattr(cpu, "COLUMN_UNIT", 7)
    found = cpu.select(x, W.T, cut)
    assert torch.equal(found.support.offsets, expected.support.offsets)
    assert torch.equal(found.support.indices, expected.support.indices)
    torch.testing.assert_close(found.values, expected.values)


def test_the_dense_path_works_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, code = codes(batch=20, d_sae=30)
    whole = reference.weight_gradient(code.support, [code.values], [x])
    decoded = reference.decode(code.support, [code.values], W, x[0])
    monkeypatch.setattr(reference, "ENTRIES_AT_ONCE", {"cpu": 100})
    torch.testing.assert_close(reference.weight_gradient(code.support, [code.values], [x]), whole)
    torch.testing.assert_close(reference.decode(code.support, [code.values], W, x[0]), decoded)
    torch.testing.assert_close(reference.select(x, W.T, torch.full((30,), 1.4 * 70**0.5)).values, code.values)


@given(counts=st.lists(st.integers(0, 50), max_size=30), work=st.sampled_from([1, 10_000, 10**8]))
def test_shares_cover_every_row_once(counts: list[int], work: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    parts = shares(np.cumsum([0, *counts]), work)
    torch.set_num_threads(before)
    assert [row for first, last in parts for row in range(first, last)] == list(range(len(counts)))
    assert 1 <= len(parts) <= 3


def test_little_work_stays_on_one_thread_and_much_is_shared_evenly(threads: Callable[[int], None]) -> None:
    threads(2)
    uneven = np.cumsum([0, 1000, 1, 1, 1, 500, 497])
    assert shares(uneven, 1) == [(0, 6)]
    assert shares(uneven, 10_000) == [(0, 2), (2, 6)]


def test_an_error_in_any_thread_is_raised() -> None:
    def fails(first: int, last: int) -> None:
        if first == 5:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_parallel(fails, [(0, 5), (5, 9)])


def test_a_buffer_is_lent_again_only_when_nothing_refers_to_it() -> None:
    first = borrow(SHAPE, torch.float32)
    place = first.data_ptr()
    assert borrow(SHAPE, torch.float32).data_ptr() != place
    view = first.T[2:]
    del first
    other = borrow(SHAPE, torch.float32)
    assert other.data_ptr() != place
    del view, other
    both = {borrow(SHAPE, torch.float32).data_ptr() for _ in range(3)}
    assert len(both) == 1, "nothing was lent at the same time, so one buffer is enough"
    assert borrow(SHAPE, torch.float64).dtype == torch.float64


def test_as_many_buffers_are_kept_as_are_lent_at_once() -> None:
    def lent() -> list[Tensor]:
        return [borrow((2, 5, number), torch.float32) for number in range(1, 50)]

    held = lent()
    for number, tensor in enumerate(held):
        tensor[:] = number
    assert all((tensor == number).all() for number, tensor in enumerate(held))
    places = [tensor.data_ptr() for tensor in held]
    del held, tensor
    assert [tensor.data_ptr() for tensor in lent()] == places


def test_idle_buffers_are_bounded_in_bytes_and_those_in_use_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers.release()
    monkeypatch.setattr(buffers, "KEPT_BYTES", 10_000)
    held = borrow((1000,), torch.float32)
    held[:] = 7
    for number in range(1, 30):
        borrow((1000, 1, number), torch.float32)
    kept = buffers._arrays._bytes()
    assert kept <= 29 * 4000 + 4000, "the largest one and the one in use"
    assert (held == 7).all() and borrow((1000,), torch.float32).data_ptr() != held.data_ptr()


def test_all_that_is_not_in_use_is_given_back() -> None:
    buffers.release()
    held = borrow(SHAPE, torch.float32)
    borrow((100, 100), torch.float32)
    buffers.release()
    assert buffers._arrays._bytes() == held.numpy().nbytes
    del held
    buffers.release()
    assert not buffers._arrays.kept


def test_gradients_that_are_kept_are_not_written_over() -> None:
    x, W, code = codes(batch=20)
    kept = cpu.weight_gradient(code.support, [code.values], [x])
    copy = kept.clone()
    again = cpu.weight_gradient(code.support, [2 * code.values], [x])
    assert torch.equal(kept, copy)
    torch.testing.assert_close(again, 2 * kept)


def blas_threads() -> set[int]:
    # Not of every BLAS in the process: scipy brings one of its own.
    return {library["num_threads"] for library in buffers._blas().info()}


def test_numpy_keeps_to_one_thread_inside_and_is_as_before_afterwards() -> None:
    with threadpool_limits(2, user_api="blas"), ThreadPoolExecutor() as pool:
        with single_threaded_blas:
            codes(batch=5)
            assert blas_threads() == {1}
            assert pool.submit(blas_threads).result() == {1}
        assert blas_threads() == {2}


def test_other_threads_leave_the_limit_to_the_main_thread() -> None:
    def enter_and_leave() -> None:
        with single_threaded_blas:
            pass

    with threadpool_limits(2, user_api="blas"), ThreadPoolExecutor() as pool:
        with single_threaded_blas:
            pool.submit(enter_and_leave).result()
            assert blas_threads() == {1}
        pool.submit(enter_and_leave).result()
        assert blas_threads() == {2}


FORK = """
import os
import torch
from penstock.kernels import buffers, cpu, threads
from penstock.saes import ReLUSAE

threads.MIN_WORK = 1
torch.set_num_threads(2)
sae, x = ReLUSAE(8, 600), torch.ones(50, 8)
expected = sae.encode_sparse(x).values
with buffers._arrays.lock:  # as another thread may hold it
    child = os.fork()
if child == 0:
    torch.set_num_threads(2)
    os._exit(0 if torch.equal(sae.encode_sparse(x).values, expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_encodes_after_its_parent_has() -> None:
    with subprocess.Popen([sys.executable, "-c", FORK], start_new_session=True) as process:
        try:
            assert process.wait(120) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def test_threads_are_set_for_a_while(threads: Callable[[int], None]) -> None:
    threads(2)
    with cpu_threads(3):
        assert torch.get_num_threads() == 3
        with cpu_threads(None):
            assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 2


def test_kernels_work_where_their_compiled_form_cannot_be_kept(tmp_path: Path) -> None:
    """As in a container with a read-only package and no home; files in the way stop a root user, too."""
    package = tmp_path / "penstock"
    shutil.copytree(Path(penstock.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "embedded"))
    (package / "kernels" / "__pycache__").touch()
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "home")
    script = (
        "import torch; from penstock.kernels import cpu_loops; from penstock.saes import ReLUSAE;"
        "print(cpu_loops.__file__, ReLUSAE(2, 3).encode(torch.ones(2, 2)).shape)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment |= {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "LOCALAPPDATA": nowhere, "PYTHONPATH": str(tmp_path)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(package / "kernels" / "cpu_loops.py")
    assert done.stderr.count("cannot be kept") == 1 and "NUMBA_CACHE_DIR" in done.stderr
