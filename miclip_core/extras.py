"""Optional packages, each of which one setting needs: whether they are installed, and what to do where they are not."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

from schemas.errors import MissingPackage


class Extra(NamedTuple):
    """A package, the module that it is imported as, our extra that installs it, and what does without."""

    package: str
    module: str
    name: str
    instead: str

    @property
    def is_installed(self) -> bool:
        """Whether it is there, without loading it."""
        return find_spec(self.module) is not None

    def missing(self, why: str = "not installed") -> MissingPackage:
        """What to raise where it is not."""
        return MissingPackage(f"{self.package} is {why}; pip install 'miclip[{self.name}]', or take {self.instead}")

    @property
    def note(self) -> str:
        """What people should know before workers need it, which may be elsewhere; "" if it is installed here."""
        return (
            ""
            if self.is_installed
            else f"{self.package} is not installed here; workers need it: pip install 'miclip[{self.name}]'"
        )

    def require(self) -> None:
        """Ask for it without loading it.

        Raises:
            MissingPackage: it is not installed.
        """
        if not self.is_installed:
            raise self.missing()


UMAP = Extra("umap-learn", "umap", "map", "layout: pca")
DIFFUSION = Extra("diffusers", "diffusers", "diffusion", "maker: world")
SENTENCES = Extra("sentence-transformers", "sentence_transformers", "sentences", "the text tower of a CLIP")
