"""How models, image sets and sites are named: the grammars, parsed into frozen values."""

from __future__ import annotations

import re
from typing import Literal

from schemas.base import Frozen
from schemas.errors import BadRef, BadSite

ModelSource = Literal["open_clip", "hf", "timm", "demo"]
MODEL_SOURCES: tuple[ModelSource, ...] = ("open_clip", "hf", "timm", "demo")

_MODEL = re.compile(
    r"^(?P<source>[a-z_]+):(?P<name>[A-Za-z0-9][\w.\-]*(?:/[\w.\-]+(?:\(\d+\))?)*)"
    r"(?:@(?P<where>(?:file:/|s3://)[^\s]+|[\w.\-]+))?\Z"
)


class ModelRef(Frozen):
    """`source:name[@revision | @file:/dir | @s3://...]`; a name ending in `/random(SEED)` has untrained weights."""

    source: ModelSource
    name: str
    revision: str | None = None
    location: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read a model ref.

        Raises:
            BadRef: the text does not follow the grammar.
        """
        match = _MODEL.match(text)
        if match is None or ".." in text:
            raise BadRef(
                f"model {text!r}: expected source:name, optionally @revision, @file:/dir or @s3://bucket/dir; "
                "for example open_clip:ViT-B-32/laion2b_s34b_b79k or hf:facebook/dinov2-base"
            )
        if match["source"] not in MODEL_SOURCES:
            raise BadRef(f"model {text!r}: source {match['source']!r} is not one of {', '.join(MODEL_SOURCES)}")
        where = match["where"]
        at_location = where is not None and where.startswith(("file:/", "s3://"))
        return cls(
            source=match["source"],
            name=match["name"],
            revision=None if at_location else where,
            location=where if at_location else None,
        )

    @property
    def random_seed(self) -> int | None:
        """The seed of `/random(SEED)`, or None for a trained model."""
        match = re.search(r"/random\((\d+)\)$", self.name)
        return int(match[1]) if match else None

    @property
    def base_name(self) -> str:
        """The name without `/random(SEED)`."""
        return re.sub(r"/random\(\d+\)$", "", self.name)

    def __str__(self) -> str:
        where = self.location or self.revision
        return f"{self.source}:{self.name}" + (f"@{where}" if where else "")


def slug(text: str) -> str:
    """A path key `[a-z0-9._-]+` made from a ref; not unique by itself, digests are."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.")[:80] or "x"


# ---------------------------------------------------------------- sites

Tokens = Literal["cls", "reg", "patch", "all", "map"]
TOKENS: tuple[Tokens, ...] = ("cls", "reg", "patch", "all", "map")
_SITE = re.compile(
    r"^(?P<head>module:[A-Za-z_][\w.]*|[a-z_][a-z0-9_]*(?:\.(?:-?\d+|\*|[a-z][a-z0-9_]*))*)"
    r"(?:@(?P<tokens>[a-z]+))?(?::(?P<reduce>mean|max|sample\(\d+,\s*\d+\)))?\Z"
)


class Sample(Frozen):
    """`sample(n,seed)`: n token positions per image, drawn without replacement from (seed, image id)."""

    n: int
    seed: int


