"""Who made a file: a process by its host, process id and start time. So what a dead process left can be told from what a
living one works on.
"""

import hashlib
import os
import re
import socket
import uuid
from functools import lru_cache
from pathlib import Path

TEMPORARY = ".tmp-"
"""The names of everything unfinished begin with this."""

_OWNED = re.compile(re.escape(TEMPORARY) + r"(?P<owner>\w+-\d+-\d+)-[0-9a-f]{8}-")


def this_process() -> str:
    """The name of this process as an owner: `{host}-{process id}-{start time}`, letters, digits, `_` and `-` only."""
    return f"{_host()}-{os.getpid()}-{_start_time(os.getpid())}"


def temporary_name(name: str) -> str:
    """A new name for something unfinished that will be called `name`; it says which process made it."""
    return f"{TEMPORARY}{this_process()}-{uuid.uuid4().hex[:8]}-{name}"


def owner_of(name: str) -> str:
    """The owner in a temporary name; "" where it says none."""
    found = _OWNED.match(name)
    return found["owner"] if found else ""


def process_id(owner: str) -> int:
    """The process id in the name of an owner of this host; −1 where it is of another host."""
    host, _, rest = owner.partition("-")
    return int(rest.split("-")[0]) if host == _host() else -1


def is_alive(owner: str) -> bool | None:
    """Whether the process of this name still runs; None where it is of another host, which cannot be asked."""
    host, _, rest = owner.partition("-")
    if host != _host():
        return None
    pid, start = rest.split("-")
    return _start_time(int(pid)) == start


@lru_cache(maxsize=1)
def _host() -> str:
    """The host: its name, and a hash that is another one after a restart, and in every container."""
    try:
        details = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8") + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        details = str(uuid.getnode())
    name = re.sub(r"\W", "_", socket.gethostname(), flags=re.ASCII)[:40]
    return f"{name}_{hashlib.sha256(details.encode()).hexdigest()[:8]}"


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; "0" where the system does not say, "" where none runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except OSError:  # it runs and is another user's
            pass
        return "0"
    return "" if state in "ZX" else fields[18]  # a zombie is dead: only its parent has not noticed yet
