"""An SAE has one name then and now, and no two of one subject have the same."""

from __future__ import annotations

from cluster.runs import StageState
from cluster.sae_names import SaeNames

SITE = "resid_post.3@patch"


def sae(digest: str, cell: str, detail: str, subject: str = "demo:a", output: str = "sae") -> StageState:
    return StageState(
        digest=digest, cell=cell, kind="train_sae", subject=subject, output=output, detail=detail, state="published"
    )


def test_an_sae_goes_by_the_settings_it_has_now() -> None:
    was, now = sae("1" * 20, "sae/demo:a", f"{SITE} topk k 4"), sae("2" * 20, "sae/demo:a", f"{SITE} topk k 8")
    names = SaeNames([was, now], [(was.digest, now.digest)])
    assert names.name(f"sae:{was.digest}", SITE) == names.name(now.digest, SITE) == "topk k 8"
    assert names.name(now.digest) == f"{SITE} topk k 8"  # where the site is said nowhere else


def test_saes_with_the_same_settings_go_by_their_cells_but_not_by_their_model() -> None:
    places = [("one/demo:a", "demo:a"), ("two/demo:a/steps=9", "demo:a"), ("one/demo:b", "demo:b")]
    saes = [sae(str(n) * 20, cell, "topk k 4", subject) for n, (cell, subject) in enumerate(places)]
    found = [SaeNames(saes, []).name(f"sae:{one.digest}") for one in saes]
    assert found == ["topk k 4 of one", "topk k 4 of two/steps=9", "topk k 4"]


def test_an_sae_that_no_run_has_made_goes_by_its_first_digits() -> None:
    names = SaeNames([sae("1" * 20, "features", "topk", output="features")], [])
    assert names.name("sae:" + "0123456789" * 2) == "sae:01234567" and names.name("1" * 20) == "sae:11111111"
