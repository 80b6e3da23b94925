"""Which sections a report has, in order; a job kind that shows something adds its own here."""

from __future__ import annotations

from cluster.report.section import Section
from cluster.report.sections import (
    attention,
    concepts,
    densities,
    dictionary,
    encoders,
    explain_features,
    explain_map,
    explain_scores,
    extract,
    features,
    geometry,
    interventions,
    inversions,
    methods,
    models,
    overview,
    sweep,
    traces,
    units,
    universality,
    zoo_layers,
    zoo_pairs,
)

SECTIONS: tuple[Section, ...] = (
    overview.SECTION,
    models.SECTION,
    extract.SECTION,
    sweep.SECTION,
    densities.SECTION,
    concepts.SECTION,
    features.SECTION,
    explain_scores.SECTION,
    explain_features.SECTION,
    explain_map.SECTION,
    encoders.SECTION,
    units.SECTION,
    methods.SECTION,
    interventions.SECTION,
    traces.SECTION,
    attention.SECTION,
    geometry.SECTION,
    zoo_pairs.SECTION,
    zoo_layers.SECTION,
    universality.SECTION,
    dictionary.SECTION,
    inversions.SECTION,
)
