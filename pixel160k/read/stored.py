"""Encoded samples from where they lie: their bytes by shard and offset, in any order, and the members in them.

Local files are read when a sample is due. From a store or the web samples are asked for ahead, many at a time, and those
that follow each other in a tar together. A reader that jumps is as fast as one that reads a tar from its start.
"""

import io
import os
import tarfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from pixel160k.errors import InputError
from pixel160k.format import tar
from pixel160k.paths import AnyPath
from pixel160k.read.cache import ShardCache
from pixel160k.read.foreign import tar_members
from pixel160k.read.shard_sets import Shard
from pixel160k.stores import StorePath

_OPEN = 128  # local files that are kept open
_AT_ONCE = 16  # requests at the same time,
_AHEAD = 48  # samples that are asked for before they are due,
_TOGETHER = 1 << 19  # and bytes that one request is for, where samples follow each other
_CACHED_AHEAD = 1024  # samples before which a shard begins to be copied into the cache


@dataclass(frozen=True)
class Place:
    """Where a sample lies, with those of the steps before it that are read together with it: from `offset` of a shard.

    `samples` follow each other, oldest first; each is its key and its length in bytes. The last is the sample itself.
    """

    shard: Shard
    offset: int
    samples: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        """The sample's key."""
        return self.samples[-1][0]

    @property
    def end(self) -> int:
        """Where the sample ends in the shard, in bytes."""
        return self.offset + sum(length for _, length in self.samples)


def read_places(
    places: Iterable[Place], cache: ShardCache | None
) -> Iterator[tuple[Place, bytes | InputError | OSError]]:
    """The bytes of samples in the order asked for, each with its place; where they cannot be read, the exception.

    Args:
        places: which samples.
        cache: where shards of a store are kept, if anywhere.
    """
    places = iter(places)
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(_AT_ONCE)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        files = stack.enter_context(_Files())
        copies: dict[AnyPath, Future[Path]] = {}
        ahead = _AHEAD if cache is None else _CACHED_AHEAD
        waiting: deque[tuple[list[Place], Callable[[], bytes]]] = deque()
        runs = _runs(places)
        while True:
            for run in islice(runs, ahead - len(waiting)):
                waiting.append((run, _ask(run, pool, files, cache, copies)))
            if not waiting:
                return
            run, result = waiting.popleft()
            try:
                content = result()
            except (InputError, OSError) as error:
                yield from ((place, error) for place in run)
            else:
                for place in run:
                    begin = place.offset - run[0].offset
                    yield place, content[begin : place.end - run[0].offset]


def _ask(
    run: list[Place],
    pool: ThreadPoolExecutor,
    files: "_Files",
    cache: ShardCache | None,
    copies: dict[AnyPath, Future[Path]],
) -> Callable[[], bytes]:
    """Begin to read a run of samples; calling what it returns waits for the bytes."""
    shard, begin, end = run[0].shard, run[0].offset, run[-1].end
    path = shard.path
    if not isinstance(path, StorePath):
        return partial(files.read, path, begin, end, shard.bytes)
    if cache is None:
        return pool.submit(path.read_range, begin, end).result
    if path not in copies:
        copies[path] = pool.submit(cache.copy, path, shard.bytes, shard.sha256)

    def read() -> bytes:
        local = copies[path].result()
        while True:
            try:
                return files.read(local, begin, end, shard.bytes)
            except FileNotFoundError:  # it had to make room before it was opened
                local = cache.copy(path, shard.bytes, shard.sha256)

    return read


def _runs(places: Iterator[Place]) -> Iterator[list[Place]]:
    """Samples of a store that follow each other in a tar, or share steps before them, are read together, up to `_TOGETHER` bytes."""
    run: list[Place] = []
    for place in places:
        if run and not (
            isinstance(place.shard.path, StorePath)
            and place.shard is run[0].shard
            and run[0].offset <= place.offset <= run[-1].end < place.end <= run[0].offset + _TOGETHER
        ):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


class _Files:
    """Local files, of which those used last stay open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def read(self, path: Path, begin: int, end: int, size: int) -> bytes:
        """The bytes from `begin` to before `end` of a file that must not be longer than `size`.

        Raises:
            InputError: it is longer, or ends before.
        """
        if path not in self._open:
            if len(self._open) >= _OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = open(path, "rb", buffering=0)  # noqa: SIM115 (closed here or at the end)
        file = self._open[path]
        if (found := os.fstat(file.fileno()).st_size) > size:
            raise InputError(f"the file has {found} bytes, the manifest says {size}")
        self._open.move_to_end(path)
        content = os.pread(file.fileno(), end - begin, begin)
        if len(content) < end - begin:
            raise InputError(f"the file ends before byte {end}")
        return content


def members_of_each(content: bytes, samples: Iterable[tuple[str, int]]) -> dict[str, dict[str, bytes]]:
    """`members_of` each of the samples that follow each other in this range of a tar, by their keys; as `Place` has them."""
    found, begin = {}, 0
    for key, length in samples:
        found[key] = members_of(content[begin : begin + length], key)
        begin += length
    return found


def members_of(content: bytes, key: str) -> dict[str, bytes]:
    """The bytes by suffix of the members in this range of a tar, all of which must have this key.

    Raises:
        InputError: they have not, or these are no members of a tar.
    """
    members: dict[str, bytes] = {}
    begin = 0
    try:
        while begin < len(content):
            block = content[begin : begin + 512]
            if (plain := tar.read_header(block)) is not None:
                name, size = plain
            else:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if header.size < 0 or header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):  # a long name, or no file
                    return _any_members(content, key)
                name, size = header.name, header.size
            found, _, suffix = name.partition(".")
            if found != key:
                raise InputError(f"there stands {name}")
            begin += 512
            data = content[begin : begin + size]
            if len(data) < size:
                raise InputError(f"{name} is cut")
            members[suffix] = data
            begin += -(-size // 512) * 512
    except tarfile.HeaderError as error:
        raise InputError(f"no header of a tar ({error})") from None
    return members


def _any_members(content: bytes, key: str) -> dict[str, bytes]:
    """`members_of` with all that a tar may hold."""
    members = {}
    for member, data in tar_members(io.BytesIO(content)):
        found, _, suffix = member.name.partition(".")
        if found != key or not member.isreg():
            raise InputError(f"there stands {member.name}")
        members[suffix] = data
    return members
