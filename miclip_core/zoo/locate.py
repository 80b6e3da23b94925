"""The port through which checkpoints become local paths, and the default that knows files and the Hugging Face cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import UnknownModel


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

Raises FileNotFoundError for a hub file that the repository does not have, UnknownModel for anything else that is not there.
"""


def locate(request: Request) -> Path:
    """Files where they are, hub files through the Hugging Face cache (fetched once), web files into torch's cache.

    Raises:
        FileNotFoundError: the repository exists but not this file.
        UnknownModel: no such path, repository or revision, or it cannot be reached.
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


def _from_hub(request: HubFile) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
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
        raise UnknownModel(
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
        status = error.response.status_code
        advice = f"; {_token_advice()}" if status in (401, 403) else ""
        raise UnknownModel(f"{where}: the hub refuses {request.file} with status {status}{advice}") from error
    except OSError as error:
        raise UnknownModel(f"{where}: {request.file} could not be fetched: {error}") from error


def _token_advice() -> str:
    """What to do about a login; tells whether there is a token, never which."""
    from huggingface_hub import get_token

    if get_token() is None:
        return "the environment variable HF_TOKEN is not set, put a token there that may read it"
    return "the token of HF_TOKEN (or of the stored login) may not read it"


def _from_web(request: WebFile) -> Path:
    import torch.hub

    target = Path(torch.hub.get_dir()) / "checkpoints" / request.url.rsplit("/", 1)[-1]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(request.url, str(target), request.sha256 or None, progress=False)
        except (OSError, RuntimeError) as error:
            raise UnknownModel(f"{request.url}: could not be fetched: {error}") from error
    return target


def revision_of(path: Path) -> str | None:
    """The commit of a file in the hub cache (.../snapshots/<commit>/file), or None."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
