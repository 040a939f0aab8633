"""Where the results of a sweep lie: one Parquet data set, a file of one row for each run, named by the run's key.

    FOLDER/runs/KEY.parquet   appears whole, once its run is finished; what it holds never changes
    FOLDER/checkpoints/*.ckpt of runs that are not finished, with checkpoint-every
    FOLDER/study.toml         the study that wrote here last
    FOLDER/contents.json      hashes of traces, by file, size and time
    FOLDER/lock               of the process that writes

A run that has a file is finished. So a program that is killed loses what ran, and nothing is there twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastmmu.errors import StudyError
from fastmmu.report.files import arrow, parquet_table, write_whole
from fastmmu.study.sweep.columns import columns
from fastmmu.trace.whole import whole_file

__all__ = ["Store"]


class Store:
    """The folder of a study's results; made when it is first written to.

    Threads: of one thread; :meth:`locked` keeps other processes from writing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.runs = self.folder / "runs"

    def finished(self) -> set[str]:
        """Keys of the runs that are there. A file that is not whole, as a power cut may leave it, is none: its run is
        made again, and takes its place."""
        parquet = arrow().parquet
        found = set()
        for path in self.runs.glob("*.parquet"):
            with open(path, "rb") as file, contextlib.suppress(arrow().ArrowInvalid):
                if parquet.ParquetFile(file).metadata.num_rows == 1:
                    found.add(path.stem)
        return found

    def put(self, row: dict[str, Any]) -> None:
        """A finished run, under its key.

        :raises OSError: it cannot be written, as on a full disk; what is there stays as it was.
        """
        sink = io.BytesIO()
        arrow().parquet.write_table(self._table([row]), sink)
        with whole_file(self.runs / f"{row['key']}.parquet") as file:
            file.write(sink.getbuffer())
            file.flush()
            os.fsync(file.fileno())

    def table(self, keys: Iterable[str]) -> Any:
        """A pyarrow.Table of the runs with these keys that are there, in this order."""
        pyarrow, finished = arrow(), self.finished()
        there = [self.runs / f"{key}.parquet" for key in keys if key in finished]
        if not there:
            return self._table([])
        tables = [parquet_table(path.read_bytes()) for path in there]
        return pyarrow.concat_tables(tables, promote_options="default")

    def _table(self, rows: list[dict[str, Any]]) -> Any:
        pyarrow = arrow()
        types = {"double": pyarrow.float64(), "int64": pyarrow.int64(), "bool": pyarrow.bool_(),
                 "string": pyarrow.string()}  # fmt: skip
        return pyarrow.table({
            name: pyarrow.array([row[name] for row in rows], types[kind]) for name, kind in columns().items()
        })  # fmt: skip

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Writing, for as long as the block runs, is of this process.

        :raises StudyError: another process writes.
        """
        self.runs.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StudyError(
                    f"{self.folder}: another process writes its results here; wait for it, or name another folder"
                ) from error
            for part in self.runs.glob(".*.part"):  # of one that was killed before it had its name
                part.unlink(missing_ok=True)
            yield

    # ---- beside the runs -----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Keep the study file for people who find the folder."""
        if text:
            write_whole(self.folder / "study.toml", text.encode())

    def contents(self) -> dict[str, Any]:
        """Hashes of traces that were noted; a damaged file is none."""
        try:
            found = json.loads((self.folder / "contents.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def note_contents(self, contents: dict[str, Any]) -> None:
        """Note them for the next start."""
        write_whole(self.folder / "contents.json", json.dumps(contents, indent=1).encode())
