"""What a language model wrote, as the text that is kept: without what the question made it say, and known as no answer."""

from __future__ import annotations

import re
from typing import Literal

Status = Literal["ok", "empty", "refused"]

REFUSALS = (
    *("i'm sorry", "i am sorry", "i apologize", "i apologise", "my apologies"),
    *("i can't", "i cannot", "i can not", "i'm unable", "i am unable", "i'm not able", "i am not able"),
    *("i don't see", "i do not see", "i couldn't", "i could not", "i don't have", "i do not have"),
    *("as an ai", "as a language model", "as a large language model", "i'm an ai", "i am an ai"),
    *("there is no highlighted", "there are no highlighted", "there isn't a highlighted", "there is no image"),
    *("there is no visible", "there are no visible", "the image does not show any", "the image doesn't show any"),
    *("the image does not contain any", "the image doesn't contain any"),
    *(
        "no highlighted element",
        "no image",
        "please provide",
        "please upload",
        "could you please",
        "it is not possible",
    ),
)
"""How a text begins that answers nothing, in lower case; OPENERS may stand before. So does "sorry", see _SORRY."""
OPENERS = (
    *("unfortunately", "okay", "ok", "well", "hmm", "apologies", "but", "however"),
    *("sure thing", "sure", "certainly", "of course", "absolutely", "alright"),
)
"""How a text begins that is about to say something, in lower case."""

_OPENER = rf"(?:{'|'.join(opener.replace(' ', '[ ]') for opener in OPENERS)})\b"
_BEGINNINGS = re.compile(
    rf"""["“”']*(?:
        {_OPENER}\ ?[,.!:–—-]+(?=\s+\S)
      | (?:{_OPENER}\ )?(?:
            the\ highlighted\ elements?\ in\ the\ images?\ (?:is|are)(?:\ an?(?=[\s:,]|$))?(?!\w)
          | here(?:['’]s|\ is)\ [^:.]*?\b(?:description|summary|caption|explanation|interpretation|answer)\b[^:.]*:
          | summary\ ?:
        )
    )[\s:,–—-]*""",
    re.IGNORECASE | re.VERBOSE,
)
_SORRY = r"sorry(?=\s*(?:[,.!:;–—-]|but\b|i\b|$))"  # a sorry state is an answer
_ARTICLES = {"a", "an", "the"}


def clean(raw: str) -> str:
    """What the text says of the element: without the words that the prompt asks it to begin with, and without emphasis.

    Removed are asterisks, a leading "The highlighted element in the image is a" (or an), "Here's a short description ...:",
    "Summary:" and OPENERS such as "Sure!", in any case and any number of times; white space becomes single blanks and the
    first letter a capital, all others stay. Cleaning a cleaned text changes nothing. What is left may be empty.
    """
    text, before = raw, None
    while text != before:
        text, before = _clean_once(text), text
    return text


def _clean_once(text: str) -> str:
    text = " ".join(text.replace("*", "").split())
    rest = _BEGINNINGS.sub("", text, count=1) if _BEGINNINGS.match(text) else text
    if rest is not text and rest.count('"') % 2 and rest.endswith('"'):
        rest = rest[:-1]  # its partner stood before what was removed
    return rest[:1].upper() + rest[1:]


def status(raw: str, cleaned: str) -> Status:
    """Whether a text says something: `empty` without a word beside articles, `refused` if it begins like one of REFUSALS.

    raw: as the model wrote it; cleaned: by `clean`. A refusal counts before and after what the prompt made it say.
    """
    words = re.findall(r"[^\W_]+", cleaned.lower())
    if not set(words) - _ARTICLES:
        return "empty"
    return "refused" if _refuses(raw) or _refuses(cleaned) else "ok"


def _refuses(text: str) -> bool:
    text = " ".join(text.replace("*", "").replace("’", "'").lower().split()).lstrip("\"“' ")
    while (found := re.match(rf"{_OPENER}[\s,.!:–—-]*", text)) is not None:
        text = text[found.end() :]
    return re.match(rf"(?:{_SORRY}|(?:{'|'.join(map(re.escape, REFUSALS))})(?!\w))", text) is not None
