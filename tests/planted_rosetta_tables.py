"""The tables of docs from the lake that `python -m tests.planted_rosetta DIR` made; `python -m tests.planted_rosetta_tables DIR`."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from miclip_core.evaluate.significance import bootstrap_interval
from miclip_core.world.planted import VALUES
from tests.planted_rosetta import (
    CLEAR,
    FOUR,
    MODELS,
    STRONG,
    Edges,
    Mined,
    Truth,
    found_again,
    has_run,
    same,
    shuffled,
    truth_of,
)

ENOUGH = 6
VITS, CLIP_RESNETS, CLASSIFIERS = MODELS[:5], MODELS[5:7], MODELS[7:]
BESIDE = (
    ("demo:clip-p8", "demo:clip-p8-b"),
    ("demo:clip-p8", "demo:clip-rn"),
    ("demo:clip-p8", "demo:clip-p16"),
    ("demo:clip-p8-b", "demo:clip-rn"),
    ("demo:clip-p8-b", "demo:clip-p16"),
    ("demo:clip-p16", "demo:clip-rn"),
)
"""Pairs whose kind of models an earlier prototype compared."""


def share(values: np.ndarray, counted: bool = True) -> str:
    """A mean with its 95 % interval over what it is a mean of, and their number."""
    if not len(values):
        return ""
    text = f"{values.mean():.2f}"
    if len(values) >= ENOUGH:
        low, high = bootstrap_interval(values)
        text += f" ({low:.2f} to {high:.2f})"
    return f"{text}, {len(values)}" if counted else text


def row(*cells: object) -> str:
    """One line of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def head(*cells: str) -> str:
    """The first two lines of a table."""
    return f"{row(*cells)}\n|{'---|' * len(cells)}"


def title(member: str) -> str:
    """A member for people."""
    return f"`{member.split(' ')[0].removeprefix('demo:')}`" + (" features" if " " in member else "")


class Run:
    """A run and what its units stand for."""

    def __init__(self, folder: Path, name: str) -> None:
        self.mined = Mined(folder, name)
        self.truth: Truth = truth_of(self.mined)
        self.neurons = [member for member in self.mined.members if " " not in member]

    def both_selective(self, edges: Edges) -> Edges:
        """Edges whose units both stand for a value."""
        chosen = self.truth.selective_U
        return edges.where(chosen[edges.a] & chosen[edges.b])

    def together(self, pairs: Sequence[tuple[str, str]], values: Callable[[Edges], np.ndarray]) -> np.ndarray:
        """The values of the edges of several pairs."""
        return np.concatenate([values(self.mined.edges(a, b)) for a, b in pairs])

    def same(self, edges: Edges) -> np.ndarray:
        """Whether both tell the same value best."""
        return same(self.truth.value_U, edges)

    def shuffled(self, edges: Edges) -> np.ndarray:
        """The same of permuted partners."""
        return shuffled(self.truth.value_U, edges, self.mined.site_U)


def strong(edges: Edges) -> Edges:
    """Edges above STRONG that place alone does not explain."""
    return edges.where((edges.r > STRONG) & ~edges.below.astype(bool))


def above(edges: Edges) -> Edges:
    """Edges that place alone does not explain."""
    return edges.where(~edges.below.astype(bool))


