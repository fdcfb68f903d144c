"""Which address of MLflow may be taken from a run directory, which may be somebody else's, without asking.

Whoever wrote the address would get the records, and the credentials of whoever delivers them.
"""

from __future__ import annotations

__all__ = ["named_here", "sync_command", "trusted"]

import os
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .tracking_uri import without_secret

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
#: What MLflow's client sends to any server, whichever it is, beside the file `~/.mlflow/credentials`.
_CREDENTIALS = ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH")


def named_here(uri: str) -> str | None:
    """`MLFLOW_TRACKING_URI` with its secrets, if it is the same address; else None."""
    here = os.environ.get("MLFLOW_TRACKING_URI", "")
    return here if here and without_secret(here).rstrip("/") == without_secret(uri).rstrip("/") else None


def trusted(uri: str, directory: Path) -> bool:
    """Whether the address, as a run directory has it, may be used without asking.

    That is one which `MLFLOW_TRACKING_URI` names; a server on this machine, if there are no credentials that it would
    get (others may listen here too); and a local store of one's own: the store says where files are written, hence it
    must not come with the run directory.
    """
    if named_here(uri) is not None:
        return True
    if uri.lower().startswith(("http://", "https://")):
        return urlsplit(uri).hostname in _LOOPBACK and not _credentials()
    if (store := _local(uri)) is None:
        return False
    store = store.resolve()
    return not store.is_relative_to(directory.resolve()) and (not store.exists() or store.stat().st_uid == os.geteuid())


def sync_command(directory: Path, uri: str) -> str:
    """The command that delivers a run directory's records there."""
    asked = "" if trusted(uri, directory) else f" --uri {shlex.quote(without_secret(uri))}"
    return f"temperflow sync {shlex.quote(str(directory))}{asked}"


def _credentials() -> bool:
    kept = Path("~/.mlflow/credentials").expanduser()
    return kept.exists() or any(os.environ.get(f"MLFLOW_TRACKING_{name}") for name in _CREDENTIALS)


def _local(uri: str) -> Path | None:
    """The file or folder of a store on this machine, None if it is another kind."""
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:///file:"):
        return Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if uri.startswith("file:"):
        parts = urlsplit(uri)
        return Path(unquote(parts.path)) if parts.netloc in ("", "localhost") else None
    return Path(uri) if "/" in uri and ":" not in uri else None  # not `databricks`
