"""What looks like a credential: refused in specs, blotted out of texts that are kept."""

from __future__ import annotations

import re

_FIELD = re.compile(
    r"(?:^|[_-])(secret|password|passwd|token|credentials?|api[_-]?key|access[_-]?key|private[_-]?key)s?(?:$|[_-])",
    re.I,
)
_KNOWN = r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{20,}\b"
_TEXT = re.compile(
    _KNOWN + r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|(?:secret|password|passwd|api[_-]?key|access[_-]?key)\w*\s*[:=]\s*\S",
    re.I,
)
_SPOKEN = re.compile(
    _KNOWN + r"|(?<=Bearer )[\w.~+/=-]{8,}"
    r"|(?<=[?&])(?:X-Amz-[\w-]+|[\w-]*(?:signature|token|credential|policy|key-pair-id|sig))=[^&\s\"'<>)]+",
    re.I,
)


def names_a_secret(field: str) -> bool:
    """Whether a field of this name would hold a credential."""
    return _FIELD.search(field) is not None


def holds_a_secret(text: str) -> bool:
    """Whether a text has something in it that looks like a credential."""
    return _TEXT.search(text) is not None


def redact(text: str) -> str:
    """The text without signatures of urls, tokens and keys, for messages of libraries that we keep."""
    return _SPOKEN.sub("[removed]", text)
