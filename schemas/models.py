"""What is known of a model without running it: its sizes, its sites, and how a written site becomes a canonical one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from schemas.base import Frozen
from schemas.errors import ReadsNoImages, UnknownSite
from schemas.refs import Sample, Site, Tokens

Layout = Literal["tokens", "heads", "map", "vector"]
ActKind = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "silu_gate", "relu", "none"]
Pool = Literal["tok", "avg", "map", "attnpool", "none"]


class SiteFacts(Frozen):
    """One named tensor of a forward pass.

    path: canonical, with absolute block numbers, e.g. `resid_post.7`.
    layout: where positions are. `tokens` [B, T, *shape]; `heads` [B, H, T, *rest] with shape = (H, *rest);
        `map` [B, C, h, w] with shape = (C,); `vector` [B, *shape] has none.
    shape: what one position holds; `width` is its flattened length.
    positions: how many positions an image has here (1 for a vector).
    prefix: how many of them come before the patches (class token, registers, the mean token of an attention pool).
    grid: rows and columns of the patches, row-major; None where positions are no grid.
    selectors: the `@tokens` that mean something here, the default first; empty for a vector.
    """

    path: str
    layout: Layout
    shape: tuple[int, ...]
    positions: int
    prefix: int = 0
    grid: tuple[int, int] | None = None
    selectors: tuple[Tokens, ...] = ()

    @property
    def width(self) -> int:
        """Length of the flattened vector of one position."""
        return math.prod(self.shape)


class Geometry(Frozen):
    """How an image becomes pixels: resize, centre crop (or pad), then `(x / 255 - mean) / std` per channel.

    resize: `shortest` or `longest` side to `resize_hw`, or `squash` to exactly `resize_hw`.
    crop_hw: the size that the model sees.
    fill: value (0..255) of padding where the resized image is smaller than the crop.
    """

    resize: Literal["shortest", "longest", "squash"]
    resize_hw: tuple[int, int]
    crop_hw: tuple[int, int]
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill: int = 0


class LanguageFacts(Frozen):
    """The language model that reads a vision tower, as part of the tower's facts.

    model_type: what the library calls the whole. reads_block: the last block whose output reaches the language model;
    edits of later ones change no word. reads: the site whose tokens the projection gets, `resid_post.L` or `lnf_out`.
    image_tokens: tokens that one image takes in the language model, of width `width`. layers: its own blocks.
    params: parameters of everything but the tower.
    """

    model_type: str
    reads_block: int
    reads: str
    image_tokens: int
    width: int
    layers: int
    params: int


class ModelFacts(Frozen):
    """The static facts of one model; a number that the family does not have is None.

    `sites` are in the order in which one forward produces them. `flops` counts multiply and add as two, for one image,
    the vision tower alone. `weights_sha256` tells weights apart and is the same under any configuration; `files_sha256`
    covers weights, configuration and tokeniser, all that decides what the model gives. `classes` are the names of a
    classifier head, `embed_dim` the width of `embedding`, None where there is none. Of a vision-language model, `language`
    says what reads its tower, both digests cover the whole, and all else is of the tower alone. Of a generator, `input_hw`
    is the size of the images that it draws, `embed_dim` the length of its latent, and `flops` what one image costs.
    """

    model: str
    family: str
    weights_sha256: str
    files_sha256: str
    revision: str | None
    library_versions: dict[str, str]
    n_blocks: int
    n_heads: int | None = None
    head_dim: int | None = None
    width: int
    mlp_width: int | None = None
    embed_dim: int | None
    n_prefix: int = 0
    has_cls: bool = False
    grid: tuple[int, int]
    patch: int | None = None
    input_hw: tuple[int, int]
    norm_eps: float
    act_kind: ActKind
    has_ln_pre: bool = False
    has_layerscale: bool = False
    has_inner_attn_norm: bool = False
    pool: Pool
    final_norm_position: Literal["before_pool", "after_pool", "none"]
    geometry: Geometry
    has_text: bool
    classes: tuple[str, ...] | None = None
    params: int
    flops: int
    sites: tuple[SiteFacts, ...]
    language: LanguageFacts | None = None

    @property
    def mean(self) -> tuple[float, float, float]:
        """Channel means of the normalisation, for pixels in 0..1."""
        return self.geometry.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Channel standard deviations of the normalisation."""
        return self.geometry.std

    @property
    def is_generator(self) -> bool:
        """Whether it draws images and reads none."""
        return self.family == "generator"

    def check_reads_images(self) -> None:
        """Nothing, for a model that can look at images.

        Raises:
            ReadsNoImages: it is a generator.
        """
        if self.is_generator:
            raise ReadsNoImages(
                f"{self.model} is a generator: it draws images and reads none; use it in mine_rosetta or invert, or let "
                f"other models read its images: 'generated:{self.model},seed=0,n=1600'"
            )

    def check_embeds(self) -> int:
        """`embed_dim`, of a model that gives image embeddings.

        Raises:
            UnknownSite: the model pools nothing.
        """
        if self.embed_dim is None:
            raise UnknownSite(
                f"{self.model} (family {self.family}) pools nothing, so it has no image embedding: a language model reads "
                "its tokens; take activations of a site such as resid_post.-1@patch:mean, or another model"
            )
        return self.embed_dim

    def sees_whole(self, geometry: str) -> bool:
        """Whether a model sees all of a square image: in the `square` view, or where its own transform cuts nothing off."""
        return geometry == "square" or self.geometry.resize_hw == self.geometry.crop_hw

    def site(self, path: str) -> SiteFacts:
        """The facts of one canonical path.

        Raises:
            UnknownSite: this model has no such site.
        """
        if path not in self.sites_by_path:
            raise UnknownSite(_no_such_name(self, path, path))
        return self.sites_by_path[path]

    @cached_property
    def sites_by_path(self) -> dict[str, SiteFacts]:
        """Every site by its canonical path, in order."""
        return {site.path: site for site in self.sites}

    @cached_property
    def depths(self) -> dict[str, float]:
        """The place of every site in the order of computing, by its path: 0 the first, 1 the last."""
        return {path: i / max(1, len(self.sites) - 1) for i, path in enumerate(self.sites_by_path)}

    @cached_property
    def words_by_name(self) -> dict[str, list[list[str]]]:
        """The words of every path, by the first of them; raw modules are left out."""
        found: dict[str, list[list[str]]] = {}
        for site in self.sites:
            if not site.path.startswith("module:"):
                words = site.path.split(".")
                found.setdefault(words[0], []).append(words)
        return found