def groups(run: Run) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Pairs of neurons by architecture and training."""
    pairs = [(a, b) for a, b in run.mined.pairs() if a in run.neurons and b in run.neurons]
    kinds = {
        **dict.fromkeys(VITS, "ViT"),
        **dict.fromkeys(CLIP_RESNETS, "CLIP ResNet"),
        **dict.fromkeys(CLASSIFIERS, "classifier"),
    }
    found = defaultdict(list)
    for a, b in pairs:
        found[f"{kinds[a]} x {kinds[b]}"].append((a, b))
    yield from found.items()
    yield "all pairs", pairs
    for other in run.mined.members:
        if " " in other:
            yield "features of `clip-p8` x neurons", [(a, b) for a, b in run.mined.pairs() if other in (a, b)]


def concepts_table(run: Run, again: Run | None) -> Iterator[str]:
    """Share of buddies that stand for the same value."""
    yield head(
        "pairs",
        "K",
        "buddies",
        "median r",
        "above .7",
        "same value: all",
        "above .7",
        "above .7, units permuted",
        "above .7, both selective",
        "the same, permuted",
        "above .7, second images",
        "by mean activation",
    )
    named = [(f"{title(a)} x {title(b)}", [(a, b)]) for a, b in BESIDE]
    for name, pairs in [*named, *groups(run)]:
        for k, pick in (("1", lambda e: e.mutual), ("5", lambda e: e), ("best of 5", lambda e: e.best)):
            if k == "best of 5" and name != "all pairs":
                continue

            def of(values: Callable[[Edges], np.ndarray], here: Run = run, pick: Callable = pick) -> np.ndarray:
                return here.together(pairs, lambda e: values(pick(above(e))))  # noqa: B023

            r = of(lambda e: e.r)
            yield row(
                f"{name} ({len(pairs)})" if len(pairs) > 1 else name,
                k,
                len(r),
                f"{np.median(r):.2f}",
                int((r > STRONG).sum()),
                share(of(run.same), False),
                share(of(lambda e: run.same(strong(e))), False),
                f"{of(lambda e: run.shuffled(strong(e))).mean():.2f}",
                share(of(lambda e: run.same(run.both_selective(strong(e))))),
                f"{of(lambda e: run.shuffled(run.both_selective(strong(e)))).mean():.2f}",
                "" if again is None else share(of(lambda e: again.same(strong(e)), again), False),
                f"{of(lambda e: same(run.truth.mean_value_U, strong(e))).mean():.2f}",
            )


def chance_table(run: Run) -> Iterator[str]:
    """What pairs share and what chance gives."""
    yield head(
        "pair",
        "units",
        "buddies, K = 1 (null)",
        "K = 5 (null)",
        "of these above the null",
        "median r",
        "q999 of the null",
        "largest r of the null",
        "shares training",
    )
    rows = run.mined.sql.execute(
        """
        SELECT x.model_a || coalesce(' ' || x.sae_a, ''), x.model_b || coalesce(' ' || x.sae_b, ''), x.units_a, x.units_b, x.buddies, x.buddies_null,
               y.buddies, y.buddies_null, y.above_null, y.r_p50, y.null_q999, y.null_best_max, y.shares_training
        FROM rosetta_pairs x JOIN rosetta_pairs y USING (stage) WHERE x.k = 1 AND y.k = 5 AND x.model_a <> x.model_b ORDER BY y.r_p50 DESC
        """
    ).fetchall()
    for a, b, units_a, units_b, one, one_null, five, five_null, kept, median, q999, most, shares in rows:
        yield row(
            f"{title(a)} x {title(b)}",
            f"{units_a}, {units_b}",
            f"{one} ({one_null})",
            f"{five} ({five_null})",
            f"{kept / five:.2f}",
            f"{median:.2f}",
            f"{q999:.2f}",
            f"{most:.2f}",
            shares,
        )


def cliques_table(run: Run, again: Run | None) -> Iterator[str]:
    """How many cliques, and whether all their units stand for one value."""
    yield head(
        "K",
        "units",
        "cliques",
        "disjoint",
        "median of min r",
        "all the same value",
        "all of its units selective, and the same",
        "units permuted",
        "second images",
    )
    for k in (1, 5):
        of = cliques_by_size(run, k)
        other = cliques_by_size(again, k) if again is not None else {}
        for size, (lows, whole, selective, permuted, disjoint) in sorted(of.items()):
            second = share(other[size][1]) if size in other else ""
            yield row(
                k,
                size,
                len(lows),
                disjoint,
                f"{np.median(lows):.2f}",
                share(whole, False),
                share(selective),
                f"{permuted:.2f}",
                second,
            )


def cliques_by_size(run: Run, k: int) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray, float, int]]:
    """Size -> min r, whether all are one value, the same of cliques of selective units, the share when permuted, how many are disjoint."""
    value_U, selective_U = run.truth.value_U, run.truth.selective_U
    of: dict[int, list[tuple[np.ndarray, float]]] = defaultdict(list)
    taken: set[int] = set()
    apart: Counter[int] = Counter()
    for ids, low, _ in run.mined.cliques(k):
        of[len(ids)].append((ids, low))
        if not taken.intersection(ids.tolist()):
            apart[len(ids)] += 1
            taken.update(ids.tolist())
    found = {}
    rng = np.random.default_rng(0)
    for size, cliques in of.items():
        ids = np.array([units for units, _ in cliques])
        whole = np.array([len(set(value_U[units])) == 1 for units in ids], float)
        chosen = selective_U[ids].all(1)
        permuted = [_permuted(run, ids, rng) for _ in range(20)]
        found[size] = np.array([low for _, low in cliques]), whole, whole[chosen], float(np.mean(permuted)), apart[size]
    return found


def _permuted(run: Run, ids_CS: np.ndarray, rng: np.random.Generator) -> float:
    """Share of cliques of one value where each unit's place is taken by a unit of another clique from the same site."""
    flat = ids_CS.ravel().copy()
    for key in set(zip(run.mined.member_U[flat], run.mined.site_U[flat])):
        at = np.flatnonzero(
            (run.mined.member_U[ids_CS.ravel()] == key[0]) & (run.mined.site_U[ids_CS.ravel()] == key[1])
        )
        flat[at] = flat[rng.permutation(at)]
    value = run.truth.value_U[flat].reshape(ids_CS.shape)
    return float((value == value[:, :1]).all(1).mean())


