"""What SAEs are called where two runs or models are compared: the same then and now, so that each meets its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from cluster.runs import StageState

OUTPUT = "sae"
"""The output of stages that train or import an SAE."""
DIGITS = 8
"""Of the digest of an SAE that no run in question has made."""


class SaeNames:
    """Names by digest, which differs whenever anything before an SAE does; its name is that of what it is now."""

    def __init__(self, stages: Iterable[StageState], pairs: Iterable[tuple[str, str]]) -> None:
        """stages: those of the runs, the later one last; pairs: (stage then, stage now)."""
        self._now = dict(pairs)
        self._names = _name_apart([stage for stage in stages if stage.output == OUTPUT])

    def name(self, ref: str, site: str = "") -> str:
        """Settings of the SAE `sae:<stage>`, but for the site that is said already; `sae:` and digits of one unheard of."""
        stage = ref.removeprefix("sae:")
        stage = self._now.get(stage, stage)
        return self._names.get(stage, f"sae:{stage[:DIGITS]}").removeprefix(f"{site} ")


def _name_apart(saes: Sequence[StageState]) -> dict[str, str]:
    """Their settings; where several of one subject have the same, also the cell that made each."""
    places = {(sae.subject, sae.detail, _cell(sae)) for sae in saes}
    times = Counter((subject, detail) for subject, detail, _ in places)
    several = {sae.digest for sae in saes if times[sae.subject, sae.detail] > 1}
    return {sae.digest: sae.detail + (f" of {_cell(sae)}" if sae.digest in several else "") for sae in saes}


def _cell(sae: StageState) -> str:
    """The cell without its model, which is not the same where models are compared."""
    return sae.cell.replace(f"/{sae.subject}", "")
