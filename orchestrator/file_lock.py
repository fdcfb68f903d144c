"""A lock on a file: one process has it at a time, and it goes with that process however it ends."""

from __future__ import annotations

__all__ = ["lock"]

import fcntl
import logging
from typing import TextIO

logger = logging.getLogger(__name__)


def lock(file: TextIO) -> bool:
    """Locks an open file until it is closed; False if another process holds it.

    On a file system without locks, which a warning names, everyone may go on.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # The latter on SMB.
        return False
    except OSError as error:
        logger.warning(
            "there are no file locks at %s (%s): see to it yourself that no two processes write there at a time",
            file.name,
            error.strerror or error,
        )
    return True
