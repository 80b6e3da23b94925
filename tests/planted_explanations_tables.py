"""Tables of docs/truth.md about sentences: `python -m tests.planted_explanations_tables DIR` prints them from what tests.planted_explanations left there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from miclip_core.explain.summary import summarise, summarise_share
from tests.planted_explanations import (
    ALPHAS,
    ARCHS,
    BLANKS,
    BLOCK,
    BLOCKS,
    CONTROLS,
    KINDS,
    SCORED,
    SEEDS,
    Part,
    is_fluent,
)
from tests.planted_rosetta_tables import head, row

Row = dict[str, Any]
TABLES = (
    "explanations", "explanation_naming", "explanation_scores", "explanation_summary", "explanation_alphas",
    "explanation_tests", "selected_explanations",
)  # fmt: skip
VARIANT = "method, masking, direction, positions, alpha_asked"


class Run:
    """The tables of one pipeline about one SAE, if it was run."""

    def __init__(self, folder: Path, part: Part, what: str) -> None:
        self.part = part
        self.sql = duckdb.connect()
        runs = sorted((folder / "runs").glob(f"{part.run_name(what)}-0*/tables.json"))
        self.is_there = bool(runs)
        if runs:
            stages = json.loads(runs[-1].read_text())["stages"]
            of_run = ", ".join(f"'{digest}'" for digests in stages.values() for digest in digests)
            for table in TABLES:
                if (folder / "tables" / table).is_dir():
                    self.sql.execute(
                        f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{folder}/tables/{table}/**/*.parquet', union_by_name = true) "
                        f"WHERE stage IN ({of_run})"
                    )

    def rows(self, query: str) -> list[Row]:
        """Of a query."""
        found = self.sql.execute(query)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, values, strict=True)) for values in found.fetchall()]

    @cached_property
    def named(self) -> list[Row]:
        """Every text about a feature that stands for a value, and whether it names that value."""
        found = self.rows(
            f"SELECT n.*, e.text, e.alpha_rel FROM explanation_naming n JOIN explanations e USING (feature, {VARIANT}, sequence)"
        )
        for one in found:
            one["kind"], one["fluent"] = one["concept"].split("=")[0], is_fluent(one["text"])
        return [one for one in found if one["kind"] in KINDS]


class Runs:
    """The same pipeline about several SAEs, together."""

    def __init__(self, folder: Path, place: str, arch: str, what: str, seeds: Sequence[int] = SEEDS) -> None:
        found = [Run(folder, Part(place, arch, seed), what) for seed in seeds]
        self.runs = [run for run in found if run.is_there]

    @cached_property
    def named(self) -> list[Row]:
        """Of all of them."""
        return [one for run in self.runs for one in run.named]

    def some(self, **where: Any) -> list[Row]:
        """Texts of some variants."""
        return [one for one in self.named if all(one[name] == value for name, value in where.items())]


def best_of_values(rows: Sequence[Row]) -> list[Row]:
    """Of the features of each SAE that tell one value the one that tells it best."""
    best: dict[Any, Row] = {}
    for one in rows:
        key = (one["sae"], one["concept"])
        if key not in best or (-one["auroc"], one["feature"]) < (-best[key]["auroc"], best[key]["feature"]):
            best[key] = one
    return [*best.values()]


def share(rows: Iterable[Row], of: str = "named") -> str:
    """A share with Wilson's interval; nothing of nothing."""
    found = summarise_share([one[of] for one in rows])
    return "" if not found.n else f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"


def counted(rows: Sequence[Row]) -> str:
    """Hits of how many."""
    return f"{sum(one['named'] for one in rows)}/{len(rows)}" if rows else ""


def mean(rows: Sequence[Row], of: str) -> str:
    """A mean without an interval."""
    return f"{np.mean([one[of] for one in rows]):.2f}" if rows else ""


def alphas_table(folder: Path, positions: str, alphas: Sequence[float], title: str) -> Iterator[str]:
    """Steering: share of features whose text names their value, by alpha, beside controls."""
    names = [f"alpha {alpha:g}" for alpha in alphas]
    controls = [f"{direction} {alpha:g}" for direction in ("random", "permuted") for alpha in CONTROLS[1:]]
    yield head(
        " | ".join(
            [
                title,
                "SAE",
                "features",
                *names,
                *controls,
                "by guessing at 2",
                "fluent at " + " / ".join(f"{alpha:g}" for alpha in CONTROLS),
            ]
        )
    )
    for place in BLOCKS:
        for arch in ARCHS:
            runs = Runs(folder, place, arch, "named")

            def at(alpha: float, direction: str = "sae", runs: Runs = runs) -> list[Row]:
                return runs.some(method="steering", positions=positions, alpha_asked=f"{alpha:g}", direction=direction)

            if not at(2):
                continue
            own = [share(at(alpha)) for alpha in alphas]
            others = [mean(at(a, direction), "named") for direction in ("random", "permuted") for a in CONTROLS[1:]]
            fluent = " / ".join(mean(at(alpha), "fluent") for alpha in CONTROLS)
            yield row(place, arch, len(at(2)), *own, *others, mean(at(2), "share_named"), fluent)


