"""Our own file of one sparse autoencoder: safetensors, with its facts as JSON in the header."""

from __future__ import annotations

import json
import struct

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from miclip_core.sae.sae import Sae
from schemas.errors import BadSae
from schemas.sae import SaeConfig

KEY = "miclip_sae"


def save_sae(sae: Sae) -> bytes:
    """The file of a checked SAE; the same SAE always gives the same bytes. Raises: BadSae."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sae.check().tensors().items()}
    return save(tensors, metadata={KEY: sae.config.model_dump_json()})


def load_sae(data: bytes) -> Sae:
    """Read such a file.

    Raises:
        BadSae: these bytes are no safetensors, are not ours, or hold weights that cannot be used.
    """
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        config = SaeConfig.model_validate_json(header["__metadata__"][KEY])
    except (SafetensorError, struct.error, KeyError, ValidationError) as error:
        raise BadSae(
            f"not an SAE file of ours ({type(error).__name__}: {error}); expected safetensors with `{KEY}` in its "
            "metadata. Files of other libraries are read by import_sae"
        ) from error
    return Sae.from_tensors(config, tensors).check()
