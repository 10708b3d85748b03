"""Which ways of treating the decoder are allowed."""

import re

import pytest

from penstock.saes import DECODER_RULES, DecoderRule
from penstock.saes.shared.decoder_rules import GradientFlow


@pytest.mark.parametrize(("auxiliary", "penalty"), [("trained", "frozen"), ("frozen", "trained")])
def test_freezing_the_decoder_in_one_place_only_is_refused_with_the_way_out(
    auxiliary: GradientFlow, penalty: GradientFlow
) -> None:
    with pytest.raises(ValueError, match="inconsistent mixture") as error:
        DecoderRule(decoder_norm="free", auxiliary_decoder=auxiliary, penalty_norm=penalty)
    message = str(error.value)
    assert f"auxiliary_decoder='{auxiliary}'" in message and f"penalty_norm='{penalty}'" in message
    for name in re.findall(r"'(norm_weighted\w*)'", message):
        assert name in DECODER_RULES
    assert "'norm_weighted'" in message and "'norm_weighted_frozen'" in message


def test_free_decoder_norms_need_a_weighted_penalty() -> None:
    with pytest.raises(ValueError, match="Set penalty_norm to 'trained' or 'frozen'"):
        DecoderRule(decoder_norm="free", auxiliary_decoder="trained")


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="penalty_norm='trained' has no effect with decoder_norm='unit'"):
        DecoderRule(decoder_norm="unit", auxiliary_decoder="frozen", penalty_norm="trained")


def test_unfreezing_the_auxiliary_decoder_of_the_paper_is_allowed_as_its_ablation() -> None:
    assert DecoderRule(decoder_norm="unit", auxiliary_decoder="trained").penalty_norm is None


def test_the_named_rules_are_the_consistent_ones() -> None:
    settings = {
        name: (rule.decoder_norm, rule.auxiliary_decoder, rule.penalty_norm) for name, rule in DECODER_RULES.items()
    }
    assert settings == {
        "unit": ("unit", "frozen", None),
        "norm_weighted": ("free", "trained", "trained"),
        "norm_weighted_frozen": ("free", "frozen", "frozen"),
    }