def values_table(run: Run, k: int) -> Iterator[str]:
    """Per planted value: how many cliques of selective units stand for it, the largest and strongest."""
    yield head("value", f"cliques of K = {k}", "most models", "largest min r", "models of the largest")
    of: dict[int, list[tuple[int, float, np.ndarray]]] = defaultdict(list)
    for ids, low, _ in run.mined.cliques(k):
        values = set(run.truth.value_U[ids])
        if len(values) == 1 and run.truth.selective_U[ids].all():
            of[int(values.pop())].append((len(ids), low, ids))
    for value, (category, name) in enumerate(VALUES):
        if value in of:
            size, low, ids = max(of[value], key=lambda some: some[:2])
            yield row(
                f"{category} {name}",
                len(of[value]),
                size,
                f"{max(low for _, low, _ in of[value]):.2f}",
                ", ".join(title(run.mined.member_U[i]) for i in ids),
            )
        else:
            yield row(f"{category} {name}", 0, "", "", "")


def covered_table(run: Run) -> Iterator[str]:
    """Planted values that some edge, or some clique, of selective units stands for."""
    yield head("what", f"at r > {CLEAR}", f"at r > {STRONG}")
    pairs = [(a, b) for a, b in run.mined.pairs() if a in run.neurons and b in run.neurons]
    for k in (1, 5):
        for name, some in (("some pair", pairs), *((f"{title(a)} x {title(b)}", [(a, b)]) for a, b in BESIDE)):
            cells = []
            for least in (CLEAR, STRONG):
                edges = [run.both_selective(above(run.mined.edges(a, b))) for a, b in some]
                edges = [e.mutual if k == 1 else e for e in edges]
                found = [run.truth.value_U[e.a[(e.r > least) & (run.same(e) > 0)]] for e in edges]
                cells.append(_by_category(np.concatenate(found)))
            yield row(f"{name}, K = {k}", *cells)
        cliques = run.mined.cliques(k)
        for models in (3, 4, 5):
            cells = []
            for least in (CLEAR, STRONG):
                found = [
                    run.truth.value_U[ids[0]]
                    for ids, low, _ in cliques
                    if len(ids) >= models
                    and low > least
                    and run.truth.selective_U[ids].all()
                    and len(set(run.truth.value_U[ids])) == 1
                ]
                cells.append(_by_category(np.array(found, np.int64)))
            yield row(f"a clique of {models} or more, K = {k}", *cells)


def _by_category(values: np.ndarray) -> str:
    counts = Counter(VALUES[value][0] for value in np.unique(values))
    return f"{sum(counts.values())} of 28: " + ", ".join(f"{n} {category}" for category, n in counts.items())


PLACES = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 1.0))


