"""A store in an S3 bucket, and the one patient client through which anything here speaks S3."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import aiohttp
import s3fs
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync
from fsspec.spec import AbstractBufferedFile
from s3fs.errors import translate_boto_error

from cluster.stores.base import check_key, check_prefix, get_budget, get_pause
from schemas.errors import BadSpec, KeyMissing, StoreDenied, StoreFull, StoreMissing, StoreUnreachable, UsageError
from schemas.layout import check_state

if TYPE_CHECKING:
    import pyarrow.fs

SLOWEST = 256 * 1024  # bytes a second; a transfer slower than this counts as hanging
MAX_PUT = 5 * 2**30  # the largest object S3 takes in one request, which is the only conditional way to write
CONNECTIONS = 32
READ_AHEAD = 2**20

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_NETWORK = (
    HTTPClientError,
    BotoConnectionError,
    IncompleteReadError,
    ResponseParserError,
    aiohttp.ClientError,
    asyncio.TimeoutError,
    ConnectionError,
)
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError)
_BUSY_STATUS = {408, 429, 500, 502, 503, 504}
_BUSY_CODE = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError"}
_BUSY_CODE |= {"OperationAborted", "ConditionalRequestConflict"}
_DENIED_CODE = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed"}
_SERVICE_FULL = {"QuotaExceeded", "EntityTooLarge", "XMinioStorageFull"}
Answer = TypeVar("Answer")


class Object(NamedTuple):
    """One object of a listing: its key in the bucket, its size in bytes, and the etag that changes with its content."""

    key: str
    size: int
    etag: str


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key (or prefix, without a trailing slash) of `s3://bucket/key`, taken literally.

    Raises:
        BadSpec: no bucket, or something that looks like credentials in it; the text is not repeated then.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if "@" in bucket:
        raise BadSpec(
            "s3 uri: credentials do not belong in it; expected s3://bucket/prefix, "
            "with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment or a role"
        )
    if not _BUCKET.fullmatch(bucket):
        raise BadSpec(f"s3 uri {uri!r}: {bucket!r} is not a bucket name; expected s3://bucket/prefix")
    return bucket, key.removesuffix("/")


# -- one layer of patience: every request of every user of S3 goes through `patiently`


class PatientS3(s3fs.S3FileSystem):
    """s3fs with one retry loop bounded in seconds instead of its own and botocore's, which multiply.

    aiohttp alone may still send a request once more on a fresh connection when a kept one was closed under it.
    It also serves as the filesystem that pyarrow and DuckDB read through, so they are as patient as the store.
    """

    cachable = False
    retries = 1  # s3fs's own loop: off

    def __init__(self, endpoint: str | None = None) -> None:
        self.budget = get_budget()
        self.silence = min(20.0, self.budget / 3)  # seconds without a byte after which a request is sent again
        self.resent = 0
        self.given_up = False
        self.where = _endpoint(endpoint)
        config: dict[str, Any] = {
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": min(5.0, self.silence),
            "read_timeout": self.silence,
            "max_pool_connections": CONNECTIONS,
        }
        if self.where:  # other services than AWS do not know its newer checksums, and few know bucket host names
            config |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
            config |= {"s3": {"addressing_style": "path"}}
        super().__init__(endpoint_url=self.where, use_listings_cache=False, config_kwargs=config)

    async def request(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One S3 request, patiently; errors that waiting does not cure come as botocore's ClientError."""
        return await self.patiently(arguments, lambda: self._send(operation, arguments))

    async def read(self, bucket: str, key: str, start: int | None = None, length: int = 0) -> bytes:
        """An object or a range of it (clipped at its end), whole or not at all: a cut answer is asked for again."""
        arguments: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if start is not None:
            if length <= 0:
                return b""
            arguments["Range"] = f"bytes={start}-{start + length - 1}"
        try:
            return await self.patiently(arguments, lambda: self._receive(arguments))
        except ClientError as error:
            if _status(error) == 416:  # the range starts behind the end
                return b""
            raise

    async def patiently(self, arguments: dict[str, Any], attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        """Repeat an attempt with growing, jittered pauses while the service is busy or away, within the budget.

        The last attempt may begin just before the budget ends, so the whole takes at most a third more when the
        service is silent, and longer only while bytes flow. Once a budget is spent every request has one attempt,
        until one succeeds: a command that gives up does not wait again for each thing it would still like to write.
        The seconds in which this machine gets ready to ask are not counted.

        Raises:
            StoreUnreachable: the budget is spent. StoreDenied, StoreMissing: at once, waiting would not help.
        """
        name = f"s3://{arguments.get('Bucket', '')}/{arguments.get('Key', arguments.get('Prefix', ''))}"
        begun = time.monotonic()
        for tried in range(1, 1_000_000):
            try:
                begun += await self._get_ready()
                answer = await attempt()
                self.given_up = False
                return answer
            except (*_NETWORK, *_NO_CREDENTIALS, ClientError, BotoCoreError) as error:
                self._raise_if_final(error, name, arguments)
                pause = get_pause(tried)
                spent = time.monotonic() - begun
                if self.given_up or spent + pause > self.budget:
                    self.given_up = True
                    raise StoreUnreachable(
                        f"{name}: no usable answer from {self.where or 'AWS'} in {spent:.0f} s and {tried} attempts "
                        f"(the budget is {self.budget:g} s, MICLIP_STORE_BUDGET_S); the last was: {_say(error)}"
                    ) from error
            self.resent += 1
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    def _raise_if_final(self, error: Exception, name: str, arguments: dict[str, Any]) -> None:
        """Return only if the same request may succeed a little later."""
        if isinstance(error, _NO_CREDENTIALS):
            raise StoreDenied(
                f"{name}: no credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the "
                "machine a role"
            ) from error
        if isinstance(error, _NETWORK):
            return
        if not isinstance(error, ClientError):
            raise StoreDenied(f"{name}: the request could not be made ({error})") from error
        status, code = _status(error), _code(error)
        if code in _SERVICE_FULL or status == 507:
            needed = len(arguments.get("Body", b""))
            raise StoreFull(f"{name}: {needed:,} bytes were needed and refused ({_say(error)})") from error
        if status in (401, 403) or code in _DENIED_CODE:
            raise StoreDenied(
                f"{name}: refused by {self.where or 'AWS'} ({_say(error)}); check the credentials in the environment "
                "and that they may list, read and write here"
            ) from error
        if code == "NoSuchBucket":
            raise StoreMissing(
                f"{name}: there is no such bucket at {self.where or 'AWS'}; create it or correct the uri"
            )
        if status not in _BUSY_STATUS and code not in _BUSY_CODE:
            self.given_up = False  # an answer like any other: no such key, already there
            raise error

    async def _get_ready(self) -> float:
        """Make the client and load its TLS certificates, unless that is done; the seconds it took.

        aiobotocore loads them within its first request, where a slow or crowded machine would look like a silent
        service: the request is cancelled, and the next one starts to load from the beginning.
        """
        begun = time.monotonic()
        client = await self.set_session()
        http = client._endpoint.http_session  # s3fs looks at it too; there is no public way, so its absence is no fault
        if load := getattr(http, "_get_session", None):
            await load(http._proxy_config.proxy_url_for(client.meta.endpoint_url))
        return time.monotonic() - begun

    async def _send(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        client = await self.set_session()
        patience = self.silence + len(arguments.get("Body", b"")) / SLOWEST  # a stalled upload counts as silence too
        return await asyncio.wait_for(getattr(client, operation)(**arguments), patience)

    async def _receive(self, arguments: dict[str, Any]) -> bytes:
        answer = await self._send("get_object", arguments)
        expected = answer["ContentLength"]
        async with answer["Body"] as body:
            data = await asyncio.wait_for(body.read(), self.silence + expected / SLOWEST)
        if len(data) != expected:
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=expected)
        return data

    # -- what s3fs itself calls when pyarrow or DuckDB read through it

    async def _call_s3(self, method: str, *defaults: dict[str, Any], **arguments: Any) -> Any:
        client = await self.set_session()
        wanted = self._get_s3_method_kwargs(getattr(client, method), *defaults, **arguments)
        try:
            return await self.request(method, **wanted)
        except ClientError as error:
            raise translate_boto_error(error) from error

    def _open(self, path: str, mode: str = "rb", **options: Any) -> PatientFile:
        if mode != "rb":
            raise StoreDenied(f"{path}: opened with mode {mode!r}; objects are written whole, by the store's create")
        return PatientFile(self, path, block_size=READ_AHEAD, size=options.get("size"))


class PatientFile(AbstractBufferedFile):
    """A read-only seekable object whose ranges arrive whole or not at all."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        bucket, key, _ = self.fs.split_path(self.path)
        return sync(self.fs.loop, self.fs.read, bucket, key, start, end - start)


def _endpoint(given: str | None) -> str | None:
    url = given or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if url and ("@" in url or not url.startswith(("http://", "https://"))):
        raise UsageError("the S3 endpoint (AWS_ENDPOINT_URL) must look like https://host:port, without credentials")
    return url


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _say(error: Exception) -> str:
    if isinstance(error, ClientError):
        return f"{_status(error)} {_code(error)} {error.response.get('Error', {}).get('Message', '')}".strip()
    return f"{type(error).__name__} {error}".strip()


# -- the blocking client


_OF_THE_PARENT: list[PatientS3] = []  # kept, not closed: a fork shares their sockets with the parent


class S3Client:
    """Blocking S3 calls for any thread; a forked or unpickled copy opens connections of its own."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint
        self._fs = PatientS3(endpoint)
        self._pid = os.getpid()

    def __reduce__(self) -> tuple[type[S3Client], tuple[str | None]]:
        return S3Client, (self._endpoint,)

    @property
    def fs(self) -> PatientS3:
        """The filesystem of this process."""
        if self._pid != os.getpid():
            _OF_THE_PARENT.append(self._fs)
            self._fs, self._pid = PatientS3(self._endpoint), os.getpid()
        return self._fs

    def put(
        self, bucket: str, key: str, data: bytes, *, create: bool, headers: Mapping[str, str] | None = None
    ) -> bool:
        """Write an object in one request; with `create` only if the key is free. Whether it was written.

        headers: what is told of it with every answer, as S3 names it: ContentType, CacheControl.
        """
        if len(data) > MAX_PUT:
            raise StoreFull(
                f"s3://{bucket}/{key}: {len(data):,} bytes; one object may have {MAX_PUT:,}, make smaller parts"
            )
        return self._run(self._put, bucket, key, data, create, headers or {})

    def remove(self, bucket: str, key: str) -> None:
        """Remove an object, if it is there."""
        self._run(self._remove, bucket, key)

    async def _remove(self, bucket: str, key: str) -> None:
        try:
            await self.fs.request("delete_object", Bucket=bucket, Key=key)
        except ClientError as error:
            raise StoreDenied(f"s3://{bucket}/{key}: could not be removed ({_say(error)})") from error

    def get(self, bucket: str, key: str) -> bytes:
        """All bytes. Raises KeyMissing."""
        return self._run(self._found, bucket, key, lambda: self.fs.read(bucket, key))

    def get_range(self, bucket: str, key: str, start: int, length: int) -> bytes:
        """`get(...)[start : start + length]`. Raises KeyMissing."""
        return self._run(self._found, bucket, key, lambda: self.fs.read(bucket, key, start, length))

    def head(self, bucket: str, key: str) -> Object:
        """Size and etag. Raises KeyMissing."""
        request = self._run(self._found, bucket, key, lambda: self._head(bucket, key))
        return Object(key, request["ContentLength"], request["ETag"].strip('"'))

    def _run(self, call: Callable[..., Awaitable[Answer]], *arguments: Any) -> Answer:
        return sync(self.fs.loop, call, *arguments)

    async def _put(self, bucket: str, key: str, data: bytes, create: bool, headers: Mapping[str, str]) -> bool:
        condition = {"IfNoneMatch": "*", **headers} if create else headers
        try:
            await self.fs.request("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            if create and (_status(error) == 412 or (_status(error) == 409 and await self._taken(bucket, key))):
                return False
            raise StoreDenied(f"s3://{bucket}/{key}: the write was refused ({_say(error)})") from error
        return True

    async def _taken(self, bucket: str, key: str) -> bool:
        try:
            await self._found(bucket, key, lambda: self._head(bucket, key))
        except KeyMissing:
            return False
        return True

    async def _found(self, bucket: str, key: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            return await call()
        except ClientError as error:
            if _status(error) == 404:
                raise KeyMissing(f"s3://{bucket}/{key} does not exist") from error
            raise StoreDenied(f"s3://{bucket}/{key}: the read was refused ({_say(error)})") from error

    async def _head(self, bucket: str, key: str) -> dict[str, Any]:
        try:
            return await self.fs.request("head_object", Bucket=bucket, Key=key)
        except ClientError as error:
            if _status(error) == 404:  # a HEAD has no body that could tell a missing bucket from a missing key
                await self.fs.request("list_objects_v2", Bucket=bucket, MaxKeys=1)
            raise

    async def _list(self, bucket: str, prefix: str) -> list[Object]:
        found: list[Object] = []
        page: dict[str, Any] = {}
        while True:
            try:
                answer = await self.fs.request("list_objects_v2", Bucket=bucket, Prefix=prefix, **page)
            except ClientError as error:
                raise StoreDenied(f"s3://{bucket}/{prefix}: listing was refused ({_say(error)})") from error
            found += [Object(item["Key"], item["Size"], item["ETag"].strip('"')) for item in answer.get("Contents", ())]
            if not answer.get("IsTruncated"):
                return found
            page = {"ContinuationToken": answer["NextContinuationToken"]}

    def list(self, bucket: str, prefix: str) -> list[Object]:
        """All objects whose keys start with `prefix`, in the order of their UTF-8 keys."""
        return self._run(self._list, bucket, prefix)


class S3Store:
    """Objects under one prefix of one bucket; see `cluster.stores.base.Store` for what the methods promise."""

    def __init__(self, uri: str, endpoint: str | None = None) -> None:
        self._bucket, prefix = split_s3(uri)
        self._prefix = f"{check_prefix(prefix)}/" if prefix else ""
        self._client = S3Client(endpoint)
        self.uri = f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def __repr__(self) -> str:
        return f"S3Store({self.uri!r})"

    @property
    def retries(self) -> int:
        return self._client.fs.resent

    def create(self, key: str, data: bytes) -> bool:
        return self._client.put(self._bucket, self._key(key), data, create=True)

    def replace(self, key: str, data: bytes) -> None:
        self._client.put(self._bucket, self._key(key), data, create=False)

    def drop_state(self, key: str) -> None:
        check_state(key)
        self.delete(key)

    def delete(self, key: str) -> None:
        self._client.remove(self._bucket, self._key(key))

    def get(self, key: str) -> bytes:
        return self._client.get(self._bucket, self._key(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._client.get_range(self._bucket, self._key(key), start, length)

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except KeyMissing:
            return False
        return True

    def size(self, key: str) -> int:
        return self._client.head(self._bucket, self._key(key)).size

    def list(self, prefix: str) -> list[str]:
        return list(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        prefix = check_prefix(prefix)
        found = self._client.list(self._bucket, self._prefix + (f"{prefix}/" if prefix else ""))
        sizes = ((item.key.removeprefix(self._prefix), item.size) for item in found)
        return dict(sorted(pair for pair in sizes if not pair[0].endswith("/")))

    def arrow_fs(self) -> tuple[pyarrow.fs.FileSystem, str]:
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return PyFileSystem(FSSpecHandler(self._client.fs)), f"{self._bucket}/{self._prefix}".rstrip("/")

    def fsspec_fs(self) -> PatientS3:
        return self._client.fs

    def url(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._key(key)}"

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)
