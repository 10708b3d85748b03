"""Pursuit on the decoders of a finished run."""

import pytest

from penstock.runs.finished_run import FinishedRun
from penstock.studies.pursuit import PursuitConfig, pursuit


def test_pursuit_measures_every_decoder_at_every_number_of_latents(finished: FinishedRun) -> None:
    records = pursuit(finished, PursuitConfig(num_latents=(1, 4)))
    assert {(record["of"], record["num_latents"]) for record in records} == {
        (name, number) for name in finished.saes for number in (1, 4)
    }
    assert len({record["name"] for record in records}) == len(records)
    for record in records:
        assert 0 < record["l0"] <= record["num_latents"]
    for name in finished.saes:
        one, four = (record for record in records if record["of"] == name)
        assert four["fvu"] < one["fvu"]


@pytest.mark.parametrize("num_latents", [(), (4, 0)])
def test_pursuit_needs_a_number_of_latents(num_latents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="num_latents=.* is out of range: give"):
        PursuitConfig(num_latents=num_latents)
