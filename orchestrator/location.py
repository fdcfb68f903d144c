"""Where the files of a store lie: a folder here, or a prefix of an object store. A file appears whole or not at all."""

from __future__ import annotations

__all__ = ["Folder", "Location", "Remote", "check_location", "open_location"]

import contextlib
import errno
import functools
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
from pyarrow import fs

from simulators.errors import RunDirectoryError

_SLICE = 8 << 20
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_REMEDIES = (
    ("NO_SUCH_BUCKET", "create the bucket, or correct its name"),
    ("ACCESS_DENIED", "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do"),
    ("ACCESS_KEY", "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ("SIGNATURE", "check AWS_SECRET_ACCESS_KEY"),
    ("NETWORK_CONNECTION", "check the network, AWS_ENDPOINT_URL and AWS_REGION"),
)

Write = Callable[[pa.NativeFile], None]


class Location(ABC):
    """A flat set of files.

    Attributes:
        text: What a person calls it.
    """

    text: str

    @property
    @abstractmethod
    def filesystem(self) -> fs.FileSystem:
        """Where it is, for Arrow."""

    @property
    @abstractmethod
    def root(self) -> str:
        """Its path in `filesystem`."""

    @abstractmethod
    def put(self, name: str, write: Write) -> None:
        """Makes a file of what `write` writes, durable on return; never a part of it.

        Raises:
            RunDirectoryError: It could not be written; then it is as it was before, or whole.
        """

    def files(self) -> dict[str, int]:
        """Names and bytes of all files."""
        with self.reporting("read"):
            found = self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}

    def path(self, name: str) -> str:
        """Path of a file in `filesystem`."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        """A small file.

        Raises:
            FileNotFoundError: It is not there.
        """
        with self.reporting("read"), self.filesystem.open_input_stream(self.path(name)) as stream:
            content: bytes = stream.read()
        return content

    def delete(self, name: str) -> None:
        """Removes a file; one that is gone already is no error."""
        with self.reporting("written"), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(name))

    @contextlib.contextmanager
    def reporting(self, action: str) -> Iterator[None]:
        """Turns whatever a file system raises, but for a missing file to be read, into an error for users."""
        try:
            yield
        except RunDirectoryError:
            raise
        except Exception as error:  # Every fsspec file system has kinds of its own.
            if action == "read" and isinstance(error, FileNotFoundError):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            for secret in (os.environ.get(name, "") for name in _SECRETS):
                if len(secret) >= 8:  # Shorter ones, as servers for tests have, are no secrets but parts of words.
                    reason = reason.replace(secret, "...")
            raise RunDirectoryError(
                f"the store {self.text} cannot be {action}: {reason}; {_remedy(error, reason)}"
            ) from error


class Folder(Location):
    """A folder of this machine, or of a file system mounted here; made by the first `put`."""

    def __init__(self, path: Path) -> None:
        self.folder = path
        self.text = str(path)

    @property
    def filesystem(self) -> fs.FileSystem:
        return fs.LocalFileSystem()

    @property
    def root(self) -> str:
        return self.text

    def files(self) -> dict[str, int]:
        try:
            return super().files()
        except FileNotFoundError:  # Arrow sees no folder, and then that there is one: it was made between the two.
            return super().files()

    def put(self, name: str, write: Write) -> None:
        with self.reporting("written"):
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                _sync(self.folder.parent)
            aside = self.folder / f".{name}.tmp"
            try:
                with pa.OSFile(str(aside), "wb") as file:
                    write(file)
                _sync(aside)
                os.replace(aside, self.folder / name)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise
            _sync(self.folder)

    def discard_parts(self) -> None:
        """Removes what a killed `put` has left aside."""
        with self.reporting("written"):
            for part in self.folder.glob(".*.tmp"):
                part.unlink(missing_ok=True)


class Remote(Location):
    """An object store, through Arrow's own file systems or, where it has none, through fsspec."""

    def __init__(self, uri: str) -> None:
        self.text = uri.rstrip("/")

    @functools.cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        """Made on first use: finding a bucket's region asks the network."""
        parts = urlsplit(self.text)
        with self.reporting("read"):
            if parts.scheme == "s3":
                return _s3(parts.netloc), f"{parts.netloc}{parts.path}"
            try:
                found, root = fs.FileSystem.from_uri(self.text)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                plain, root = fsspec.core.url_to_fs(self.text)
                found = fs.PyFileSystem(fs.FSSpecHandler(plain))
            return found, root

    @property
    def filesystem(self) -> fs.FileSystem:
        return self._opened[0]

    @property
    def root(self) -> str:
        return self._opened[1]

    def files(self) -> dict[str, int]:
        plain = self._fsspec()
        if plain is not None:
            plain.invalidate_cache()
        found = super().files()
        parts = urlsplit(self.text)
        if not found and parts.scheme == "s3":  # To Arrow, a bucket that does not exist is an empty one.
            with self.reporting("read"):
                if self.filesystem.get_file_info(parts.netloc).type == fs.FileType.NotFound:
                    raise OSError(f"NO_SUCH_BUCKET: there is no bucket '{parts.netloc}'")
        return found

    def put(self, name: str, write: Write) -> None:
        # Written here first: if `write` fails half way, nothing must reach the store.
        with self.reporting("written"), tempfile.TemporaryDirectory(prefix="temperflow-") as folder:
            aside = f"{folder}/{name}"
            with pa.OSFile(aside, "wb") as file:
                write(file)
            plain = self._fsspec()
            if plain is not None:
                plain.pipe_file(self.path(name), Path(aside).read_bytes())
                return
            with pa.memory_map(aside) as file, self.filesystem.open_output_stream(self.path(name)) as stream:
                while piece := file.read(_SLICE):
                    stream.write(piece)

    def _fsspec(self) -> fsspec.AbstractFileSystem | None:
        found = self.filesystem
        return found.handler.fs if isinstance(found, fs.PyFileSystem) else None