def place_table(run: Run, rotated: Run | None) -> Iterator[str]:
    """Whether the null tells pairs of units that answer to a place from others."""
    yield head(
        "place explains of both at least",
        "buddies",
        "median r",
        "median null_r",
        "90 %",
        "below the null",
        "rotated: median null_r",
        "below the null",
        "same value, above the null",
        "below",
    )
    pairs = [(a, b) for a, b in run.mined.pairs() if a in FOUR and b in FOUR]
    edges = [run.mined.edges(a, b) for a, b in pairs]
    turned = [rotated.mined.edges(a, b) for a, b in pairs] if rotated is not None else []
    for low, high in PLACES:

        def inside(here: Run, e: Edges, low: float = low, high: float = high) -> Edges:
            least = np.minimum(here.truth.place_U[e.a], here.truth.place_U[e.b])
            return e.where((least >= low) & (least < high))

        chosen = [inside(run, e) for e in edges]
        r, null_r, below, alike = (
            np.concatenate(some)
            for some in (
                [e.r for e in chosen],
                [e.null_r for e in chosen],
                [e.below for e in chosen],
                [run.same(e) for e in chosen],
            )
        )
        if not len(r):
            continue
        below = below.astype(bool)
        other = [inside(rotated, e) for e in turned] if rotated is not None else []
        yield row(
            f"{low} to {high}",
            len(r),
            f"{np.median(r):.2f}",
            f"{np.median(null_r):.2f}",
            f"{np.quantile(null_r, 0.9):.2f}",
            share(below.astype(float), False),
            f"{np.median(np.concatenate([e.null_r for e in other])):.2f}" if other else "",
            share(np.concatenate([e.below for e in other]).astype(float), False) if other else "",
            share(alike[~below], False),
            share(alike[below], False),
        )


def settings_table(folder: Path, base: Run, again: Run) -> Iterator[str]:
    """Other settings on four models: how many buddies are those of the first setting, and how many stand for one value."""
    yield head(
        "setting",
        "K",
        "buddies",
        "median r",
        "above .7",
        "of these also in the first setting",
        "of all",
        "same value above .7",
        "above .7 found on other images",
        "of all",
    )
    runs = {
        "1,000 images": ("all", "again"),
        "200 images": ("four-200", "four-200-again"),
        "1,600 images": ("four-1600", "four-1600-again"),
        "grid 4 x 4": ("four-grid", ""),
        "fp16": ("four-fp16", ""),
    }
    for name, (first, second) in runs.items():
        if not has_run(folder, first):
            continue
        one = base if first == "all" else Run(folder, first)
        two = again if second == "again" else Run(folder, second) if second else None
        pairs = [(a, b) for a, b in one.mined.pairs() if a in FOUR and b in FOUR]
        for k in (1, 5):
            pick = (lambda e: e.mutual) if k == 1 else (lambda e: e)
            edges = [pick(above(one.mined.edges(a, b))) for a, b in pairs]
            beside = [to_base(base, one, pick(above(base.mined.edges(a, b)))) for a, b in pairs]
            others = [] if two is None else [to_base(two, one, pick(above(two.mined.edges(a, b)))) for a, b in pairs]
            high = [strong(e) for e in edges]
            r = np.concatenate([e.r for e in edges])

            def kept(some: list[Edges], other: list[Edges]) -> str:
                return share(np.concatenate([found_again(x, y) for x, y in zip(some, other)]), False) if other else ""

            yield row(
                name,
                k,
                len(r),
                f"{np.median(r):.2f}",
                int((r > STRONG).sum()),
                kept(high, beside),
                kept(edges, beside),
                share(np.concatenate([one.same(e) for e in high]), False),
                kept(high, others),
                kept(edges, others),
            )


def precision_line(base: Run, other: Run) -> str:
    """Whether neighbours, their order and r of another precision are those of the first, over four models."""
    chosen = ", ".join(f"'{model}'" for model in FOUR)
    key = "(model_a || coalesce(' ' || sae_a, '')) AS a, site_a, unit_a, (model_b || coalesce(' ' || sae_b, '')) AS b, rank, site_b, unit_b, r, is_exact"
    tables = [
        run.mined.sql.execute(
            f"SELECT {key} FROM rosetta_neighbours WHERE a IN ({chosen}) AND b IN ({chosen}) AND (a <> b OR a = 'demo:clip-p8') ORDER BY 1, 2, 3, 4, 5"
        ).fetchnumpy()
        for run in (base, other)
    ]
    alike = (tables[0]["site_b"] == tables[1]["site_b"]) & (tables[0]["unit_b"] == tables[1]["unit_b"])
    return (
        f"{len(alike)} neighbours, alike {alike.mean():.6f}, largest difference of r {np.abs(tables[0]['r'] - tables[1]['r']).max():.1e}, "
        f"not certain {int((~tables[0]['is_exact'].astype(bool)).sum())} and {int((~tables[1]['is_exact'].astype(bool)).sum())}"
    )


