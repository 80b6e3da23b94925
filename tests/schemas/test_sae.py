"""An SAE belongs to the tokens that it was trained on: a sample of them is of the same kind, other sites and widths are not."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import BadSae
from schemas.refs import Site
from schemas.sae import SaeConfig

HERE = "resid_post.3@patch"


def config(**facts: Any) -> SaeConfig:
    return SaeConfig(arch="topk", d=96, latents=128, k=4, **facts)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"site": HERE},
        {"site": f"{HERE}:sample(16,0)"},
        {"site": "blocks.9.hook_resid_post", "source": "saelens"},
    ],
)
def test_an_sae_fits_its_own_tokens_and_what_other_libraries_call_a_site_is_not_read(facts: dict[str, Any]) -> None:
    config(**facts).check(HERE, 96)
    config(**facts).check(Site.parse(f"{HERE}:sample(8,1)"), 96)


@pytest.mark.parametrize("trained", ["resid_post.2@patch", "resid_post.3@cls", "resid_post.3@patch:mean"])
def test_an_sae_of_other_tokens_is_refused_with_both(trained: str) -> None:
    with pytest.raises(BadSae, match=f"trained at {trained}, not at {HERE}; give that site"):
        config(site=trained).check(HERE, 96)


def test_an_sae_of_another_width_is_refused_with_both() -> None:
    with pytest.raises(BadSae, match=f"encodes 96 channels, but {HERE} has 95"):
        config(source="saelens").check(HERE, 95)
