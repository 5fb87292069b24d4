"""MLflow (https://mlflow.org): a server, a database file, or folders."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.storage.trackers.base import Cell, TrackedRun, Tracker

MAX_METRICS, MAX_PARAMS, MAX_VALUE = 1000, 100, 500  # of one request; characters of a parameter
# a server that is away holds up a run for seconds and not for minutes
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Mlflow(Tracker):
    """A run of an MLflow experiment. Signs that MLflow does not allow in names become "_"."""

    def __init__(self, run: TrackedRun, *, tracking_uri: str = "", experiment: str = "mtl_jax"):
        """Continues the run of the same identity. Raises `MlflowException`: the store cannot be reached.

        tracking_uri: "" is that of the environment (MLFLOW_TRACKING_URI), or MLflow's default.
        """
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._metric = Metric
        self._client = client = MlflowClient(tracking_uri or None)
        self._written: dict[str, set[int]] | None = None  # steps by name that an earlier start has written
        if run.identity:
            self._written = {}
            client.update_run(run.identity, status="RUNNING")
            self.identity = run.identity
        else:
            with contextlib.suppress(MlflowException):  # it exists
                client.create_experiment(experiment)
            found = client.get_experiment_by_name(experiment)
            tags = {"mlflow.runName": run.name, "mtl_jax.job": run.job, "mtl_jax.group": run.group}
            if run.parent:
                tags["mlflow.parentRunId"] = run.parent
            made = client.create_run(found.experiment_id, tags={key: value for key, value in tags.items() if value})
            self.identity = made.info.run_id
            params = [Param(_name(key), value[:MAX_VALUE]) for key, value in _flat(run.config)]
            for start in range(0, len(params), MAX_PARAMS):
                client.log_batch(self.identity, params=params[start : start + MAX_PARAMS])
            client.log_dict(self.identity, dict(run.config), "config.json")
        self.location = f"mlflow run {self.identity} of {tracking_uri or os.environ.get('MLFLOW_TRACKING_URI', 'here')}"

    @staticmethod
    def problem() -> str:
        missing = importlib.util.find_spec("mlflow") is None
        return "mlflow is not installed: pip install 'mtl-jax[mlflow]'" if missing else ""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._metric(name, float(value), now, step)
            for name, value in ((_name(key), value) for key, value in values.items())
            if not self._has(name, step)
        ]
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self.identity, metrics=metrics[start : start + MAX_METRICS])

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self.scalars(step, values)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        text = io.StringIO()
        csv.writer(text).writerows([columns, *rows])
        self._client.log_text(self.identity, text.getvalue(), f"tables/{name}.csv")

    def figure(self, name: str, file: pathlib.Path) -> None:
        self._client.log_artifact(self.identity, str(file), "figures")

    def artifact(self, path: pathlib.Path) -> None:
        if path.is_dir():
            self._client.log_artifacts(self.identity, str(path), path.name)
        else:
            self._client.log_artifact(self.identity, str(path))

    def close(self, completed: bool) -> None:
        self._client.set_terminated(self.identity, "FINISHED" if completed else "KILLED")

    def _has(self, name: str, step: int) -> bool:
        """Whether an earlier start has written this point, which MLflow would keep twice."""
        if self._written is None:
            return False
        if name not in self._written:
            history = self._client.get_metric_history(self.identity, name)
            self._written[name] = {metric.step for metric in history}
        return step in self._written[name]


def _name(key: str) -> str:
    return re.sub(r"[^\w./: -]", "_", key)


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """("a.b", its value as text) of the fields of a plain config."""
    pairs = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", str(value)))
    return pairs