# ---------------------------------------------------------------- from what is written to what is meant


def resolve_sites(facts: ModelFacts, texts: Iterable[str | Site]) -> tuple[Site, ...]:
    """Make sites canonical and absolute: negative blocks counted from the end, `*` expanded, tokens filled in.

    Order is that of `texts`, expansions ascending; a site that appears twice is kept once.

    Raises:
        BadSite: a text does not follow the grammar.
        UnknownSite: the site, block or selector does not exist in this model; the message says what does.
    """
    found: dict[str, Site] = {}
    for text in texts:
        site = text if isinstance(text, Site) else Site.parse(text)
        for path in _expand(facts, site):
            canonical = _with_tokens(facts, facts.site(path), site)
            found.setdefault(str(canonical), canonical)
    return tuple(found.values())


def site_width(facts: ModelFacts, site: Site) -> int:
    """How many numbers one row of this site holds."""
    return facts.site(site.path).width


def rows_per_image(facts: ModelFacts, site: Site) -> int:
    """How many rows one image gives: 1 for a vector, `@cls` or a mean, n for a sample, else one per position."""
    if isinstance(site.reduce, Sample):
        return site.reduce.n
    return 1 if site.reduce else positions_selected(facts.site(site.path), site.tokens)


def positions_selected(site: SiteFacts, tokens: Tokens | None) -> int:
    """How many positions of an image a selector keeps."""
    first, last = selected_range(site, tokens)
    return last - first


def selected_range(site: SiteFacts, tokens: Tokens | None) -> tuple[int, int]:
    """First and one past the last position that a selector keeps, among the positions of the site."""
    match tokens:
        case "cls":
            return 0, 1
        case "reg":
            return int("cls" in site.selectors), site.prefix
        case "patch" | "map":
            return site.prefix, site.positions
        case _:
            return 0, site.positions


