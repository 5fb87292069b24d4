"""Scalars for TensorBoard."""

from __future__ import annotations

import os
import pathlib
import time


class EventFile:
    """A file of events, opened with the first of them, because the import of the writer may take seconds. Events are
    written by the calling thread; the queues of usual writers hide that a disk is full.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        """A new file in `folder`; TensorBoard ignores what older files have from `step` on."""
        self._folder, self._step = folder, step
        self._writer = None

    def add(self, name: str, number: float, step: int) -> None:
        """One scalar at a step."""
        if self._writer is None:
            self._open()
        self._write(step, summary=self._scalar(name, number))

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._writer is not None:
            self._writer.close()

    def _open(self):
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        self._proto, self._scalar = event_pb2, scalar
        self._folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{os.uname().nodename}.{os.getpid()}"
        self._writer = RecordWriter(str(self._folder / name))
        self._write(self._step, file_version="brain.Event:2")
        self._write(self._step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def _write(self, step, **content):
        event = self._proto.Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
