"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to, which takes its name when all is on disk.

    The folder is made. Where the work inside fails, nothing is left.

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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)
        with aside.open("rb+") as written:
            os.fsync(written.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
