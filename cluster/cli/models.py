"""The verbs about models and the demo world: models, sites, world export."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.amounts import count, short
from cluster.cli.common import (
    JsonOption,
    StoreOption,
    Verbs,
    clean,
    errors,
    make_table,
    open_existing,
    print_json,
    screen,
)

if TYPE_CHECKING:
    from cluster.stores import Store
    from schemas.models import LanguageFacts, ModelFacts

VERBS = Verbs("Models")
HOW_TO_NAME = """\
open_clip:ARCH/TAG            open_clip:ViT-B-32/laion2b_s34b_b79k, open_clip:RN50/openai
hf:REPO                       hf:facebook/dinov2-base, hf:google/siglip-base-patch16-224
timm:NAME                     timm:resnet50.a1_in1k
  @REVISION                   a revision of a hub repository
  @file:/dir, @s3://b/dir     your own checkpoint: a folder or a weights file
  /random(SEED)               the real architecture with untrained weights"""


@VERBS.verb("models", "miclip models --store /data/lake")
def models(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the demo zoo, how to name other models, and what a store has inspected."""
    import os

    from jobs.world import list_members

    members = list_members()
    inspected = _inspected(open_existing(store)) if store or os.environ.get("MICLIP_STORE") else []
    if as_json:
        print_json(
            {"demo": members, "inspected": [facts.model_dump(mode="json", exclude={"sites"}) for facts in inspected]}
        )
        return
    console = screen()
    table = make_table("demo zoo", "what it is")
    for name, what in members.items():
        table.add_row(f"demo:{name}", what)
    console.print(table)
    if inspected:
        table = make_table("inspected", "family", "blocks", "width", "grid", "parameters", "FLOPs an image", "text",
                           right=("blocks", "width", "parameters", "FLOPs an image"))  # fmt: skip
        for facts in inspected:
            table.add_row(
                facts.model,
                facts.family,
                count(facts.n_blocks),
                count(facts.width),
                f"{facts.grid[0]}x{facts.grid[1]}",
                short(facts.params),
                short(facts.flops, "FLOP"),
                "yes" if facts.has_text else "",
            )
        console.print(table)
    console.print("[bold]others[/bold]")
    console.print(HOW_TO_NAME, markup=False)
    console.print("[dim]what a model has to tap: miclip sites MODEL[/dim]")


def _inspected(store: Store) -> list[ModelFacts]:
    from cluster.catalog import Scope, open_catalog
    from cluster.read import LakeTable
    from schemas.models import ModelFacts
    from schemas.plans import load_json

    catalog = open_catalog(store, Scope(all=True))
    if "models" not in catalog.tables:
        return []
    rows = LakeTable(catalog, "models", {}, ["model", "facts"]).arrow().to_pylist()
    return [load_json(ModelFacts, facts) for facts in {row["model"]: row["facts"] for row in rows}.values()]


@VERBS.verb("sites", "miclip sites demo:clip-p8")
def sites(
    model: Annotated[str, typer.Argument(help="A model ref, as in a spec.", show_default=False)],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the canonical sites of a model: shape of one position, positions, and the @tokens it takes."""
    from cluster.stores import make_store

    if store:
        facts = _facts(model, open_existing(store))
    else:
        with tempfile.TemporaryDirectory(prefix="miclip-sites-") as folder:
            facts = _facts(model, make_store(folder))
    if as_json:
        print_json(
            {
                "model": facts.model,
                "family": facts.family,
                "language": facts.language and facts.language.model_dump(mode="json"),
                "sites": [s.model_dump(mode="json") for s in facts.sites],
            }
        )
        return
    table = make_table("site", "one position", "positions", "tokens", right=("positions",))
    for site in facts.sites:
        shape = "x".join(map(str, site.shape))
        grid = f" ({site.grid[0]}x{site.grid[1]} patches)" if site.grid else ""
        tokens = " ".join(f"@{t}" for t in site.selectors) or "one vector an image"
        table.add_row(site.path, shape, f"{site.positions}{grid}", tokens)
    console = screen()
    console.print(
        f"[bold]{facts.model}[/bold]  {facts.family}, {facts.n_blocks} blocks, input {facts.input_hw[0]}x{facts.input_hw[1]}"
    )
    if facts.language is not None:
        console.print(_reader(facts.language))
    console.print(table)
    console.print(
        "[dim]write name[.block][@tokens][:reduce]; block -1 is the last, * all; reduce is mean, max or sample(n,seed)[/dim]"
    )


def _reader(language: LanguageFacts) -> str:
    """Who reads the tower, and what of it."""
    return (
        f"the vision tower of a {language.model_type}, whose language model ({language.layers} blocks, "
        f"{short(language.params)} parameters) reads {language.reads} as {language.image_tokens} tokens an image: edits up to "
        f"block {language.reads_block} reach its words"
    )


def _facts(model: str, store: Store) -> ModelFacts:
    """What inspection has published; inspects now if nothing has.

    Raises:
        UnknownModel: there is no such model. Others: as inspection raises them.
    """
    from cluster.cells import Needs
    from cluster.cli.options import ExecutorName
    from cluster.cli.session import Session
    from cluster.facts import load_known, plan_facts
    from cluster.hold import Visit
    from cluster.run import run_stages
    from schemas import errors as errors_of
    from schemas.plans import Resources
    from schemas.refs import ModelRef

    ref = str(ModelRef.parse(model))
    plans = plan_facts(Needs({ref: ()}), store)
    known = load_known(plans, store)
    if ref not in known.models:
        todo = plans.with_resources(Resources())
        with (
            errors().status(f"inspecting {ref}"),
            Session(store, ExecutorName.serial, quiet=True) as session,
            Visit(store) as visit,
        ):
            visit.add((plan for plan, _ in todo), session.stop.check)
            board = run_stages(todo, store, session.executor, session.log, session.stop)
            for outcome in board.failed.values():
                raise getattr(errors_of, outcome.error, errors_of.WorkFailed)(outcome.message or outcome.error)
            known = load_known(plans, store)
    return known.models[ref]


world = typer.Typer(no_args_is_help=True, help="The demo world: images whose concepts are known.")
VERBS.groups.append((world, "world"))


@world.command("export", epilog="Example: [bold]miclip world export /tmp/world --images 500[/bold]")
@clean
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder for the files.", show_default=False)],
    images: Annotated[int, typer.Option("--images", min=1, help="How many images.")] = 2400,
    by_class: Annotated[
        bool, typer.Option("--by-class", help="One folder per class, as image classifiers expect.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write PNG files with captions, labels, per-pixel masks and the truth of every image."""
    from rich.progress import Progress

    from jobs.world import export_images

    with Progress(console=errors(), transient=True, disable=as_json or not errors().is_terminal) as bars:
        task = bars.add_task("images", total=images)
        written = export_images(
            directory,
            images,
            by_class=by_class,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if as_json:
        print_json({"folder": str(directory), "images": images, "written": written})
    else:
        screen().print(
            f"{count(images)} images in {directory}/images ({count(written)} new), truth in {directory}/labels.parquet"
        )
        screen().print(
            f'[dim]images: {{ref: "folder:{directory.resolve()}/images", labels: "file:{directory.resolve()}/labels.parquet"}}[/dim]',
            soft_wrap=True,
        )
