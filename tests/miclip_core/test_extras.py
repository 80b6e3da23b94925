"""What is said of an optional package that is not installed."""

from __future__ import annotations

import sys

import pytest

from miclip_core.extras import DIFFUSION, SENTENCES, UMAP, Extra
from schemas.errors import MissingPackage


def test_one_that_is_installed_is_not_spoken_of() -> None:
    there = Extra("numpy", "numpy", "all", "nothing")
    there.require()
    assert there.is_installed and not there.note


@pytest.mark.parametrize("extra", [DIFFUSION, SENTENCES, UMAP])
def test_one_that_is_not_is_named_with_the_extra_that_installs_it(
    extra: Extra, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, extra.module, None)  # what an import of a missing package meets
    said = f"{extra.package} is not installed; pip install 'miclip[{extra.name}]', or take {extra.instead}"
    assert extra.note == f"{extra.package} is not installed here; workers need it: pip install 'miclip[{extra.name}]'"
    with pytest.raises(MissingPackage) as raised:
        extra.require()
    assert str(raised.value) == said
