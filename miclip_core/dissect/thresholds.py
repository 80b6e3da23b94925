"""The exact activation of each unit that a given share of all positions exceeds, whatever the number of positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from miclip_core.dissect.ordered import from_ordered, to_ordered
from miclip_core.sae.codes import Codes
from schemas.errors import NonFiniteActivation, TooFewTokens

SHARE = 0.005
"""Of all positions, those where a unit counts as on (Bau et al. 2017, Network Dissection)."""

_BITS = (11, 11, 10)  # of the 32 of a number, per pass: 2,048 counts a unit; fewer passes would need 65,536
_BLOCK = 1 << 22  # activations counted at once
_UNITS = 1024  # whose counts are made at once


@dataclass(frozen=True, eq=False)
class Thresholds:
    """T_u of U units: at most `share` of n positions are above it, and no lower activation of the unit has this property.

    value float32 [U]; above int64 [U], positions with an activation > value; n: positions.
    """

    value: Tensor
    above: Tensor
    n: int

    def __getitem__(self, units: slice) -> Thresholds:
        """Those of a block of units."""
        return Thresholds(self.value[units], self.above[units], self.n)


@dataclass(frozen=True, eq=False)
class SearchState:
    """A search between two passes.

    prefix: int32 [U], the bits of each threshold that are known. above: int64 [U], positions above all values with
    these. passes that are closed, and n positions in each of them.
    """

    prefix: Tensor
    above: Tensor
    passes: int
    n: int

    def __getitem__(self, units: slice) -> SearchState:
        """That of a block of units."""
        return SearchState(self.prefix[units], self.above[units], self.passes, self.n)


class ThresholdSearch:
    """Radix selection of one quantile per unit: each pass over all activations fixes 11 bits more of every threshold.

    Memory is 16 KiB a unit however many positions there are, where keeping the top 0.5 % of them takes 4 bytes of
    n * share: about 400 KiB a unit for 100,000 images of 196 patches. Counts add up, so every pass may be spread over shards
    in any order: each shard fills an `empty()` of the search, `merge` takes them in, `close` ends the pass.

    n_units: U. share: of the positions that may be above. half: all activations are float16 or bfloat16, of which the
    first 22 bits as float32 hold everything, so two passes are exact; otherwise three.
    """

    def __init__(self, n_units: int, share: float = SHARE, *, half: bool = False, device: str | torch.device = "cpu"):
        if not 0 < share < 1:
            raise ValueError(f"share={share}: expected a share of the positions between 0 and 1")
        self.share, self.half, self.n_units = share, half, n_units
        self.n = 0  # positions of this pass
        self._total = 0  # of the first pass
        self._pass = 0
        self._prefix_U = torch.zeros(n_units, dtype=torch.int32, device=device)
        self._above_U = torch.zeros(n_units, dtype=torch.int64, device=device)
        self._counts_UZ = self._no_counts()

    @property
    def done(self) -> bool:
        """Whether enough passes are closed."""
        return self._pass == (2 if self.half else 3)

    def add(self, activations: Tensor | Codes) -> None:
        """Count N positions of this pass: dense [N,U], or codes of U latents, which are 0 wherever they hold nothing.

        Raises:
            ValueError: another number of units, all passes are closed, or `half` and these are not.
            NonFiniteActivation: NaN or infinity among them.
        """
        width = activations.width if isinstance(activations, Codes) else activations.shape[1]
        if width != self.n_units or self.done:
            raise ValueError(
                f"found {width} units in pass {self._pass + 1}, expected {self.n_units}; done is {self.done}"
            )
        values = activations.values if isinstance(activations, Codes) else activations
        if self.half and values.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"found {values.dtype}, expected float16 or bfloat16; leave out half")
        self.n += len(activations)
        if isinstance(activations, Codes):
            self._add_codes(activations)
            return
        size = self._counts_UZ.shape[1]
        for first in range(0, self.n_units, _UNITS):
            block_NU = activations[:, first : first + _UNITS]
            units_U = torch.arange(block_NU.shape[1], device=block_NU.device)
            for part_NU in block_NU.split(max(1, _BLOCK // len(units_U))):
                places = self._places(part_NU, units_U, self._prefix_U[first : first + _UNITS])
                counts = torch.bincount(places, minlength=len(units_U) * size)
                self._counts_UZ[first : first + _UNITS] += counts.view(-1, size)

    def merge(self, other: ThresholdSearch) -> None:
        """Take in what another search of the same pass has counted.

        Raises:
            ValueError: it is of another pass or of other units.
        """
        if other._pass != self._pass or not torch.equal(other._prefix_U, self._prefix_U):
            raise ValueError("these counts are of another pass or of other units; fill an empty() of this search")
        self.n += other.n
        self._counts_UZ += other._counts_UZ

    def empty(self) -> ThresholdSearch:
        """A search of the same pass that has counted nothing, for a shard to fill."""
        return ThresholdSearch.resume(self.state(), self.share, half=self.half)

    def state(self) -> SearchState:
        """What the closed passes found, which is what the next one begins with; nothing of an open pass."""
        return SearchState(self._prefix_U, self._above_U, self._pass, self._total)

    @classmethod
    def resume(cls, state: SearchState, share: float = SHARE, *, half: bool = False) -> ThresholdSearch:
        """A search of the same share and `half` that goes on from there."""
        search = cls(len(state.prefix), share, half=half, device=state.prefix.device)
        search._pass, search._total = state.passes, state.n
        search._prefix_U, search._above_U = state.prefix, state.above
        search._counts_UZ = search._no_counts()
        return search

    def counts(self) -> tuple[Tensor, Tensor]:
        """What this pass has counted, without zeros: ascending places in the counts of all units in a row, and counts.

        int64 both. The counts of a block of units are those of places in [first, stop) times `bins`.
        """
        flat = self._counts_UZ.flatten()
        place = flat.nonzero()[:, 0]
        return place, flat[place]

    def add_counts(self, place: Tensor, count: Tensor, n: int) -> None:
        """Take in `counts()` of n positions, of a search of the same pass and units."""
        self.n += n
        self._counts_UZ.view(-1).index_add_(0, place, count)

    @property
    def bins(self) -> int:
        """Counts that this pass keeps of each unit."""
        return self._counts_UZ.shape[1]

    def close(self) -> None:
        """End the pass: all positions were added once.

        Raises:
            TooFewTokens: there were none. ValueError: not as many as in the first pass.
        """
        if self._pass == 0:
            self._total = self.n
        if self.n == 0:
            raise TooFewTokens("no positions were added, so no share of them can be found")
        if self.n != self._total:
            raise ValueError(f"this pass saw {self.n} positions, the first one {self._total}; add the same ones again")
        allowed = int(Fraction(str(self.share)) * self.n)
        from_top_UZ = self._counts_UZ.flip(1).cumsum(1).flip(1)  # positions in this bin or above
        # The threshold is in the highest bin that cannot be above it as a whole.
        bin_U = ((self._above_U[:, None] + from_top_UZ) > allowed).sum(1) - 1
        in_bin_U = self._counts_UZ.gather(1, bin_U[:, None])[:, 0]
        self._above_U = self._above_U + from_top_UZ.gather(1, bin_U[:, None])[:, 0] - in_bin_U
        offset = 1 << (_BITS[0] - 1) if self._pass == 0 else 0
        self._prefix_U = (self._prefix_U << _BITS[self._pass]) + (bin_U - offset).int()
        self._pass += 1
        self.n = 0
        self._counts_UZ = self._no_counts()

    def thresholds(self) -> Thresholds:
        """The result, once `done`.

        Raises:
            ValueError: there are passes to come.
        """
        if not self.done:
            raise ValueError(f"only {self._pass} passes are closed")
        missing = 32 - sum(_BITS[: self._pass])
        low = torch.where(self._prefix_U < 0, (1 << missing) - 1, 0).int()  # of negative numbers zeros are kept as ones
        return Thresholds(from_ordered((self._prefix_U << missing) | low), self._above_U, self._total)

    # ---------------------------------------------------------------- counting

    def _no_counts(self) -> Tensor:
        bins = 1 << _BITS[min(self._pass, len(_BITS) - 1)]
        return torch.zeros(self.n_units, bins, dtype=torch.int64, device=self._prefix_U.device)

    def _add_codes(self, codes: Codes) -> None:
        latents, counts = codes.latents.long(), self._counts_UZ.view(-1)
        places = self._places(codes.values, latents, self._prefix_U[latents])
        counts.index_add_(0, places, torch.ones_like(places))
        zeros_U = len(codes) - torch.bincount(latents, minlength=self.n_units)
        zero_U = torch.zeros(self.n_units, device=latents.device)
        places = self._places(zero_U, torch.arange(self.n_units, device=latents.device), self._prefix_U)
        counts.index_add_(0, places, zeros_U[self._known(to_ordered(zero_U)) == self._prefix_U])

    def _known(self, keys: Tensor) -> Tensor:
        """The bits that the closed passes look at."""
        return keys >> (32 - sum(_BITS[: self._pass])) if self._pass else torch.zeros_like(keys)

    def _places(self, values: Tensor, units: Tensor, prefix: Tensor) -> Tensor:
        """Where, of [U,Z] counts in a row, each value belongs that agrees with what is known of its unit's threshold.

        units (int64) and prefix are as long as the last dimension of the values.
        """
        if not bool(values.isfinite().all()):
            raise NonFiniteActivation("an activation is NaN or infinite; a threshold needs finite numbers")
        keys = to_ordered(values)
        bits, below = _BITS[self._pass], 32 - sum(_BITS[: self._pass + 1])
        if self._pass == 0:
            return ((keys >> below) + (units * (1 << bits) + (1 << (bits - 1)))).flatten()
        inside = self._known(keys) == prefix
        digits = (keys[inside] >> below) & ((1 << bits) - 1)
        return digits + units.expand(values.shape)[inside] * (1 << bits)


def find_thresholds(
    read: Callable[[], Iterable[Tensor | Codes]],
    n_units: int,
    share: float = SHARE,
    *,
    half: bool = False,
    device: str | torch.device = "cpu",
) -> Thresholds:
    """T_u with P(A_u > T_u) = share (Bau et al. 2017), over all positions of all images.

    read: gives all activations, [N,U] or codes, in parts; called once per pass (2 for half precision, else 3).
    Of ties at the threshold none counts as above, so the share is `share` at most, and exact where there are none.

    Raises:
        What ThresholdSearch raises.
    """
    search = ThresholdSearch(n_units, share, half=half, device=device)
    while not search.done:
        for part in read():
            search.add(part)
        search.close()
    return search.thresholds()
