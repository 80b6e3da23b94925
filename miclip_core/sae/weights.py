"""Our own file of one sparse autoencoder: safetensors, with its facts as JSON in the header."""

from __future__ import annotations

from pydantic import ValidationError

from miclip_core.sae.sae import Sae
from miclip_core.weight_file import DAMAGED, pack, unpack
from schemas.errors import BadSae
from schemas.sae import SaeConfig

KEY = "miclip_sae"


def save_sae(sae: Sae) -> bytes:
    """The file of a checked SAE; the same SAE always gives the same bytes. Raises: BadSae."""
    return pack(sae.check().tensors(), KEY, sae.config.model_dump_json())


def load_sae(data: bytes) -> Sae:
    """Read such a file.

    Raises:
        BadSae: these bytes are no safetensors, are not ours, or hold weights that cannot be used.
    """
    try:
        tensors, facts = unpack(data, KEY)
        config = SaeConfig.model_validate_json(facts)
    except (*DAMAGED, ValidationError) as error:
        raise BadSae(
            f"not an SAE file of ours ({type(error).__name__}: {error}); expected safetensors with `{KEY}` in its "
            "metadata. Files of other libraries are read by import_sae"
        ) from error
    return Sae.from_tensors(config, tensors).check()
