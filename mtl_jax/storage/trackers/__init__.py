"""Trackers show the numbers of runs: TensorBoard, Weights & Biases, MLflow. metrics.jsonl is complete without them."""

from __future__ import annotations

from mtl_jax.storage.trackers.base import TrackedRun, Tracker
from mtl_jax.storage.trackers.mlflow import Mlflow
from mtl_jax.storage.trackers.tensorboard import TensorBoard
from mtl_jax.storage.trackers.wandb import Wandb

__all__ = ["TRACKERS", "TrackedRun", "Tracker"]

# Name in config.training.trackers -> its class
TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}
