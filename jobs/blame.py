"""Which of the stages that are worked off together an error is about, so that the others go on without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import MiclipError, ModelUnreachable, OutOfMemory, StoreFull, Unreachable
from schemas.plans import Plan

_OF_ALL = (OutOfMemory, Unreachable, StoreFull, ModelUnreachable)
"""Of the device, the store or the source of checkpoints: stages that went on would meet them as well."""


@contextmanager
def blaming(*plans: Plan) -> Iterator[None]:
    """An error in here is of these stages, unless one nearer to it said of which, or it is nobody's."""
    try:
        yield
    except _OF_ALL:
        raise
    except MiclipError as error:
        error.stages = error.stages or tuple(plan.digest for plan in plans)
        raise
