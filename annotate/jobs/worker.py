"""A worker process of `annotate.jobs.local`: reads what to do from standard input, and ends when that closes."""

import os
import pickle
import signal
import sys
import threading


def _end_with_the_client() -> None:
    os.read(0, 1)  # returns only when the client has ended; nothing is ever sent
    os._exit(1)


def main() -> None:
    """Do the files that standard input names, as far as no other process does them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's, who then ends its workers
    try:
        unit, files = pickle.load(sys.stdin.buffer)
    except EOFError:
        return  # the client died first
    threading.Thread(target=_end_with_the_client, daemon=True).start()
    from annotate.jobs.beam import run_pipeline
    from annotate.jobs.local import DEVICE_IS_LOST, DISK_IS_FULL
    from annotate.jobs.unit import says_disk_is_full

    try:
        run_pipeline(unit, files)
    except Exception as error:
        if says_disk_is_full(error):
            sys.exit(DISK_IS_FULL)
        raise
    if unit.lost():
        sys.exit(DEVICE_IS_LOST)


if __name__ == "__main__":
    main()
