"""Our own files of weights: safetensors with facts as JSON in the header; the same weights give the same bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

DAMAGED = (SafetensorError, struct.error, KeyError)
"""What `unpack` raises for bytes that are no such file."""


def pack(tensors: Mapping[str, Tensor], key: str, facts: str) -> bytes:
    """Tensors of any device, and facts under `key`."""
    return save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, metadata={key: facts})


def unpack(data: bytes, key: str) -> tuple[dict[str, Tensor], str]:
    """Tensors and facts. Raises: one of DAMAGED."""
    tensors = load(data)
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return tensors, header["__metadata__"][key]