def open_location(location: str | Path) -> Location:
    """The location of a path or a URI; nothing is read or written yet.

    Raises:
        RunDirectoryError: A URI that cannot be used.
    """
    text = str(location)
    try:
        check_location(text)
    except ValueError as error:
        raise RunDirectoryError(str(error)) from error
    if text.startswith("file://"):
        return Folder(Path(unquote(urlsplit(text).path)))
    return Remote(text) if "://" in text else Folder(Path(text).expanduser())


def check_location(text: str) -> None:
    """Raises a `ValueError` for a URI that holds secrets or options, or whose kind nobody knows."""
    if "://" not in text:
        return
    parts = urlsplit(text)
    if parts.password or (parts.scheme == "s3" and parts.username):
        raise ValueError(
            f"a store's URI must not hold credentials; set them in the environment, as in AWS_ACCESS_KEY_ID, and write "
            f"{parts.scheme}://{parts.hostname}{parts.path}"
        )
    if parts.query:
        raise ValueError(
            f"expected a store's URI without options, such as {parts.scheme}://{parts.hostname}{parts.path}; set them "
            "in the environment, as in AWS_ENDPOINT_URL and AWS_REGION"
        )
    known = {"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", *fsspec.available_protocols()}
    if parts.scheme not in known:
        raise ValueError(
            f"there is no store of the kind '{parts.scheme}://'; give a path, or a URI as s3://bucket/prefix"
        )


def _s3(bucket: str) -> fs.FileSystem:
    """S3 as the environment describes it. Arrow itself takes an endpoint from there only for some calls."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        scheme, _, host = endpoint.rstrip("/").rpartition("://")
        place = {"scheme": scheme or "https", "endpoint_override": host, "region": region}
    else:
        place = {"region": region or fs.resolve_s3_region(bucket)}
    # A small file is one put. Of a large one, background writes alone keep an upload that failed in the middle from
    # being completed as a shorter file when the stream is closed. A server that says nothing must not delay the end of
    # a campaign: appending is tried again anyway.
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=2)
    return fs.S3FileSystem(**place, allow_delayed_open=True, background_writes=True, retry_strategy=retries)


def _remedy(error: Exception, reason: str) -> str:
    if isinstance(error, ImportError):
        return "install the package that it names"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space there"
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return "check whose folder it is and who may write there"
    squeezed = reason.upper().replace(" ", "_")
    return next((remedy for sign, remedy in _REMEDIES if sign in squeezed), "check the location, and who may use it")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
