"""The port through which checkpoints become local paths, and the default that knows files and the Hugging Face cache."""

from __future__ import annotations

import hashlib
import http.client
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import MiclipError, ModelUnreachable, UnknownModel

WEB_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class HubFile:
    """One file of a model repository at a revision (branch, tag or commit; None for the default branch)."""

    repo: str
    file: str
    revision: str | None = None


@dataclass(frozen=True)
class WebFile:
    """A published checkpoint that only has an address; sha256 is the start of its digest where one is known."""

    url: str
    sha256: str = ""


Request = str | HubFile | WebFile
Locate = Callable[[Request], Path]
"""A location (`file:/dir`, `s3://bucket/dir`), a hub file or a web file -> a local path.

Raises FileNotFoundError for a hub file that the repository does not have, UnknownModel for anything else that is not there,
ModelUnreachable where a later try may find it.
"""


def locate(request: Request) -> Path:
    """Files where they are, hub files through the Hugging Face cache (fetched once), web files into torch's cache.

    Raises:
        FileNotFoundError: the repository exists but not this file.
        UnknownModel: no such path, repository, revision or address, or it may not be read.
        ModelUnreachable: the network or the server is away, overloaded or sent damaged bytes; another try may help.
    """
    if isinstance(request, HubFile):
        return _from_hub(request)
    if isinstance(request, WebFile):
        return _from_web(request)
    if not request.startswith("file:"):
        raise UnknownModel(f"{request}: give a file:/ path; other locations are fetched by the caller first")
    path = Path("/" + request.removeprefix("file:").lstrip("/"))
    if not path.exists():
        raise UnknownModel(f"{request}: there is no file or folder {path}")
    return path


# ---------------------------------------------------------------- the hub


def _from_hub(request: HubFile) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{request.repo}" + (f" at {request.revision}" if request.revision else "")
    try:
        return Path(hf_hub_download(request.repo, request.file, revision=request.revision))
    except LocalEntryNotFoundError as error:
        known = try_to_load_from_cache(request.repo, request.file, revision=request.revision)
        if known is not None and not isinstance(known, str):  # the cache remembers that there is no such file
            raise FileNotFoundError(f"{where} has no file {request.file}") from error
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _refused(where, request.file, error.__cause__.response.status_code, _token_advice()) from error
        raise ModelUnreachable(
            f"{where}: {request.file} is not in the local cache and the hub cannot be reached; "
            "fetch it on a machine with a network, or point the model at a folder with @file:/dir"
        ) from error
    except RepositoryNotFoundError as error:
        raise UnknownModel(
            f"{where}: the hub has no such repository, or it is private or gated: check the name; {_token_advice()}"
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownModel(f"{request.repo}: the repository has no revision {request.revision}") from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{where} has no file {request.file}") from error
    except HfHubHTTPError as error:
        raise _refused(where, request.file, error.response.status_code, _token_advice()) from error
    except HFValidationError as error:
        raise UnknownModel(f"{request.repo}: not the name of a repository; expected ORG/NAME") from error
    except Exception as error:  # whatever the transfer libraries of the day raise when a connection breaks
        raise ModelUnreachable(f"{where}: {request.file} could not be fetched: {_describe(error)}") from error


def _refused(where: str, what: str, status: int, login: str = "") -> MiclipError:
    """The error for an answer that is no file: overload and faults of the server pass, everything else stays.

    login: what to do where a login was asked for.
    """
    said = f"{where}: the server refuses {what} with status {status}"
    if status in (408, 429) or status >= 500:
        return ModelUnreachable(f"{said}; it is overloaded or has a fault, try again later")
    return UnknownModel(f"{said}; {login}" if login and status in (401, 403) else said)


def _token_advice() -> str:
    """What to do about a login; tells whether there is a token, never which."""
    from huggingface_hub import get_token

    if get_token() is None:
        return "the environment variable HF_TOKEN is not set, put a token there that may read it"
    return "the token of HF_TOKEN (or of the stored login) may not read it"


def _describe(error: Exception) -> str:
    """What broke, without the queries of addresses, which may be signed."""
    return f"{type(error).__name__}: {re.sub(r'[?][^ ]*', '', str(error))}"


# ---------------------------------------------------------------- the web


def _from_web(request: WebFile) -> Path:
    """A file of torch's cache, in a folder named after the whole address: file names alone are not unique."""
    import torch.hub

    folder = Path(torch.hub.get_dir()) / "checkpoints" / hashlib.sha256(request.url.encode()).hexdigest()[:20]
    target = folder / request.url.rsplit("/", 1)[-1]
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _download(request, target)
        except urllib.error.HTTPError as error:
            raise _refused(request.url, "this file", error.code) from error
        except (OSError, http.client.HTTPException) as error:
            raise ModelUnreachable(f"{request.url}: could not be fetched: {_describe(error)}") from error
    return target


def _download(request: WebFile, target: Path) -> None:
    """Fetch whole and as announced, then show by one rename, so that nobody opens half a file."""
    digest = hashlib.sha256()
    agent = urllib.request.Request(request.url, headers={"User-Agent": "miclip"})
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as folder,
        urllib.request.urlopen(agent, timeout=WEB_TIMEOUT) as answer,
    ):
        partial = Path(folder) / target.name
        with partial.open("wb") as file:
            while chunk := answer.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
            size, announced = file.tell(), answer.headers["Content-Length"]
        if announced is not None and size != int(announced):
            raise ModelUnreachable(f"{request.url}: {size} of {announced} bytes came; try again")
        if not digest.hexdigest().startswith(request.sha256):
            raise ModelUnreachable(
                f"{request.url}: the bytes that came have sha256 {digest.hexdigest()[:16]}..., expected "
                f"{request.sha256[:16]}...; try again, and if it stays, do not use them"
            )
        partial.replace(target)


def revision_of(path: Path) -> str | None:
    """The commit of a file in the hub cache (.../snapshots/<commit>/file), or None."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
