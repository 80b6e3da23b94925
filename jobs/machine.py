"""The door from the command line to what this machine's torch can do."""

from __future__ import annotations


def look_at_torch() -> list[tuple[str, bool | None, str]]:
    """(what, whether it works or None if it is only told, detail) of torch, torchvision and the devices."""
    try:
        import torch
    except ImportError as error:
        return [("torch import", False, str(error))]
    devices = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    found: list[tuple[str, bool | None, str]] = [
        ("torch devices", None, ", ".join(devices) or f"CPU, {torch.get_num_threads()} threads"),
    ]
    try:
        import torchvision

        state = f"imports by itself ({torchvision.__version__})"
    except Exception as error:
        state = f"repaired: {str(error).splitlines()[0]}"
    try:
        from miclip_core.torchvision_shim import ensure_torchvision

        ensure_torchvision()
        found.append(("torchvision import", True, state))
    except Exception as error:
        found.append(("torchvision import", False, f"{type(error).__name__}: {error}"))
    return found
