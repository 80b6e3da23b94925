"""What gives texts their embeddings, as the params of a stage say it: which CLIP's text tower or which folder; loads no torch."""

from __future__ import annotations

from pydantic import JsonValue

from jobs.activations import Forward, checkpoint
from jobs.model_folders import check_folder
from jobs.protocol import Cell, Known
from miclip_core.extras import SENTENCES, Extra
from schemas.base import Frozen, canonical_json
from schemas.cells import OfAClip
from schemas.errors import BadSpec, NotInspected
from schemas.models import ModelFacts
from schemas.plans import Plan, load_json


class TextEncoder(Frozen):
    """An encoder of texts, and in what state.

    name: full ref of a CLIP, whose text tower it is, or `file:/folder` or `s3://...` of sentence-transformers; embeddings
    of encoders of different names cannot be compared. files: sha256 of its files. revision: of a CLIP on a hub.
    """

    name: str
    files: str
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a model of sentence-transformers."""
        return self.name.startswith(("file:", "s3://"))

    @property
    def forward(self) -> Forward:
        """How the CLIP is opened; no image goes through it."""
        effort: dict[str, JsonValue] = {"files": self.files, "revision": self.revision}
        return Forward(model=self.name, inputs={}, params={"dtype": "fp32"}, effort=effort)


def find_encoder(cell: Cell, known: Known, sentences: str) -> TextEncoder:
    """What the field `sentences` of a cell names: `clip`, or a folder.

    Raises:
        NotInspected: the CLIP is not known yet. BadSpec: it has no text tower, or the folder no model of texts.
    """
    if sentences != "clip":
        check_folder(cell.name, "sentences", sentences)
        return TextEncoder(name=sentences, files=known.files[sentences.removeprefix("file:")])
    assert isinstance(cell.spec, OfAClip) and cell.clip is not None
    facts = known.models.get(cell.clip)
    if facts is None:
        raise NotInspected(f"{cell.clip} is not inspected yet")
    return _of_clip(cell.name, facts)


def _of_clip(name: str, clip: ModelFacts) -> TextEncoder:
    if not clip.has_text:
        raise BadSpec(
            f"stages.{name}.clip: {clip.model} has no text tower, so it embeds no text; name a CLIP that has one"
        )
    return TextEncoder(name=clip.model, **checkpoint(clip))  # type: ignore[arg-type]


def encoder_of(plan: Plan) -> TextEncoder:
    """What embeds the texts of a stage, and where it lies: `encoder` among what is no param, in which its files count alone."""
    return load_json(TextEncoder, canonical_json(plan.effort["encoder"]))


def extras_of(encoder: TextEncoder) -> tuple[Extra, ...]:
    """The optional package that opens it, if one does."""
    return (SENTENCES,) if encoder.is_folder else ()


def encoder_bytes(encoder: TextEncoder, known: Known) -> int:
    """What its weights take; 0 where planning does not know it."""
    clip = known.models.get(encoder.name)
    return 4 * clip.params if clip is not None else known.weights.get(encoder.name.removeprefix("file:"), 0)
