"""Whether machines can ever hold what a piece of work asks for: pure."""

from __future__ import annotations

from typing import NamedTuple

from cluster.scheduler import Node, Slot, count_fitting
from cluster.works import Need
from schemas.errors import Infeasible
from schemas.plans import Resources


class Asked(NamedTuple):
    """What a cell asks of each of its workers, before anything is known of its models and images."""

    title: str
    resources: Resources
    gang: int = 1


def check_fits(work: Need, nodes: tuple[Node, ...]) -> None:
    """Refuse what no machine of these can ever hold.

    Raises:
        Infeasible: it names the field, what is asked for and what there is.
    """
    slot, needs = Slot.of(work), work.resources
    if needs.gpus > 1 and needs.gpus != int(needs.gpus):
        raise Infeasible(f"{work.title}: resources.gpus is {needs.gpus}; above one GPU only whole numbers can be given")
    if count_fitting(nodes, slot) > 0:
        return
    cluster = {
        "cpus": [n.cpus for n in nodes],
        "gpus": [float(len(n.gpus)) for n in nodes],
        "memory_gb": [n.memory_gb for n in nodes],
    }
    asked = {"cpus": slot.cpus, "gpus": slot.gpus, "memory_gb": slot.memory_gb}
    for name in ("gpus", "cpus", "memory_gb"):
        largest, total = max(cluster[name], default=0.0), sum(cluster[name])
        if asked[name] > largest:
            raise Infeasible(
                f"{work.title}: resources.{name} {asked[name]:g} asked for each worker, the largest machine of the cluster "
                f"has {largest:g} (all together {total:g}); lower stages.*.resources.{name} or use a larger machine"
            )
        if asked[name] * slot.gang > total:
            raise Infeasible(
                f"{work.title}: a gang of {slot.gang} workers with resources.{name} {asked[name]:g} needs "
                f"{asked[name] * slot.gang:g}, the cluster has {total:g}; lower gang, or "
                f"data_parallel and feeders, or stages.*.resources.{name}"
            )
    raise Infeasible(f"{work.title}: no machine has {describe(slot)} together; lower stages.*.resources")


def describe(slot: Slot) -> str:
    """What a worker asks for, in a few words."""
    each = f"{slot.cpus:g} CPUs, {slot.gpus:g} GPUs" + (f", {slot.memory_gb:g} GB" if slot.memory_gb else "")
    return f"{slot.gang} x ({each})" if slot.gang > 1 else each
