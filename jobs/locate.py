"""Where a worker finds checkpoints: places that a spec names through the inputs, hub and web files in the usual caches."""

from __future__ import annotations

from pathlib import Path

from jobs.protocol import Inputs
from miclip_core.zoo import locate as default
from miclip_core.zoo.locate import Locate, Request


def locate_through(inputs: Inputs) -> Locate:
    """The port that `miclip_core` asks for: `file:/...` and `s3://...` are fetched once per node."""

    def find(request: Request) -> Path:
        return inputs.local_path(request) if isinstance(request, str) else default.locate(request)

    return find