def features_table(run: Run) -> Iterator[str]:
    """Features of an SAE beside the neurons of the same model: how well other models know them."""
    yield head(
        "units of `clip-p8`",
        "compared",
        "stand for a value",
        "median best r elsewhere",
        "above .5",
        "above .7",
        "the partner tells the same value, above .5",
        "above .7",
        "with a buddy, K = 1",
    )
    features = next((member for member in run.mined.members if " " in member), None)
    for member in ("demo:clip-p8", features):
        if member is None:
            continue
        others = [other for other in run.neurons if other != "demo:clip-p8"]
        best = [(pair, nearest(run, member, pair)) for pair in others]
        ids = np.unique(np.concatenate([edges.a for _, edges in best]))
        selective = run.truth.selective_U
        alone = run.mined.sql.execute(
            "SELECT id FROM rosetta_universality x JOIN units u ON (x.model || coalesce(' ' || x.sae, ''), x.site, x.unit) = (u.member, u.site, u.unit) WHERE k = 1 AND degree > 0"
        ).fetchnumpy()["id"]
        for name, chosen in (("all", np.ones(len(selective), bool)), ("that stand for a value", selective)):
            edges = [e.where(chosen[e.a]) for _, e in best]
            r, alike = np.concatenate([e.r for e in edges]), np.concatenate([run.same(e) for e in edges])
            some = ids[chosen[ids]]
            yield row(
                f"{'features' if ' ' in member else 'neurons'}, {name}",
                len(some),
                f"{selective[some].mean():.2f}",
                f"{np.median(r):.2f}",
                share((r > CLEAR).astype(float), False),
                share((r > STRONG).astype(float), False),
                share(alike[r > CLEAR], False),
                share(alike[r > STRONG]),
                share(np.isin(some, alone).astype(float), False),
            )


def nearest(run: Run, a: str, b: str) -> Edges:
    """The nearest unit of b to each unit of a."""
    query = """
        SELECT x.id AS a, y.id AS b, r FROM rosetta_neighbours n
        JOIN units x ON (x.member, x.site, x.unit) = (n.model_a || coalesce(' ' || n.sae_a, ''), site_a, unit_a)
        JOIN units y ON (y.member, y.site, y.unit) = (n.model_b || coalesce(' ' || n.sae_b, ''), site_b, unit_b)
        WHERE x.member = ? AND y.member = ? AND rank = 0 ORDER BY 1
    """
    ids_a, ids_b, r = run.mined.sql.execute(query, [a, b]).fetchnumpy().values()
    none = np.zeros(len(r))
    return Edges(ids_a, ids_b, r, none, none, none, none)


def selectivity_table(run: Run) -> Iterator[str]:
    """Shared units beside others: how selective they are."""
    yield head(
        "member",
        "units",
        "shared",
        "in 3 or more",
        "median kurtosis: shared",
        "others",
        "median active share: shared",
        "others",
        "stand for a value: shared",
        "others",
    )
    rows = run.mined.sql.execute(
        "SELECT id, degree, x.kurtosis, x.active FROM rosetta_universality x JOIN units u ON (x.model || coalesce(' ' || x.sae, ''), x.site, x.unit) = (u.member, u.site, u.unit) WHERE k = 1 ORDER BY id"
    ).fetchnumpy()
    ids, degree = rows["id"], rows["degree"]
    counts = []
    for member in run.mined.members:
        of = run.mined.member_U[ids] == member
        yes, no = of & (degree > 0), of & (degree == 0)
        if " " not in member:
            counts.append((of.sum(), yes.sum()))
        medians = [
            f"{np.nanmedian(np.ma.filled(rows[name][some], np.nan)):.2f}"
            for name in ("kurtosis", "active")
            for some in (yes, no)
        ]
        yield row(
            title(member),
            int(of.sum()),
            f"{int(yes.sum())} ({yes.sum() / of.sum():.2f})",
            int((of & (degree >= 3)).sum()),
            *medians,
            *(share(run.truth.selective_U[ids[some]].astype(float), False) for some in (yes, no)),
        )
    x, y = np.log(np.array(counts, float)).T
    yield f"\nlog-log slope over {len(counts)} models: {np.polyfit(x, y, 1)[0]:.2f}, correlation {np.corrcoef(x, y)[0, 1]:.2f}"
    rng = np.random.default_rng(0)
    slopes = [np.polyfit(x[d], y[d], 1)[0] for d in rng.integers(len(x), size=(2000, len(x))) if np.ptp(x[d]) > 0]
    yield f"bootstrap over models: {np.quantile(slopes, 0.025):.2f} to {np.quantile(slopes, 0.975):.2f}"