class Site(Frozen):
    """`name[.block][@tokens][:reduce]`, parsed; `resolve` in the adapter makes it canonical and absolute.

    name: the words of the dotted name without numbers at their places, e.g. `conv.3.1.out` keeps its form in `path`.
    """

    path: str
    tokens: Tokens | None = None
    reduce: Literal["mean", "max"] | Sample | None = None

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site.

        Raises:
            BadSite: the text does not follow the grammar.
        """
        match = _SITE.match(text.strip())
        if match is None:
            raise BadSite(
                f"site {text!r}: expected name[.block][@tokens][:reduce], for example resid_post.7@cls, "
                "mlp_act.*@patch:mean, conv.3.1.out:max, resid_post.-2@patch:sample(16,0) or module:visual.ln_post"
            )
        tokens = match["tokens"]
        if tokens is not None and tokens not in TOKENS:
            raise BadSite(f"site {text!r}: tokens {tokens!r} is not one of {', '.join(TOKENS)}")
        reduce: Literal["mean", "max"] | Sample | None = None
        if match["reduce"] in ("mean", "max"):
            reduce = "mean" if match["reduce"] == "mean" else "max"
        elif match["reduce"]:
            n, seed = re.findall(r"\d+", match["reduce"])
            if int(n) == 0:
                raise BadSite(f"site {text!r}: sample(0,...) keeps nothing; ask for at least one position")
            reduce = Sample(n=int(n), seed=int(seed))
        return cls(path=match["head"], tokens=tokens, reduce=reduce)

    @property
    def is_module(self) -> bool:
        """Whether the site is a raw module path."""
        return self.path.startswith("module:")

    @property
    def name(self) -> str:
        """The first word: `resid_post` of `resid_post.7`, `conv` of `conv.3.1.out`; the whole path of a module."""
        return self.path if self.is_module else self.path.split(".")[0]

    def __str__(self) -> str:
        text = self.path + (f"@{self.tokens}" if self.tokens else "")
        if isinstance(self.reduce, Sample):
            return f"{text}:sample({self.reduce.n},{self.reduce.seed})"
        return f"{text}:{self.reduce}" if self.reduce else text


def site_path(text: str) -> str:
    """A site without its positions. Raises: BadSite."""
    return Site.parse(text).path


# ---------------------------------------------------------------- image sets

ImageSource = Literal["folder", "glob", "parquet", "wds", "hf", "world", "generated"]
IMAGE_SOURCES: tuple[ImageSource, ...] = ("folder", "glob", "parquet", "wds", "hf", "world", "generated")


class ImageSetRef(Frozen):
    """`source:location`: folder, glob, parquet (image bytes), wds (tar shards), hf (saved data set), world:seed,n, or
    generated:model,seed,n."""

    source: ImageSource
    location: str

    @classmethod
    def parse(cls, text: str) -> ImageSetRef:
        """Read an image set ref.

        Raises:
            BadRef: the text does not follow the grammar.
        """
        source, colon, location = text.partition(":")
        if not colon or source not in IMAGE_SOURCES or not location:
            raise BadRef(
                f"images {text!r}: expected source:location with source one of {', '.join(IMAGE_SOURCES)}; "
                "for example folder:/data/photos, glob:s3://bucket/val/**/*.jpg or world:seed=0,n=2000"
            )
        return cls(source=source, location=location)

    def __str__(self) -> str:
        return f"{self.source}:{self.location}"


# ---------------------------------------------------------------- sparse autoencoders

SaeSource = Literal["sae", "miclip", "saelens", "sparsify", "dictionary_learning", "overcomplete", "attributing_clip"]
SAE_SOURCES: tuple[SaeSource, ...] = (
    "sae",
    "miclip",
    "saelens",
    "sparsify",
    "dictionary_learning",
    "overcomplete",
    "attributing_clip",
)


class SaeRef(Frozen):
    """`sae:<stage>` (its digest or at least 8 first digits) of this store, or `format:location` of a file or folder."""

    source: SaeSource
    location: str

    @classmethod
    def parse(cls, text: str) -> SaeRef:
        """Read an SAE ref.

        Raises:
            BadRef: the text does not follow the grammar.
        """
        source, colon, location = text.partition(":")
        if not colon or source not in SAE_SOURCES or not location or ".." in location:
            raise BadRef(
                f"sae {text!r}: expected sae:<stage> or format:location with format one of "
                f"{', '.join(SAE_SOURCES[1:])}; for example sae:0123456789abcdef0123 or saelens:/models/my-sae"
            )
        if source == "sae" and not re.fullmatch(r"[0-9a-f]{8,20}", location):
            raise BadRef(f"sae {text!r}: expected 8 to 20 hex digits of a stage after `sae:`; `miclip saes` lists them")
        if source != "sae" and not location.startswith(("/", "s3://")):
            raise BadRef(f"sae {text!r}: expected an absolute path or s3://bucket/key after `{source}:`")
        return cls(source=source, location=location)

    def __str__(self) -> str:
        return f"{self.source}:{self.location}"


# ---------------------------------------------------------------- concepts

ConceptSource = Literal["classes", "world", "words", "file", "s3"]


class ConceptsRef(Frozen):
    """A list of concepts: `classes` that a model predicts, `world[:categories]`, `words:n`, or a file with a name per line."""

    source: ConceptSource
    location: str = ""

    @classmethod
    def parse(cls, text: str) -> ConceptsRef:
        """Read a concepts ref.

        Raises:
            BadRef: the text does not follow the grammar.
        """
        source, colon, location = text.partition(":")
        fits = {
            "classes": not colon,
            "world": not colon or re.fullmatch(r"[a-z]+(,[a-z]+)*", location),
            "words": re.fullmatch(r"[1-9][0-9]*", location),
            "file": location.startswith("/"),
            "s3": location.startswith("//"),
        }
        if not fits.get(source):
            raise BadRef(
                f"concepts {text!r}: expected classes, world, world:shape,colour, words:N with N of at least 1, "
                "file:/absolute/path or s3://bucket/key with one name per line, or a list of names"
            )
        return cls(source=source, location=location)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.source}:{self.location}" if self.location else self.source
