"""What looks like a credential: refused in specs, blotted out of texts that are kept."""

from __future__ import annotations

import re

_FIELD = re.compile(
    r"(?:^|[_-])(secret|password|passwd|token|credentials?|api[_-]?key|access[_-]?key|private[_-]?key)s?(?:$|[_-])",
    re.I,
)
_VALUE = re.compile(
    r"(?<=://)[^\s/@:\[]*:(?:[^\s/@]+|(?!\d+/)[^\s@\"'<>]+)(?=@)|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{20,}\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-*|[\s\S]*)"
    r"|(?:secret|password|passwd|(?:api|access|private)[_-]?key|(?:session|access)[_-]?token)\w*[\\\"'\]]*\s*[:=]+\s*"
    r"(?:(?P<quote>\\*[\"'])(?:(?P=quote){2})?(?:(?!(?P=quote))(?:\\.|[^\\\n]))+(?P=quote)*|[^\s\"'&,)]+)"
    r"|(?<=[?&])(?:X-Amz-[\w-]+|[\w-]*(?:signature|token|credential|policy|key-pair-id|sig))=[^&\s\"'<>)]+"
    r"|(?<=\bBearer )(?=[\w~+/=-]*[\d._~+=]\w)[\w.~+/=-]{8,}",  # words about bearers have neither digit nor inner dot
    re.I,
)
"""Names and passwords in urls, keys of known forms, what is assigned to such a name (bare, quoted, in JSON), signatures, tokens."""


def names_a_secret(field: str) -> bool:
    """Whether a field of this name would hold a credential."""
    return _FIELD.search(field) is not None


def holds_a_secret(text: str) -> bool:
    """Whether a text has something in it that looks like a credential."""
    return _VALUE.search(text) is not None


def redact(text: str) -> str:
    """The text without anything of that kind, for messages of libraries that we keep."""
    return _VALUE.sub("[removed]", text)
