"""How often and how strongly each feature fires: counts, moments, quantiles and a histogram of its codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from miclip_core.sae.features.codes import FeatureCodes, order_by_value, reduce_segments

QUANTILES = (0.5, 0.9, 0.99)
BINS = 64
FIRST_EXPONENT = -16
"""Bin i of the histogram holds codes in [2^(-16 + i/2), 2^(-16 + (i+1)/2)); the outer bins hold all beyond them too."""


@dataclass(frozen=True)
class Description:
    """One element per feature; a feature is active where its code is above zero. NaN: undefined.

    n_active, images_active int64. mean, std (population), min_active, max, and quantiles [width, 3] are over active codes
    (quantiles by linear interpolation between order statistics). skewness and kurtosis are over all tokens with their
    zeros, population moments, kurtosis in excess of the normal distribution's 3. histogram int64 [width, 64].
    """

    n_active: np.ndarray
    images_active: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    min_active: np.ndarray
    max: np.ndarray
    quantiles: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray
    histogram: np.ndarray


def describe(codes: FeatureCodes, tokens: int) -> Description:
    """Describe every feature over so many `tokens`, those without a code included."""
    skewness, kurtosis = _shape(codes, tokens)
    active = _active(codes)
    feature, n = active.feature, np.diff(active.offsets)
    value = active.value.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = reduce_segments(np.add, value, active.offsets, 0.0) / n
        deviation = value - np.repeat(mean, n)
        std = np.sqrt(reduce_segments(np.add, deviation**2, active.offsets, 0.0) / n)
    new_image = np.ones(len(active), np.int64)
    new_image[1:] = (feature[1:] != feature[:-1]) | (active.image[1:] != active.image[:-1])
    return Description(
        n_active=n,
        images_active=reduce_segments(np.add, new_image, active.offsets, 0),
        mean=mean,
        std=std,
        min_active=reduce_segments(np.minimum, value, active.offsets, np.nan),
        max=reduce_segments(np.maximum, value, active.offsets, np.nan),
        quantiles=_quantiles(value[order_by_value(feature, active.value)], active.offsets),
        skewness=skewness,
        kurtosis=kurtosis,
        histogram=_histogram(feature, active.value, active.width),
    )


def _active(codes: FeatureCodes) -> FeatureCodes:
    """Only the codes above zero; the others come from SAEs whose top-k keeps signs."""
    keep = codes.value > 0
    if keep.all():
        return codes
    offsets = np.concatenate([[0], np.cumsum(keep)])[codes.offsets]
    return FeatureCodes(codes.first, offsets, codes.image[keep], codes.token[keep], codes.value[keep])


def _shape(codes: FeatureCodes, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Skewness and excess kurtosis over all tokens, from moments about the mean: zeros add (0 - mean)^p each."""
    n = np.diff(codes.offsets)
    value = codes.value.astype(np.float64)
    mean = reduce_segments(np.add, value, codes.offsets, 0.0) / max(tokens, 1)
    deviation = value - np.repeat(mean, n)
    second, third, fourth = (
        (reduce_segments(np.add, deviation**power, codes.offsets, 0.0) + (tokens - n) * (-mean) ** power)
        / max(tokens, 1)
        for power in (2, 3, 4)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness, kurtosis = third / second**1.5, fourth / second**2 - 3
    constant = (n == 0) | (second <= 0)
    return np.where(constant, np.nan, skewness), np.where(constant, np.nan, kurtosis)


def _quantiles(ascending: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """QUANTILES of each segment of values that ascend in it: [segments, 3]; definition 7 of Hyndman and Fan (1996)."""
    n = np.diff(offsets)
    out = np.full((len(n), len(QUANTILES)), np.nan)
    some = n > 0
    for column, q in enumerate(QUANTILES):
        place = (n[some] - 1) * q
        low = np.floor(place).astype(np.int64)
        first = offsets[:-1][some]
        below, above = ascending[first + low], ascending[first + np.minimum(low + 1, n[some] - 1)]
        out[some, column] = below + (above - below) * (place - low)
    return out


def _histogram(feature: np.ndarray, value: np.ndarray, width: int) -> np.ndarray:
    """Codes above zero in half octaves: int64 [width, 64]."""
    mantissa, exponent = np.frexp(value.astype(np.float64))  # value = mantissa * 2^exponent, mantissa in [0.5, 1)
    half_octave = 2 * (exponent.astype(np.int64) - 1) + (mantissa >= np.sqrt(0.5))
    bins = np.clip(half_octave - 2 * FIRST_EXPONENT, 0, BINS - 1)
    counts = np.bincount(feature.astype(np.int64) * BINS + bins, minlength=width * BINS)
    return counts.reshape(width, BINS)
