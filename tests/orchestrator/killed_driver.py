"""A campaign's process, again and again: for each line that it reads it starts one by a fork, for imports take long.

Answers with the process id, and with the exit status once it has ended.
"""

from __future__ import annotations

import os
import sys

from orchestrator import Campaign


def main(config: str, directory: str, address: str) -> None:
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                Campaign.from_file(config, directory=directory, address=address).simulate(progress=False)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