def kinds_table(folder: Path) -> Iterator[str]:
    """Steering by kind of value."""
    cells = [(positions, alpha) for positions in ("all", BLOCK) for alpha in (2, 4, 6, 8)]
    titles = [f"{'all' if positions == 'all' else '3 x 3'}, alpha {alpha}" for positions, alpha in cells]
    yield head(" | ".join(["layer", "SAE", "values", *titles]))
    for place in BLOCKS:
        for arch in ARCHS:
            runs = Runs(folder, place, arch, "named")
            for kind in KINDS:
                found = [
                    runs.some(method="steering", positions=where, alpha_asked=f"{alpha:g}", direction="sae", kind=kind)
                    for where, alpha in cells
                ]
                if found[0]:
                    yield row(place, arch, kind, *map(counted, found))


def groups_table(folder: Path) -> Iterator[str]:
    """Steering, for features of objects and of backgrounds, and for the best feature of each value alone."""
    alphas = ALPHAS[1:]
    yield head(
        " | ".join(
            [
                "layer",
                "SAE",
                "tokens",
                "of",
                "features",
                *[f"alpha {alpha:g}" for alpha in alphas],
                "fluent at 2 / 4 / 8",
            ]
        )
    )
    for place in BLOCKS:
        for arch in ARCHS:
            runs = Runs(folder, place, arch, "named")
            for positions in ("all", BLOCK):
                at = [
                    runs.some(method="steering", positions=positions, alpha_asked=f"{a:g}", direction="sae")
                    for a in alphas
                ]
                groups: dict[str, Callable[[list[Row]], list[Row]]] = {
                    "objects": lambda rows: [one for one in rows if one["kind"] != "background"],
                    "backgrounds": lambda rows: [one for one in rows if one["kind"] == "background"],
                    "the best of each value": best_of_values,
                }
                for name, chosen in groups.items():
                    if at[0]:
                        cells = [share(chosen(rows)) for rows in at]
                        fluent = [
                            mean(chosen(rows), "fluent") for a, rows in zip(alphas, at, strict=True) if a in (2, 4, 8)
                        ]
                        yield row(place, arch, positions, name, len(chosen(at[0])), *cells, " / ".join(fluent))


def blanks_table(folder: Path) -> Iterator[str]:
    """Steering other blank images, at alpha 2."""
    yield head("layer | SAE | " + " | ".join(f"{blank}: sae | random" for blank in ("grey", *BLANKS)))
    for place in BLOCKS:
        for arch in ARCHS:
            cells = []
            for blank in ("grey", *BLANKS):
                runs = Runs(folder, place, arch, "named" if blank == "grey" else blank)
                steered = {"method": "steering", "positions": "all", "alpha_asked": "2"}
                cells += [
                    share(runs.some(**steered, direction="sae")),
                    mean(runs.some(**steered, direction="random"), "named"),
                ]
            if any(cells):
                yield row(place, arch, *cells)


def shown_table(folder: Path) -> Iterator[str]:
    """Topk, and informed by alpha, beside informed with other directions."""
    alphas = ("0.25", "0.5", "1", "2")
    yield head(
        " | ".join(
            ["layer", "SAE", "shown as", "features", "topk", *[f"informed, alpha {a}" for a in alphas], "random 1", "permuted 1",
             "topk fluent", "topk by guessing"]
        )
    )  # fmt: skip
    for place in BLOCKS:
        for arch in ARCHS:
            runs = Runs(folder, place, arch, "named")
            for masking in ("masks", "heatmaps"):
                topk = runs.some(method="topk", masking=masking)
                if not topk:
                    continue
                steered = {"method": "informed", "masking": masking}
                own = [share(runs.some(**steered, alpha_asked=alpha, direction="sae")) for alpha in alphas]
                others = [
                    mean(runs.some(**steered, alpha_asked="1", direction=d), "named") for d in ("random", "permuted")
                ]
                yield row(
                    place,
                    arch,
                    masking,
                    len(topk),
                    share(topk),
                    *own,
                    *others,
                    mean(topk, "fluent"),
                    mean(topk, "share_named"),
                )


