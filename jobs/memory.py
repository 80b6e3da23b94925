"""What a worker holds whatever it works on."""

from __future__ import annotations

LIBRARY_BYTES = 440 << 20
"""What torch, open_clip, transformers and Arrow hold before any model is open, as measured on Linux."""
