"""Reading ahead: threads read what comes next while what came before is worked on."""

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Name = TypeVar("Name")
Content = TypeVar("Content")

CHUNK = 16
"""What a thread takes at once: handing over a small image costs a fifth of decoding it."""


def available_cores() -> int:
    """Processor cores that this process may use."""
    everywhere = os.cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else everywhere


def read_ahead(
    names: Iterable[Name], read: Callable[[Name], Content], *, readers: int, ahead: int
) -> Generator[tuple[Name, Content], None, None]:
    """Read in several threads and yield names with their contents, in the order of the names.

    Close the iterator to stop early; reading ends with what is being read. Names are asked for only
    as far as they are read: at most ``ahead`` are read and not yet yielded. Both numbers are >= 1.
    """
    if readers < 1 or ahead < 1:
        raise ValueError(f"readers and ahead must be >= 1, got {readers} and {ahead}")
    chunk = min(CHUNK, ahead)
    stop = threading.Event()

    def read_some(some: tuple[Name, ...]) -> list[tuple[Name, Content]]:
        return [(name, read(name)) for name in some if not stop.is_set()]

    left = iter(names)
    waiting: deque[Future[list[tuple[Name, Content]]]] = deque()
    pool = ThreadPoolExecutor(readers, thread_name_prefix="deepens-reader")
    try:
        while True:
            while len(waiting) < ahead // chunk:
                if not (some := tuple(itertools.islice(left, chunk))):
                    break
                waiting.append(pool.submit(read_some, some))
            if not waiting:
                return
            # From the front, so that what was yielded is not kept.
            read_now = deque(waiting.popleft().result())
            while read_now:
                yield read_now.popleft()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
