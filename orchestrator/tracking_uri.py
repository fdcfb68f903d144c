"""Where MLflow is, and that no password which is part of the address is ever written down."""

from __future__ import annotations

__all__ = ["check_uri", "default_uri", "redacted", "without_secret"]

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from simulators.errors import ConfigError

#: Keys of an address's query; `odbc_connect` is a whole connection string, with the password in it.
_SECRET_KEYS = re.compile("pass|pwd|token|secret|key|odbc_connect", re.IGNORECASE)
_ODBC_PASSWORD = re.compile(r"(?:pwd|password)\s*=\s*(\{[^}]*\}|[^;]*)", re.IGNORECASE)
#: As SQLAlchemy reads it: a password ends at the `@`, and may have `/`, `?` and `#` before it.
_DATABASE = re.compile(r"(?P<user>[^:/]*)(?::(?P<password>[^@]*))?@(?P<rest>.*)", re.DOTALL)


def default_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else a sqlite store in the current folder.

    Raises:
        ConfigError: `check_uri` refuses what the variable holds.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    try:
        return check_uri(uri)
    except ValueError as error:
        raise ConfigError(f"MLFLOW_TRACKING_URI: {error}") from error


def check_uri(uri: str) -> str:
    """The address, if user, password and host of a server can be told apart in it.

    Raises:
        ValueError: They cannot; the message does not quote the address, which may hold a password.
    """
    if not _is_server(uri):
        return uri
    try:
        parts = urlsplit(uri)
        usable = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    # What a browser and a person read as `user:password@host` may be a host and a path for a program.
    if not usable or "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(
            "expected a server's address such as https://user:password@host:443/path, got one in which the host cannot "
            "be told; write %2F for /, %3F for ?, %23 for # and %40 for @ in user and password, or better give them in "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return uri


def without_secret(uri: str) -> str:
    """The address without its password: a server's without user and password, a database's without password.

    Example:
        >>> without_secret("https://me:pass@example.org/mlflow")
        'https://example.org/mlflow'
    """
    parts = _parts(uri)
    # A server's token may stand where the user's name does.
    user = f"{parts.user}@" if parts.user and not _is_server(uri) else ""
    rest = parts.rest
    if any(_SECRET_KEYS.search(key) for key, _ in parts.query):
        query = urlencode([item for item in parts.query if not _SECRET_KEYS.search(item[0])])
        rest = f"{rest.partition('?')[0]}{'?' if query else ''}{query}"
    return f"{parts.scheme}{user}{rest}"


def redacted(text: str, uri: str) -> str:
    """A message without the secrets of the address that it may quote."""
    parts = _parts(uri)
    secrets = [parts.password, unquote(parts.password)]
    for key, value in parts.query:
        if _SECRET_KEYS.search(key):
            secrets += [value, *_ODBC_PASSWORD.findall(value)]
    if _is_server(uri) or parts.password:
        # A database's user by itself is none: its name may be part of any word.
        secrets.append(f"{parts.user}:{parts.password}" if parts.password else parts.user)
    secrets += [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")]
    text = text.replace(uri, without_secret(uri))
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


class _Parts(NamedTuple):
    scheme: str
    user: str
    password: str
    rest: str

    @property
    def query(self) -> list[tuple[str, str]]:
        return parse_qsl(self.rest.partition("?")[2])


def _parts(uri: str) -> _Parts:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return _Parts("", "", "", uri)
    user = password = ""
    if _is_server(uri):
        # Rather too much is left out than a part of a password written down; `check_uri` refuses such addresses.
        login, _, rest = rest.rpartition("@")
        user, _, password = login.partition(":")
    elif (found := _DATABASE.fullmatch(rest)) is not None:
        # An `@` that should have been written %40 belongs to the password too.
        place, question, query = found["rest"].partition("?")
        more, at, place = place.rpartition("@")
        user, password, rest = found["user"], (found["password"] or "") + (f"@{more}" if at else ""), place
        rest += question + query
    return _Parts(scheme + separator, user, password, rest)


def _is_server(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))
