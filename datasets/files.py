"""Files that appear whole or not at all."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ASIDE = ".deepens-"
"""Begins the name of a file that is not yet whole."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a disk, a quota or a limit that is full."""


@contextmanager
def whole_file(path: Path, *, size: int | None = None) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to, which takes its name when all is on disk.

    The folder is made. Where the work inside fails, nothing is left and what was there stays; what
    killed processes left in the folder is swept.

    Args:
        path: The file.
        size: Its bytes, where they are known, which the error of a full disk names.

    Raises:
        OSError: The file cannot be written; the error names ``path``.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from deepens.datasets.files import whole_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_file(Path(folder) / "a" / "b.txt") as aside:
        ...         _ = aside.write_text("whole")
        ...     (Path(folder) / "a" / "b.txt").read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=ASIDE, suffix=path.suffix)
        aside = Path(name)
        try:
            _mark_as_ours(handle)
            yield aside
            aside.chmod(0o644)
            with aside.open("rb+") as written:
                os.fsync(written.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
            os.close(handle)
    except OSError as error:
        raise _of_file(error, path, size) from error


def printable(text: object) -> str:
    """Text that can be written as UTF-8; other bytes of a file's name are escaped."""
    return os.fsencode(str(text)).decode("utf-8", "backslashreplace")


def check_regular(path: Path) -> None:
    """Open a file and close it, to tell one that cannot be read from one that is damaged.

    Raises:
        OSError: There is no such file, or it cannot be opened; the error names it.
        ValueError: It is a directory, a device, a pipe or a socket.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")
    with path.open("rb"):
        pass


def _of_file(error: OSError, path: Path, size: int | None) -> OSError:
    """The error with the name of the file to be written, unless it is about another file."""
    ours = error.filename is None or Path(os.fsdecode(error.filename)).name.startswith(ASIDE)
    if error.errno is None or not ours:
        return error
    reason = error.strerror or os.strerror(error.errno)
    if error.errno in FULL:
        needed = f"{size} bytes are needed, " if size is not None else ""
        free = shutil.disk_usage(path.parent).free
        reason += f" ({needed}{free} are free); what was there before is unchanged"
    return OSError(error.errno, reason, str(path))


def _mark_as_ours(handle: int) -> None:
    """Lock a file for as long as this process has it open."""
    with suppress(ImportError, OSError):  # without locks, files of killed processes stay
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(folder: Path) -> None:
    """Delete the files that killed processes did not finish: those that nobody has locked."""
    with suppress(ImportError, OSError):
        import fcntl

        for left in folder.glob(f"{ASIDE}*"):
            with suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
