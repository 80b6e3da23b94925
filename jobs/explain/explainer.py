"""A vision-language model opened for the features of one SAE: prefixes of the tower are run once, then steered and asked about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from jobs.blame import blaming
from jobs.explain.asked import Asked
from jobs.explain.features import Batch
from jobs.forward import read_pixels
from jobs.latents import Feature
from jobs.protocol import Inputs
from miclip_core.explain.answers import Answer, Generation, answer
from miclip_core.explain.question import Question, make_question
from miclip_core.explain.render import heat_image, mask_image
from miclip_core.explain.steer import (
    Injection,
    Steering,
    active_positions,
    blank_image,
    directions,
    inject,
    patch_positions,
)
from miclip_core.explain.vlm import Vlm
from miclip_core.sae.sae import Sae
from schemas.errors import BadSae, NonFiniteActivation, OutOfMemory, TooFewImages
from schemas.refs import Site

NORM_IMAGES = 64
"""So many images, the first of the index, say how long tokens are."""
REALISED = 0.02
"""What a dtype may make of the length of what is added."""
PER_TOKEN = ("layer_norm", "constant_norm")


@dataclass(frozen=True)
class Try:
    """One way to explain, with an alpha; that of topk is 0."""

    asked: Asked
    alpha: float


@dataclass(frozen=True)
class Written:
    """What the model wrote about one feature of a batch. strength: length of what was added to a token, in units of the
    tower; realised: how much of it its dtype could hold, None if nothing was added; answer: None if numbers overflowed."""

    place: int
    sequence: int
    strength: float
    realised: float | None
    answer: Answer | None


class Explainer:
    """Answers about batches of features.

    Every pass has the shape of a full batch, of which the last feature fills the rest: so no answer depends on what else
    is asked.

    Raises:
        BadSae: the dictionary is of another site or width.
    """

    def __init__(self, vlm: Vlm, sae: Sae, asked: Asked, inputs: Inputs, threads: int) -> None:
        """asked: any of the stages; they differ in nothing that is used here."""
        self._vlm, self._sae, self._inputs, self._threads = vlm, sae, inputs, threads
        self._asked, self._size = asked, asked.batch
        sae.config.check(asked.site, vlm.tower.facts.site(Site.parse(asked.site).path).width)
        reads = vlm.language.reads_block
        self._steering = Steering(vlm, reads if asked.block is None else min(asked.block, reads))
        self._held: dict[Hashable, Any] = {}
        self._rounded: dict[str, tuple[float, float]] = {}
        self._overflowed: Counter[str] = Counter()

    def write(self, tries: Sequence[Try], batch: Batch) -> Iterator[tuple[Try, list[Written]]]:
        """Texts about a batch, one try after another; those that show images get none of features without any.

        A feature of which numbers overflow gets no answer, and its neighbours theirs.

        Raises:
            OutOfMemory: the device cannot hold the batch. BadPrompt, BadSae: of one stage.
        """
        for key in dict.fromkeys(map(_seen_by, tries)):
            alike = [one for one in tries if _seen_by(one) == key]
            if alike[0].asked.sees_images and not batch.k:
                continue
            with blaming(*(one.asked.plan for one in alike)), _in_memory(self._size):
                prefix = self._prefix(alike[0].asked, batch)
            for one in alike:
                with blaming(one.asked.plan), _in_memory(self._size):
                    written = self._write(one, batch, prefix)
                yield one, written

    # -------------------------------------------------------------- the tower up to the block

    def _prefix(self, asked: Asked, batch: Batch) -> Callable[[int], Tensor]:
        """Tokens of the c-th part of all rows, as many as the batch has features."""
        if not asked.sees_images:
            blank = self._blank(asked)
            return lambda part: blank.expand(self._size, -1, -1)
        device = self._vlm.device
        rendered = render(asked.masking, batch.pixels_FKCIJ.to(device), batch.maps_FKPQ.to(device))
        rows = self._filled(rendered.flatten(0, 1), batch).split(self._size)
        tokens = [self._steering.prefix(self._vlm.tower.normalise(part)) for part in rows]
        return tokens.__getitem__

    def _blank(self, asked: Asked) -> Tensor:
        """Tokens [1, T, D] of the blank image, computed once."""
        kind, seed = asked.params["blank"], asked.seed

        def run() -> Tensor:
            return self._steering.prefix(blank_image(kind, self._vlm.tower.facts, seed)[None])

        return self._hold(("blank", kind, seed), run)

    def _filled(self, rows: Tensor, batch: Batch) -> Tensor:
        """The rows of all features [features * K, ...] and those of the last once more for each that is missing."""
        missing = self._size - len(batch.features)
        return torch.cat([rows, rows[len(rows) - batch.k :].repeat(missing, *[1] * (rows.ndim - 1))])

    # -------------------------------------------------------------- from there on

    def _write(self, one: Try, batch: Batch, prefix: Callable[[int], Tensor]) -> list[Written]:
        """Texts about a batch, or about each of its features alone if what is added makes numbers of any overflow.

        Raises NonFiniteActivation: they overflow without it too, so that the model is broken or its dtype too small.
        """
        try:
            return self._ask(one, batch, prefix)
        except NonFiniteActivation:
            if not one.asked.steers or one.alpha == 0:
                raise
            self._ask(replace(one, alpha=0), batch, prefix)
            return [text for place in range(len(batch.features)) for text in self._write_alone(one, batch, place)]

    def _write_alone(self, one: Try, batch: Batch, place: int) -> list[Written]:
        """Texts about one feature of a batch, without any answer if its numbers overflow; as it fills a pass, they are those
        that it has among others."""
        alone = batch.alone(place)
        try:
            found = self._ask(one, alone, self._prefix(one.asked, alone))
        except NonFiniteActivation:
            self._overflowed[f"{one.asked.params['variant']}: {one.asked.params['dtype']}"] += one.asked.sequences
            strength = abs(self._strength(one, batch.features[place]))
            found = [Written(0, sequence, strength, None, None) for sequence in range(one.asked.sequences)]
        return [replace(text, place=place) for text in found]

    def _ask(self, one: Try, batch: Batch, prefix: Callable[[int], Tensor]) -> list[Written]:
        """Raises NonFiniteActivation: numbers of some feature overflow."""
        asked, n = one.asked, len(batch.features)
        k = batch.k if asked.sees_images else 1
        strengths = [self._strength(one, feature) for feature in batch.features]
        soft, realised = self._soft(asked, batch, strengths, k, prefix)
        question, generation = self._question(asked, k), _generation(asked)
        found = []
        for sequence in range(asked.sequences):
            numbers = [feature.number for feature in batch.features]
            seeds = [number * 100 + sequence for number in numbers + numbers[-1:] * (self._size - n)]
            answers = answer(self._vlm, question, soft, generation, seeds)
            for place, given in enumerate(answers[:n]):
                done = None if realised is None or not strengths[place] else realised[place]
                found.append(Written(place, sequence, abs(strengths[place]), done, given))
        return found

    def _soft(
        self, asked: Asked, batch: Batch, strengths: Sequence[float], k: int, prefix: Callable[[int], Tensor]
    ) -> tuple[Tensor, list[float] | None]:
        """Soft tokens of all rows, and how much of each feature's strength became of its tokens; None without steering."""
        if not asked.steers:
            return torch.cat([self._steering.finish(prefix(part)) for part in range(k)]), None
        numbers = [feature.number for feature in batch.features]
        units_FD = directions(self._sae.W_dec, asked.direction, numbers, asked.seed)
        vectors_RD = (units_FD * torch.tensor(strengths, device=units_FD.device)[:, None]).repeat_interleave(k, 0)
        missing = self._size * k - len(vectors_RD)
        vectors_RD = torch.cat([vectors_RD, vectors_RD[len(vectors_RD) - k :].repeat(missing // k, 1)])
        positions = self._positions(asked, batch)
        soft, realised = [], []
        for part in range(k):
            rows = slice(part * self._size, (part + 1) * self._size)
            where = None if positions is None else positions[rows]
            tokens, ratio_R = inject(prefix(part), Injection(vectors_RD[rows], where, asked.params["operation"]))
            soft.append(self._steering.finish(tokens))
            realised.append(ratio_R)
        ratios = torch.cat(realised).view(self._size, k).mean(1)[: len(numbers)].tolist()
        self._note_realised(asked, strengths, ratios)
        return torch.cat(soft), ratios

    def _positions(self, asked: Asked, batch: Batch) -> list[Tensor] | None:
        """Tokens that are steered, of every row; None for all."""
        facts = self._vlm.tower.facts
        if asked.positions == "all":
            return None
        if asked.positions != "active":
            return [patch_positions(facts, asked.positions)] * self._size
        maps = self._filled(batch.maps_FKPQ.flatten(0, 1), batch)
        return [active_positions(facts, (map_PQ.flatten() > 0).nonzero()) for map_PQ in maps]

    def _question(self, asked: Asked, images: int) -> Question:
        key = ("question", asked.prompt, images)
        return self._hold(key, lambda: make_question(self._vlm, asked.prompt, images))

    def _note_realised(self, asked: Asked, strengths: Sequence[float], ratios: Sequence[float]) -> None:
        off = [
            ratio for strength, ratio in zip(strengths, ratios, strict=True) if strength and abs(ratio - 1) > REALISED
        ]
        if off:
            key = f"{asked.params['variant']}: {asked.params['dtype']}"
            every = [*off, *self._rounded.get(key, ())]
            self._rounded[key] = min(every), max(every)

    def take_notes(self) -> list[str]:
        """What people should know of the batches since this was asked the last time: a line per way to explain."""
        found = [
            f"{key} rounds what is added, {least:.2f} to {most:.2f} of its length is left for some features; take dtype: fp32 "
            "or a larger alpha"
            for key, (least, most) in self._rounded.items()
        ]
        found += [
            f"{key} cannot hold some numbers: {count} not_finite, without a text; take a smaller alpha"
            + (" or dtype: fp32" if "fp32" not in key else "")
            for key, count in self._overflowed.items()
        ]
        self._rounded.clear()
        self._overflowed.clear()
        return found

    # -------------------------------------------------------------- how much

    def _strength(self, one: Try, feature: Feature) -> float:
        """What is added to a token, in units of the tower, with its sign."""
        if not one.asked.steers or one.alpha == 0:
            return 0.0
        match one.asked.params["alpha_unit"]:
            case "activation":
                return one.alpha
            case "token_norm":
                return one.alpha * self.token_norm
            case _:
                if self._sae.config.input_norm in PER_TOKEN:
                    raise BadSae(
                        f"sae:{one.asked.plan.stage.inputs['sae']} measures codes by the length of each token, so alpha_unit: "
                        "p90 has no length; take alpha_unit: token_norm"
                    )
                return one.alpha * (feature.p90 or 0.0) * feature.decoder_norm

    @cached_property
    def token_norm(self) -> float:
        """Median length of patch tokens at the site, over the first 64 images of the index. Raises TooFewImages."""
        forward, geometry = self._asked.forward, self._asked.geometry
        ranges = [
            (start, min(start + NORM_IMAGES, forward.rows)) for start in range(0, forward.rows, NORM_IMAGES)
        ]  # read until enough
        tower, norms, found = self._vlm.tower, [], 0
        for batch in read_pixels(self._inputs, forward, geometry, ranges, self._threads, self._size):
            wanted = min(len(batch.images), NORM_IMAGES - found)
            if wanted:
                tokens = self._steering.prefix(tower.normalise(batch.pixels))[:wanted, tower.facts.n_prefix :]
                norms.append(tokens.float().norm(dim=-1).flatten().cpu())
                found += wanted
            if found == NORM_IMAGES:
                break
        if not norms:
            raise TooFewImages("none of the images of the features can be read, so nothing says how long tokens are")
        return float(torch.cat(norms).median())

    def _hold(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._held:
            self._held[key] = make()
        return self._held[key]


def _seen_by(one: Try) -> tuple[Any, ...]:
    """Equal for tries that show the same pixels."""
    asked = one.asked
    return (asked.masking,) if asked.sees_images else (asked.params["blank"], asked.seed)


def render(masking: str, pixels: Tensor, maps: Tensor) -> Tensor:
    """Images uint8 [..., 3, h, w] that show where features are active: all else black (masks), or under heatmaps."""
    return mask_image(pixels, maps) if masking == "masks" else heat_image(pixels, maps)


def _generation(asked: Asked) -> Generation:
    settings: Any = asked.params["generation"]
    return Generation(**settings, seed=asked.seed)


@contextmanager
def _in_memory(features: int) -> Iterator[None]:
    """Say what to do where the device is too small for so many features at once; another number would be another plan."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{features} features at once do not fit on this device; give a smaller batch_features, k or max_new_tokens, "
            "dtype: bf16, or a larger device"
        ) from error
