"""Where MLflow is, and that no password which is part of the address is ever written down."""

from __future__ import annotations

__all__ = ["default_uri", "redacted", "without_secret"]

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

_SECRET_KEYS = re.compile("pass|pwd|token|secret|key", re.IGNORECASE)


def default_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else a sqlite store in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def without_secret(uri: str) -> str:
    """The address without its password: a server's without user and password, a database's without password.

    Example:
        >>> without_secret("https://me:pass@example.org/mlflow")
        'https://example.org/mlflow'
    """
    parts = urlsplit(uri)
    user, separator, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    # A server's token may stand where the user's name does.
    keep = f"{name}{separator}" if name and not parts.scheme.startswith("http") else ""
    secret = any(_SECRET_KEYS.search(key) for key, _ in parse_qsl(parts.query))
    query = urlencode([item for item in parse_qsl(parts.query) if not _SECRET_KEYS.search(item[0])])
    netloc = keep + host
    if netloc == parts.netloc and not secret:
        return uri
    return urlunsplit(parts._replace(netloc=netloc, query=query if secret else parts.query))


def redacted(text: str, uri: str) -> str:
    """A message without the secrets of the address that it may quote."""
    parts = urlsplit(uri)
    user = parts.netloc.rpartition("@")[0]
    secrets = [value for key, value in parse_qsl(parts.query) if _SECRET_KEYS.search(key)]
    secrets += [user.partition(":")[2], unquote(user.partition(":")[2])]
    if parts.scheme.startswith("http") or ":" in user:
        secrets.append(user)  # A database's user by itself is none: its name may be part of any word.
    secrets += [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")]
    text = text.replace(uri, without_secret(uri))
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
