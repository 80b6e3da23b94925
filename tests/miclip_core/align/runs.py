"""Small alignments that tests share: images whose activations, predictions and embeddings belong together, and a textbook trainer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from miclip_core.align.order import batch_order
from miclip_core.align.trainer import AlignMetrics, AlignTrainer
from miclip_core.zoo.reducers import Moments
from schemas.align import AlignSettings

D, E, C, B = 10, 8, 5, 32


class Images(NamedTuple):
    """Activations [N,D], class texts [C,E], predicted classes [N], image embeddings [N,E], as `AlignTrainer.step` takes them."""

    a: Tensor
    c: Tensor
    yhat: Tensor
    x: Tensor

    def take(self, rows: slice | Tensor) -> Images:
        return Images(self.a[rows], self.c, self.yhat[rows], self.x[rows])


def images(n: int, seed: int = 0, d: int = D, e: int = E, classes: int = C) -> Images:
    """Activations that say a little of the class and of the image; embeddings of any length."""
    draw = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    c = torch.randn(classes, e, generator=fixed)
    of_class, of_image = torch.randn(classes, d, generator=fixed), torch.randn(e, d, generator=fixed)
    yhat = torch.randint(classes, (n,), generator=draw)
    x = c[yhat] + torch.randn(n, e, generator=draw)
    return Images(of_class[yhat] + 0.5 * x @ of_image + torch.rand(n, d, generator=draw), c, yhat, x)


def settings(**changes) -> AlignSettings:
    return AlignSettings(**{"lr": 1e-2, "batch": B, "seed": 3, **changes})


def moments(a: Tensor) -> Moments:
    made = Moments()
    made.add(a[:, None], torch.arange(1).numpy(), [])
    return made


def trainer(s: AlignSettings, dtype: torch.dtype = torch.float32, n: int = 300) -> AlignTrainer:
    made = AlignTrainer(s, D, E, dtype=dtype, clip_scale=60.0)
    made.begin(moments(images(n).a))
    return made


def train(made: AlignTrainer, steps: range) -> list[AlignMetrics]:
    return [made.step(*images(B, seed=step + 1)) for step in steps]


def fit(made: AlignTrainer, data: Images) -> list[AlignMetrics]:
    """All epochs of the settings over all images."""
    made.begin(moments(data.a))
    return [
        made.step(*data.take(torch.from_numpy(rows)))
        for epoch in range(made.settings.epochs)
        for rows in batch_order(len(data.a), made.settings, epoch)
    ]


# ---------------------------------------------------------------- an independent reference


def textbook_loss(
    n: Tensor, c: Tensor, yhat: Tensor, x: Tensor, scale: Tensor | float, multi_positive: bool = False
) -> tuple[Tensor, Tensor]:
    """L_out and L_in as cross entropies over full B x B matrices, in the dtype of n; gradients by autograd."""
    same = (yhat[:, None] == yhat[None, :]).to(n)
    targets = same / same.sum(1, keepdim=True) if multi_positive else torch.eye(len(n)).to(n)
    pairs = []
    for other in (c[yhat], x):
        logits = scale * normalize(n, dim=1) @ normalize(other.to(n), dim=1).T
        pairs.append((cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2)
    return pairs[0], pairs[1]


class TextbookTrainer:
    """The same run with modules, autograd and the plain Adam of torch, in float64."""

    def __init__(self, s: AlignSettings, made: AlignTrainer, a: Tensor) -> None:
        self.s, self.weights = s, {name: w.detach().clone().requires_grad_() for name, w in made.weights.items()}
        self.fixed = {"clip": 60.0, "learned": None}.get(s.logit_scale, s.logit_scale)
        self.adam = torch.optim.Adam(self.weights.values(), lr=s.lr, betas=s.betas, fused=False)
        a = a.double()
        self.mean, self.std = (a.mean(0), a.std(0, correction=0)) if s.standardise else (0.0, 1.0)

    def step(self, a: Tensor, c: Tensor, yhat: Tensor, x: Tensor) -> dict[str, float]:
        z = (a.double() - self.mean) / self.std
        n = z @ self.weights["W"].T + self.weights.get("b", 0.0)
        scale = self.fixed if self.fixed is not None else self.weights["log_scale"].exp()
        out, in_ = textbook_loss(n, c, yhat, x, scale, self.s.multi_positive)
        loss = self.s.w_out * out + self.s.w_in * in_
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        if self.fixed is None:
            self.weights["log_scale"].data.clamp_(max=torch.tensor(100.0, dtype=torch.float64).log())
        return {"loss": loss.item(), "logit_scale": float(torch.as_tensor(scale).detach())}
