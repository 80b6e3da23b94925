"""SAEs between miclip and four libraries, each run by both sides: the same latents fire, with the same codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from miclip_core.sae.foreign import load_foreign
from schemas.errors import UnsafeCheckpoint
from tests.interchange.cases import DTYPES, LIBRARIES, OURS, THEIRS, assert_agreement, make_sae, make_tokens, write_ours
from tests.interchange.environments import Environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def ran(
    environment_of: Callable[[str], Environment], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """library -> the folder in which its child process has done everything, once in a session."""

    @cache
    def run(library: str) -> Path | str:
        environment = environment_of(library)
        folder = tmp_path_factory.mktemp(library)
        list(write_ours(library, folder / "ours"))
        np.save(folder / "x.npy", make_tokens())
        np.save(folder / "data.npy", make_tokens(24 * 256, seed=11))
        try:
            environment.run("tests.interchange.child", library, folder)
        except AssertionError as error:  # said by every test, found once
            return str(error)
        return folder

    def get(library: str) -> Path:
        found = run(library)
        assert isinstance(found, Path), found
        return found

    return get


@pytest.mark.parametrize("word", DTYPES)
@pytest.mark.parametrize(("library", "name"), [(library, name) for library in LIBRARIES for name in OURS[library]])
def test_ours_runs_in_their_library(library: str, name: str, word: str, ran: Callable[[str], Path]) -> None:
    folder = ran(library)
    found = np.load(folder / f"ours-{word}-{name}.npz")
    print(assert_agreement(make_sae(name, DTYPES[word]), make_tokens(), found["f"], found["x_hat"], word))


@pytest.mark.parametrize("word", DTYPES)
@pytest.mark.parametrize(("library", "name"), [(library, name) for library in LIBRARIES for name in THEIRS[library]])
def test_theirs_runs_here(library: str, name: str, word: str, ran: Callable[[str], Path]) -> None:
    folder = ran(library)
    found = np.load(folder / f"theirs-{word}-{name}.npz")
    sae = load_foreign(library, folder / "theirs" / word / name)
    print(sae.config.arch, assert_agreement(sae, make_tokens(), found["f"], found["x_hat"], word))


def test_a_pickled_module_of_overcomplete_is_refused_with_the_way_out(ran: Callable[[str], Path]) -> None:
    with pytest.raises(UnsafeCheckpoint, match=r"(?s)would run code.*sae\.state_dict\(\).*overcomplete\.json"):
        load_foreign("overcomplete", ran("overcomplete") / "theirs" / "module-fp32.pt")
