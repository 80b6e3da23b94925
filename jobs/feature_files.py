"""What whoever writes features of an SAE as files needs of the science: a new folder, and where bars of their histogram are."""

from miclip_core.new_folder import new_folder
from miclip_core.sae.features.describe import BINS, FIRST_EXPONENT

__all__ = ["get_bar_middles", "new_folder"]


def get_bar_middles() -> list[float]:
    """The geometric middle of each bin of the column `histogram`, a code; the outer two bins are open."""
    return [2.0 ** (FIRST_EXPONENT + i / 2 + 0.25) for i in range(BINS)]
