"""Which sections a report has, in order; a job kind that shows something adds its own here."""

from __future__ import annotations

from cluster.report.section import Section
from cluster.report.sections import concepts, densities, extract, features, models, overview, sweep

SECTIONS: tuple[Section, ...] = (
    overview.SECTION,
    models.SECTION,
    extract.SECTION,
    sweep.SECTION,
    densities.SECTION,
    concepts.SECTION,
    features.SECTION,
)
