"""Names that MLflow takes, made of those that users give to parameters and experiments."""

from __future__ import annotations

__all__ = ["as_name", "as_part"]

import hashlib
import posixpath
import re

#: What MLflow's database has room for.
_MAX_NAME = 250
_NO_NAME, _NO_PART = re.compile(r"[^\w\-. /:]"), re.compile(r"[^\w\-. :]")
_DIGITS = 8


def as_name(name: str) -> str:
    """The name of a metric, a parameter or a tag: a path such as `sbc_p/prior/rate`.

    Where something must be replaced a few digits follow, which tell apart names that would become equal.
    """
    taken = _NO_NAME.sub("_", name)
    if posixpath.normpath(taken) != taken or taken.startswith((".", "/")):
        taken = _NO_PART.sub("_", taken)
    return _told_apart(name, taken)


def as_part(name: str) -> str:
    """The same for one part of such a path, or for the name of a folder."""
    return _told_apart(name, _NO_PART.sub("_", name))


def _told_apart(name: str, taken: str) -> str:
    if taken.startswith("."):
        taken = f"_{taken[1:]}"
    if taken == name and 0 < len(taken) <= _MAX_NAME:
        return taken
    digits = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_DIGITS]
    return f"{taken[: _MAX_NAME - _DIGITS - 1]}-{digits}"
