"""SAEs in a bucket: read from there for another library, and imported under the digest that they have on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cells import Needs
from cluster.facts import load_known, plan_facts
from cluster.saes import export
from cluster.stores import make_store
from miclip_core.sae.foreign import load_foreign, save_foreign
from tests.foreign_saes import random_sae, tokens
from tests.servers import plain_client


@pytest.fixture
def bucket(moto_bucket: str, moto_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of sparsify in a bucket, and the same one as `here` on the disk."""
    monkeypatch.setenv("MICLIP_CACHE", str(tmp_path / "cache"))
    save_foreign("sparsify", random_sae("topk"), tmp_path / "here")
    for file in (tmp_path / "here").iterdir():
        plain_client(moto_url).put_object(Bucket=moto_bucket, Key=f"saes/layers.3/{file.name}", Body=file.read_bytes())
    return f"s3://{moto_bucket}/saes/layers.3"


def test_an_sae_in_a_bucket_is_written_for_another_library(bucket: str, tmp_path: Path) -> None:
    config = export(f"sparsify:{bucket}", "saelens", tmp_path / "out", store=None)
    assert (config.source, config.latents) == ("sparsify", 40)
    codes = load_foreign("saelens", tmp_path / "out").encode(tokens()).dense()
    assert codes.equal(random_sae("topk").encode(tokens()).dense())


def test_its_identity_is_its_content_wherever_it_is(bucket: str, tmp_path: Path) -> None:
    store, here = make_store(str(tmp_path / "lake")), str(tmp_path / "here")
    known = load_known(plan_facts(Needs(files=(bucket, here)), store), store)
    assert known.files[bucket] == known.files[here]
