"""Settings of neuron encoders: the preset of the paper, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.align import AlignSettings


def test_the_defaults_are_the_run_of_the_paper() -> None:
    s = AlignSettings()
    assert (s.w_out, s.w_in, s.logit_scale, s.lr, s.batch, s.epochs) == (1, 1, 1, 1e-4, 1024, 1)
    assert not (s.bias or s.standardise or s.multi_positive or s.drop_last or s.patience)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("w_out", -1.0),
        ("w_in", float("nan")),
        ("w_in", float("inf")),
        ("logit_scale", 0.0),
        ("logit_scale", -3.0),
        ("logit_scale", "paper"),
        ("logit_scale", float("inf")),
        ("lr", 0.0),
        ("betas", (0.9, 1.0)),
        ("batch", 1),
        ("epochs", 0),
        ("patience", 0),
        ("holdout", 1.0),
        ("bias", 1),
    ],
)
def test_values_without_a_meaning_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        AlignSettings(**{field: value})


def test_a_run_without_any_loss_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing to learn"):
        AlignSettings(w_out=0, w_in=0)
    assert AlignSettings(w_out=0).w_in == 1


@pytest.mark.parametrize("scale", [1.0, 100, "learned", "clip"])
def test_every_kind_of_scale_survives_a_file(scale: object) -> None:
    s = AlignSettings(logit_scale=scale)
    assert AlignSettings.model_validate_json(s.canonical_json()) == s