def _with_tokens(facts: ModelFacts, known: SiteFacts, site: Site) -> Site:
    """Fill in the default selector and refuse one that means nothing here."""
    tokens = site.tokens or (known.selectors[0] if known.selectors else None)
    asked = f"{known.path}@{site.tokens}" if site.tokens else known.path
    if site.tokens and site.tokens not in known.selectors:
        can = ", ".join(f"@{name}" for name in known.selectors) or "no @tokens: it is one vector per image"
        raise UnknownSite(
            f"{asked}: {facts.model} has no {site.tokens} here; {known.path} takes {can}{_hint(known, site)}"
        )
    if site.reduce and (tokens in (None, "cls")):
        raise UnknownSite(
            f"{asked}:{_reduce_word(site)}: {facts.model} has one position there; leave the reduction away"
        )
    if isinstance(site.reduce, Sample) and site.reduce.n > positions_selected(known, tokens):
        have = positions_selected(known, tokens)
        raise UnknownSite(f"{site}: {facts.model} has {have} positions there; sample at most {have}")
    return Site(path=known.path, tokens=tokens, reduce=site.reduce)


def _hint(known: SiteFacts, site: Site) -> str:
    if site.tokens == "patch" and known.layout == "map":
        return "; a convolutional map has no patch tokens, write @map"
    return ""


def _reduce_word(site: Site) -> str:
    return "sample" if isinstance(site.reduce, Sample) else str(site.reduce)


def _expand(facts: ModelFacts, site: Site) -> list[str]:
    """The canonical paths that a written path names."""
    if site.is_module:
        return [_module(facts, site.path)]
    parts = site.path.split(".")
    if parts[0] not in facts.words_by_name:
        raise UnknownSite(_no_such_name(facts, site.path, parts[0]))
    same = [words for words in facts.words_by_name[parts[0]] if len(words) == len(parts)]
    if not same:
        raise UnknownSite(f"{site.path}: {facts.model} writes this site {_examples(facts, parts[0])}")
    chosen = [parts[:1]]
    for place in range(1, len(parts)):
        chosen = [[*head, word] for head in chosen for word in _words_at(facts, site, same, head, parts[place])]
    return [".".join(words) for words in chosen]


def _words_at(facts: ModelFacts, site: Site, same: list[list[str]], head: list[str], asked: str) -> list[str]:
    """Which words may follow `head`, given what was asked at that place: a number, `-1`, `*` or a name."""
    place = len(head)
    known = list(dict.fromkeys(words[place] for words in same if words[:place] == head))
    if asked == "*":
        return known
    numbers = sorted(int(word) for word in known if word.isdigit())
    if asked.lstrip("-").isdigit() and numbers:
        index = int(asked)
        if index < 0 and -index <= len(numbers):
            return [str(numbers[index])]
        if index in numbers:
            return [str(index)]
        raise UnknownSite(
            f"{site.path}: {facts.model} has blocks {numbers[0]}..{numbers[-1]} at {'.'.join(head)}; "
            f"count from the end with -1..-{len(numbers)}, or write * for all"
        )
    if asked in known:
        return [asked]
    near = difflib.get_close_matches(asked, known, 1)
    raise UnknownSite(
        f"{site.path}: {facts.model} has {', '.join(known)} after {'.'.join(head)}"
        + (f"; did you mean {near[0]}?" if near else "")
    )


def _module(facts: ModelFacts, path: str) -> str:
    known = [site.path for site in facts.sites if site.path.startswith("module:")]
    if path not in known:
        raise UnknownSite(
            f"{path}: this module of {facts.model} was not inspected (known: {', '.join(known) or 'none'}); "
            "inspect the model with this module path first"
        )
    return path


def _no_such_name(facts: ModelFacts, path: str, name: str) -> str:
    names = site_names(facts)
    near = difflib.get_close_matches(name, names, 1)
    guess = f"; did you mean {near[0]}?" if near else ""
    return f"{path}: {facts.model} (family {facts.family}) has no site {name}; it has {', '.join(names)}{guess}"


def site_names(facts: ModelFacts) -> list[str]:
    """First words of all sites, in forward order."""
    return list(dict.fromkeys(site.path.split(".")[0] for site in facts.sites if not site.path.startswith("module:")))


def _examples(facts: ModelFacts, name: str) -> str:
    paths = [site.path for site in facts.sites if site.path.split(".")[0] == name]
    return paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]}"