def scores_table(folder: Path) -> Iterator[str]:
    """All measures of every method, over all features, alphas chosen: a table as the paper's."""
    yield head(
        "layer | method | shown as | texts | IoU | precision | recall | CLIP | synthetic | AUROC macro | AUROC pooled | named, of those that stand for a value"
    )
    for place in BLOCKS:
        runs = Runs(folder, place, ARCHS[0], "scored")
        for method, masking in (
            ("steering", "none"),
            *((m, s) for m in ("topk", "informed") for s in ("masks", "heatmaps")),
        ):
            where = f"method = '{method}' AND masking = '{masking}'"
            texts = [one for run in runs.runs for one in run.rows(f"SELECT * FROM explanation_scores WHERE {where}")]
            if not texts:
                continue
            means = [one for run in runs.runs for one in run.rows(f"SELECT * FROM explanation_summary WHERE {where}")]

            def over(metric: str, means: list[Row] = means) -> str:
                values = [one["value"] for one in means if one["metric"] == metric and one["value"] is not None]
                return f"{np.mean(values):.3f}" if values else ""

            cells = [interval([one[name] for one in texts]) for name in ("iou", "clip", "synthetic", "auroc")]
            named = [one for one in texts if one["named"] is not None]
            yield row(
                place, method, masking, len(texts), cells[0], over("precision"), over("recall"), *cells[1:], over("auroc_pooled"),
                f"{share(named)}, {len(named)}",
            )  # fmt: skip


def interval(values: Sequence[float | None]) -> str:
    """A mean with its bootstrap interval over features."""
    found = summarise([np.nan if value is None else value for value in values])
    return "" if found.mean is None else f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def chosen_table(folder: Path) -> Iterator[str]:
    """What `alpha: auto` chose, and the grid."""
    first = next(iter(SCORED.values()))
    grid = first["alpha_grid"]
    yield head(
        " | ".join(
            ["layer", "method", "shown as", "chosen, by SAE", *[f"IoU (different texts) at {a:g}" for a in grid]]
        )
    )
    for place in BLOCKS:
        runs = Runs(folder, place, ARCHS[0], "scored")
        found = [
            {**one, "seed": run.part.seed} for run in runs.runs for one in run.rows("SELECT * FROM explanation_alphas")
        ]
        for method, masking in (("steering", "none"), ("informed", "masks"), ("informed", "heatmaps")):
            own = [one for one in found if (one["method"], one["masking"]) == (method, masking)]
            if own:
                chosen = ", ".join(f"{one['alpha']:g}" for one in own if one["is_chosen"])
                cells = []
                for alpha in grid:
                    at = [one for one in own if abs(one["alpha"] - alpha) < 1e-6]
                    cells.append(f"{mean(at, 'mean_iou')} ({mean(at, 'distinct')})")
                yield row(place, method, masking, chosen, *cells)


def votes_table(folder: Path) -> Iterator[str]:
    """Which method's text is taken."""
    yield head("layer | shown as | features | steering | topk | informed | ties | pass")
    for place in BLOCKS:
        runs = Runs(folder, place, ARCHS[0], "scored")
        for vote in ("masks", "heatmaps"):
            found = [
                one
                for run in runs.runs
                for one in run.rows(f"SELECT * FROM selected_explanations WHERE vote = '{vote}'")
            ]
            if found:
                shares = [
                    f"{np.mean([one['method'] == method for one in found]):.2f}"
                    for method in ("steering", "topk", "informed")
                ]
                yield row(place, vote, len(found), *shares, mean(found, "is_tie"), mean(found, "passed"))


def tests_table(folder: Path) -> Iterator[str]:
    """Paired tests between methods, of each SAE."""
    yield head("layer | shown as | measure | first | second | SAEs where p < .05 after Holm | p of each")
    for place in BLOCKS:
        runs = Runs(folder, place, ARCHS[0], "scored")
        found = [
            one for run in runs.runs for one in run.rows("SELECT * FROM explanation_tests WHERE test = 'wilcoxon'")
        ]
        keys = dict.fromkeys((o["masking"], o["metric"], o["method_a"], o["method_b"]) for o in found)
        for key in keys:
            own = [o for o in found if (o["masking"], o["metric"], o["method_a"], o["method_b"]) == key]
            values = [o["p_holm"] for o in own if o["p_holm"] is not None]
            yield row(
                place, *key, f"{sum(p < 0.05 for p in values)} of {len(own)}", ", ".join(f"{p:.2g}" for p in values)
            )


def main() -> None:
    """Print all tables."""
    folder = Path(sys.argv[1])
    tables = (
        alphas_table(folder, "all", ALPHAS, "steering all positions: layer"),
        alphas_table(folder, BLOCK, ALPHAS[1:], "steering 3 x 3 patches: layer"),
        kinds_table(folder), groups_table(folder), blanks_table(folder), shown_table(folder), scores_table(folder), chosen_table(folder),
        votes_table(folder), tests_table(folder),
    )  # fmt: skip
    for table in tables:
        print("\n".join(table), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
