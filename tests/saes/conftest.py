"""Every test of an architecture runs on the sparse kernels and on the dense path."""

from collections.abc import Iterator

import pytest

from penstock.kernels import forced
from penstock.kernels.dispatch import Choice


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[Choice]:
    with forced(request.param):
        yield request.param
