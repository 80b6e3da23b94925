"""The lake that tests of describing share: prepared once, described by every method once."""

from __future__ import annotations

import pytest

from cluster.pipeline import RunReport
from miclip_core.dissect.clip_dissect import SIMILARITIES
from tests.jobs.describe import spatial
from tests.jobs.describe.place import METHODS, TAU, Place

ALL = {"methods": METHODS, "similarity": list(SIMILARITIES), "tau": TAU}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Activations, an SAE and an encoder; the same in two more lakes, `cut` and `live`."""
    place = Place(tmp_path_factory.mktemp("place"))
    place.prepare()
    place.copy("cut")
    place.copy("live")
    return place


@pytest.fixture(scope="session")
def report(prepared: Place) -> RunReport:
    """What was described by all methods."""
    report = prepared.run(**ALL)
    assert report.exit_code == 0, report.failures
    return report


@pytest.fixture(scope="session")
def largest(prepared: Place, report: RunReport) -> RunReport:
    """The same of the largest activation in each image."""
    largest = prepared.run(**ALL, pool="max")
    assert largest.exit_code == 0, largest.failures
    return largest


@pytest.fixture(scope="session")
def of_patches(tmp_path_factory: pytest.TempPathFactory) -> spatial.Place:
    """Activations of patches and an SAE of them, of which nothing is described: to be copied."""
    place = spatial.Place(tmp_path_factory.mktemp("of_patches"))
    place.run()
    return place
