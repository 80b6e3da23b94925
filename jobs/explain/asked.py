"""What one stage asks for, read back from its plan; loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jobs.activations import Forward, forward_effort
from jobs.between import places_of
from schemas.base import canonical_json
from schemas.explain_specs import SEES_IMAGES, STEERS
from schemas.models import Geometry
from schemas.plans import Plan, Shard, load_json
from schemas.refs import Site

AUTO = "auto"


@dataclass(frozen=True)
class Asked:
    """One way to explain the features of one SAE by one model, or the choice of an alpha for it."""

    plan: Plan

    @property
    def params(self) -> Mapping[str, Any]:
        """What decides the result."""
        return self.plan.stage.params

    @property
    def method(self) -> str:
        """topk, steering or informed."""
        return str(self.params["method"])

    @property
    def masking(self) -> str:
        """masks, heatmaps or none."""
        return str(self.params["masking"])

    @property
    def direction(self) -> Literal["sae", "random", "permuted"]:
        """What it is steered with."""
        return self.params["direction"]

    @property
    def positions(self) -> str:
        """Which tokens are steered."""
        return str(self.params["positions"])

    @property
    def sees_images(self) -> bool:
        """Whether top images are shown; a blank one if not."""
        return self.method in SEES_IMAGES

    @property
    def steers(self) -> bool:
        """Whether a direction is added."""
        return self.method in STEERS

    @property
    def prompt(self) -> str:
        """The question."""
        return str(self.params["prompt"])

    @property
    def site(self) -> str:
        """Where the features are."""
        return str(self.params["site"])

    @property
    def block(self) -> int | None:
        """The block whose output they are of, if they are of one."""
        site = Site.parse(self.site)
        return int(site.path.partition(".")[2]) if site.name == "resid_post" else None

    @property
    def seed(self) -> int:
        """Of whatever is drawn; 0 where nothing is."""
        return int(self.params["seed"] or 0)

    @property
    def is_auto(self) -> bool:
        """Whether the alpha is one that was chosen."""
        return self.params["alpha_asked"] == AUTO

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn, not the likeliest ones."""
        generation: Any = self.params["generation"]
        return bool(generation["sample"])

    @property
    def sequences(self) -> int:
        """Texts per feature."""
        return int(self.params.get("sequences", 1))

    @property
    def grid(self) -> tuple[float, ...]:
        """Alphas that are compared, where they are."""
        return tuple(self.params["alphas"])

    @property
    def compares_alphas(self) -> bool:
        """Whether it chooses an alpha; if not, it explains."""
        return "alphas" in self.params

    @property
    def validation(self) -> int:
        """Features on which alphas are compared, at most."""
        return int(self.params["validation"])

    @property
    def images(self) -> int:
        """Top images of a feature that are shown, or that texts are scored on."""
        return int(self.params["k"] or 0)

    @property
    def features(self) -> tuple[tuple[int, ...], int | None]:
        """Which features are to be explained, all that are active if none, and how many of them at most."""
        return tuple(self.params["features"]), self.params["most"]

    @property
    def forward(self) -> Forward:
        """The images that may be shown, as the model of the features sees them."""
        return forward_effort(self.plan)

    @property
    def geometry(self) -> Geometry:
        """How that model sees them."""
        return load_json(Geometry, canonical_json(self.plan.effort["geometry"]))

    @property
    def vlm(self) -> Forward:
        """How the vision-language model is opened."""
        return load_json(Forward, canonical_json(self.plan.effort["vlm"]))

    @property
    def batch(self) -> int:
        """Features that are put to the model together."""
        return int(str(self.plan.effort["batch_features"]))

    def about(self) -> dict[str, str]:
        """What all rows of the stage say of it."""
        stage = self.plan.stage
        own = ("vlm", "method", "masking", "direction", "positions", "alpha_asked", "alpha_unit", "site")
        same = {name: str(stage.params[name]) for name in own}
        return {"stage": stage.digest, "model": stage.subject, "sae": f"sae:{stage.inputs['sae']}", **same}

    def places(self, shard: Shard, n: int) -> range:
        """Which of n features a shard is about."""
        return places_of(self.plan, shard, n)
