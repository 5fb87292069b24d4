"""Scalars for TensorBoard."""

from __future__ import annotations

import os
import pathlib
import time


class EventFile:
    """A file of events. They are written by the calling thread; the queues of usual writers outlive a full disk."""

    def __init__(self, folder: pathlib.Path, step: int):
        """Opens a new file in `folder`; TensorBoard then leaves out what older ones have from `step` on."""
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        self._proto, self._scalar = event_pb2, scalar
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{os.uname().nodename}.{os.getpid()}"
        self._writer = RecordWriter(str(folder / name))
        self._write(step, file_version="brain.Event:2")
        self._write(step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add(self, name: str, number: float, step: int) -> None:
        """One scalar at a step."""
        self._write(step, summary=self._scalar(name, number))

    def close(self) -> None:
        self._writer.close()

    def _write(self, step, **content):
        event = self._proto.Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
