"""How good an SAE is: mergeable sums of its reconstructions, and what the model loses when they replace its activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from miclip_core.sae.codes import Codes
from miclip_core.sae.sae import Sae
from miclip_core.zoo.edits import Edit, rows_of
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.select import one_site
from schemas.errors import BadTokens
from schemas.models import SiteFacts
from schemas.refs import Site

Sums = dict[str, Tensor]


def _merged(one: Sums, other: Sums) -> Sums:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}  # type: ignore[misc]


# ---------------------------------------------------------------- reconstruction


@dataclass
class Quality:
    """Sums over tokens in float64, from which every figure follows; any partition of the tokens merges to the same sums."""

    sums: Sums = field(default_factory=dict)

    def add(self, x_ND: Tensor, x_hat_ND: Tensor, codes: Codes) -> None:
        """Count tokens [N,d], their reconstructions and their codes."""
        x, x_hat = x_ND.double(), x_hat_ND.double()
        e, length_x, length_hat = x - x_hat, x.norm(dim=1), x_hat.norm(dim=1)
        along = (x * x_hat).sum(1)
        # a token of length 0 has no direction and no relative length; it counts in neither mean
        long = length_x > 0
        both = long & (length_hat > 0)
        found = {
            "tokens": x.new_tensor(len(x)),
            "x": x.sum(0),
            "xx": x.square().sum(),
            "e": e.sum(0),
            "ee": e.square().sum(),
            "hh": x_hat.square().sum(),
            "xh": along.sum(),
            "long": long.sum().double(),
            "cosine": (along[both] / (length_x * length_hat)[both]).sum(),
            "length_ratio": (length_hat[long] / length_x[long]).sum(),
            "l0": (codes.values > 0).sum().double(),
            "l1": codes.values.abs().double().sum(),
            "fired": codes.fired(),
        }
        self.sums = _merged(self.sums, {name: value.cpu() for name, value in found.items()})

    def merge(self, other: Quality) -> Quality:
        """The sums of both."""
        return Quality(_merged(self.sums, other.sums))

    @property
    def tokens(self) -> int:
        """Tokens counted."""
        return int(self.sums.get("tokens", 0))

    @property
    def fvu(self) -> float:
        """sum ||e||^2 / sum ||x - mean||^2. Raises: BadTokens, as all figures do, without tokens or without variance."""
        return self._get("ee") / self._variance()

    @property
    def fvu_centred(self) -> float:
        """The same with the mean of e taken off, as dictionary_learning reports it."""
        return (self._get("ee") - float(self.sums["e"].square().sum()) / self.tokens) / self._variance()

    @property
    def explained_variance(self) -> float:
        """1 - fvu."""
        return 1 - self.fvu

    @property
    def cosine(self) -> float:
        """Mean cosine of x and x_hat."""
        return self._get("cosine") / max(self._get("long"), 1)

    @property
    def l2_ratio(self) -> float:
        """Mean of ||x_hat|| / ||x||."""
        return self._get("length_ratio") / max(self._get("long"), 1)

    @property
    def relative_bias(self) -> float | None:
        """sum ||x_hat||^2 / sum x . x_hat; None where that is no number."""
        product = self._get("xh")
        return self._get("hh") / product if product else None

    @property
    def l0(self) -> float:
        """Values above 0 per token."""
        return self._get("l0") / self.tokens

    @property
    def l1(self) -> float:
        """Sum of the values of a token."""
        return self._get("l1") / self.tokens

    @property
    def gamma(self) -> float:
        """||mean|| / ||standard deviation|| of the tokens."""
        return float(self.mean_D.norm()) / (self._variance() / self.tokens) ** 0.5

    @property
    def fired_U(self) -> Tensor:
        """On how many tokens each latent fired, int64 [U]."""
        self._get("tokens")
        return self.sums["fired"]

    @property
    def dead_fraction(self) -> float:
        """Share of the latents that never fired."""
        return float((self.fired_U == 0).double().mean())

    @property
    def mean_D(self) -> Tensor:
        """Mean token [d], float64."""
        self._get("tokens")
        return self.sums["x"] / self.tokens

    def _get(self, name: str) -> float:
        if not self.tokens:
            raise BadTokens("no token was measured; expected at least two held-out tokens that differ")
        return float(self.sums[name])

    def _variance(self) -> float:
        total = self._get("xx")
        variance = total - float(self.sums["x"].square().sum()) / self.tokens
        if variance <= 1e-12 * total:
            raise BadTokens(
                f"all {self.tokens} measured tokens are alike (no variance), so no share of it is explained"
            )
        return variance


# ---------------------------------------------------------------- the model with reconstructions in it


def splice(model: VisionModel, site: str | Site, sae: Sae, keep_error: bool = False) -> list[Edit]:
    """Edits for `model.run` that put x_hat in the place of every token of the site's kind; other tokens stay as they are.

    keep_error: put x_hat + e there, with e cut off from gradients, which leaves the model's outputs as they were. A
    sampled site is replaced at all positions of its kind.

    Raises:
        BadSite: several sites, or one reduced by a mean or maximum, whose tokens an SAE of means does not know.
        BadSae: it has another width than the site, or was trained at another site.
    """
    known = check_site(model, site, sae)

    def change(x_ND: Tensor) -> Tensor:
        x_ND = x_ND.to(sae.W_dec)
        x_hat_ND = sae.reconstruct(x_ND)[1]
        return x_hat_ND + (x_ND - x_hat_ND).detach() if keep_error else x_hat_ND

    return [_edit_of_rows(model.facts.site(known.path), known, change)]


def check_site(model: VisionModel, site: str | Site, sae: Sae) -> Site:
    """The canonical site whose tokens this SAE can stand for.

    Raises:
        BadSite, BadSae: see `splice`.
    """
    known, config = one_site(model.facts, site), sae.config
    if config.source == "miclip" and config.site is not None:
        config = config.model_copy(update={"site": str(one_site(model.facts, config.site))})
    config.check(known, model.facts.site(known.path).width)
    return known


def constant(model: VisionModel, site: str | Site, value_D: Tensor | float) -> list[Edit]:
    """Edits that put one vector [d] (or a number) in the place of every token of the site's kind: ablation to zero or mean.

    Raises:
        BadSite: several sites, or one reduced by a mean or maximum.
    """
    known = one_site(model.facts, site)
    facts = model.facts.site(known.path)
    return [_edit_of_rows(facts, known, lambda x_ND: torch.as_tensor(value_D).to(x_ND).expand(x_ND.shape))]


def _edit_of_rows(facts: SiteFacts, site: Site, change: Callable[[Tensor], Tensor]) -> Edit:
    """An edit that sees the selected tokens as rows [N, width], flattened as tables of activations are."""

    def apply(part: Tensor) -> Tensor:
        rows_BRW, back = rows_of(facts, part)
        return back(change(rows_BRW.reshape(-1, facts.width)).reshape(rows_BRW.shape))

    return Edit(Site(path=site.path, tokens=site.tokens), "fn", apply)


VARIANTS = ("original", "spliced", "zero", "mean")
_SAME_LOSS = 1e-6


@dataclass
class LossSums:
    """What the model says with its own activations, with reconstructions, with zeros and with the mean: sums over images."""

    sums: Sums = field(default_factory=dict)

    def add(
        self,
        logits: Mapping[str, Tensor] | None = None,
        labels_B: Tensor | None = None,
        embeddings: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Count one batch of images.

        logits: [B,C] by variant, `original` among them; labels: class of each image, -1 where it has none;
        embeddings: [B,E] of `original` and `spliced`.
        """
        found: Sums = {}
        for name, of_variant in (logits or {}).items():
            found |= self._of_logits(name, of_variant.double(), (logits or {})["original"].double(), labels_B)
        if embeddings:
            one, other = embeddings["original"].double(), embeddings["spliced"].double()
            found["embedded"] = torch.tensor(len(one), dtype=torch.float64)
            found["embedding_cosine"] = torch.cosine_similarity(one, other, dim=1).sum()
        self.sums = _merged(self.sums, {name: value.cpu() for name, value in found.items()})

    def _of_logits(self, name: str, logits_BC: Tensor, original_BC: Tensor, labels_B: Tensor | None) -> Sums:
        log_p, log_q = original_BC.log_softmax(1), logits_BC.log_softmax(1)
        found = {f"images.{name}": log_p.new_tensor(len(log_p)), f"kl.{name}": (log_p.exp() * (log_p - log_q)).sum()}
        if labels_B is not None:
            labels = labels_B.to(logits_BC.device)
            labelled, labels = logits_BC[labels >= 0], labels[labels >= 0]
            found[f"labelled.{name}"] = labelled.new_tensor(len(labelled))
            found[f"loss.{name}"] = cross_entropy(labelled, labels, reduction="sum")
            found[f"right.{name}"] = (labelled.argmax(1) == labels).sum().double()
        return found

    def merge(self, other: LossSums) -> LossSums:
        """The sums of both."""
        return LossSums(_merged(self.sums, other.sums))

    def loss(self, variant: str) -> float | None:
        """Mean cross-entropy to the label in nats; None without labelled images."""
        return self._mean("loss", "labelled", variant)

    def top1(self, variant: str) -> float | None:
        """Share of labelled images whose class is right."""
        return self._mean("right", "labelled", variant)

    def kl(self, variant: str) -> float | None:
        """Mean KL(original || variant) of the classes in nats; None without logits."""
        return self._mean("kl", "images", variant)

    @property
    def embedding_cosine(self) -> float | None:
        """Mean cosine of the image embeddings, original and spliced."""
        count = float(self.sums.get("embedded", 0))
        return float(self.sums["embedding_cosine"]) / count if count else None

    def recovered(self, ablation: str) -> float | None:
        """(L_ablation - L_spliced) / (L_ablation - L_original); None where ablation costs nothing (less than 1e-6)."""
        return _recovered(self.loss(ablation), self.loss("spliced"), self.loss("original"))

    def _mean(self, total: str, count: str, variant: str) -> float | None:
        n = float(self.sums.get(f"{count}.{variant}", 0))
        return float(self.sums[f"{total}.{variant}"]) / n if n else None


def _recovered(ablated: float | None, spliced: float | None, original: float | None) -> float | None:
    if ablated is None or spliced is None or original is None or abs(ablated - original) < _SAME_LOSS:
        return None
    return (ablated - spliced) / (ablated - original)