def anchors_lines(run: Run) -> Iterator[str]:
    """Tuples of all anchors, how far they agree, and clusters."""
    sql = run.mined.sql
    yield head(
        "anchor",
        "tuples",
        "median mean r",
        "median min r",
        "all one value",
        "mean Jaccard",
        "clusters",
        "largest",
        "of one unit",
        "split",
        "clusters of 2 or more: pure",
    )
    value_U = run.truth.value_U
    for member in run.mined.members:
        tuples = sql.execute(
            "SELECT tuple, any_value(mean_r), any_value(min_r), any_value(a.id), list(u.id) FROM rosetta_tuples t JOIN units u ON (t.model || coalesce(' ' || t.sae, ''), t.site, t.unit) = (u.member, u.site, u.unit) JOIN units a ON (anchor_model || coalesce(' ' || anchor_sae, ''), anchor_site, anchor_unit) = (a.member, a.site, a.unit) WHERE a.member = ? GROUP BY tuple",
            [member],
        ).fetchall()
        jaccard = sql.execute(
            "SELECT avg(jaccard) FROM rosetta_anchors WHERE (model_a || coalesce(' ' || sae_a, '')) = ? OR (model_b || coalesce(' ' || sae_b, '')) = ?",
            [member, member],
        ).fetchone()
        clusters = sql.execute(
            "SELECT cluster, any_value(size), bool_or(is_split), list(u.id) FROM rosetta_clusters c JOIN units u ON (anchor_model || coalesce(' ' || anchor_sae, ''), c.site, c.unit) = (u.member, u.site, u.unit) WHERE u.member = ? GROUP BY cluster",
            [member],
        ).fetchall()
        sizes = np.array([size for _, size, _, _ in clusters])
        pure = np.array([len(set(value_U[ids])) == 1 for _, size, _, ids in clusters if size > 1], float)
        whole = np.array(
            [len({int(value_U[anchor]), *value_U[ids].tolist()}) == 1 for *_, anchor, ids in tuples], float
        )
        yield row(
            title(member),
            len(tuples),
            f"{np.median([t[1] for t in tuples]):.2f}" if tuples else "",
            f"{np.median([t[2] for t in tuples]):.2f}" if tuples else "",
            share(whole, False),
            "" if jaccard is None or jaccard[0] is None else f"{jaccard[0]:.3f}",
            len(sizes),
            sizes.max() if len(sizes) else "",
            int((sizes == 1).sum()),
            sum(split for _, _, split, _ in clusters),
            share(pure),
        )
    for k in (1, 5):
        yield f"\ncomponents of K = {k} (units, models, density, longest path): " + str(
            sql.execute(
                "SELECT DISTINCT component, units, models, round(density, 3), longest_path FROM rosetta_components WHERE k = ? ORDER BY component LIMIT 3",
                [k],
            ).fetchall()
        )


def to_base(source: Run, target: Run, edges: Edges) -> Edges:
    """The same edges under the numbers of another run."""
    number = {
        key: i for i, key in enumerate(zip(target.mined.member_U, target.mined.site_U, target.mined.units["unit"]))
    }
    keys = list(zip(source.mined.member_U, source.mined.site_U, source.mined.units["unit"]))
    return edges._replace(
        a=np.array([number[keys[i]] for i in edges.a], np.int64),
        b=np.array([number[keys[i]] for i in edges.b], np.int64),
    )


def main() -> None:
    """Print everything."""
    folder = Path(sys.argv[1])
    run, again = Run(folder, "all"), Run(folder, "again")
    for table in (
        concepts_table(run, again),
        chance_table(run),
        cliques_table(run, again),
        values_table(run, 1),
        values_table(run, 5),
        covered_table(run),
        features_table(run),
        selectivity_table(run),
        anchors_lines(run),
        place_table(run, Run(folder, "four-rotated")),
        settings_table(folder, run, again),
    ):
        for line in table:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
