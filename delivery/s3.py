"""S3, or a store that speaks like it, as the place, through boto3.

Keys, region and endpoint are found as every AWS tool finds them (environment, ``~/.aws``). Large files go up in parts
(multipart). What parts of an earlier try the store has is asked of it, so nothing of that is kept here; a part counts
only if its ETag is the MD5 of ours. Each part is sent with its MD5, which the store proves before it takes the part.
"""

from __future__ import annotations

import base64
import io
import logging
import mimetypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import md5
from pathlib import PurePosixPath
from typing import Any

import boto3
import xxhash
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

from delivery.reins import Rein
from delivery.sources import Source
from delivery.troubles import away, denied, full
from errors import CircumstanceError
from i18n import _
from model import MIB
from places import Place

for _name in ("boto3", "botocore", "urllib3"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # below that they show how requests are signed

PART_BYTES = 8 * MIB
MAX_PARTS = 10_000
"""Of one object, says Amazon's list of limits; a larger file has larger parts."""

_DENIED = frozenset(
    {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
)
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"})
_TAKEN = frozenset({"PreconditionFailed", "412"})
_STALE = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall"})
"""The parts of an earlier try are of no use: somebody else has ended or changed them."""


def opener(place: Place) -> Callable[[], Bucket]:
    """Return what makes a client."""
    return lambda: Bucket(place)


def part_bytes(size_bytes: int) -> int:
    """Return how large the parts of a file are: the same for everybody who sends it."""
    mibs = -(-size_bytes // (MAX_PARTS * MIB))
    return max(PART_BYTES, mibs * MIB)


class _Body(io.BytesIO):
    """What is sent of a file in one request, piece by piece as the reins let it go.

    The package may read it before, to sign it; that costs nothing.
    """

    def __init__(self, data: bytes, rein: Rein) -> None:
        super().__init__(data)
        self._rein = rein
        self._is_sent = False

    def is_sent_from_now(self) -> None:
        self._is_sent = True

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self._is_sent and data:
            self._rein.spend(len(data))
        return data


def _arm(request: Any, **_more: Any) -> None:
    if isinstance(request.body, _Body):
        request.body.is_sent_from_now()


class Bucket:
    """The objects of a bucket whose keys begin with what the address has after it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._prefix = place.path.strip("/")
        # A checksum that only newer stores know would be added else; ours is in each request.
        config = Config(
            connect_timeout=15,
            read_timeout=60,
            retries={"max_attempts": 4, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with self._told():
            self._s3: Any = boto3.session.Session().client("s3", config=config)
        self._s3.meta.events.register("before-send.s3", _arm)

    def find(self, relative: PurePosixPath) -> int | None:
        """Return the size of an object."""
        with self._told():
            head = self._head(relative)
            return None if head is None else int(head["ContentLength"])

    def holds(self, relative: PurePosixPath, source: Source, rein: Rein) -> bool:
        """Compare the ETag, which is made of MD5s; read the object back where it is of another kind."""
        with self._told():
            head = self._head(relative)
            if head is None or head["ContentLength"] != source.size_bytes:
                return False
            said = _etag(head)
            if _is_told_by_etag(head) and said.partition("-")[2] == _expected_kind(source):
                return said == _expected_etag(source, rein)
            return self._digest(relative, rein) == source.digest

    def put(self, relative: PurePosixPath, source: Source, rein: Rein) -> None:
        """Send a file, in parts if it is large; look at what became of it."""
        with self._told():
            if self._head(relative) is not None:
                raise FileExistsError(str(relative))
            if source.size_bytes <= part_bytes(source.size_bytes):
                expected = self._put_whole(relative, source, rein)
            else:
                try:
                    expected = self._put_parts(relative, source, rein)
                except ClientError as error:
                    if _code(error) not in _STALE:
                        raise
                    expected = self._put_parts(relative, source, rein)  # of those that are left, or anew
            self._check(relative, source, expected)

    def interrupt(self) -> None:
        """Nothing to cut: the next piece sees that the upload is over."""

    def close(self) -> None:
        """Close the connections."""
        self._s3.close()

    # -------------------------------------------------------------------------------- sending

    def _put_whole(self, relative: PurePosixPath, source: Source, rein: Rein) -> str:
        data = source.part(0, source.size_bytes)
        digest = md5(data, usedforsecurity=False)
        self._created(
            lambda more: self._s3.put_object(
                **self._key(relative),
                **_kind(relative),
                **more,
                Body=_Body(data, rein),
                ContentMD5=_base64(digest.digest()),
            )
        )
        rein.reached(len(data))
        return digest.hexdigest()

    def _put_parts(self, relative: PurePosixPath, source: Source, rein: Rein) -> str:
        upload = self._begun(relative) or str(
            self._s3.create_multipart_upload(**self._key(relative), **_kind(relative))["UploadId"]
        )
        try:
            there = self._parts(relative, upload)
            parts, digests = [], b""
            size = part_bytes(source.size_bytes)
            for number, start in enumerate(range(0, source.size_bytes, size), 1):
                data = source.part(start, size)
                digest = md5(data, usedforsecurity=False)
                tag = there.get(number, ("", 0))
                if tag != (digest.hexdigest(), len(data)):
                    answer = self._s3.upload_part(
                        **self._key(relative),
                        UploadId=upload,
                        PartNumber=number,
                        Body=_Body(data, rein),
                        ContentMD5=_base64(digest.digest()),
                    )
                    tag = (_etag(answer), len(data))
                rein.look()
                rein.reached(start + len(data))
                parts.append({"PartNumber": number, "ETag": f'"{tag[0]}"'})
                digests += digest.digest()
            self._created(
                lambda more: self._s3.complete_multipart_upload(
                    **self._key(relative), UploadId=upload, MultipartUpload={"Parts": parts}, **more
                )
            )
        except (FileExistsError, ClientError) as error:
            if isinstance(error, FileExistsError) or _code(error) in _STALE:
                self._abort(relative, upload)
            raise
        return f"{md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"

    def _created(self, create: Callable[[Mapping[str, str]], object]) -> None:
        """Create an object unless there is one: the store decides, or, where it cannot, a look right before."""
        try:
            create({"IfNoneMatch": "*"})
        except ClientError as error:
            if _code(error) in _TAKEN:
                raise FileExistsError from error
            if _code(error) != "NotImplemented":
                raise
            create({})

    def _check(self, relative: PurePosixPath, source: Source, expected: str) -> None:
        head = self._head(relative)
        if head is not None and head["ContentLength"] == source.size_bytes:
            if not _is_told_by_etag(head) or _etag(head) == expected:
                return
            self._s3.delete_object(**self._key(relative))  # we have just made it, and nobody else could
        sentence = _("{place} does not give back what was written there: its disk may be failing")
        raise CircumstanceError(sentence.format(place=self._place), "target-bytes")

    # -------------------------------------------------------------------------------- what is there

    def _head(self, relative: PurePosixPath) -> Any:
        try:
            return self._s3.head_object(**self._key(relative))
        except ClientError as error:
            if _code(error) in ("404", "NoSuchKey", "NotFound"):
                return None
            raise

    def _begun(self, relative: PurePosixPath) -> str:
        """Return the newest upload of this object that was not ended; none where that may not be asked."""
        key = self._key(relative)
        try:
            found = self._s3.list_multipart_uploads(Bucket=key["Bucket"], Prefix=key["Key"]).get("Uploads", ())
        except ClientError as error:
            if _code(error) in (*_DENIED, "NotImplemented"):
                return ""
            raise
        ours = [one for one in found if one["Key"] == key["Key"]]
        return str(max(ours, key=lambda one: one["Initiated"])["UploadId"]) if ours else ""

    def _parts(self, relative: PurePosixPath, upload: str) -> dict[int, tuple[str, int]]:
        pages = self._s3.get_paginator("list_parts").paginate(**self._key(relative), UploadId=upload)
        return {one["PartNumber"]: (_etag(one), one["Size"]) for page in pages for one in page.get("Parts", ())}

    def _abort(self, relative: PurePosixPath, upload: str) -> None:
        with suppress(ClientError, BotoCoreError):
            self._s3.abort_multipart_upload(**self._key(relative), UploadId=upload)

    def _digest(self, relative: PurePosixPath, rein: Rein) -> str:
        digest = xxhash.xxh3_128()
        for piece in self._s3.get_object(**self._key(relative))["Body"].iter_chunks(MIB):
            rein.received(len(piece))
            digest.update(piece)
        return digest.hexdigest()

    def _key(self, relative: PurePosixPath) -> dict[str, str]:
        return {"Bucket": self._place.host, "Key": f"{self._prefix}/{relative}".lstrip("/")}

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise what an error of the store or of the way there means."""
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
            raise denied(self._place, str(error)) from error
        except BotoCoreError as error:
            raise away(self._place, str(error)) from error
        except ClientError as error:
            code, sentence = _code(error), f"{_code(error)}: {error.response.get('Error', {}).get('Message', '')}"
            kind = full if code in _FULL else denied if code in _DENIED else away
            raise kind(self._place, sentence) from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"').lower()


def _is_told_by_etag(head: Mapping[str, Any]) -> bool:
    """Tell whether the ETag is made of MD5s: not where the store encrypts with a key of a key service."""
    return "kms" not in str(head.get("ServerSideEncryption", "")) and "SSECustomerAlgorithm" not in head


def _expected_kind(source: Source) -> str:
    size = part_bytes(source.size_bytes)
    return "" if source.size_bytes <= size else str(-(-source.size_bytes // size))


def _expected_etag(source: Source, rein: Rein) -> str:
    size = part_bytes(source.size_bytes)
    digests = []
    for start in range(0, max(source.size_bytes, 1), size):
        rein.look()
        digests.append(md5(source.part(start, size), usedforsecurity=False))
    if source.size_bytes <= size:
        return digests[0].hexdigest()
    whole = md5(b"".join(digest.digest() for digest in digests), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(digests)}"


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _kind(relative: PurePosixPath) -> dict[str, str]:
    kind, _encoding = mimetypes.guess_type(relative.name)
    return {"ContentType": kind} if kind else {}
