"""Scalars for TensorBoard."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping

from mtl_jax.storage.trackers.base import TrackedRun, Tracker


class TensorBoard(Tracker):
    """A file of events, opened with the first of them, because the import of the writer may take seconds. Events are
    written by the calling thread. TensorBoard ignores what files of earlier starts have after the step of this one.
    """

    shows_lanes = False

    def __init__(self, run: TrackedRun):
        self._folder, self._step = run.folder / "events", run.step + 1
        self._writer = None
        self.location = f"tensorboard --logdir {shlex.quote(str(self._folder))}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            self._open()
        for name, number in values.items():
            self._write(step, summary=self._scalar(name, number))

    def close(self, completed: bool) -> None:
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
