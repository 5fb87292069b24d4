"""What is static about a network: its modules, who owns them, and what stands between layers and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax

from mtl_jax.data.batch import BatchLayout
from mtl_jax.models.adapters import Adapter
from mtl_jax.models.mixers.base import Mixer
from mtl_jax.models.ownership import Owner
from mtl_jax.models.readouts import Readout, top


class DropoutRates(NamedTuple):
    """Dropout rates, float32 scalars that may be traced; None for no dropout of that kind."""

    rate: jax.Array | None
    attention_rate: jax.Array | None
    adapter_rate: jax.Array | None = None


class SharingSpec(NamedTuple):
    """What stands between the layers and the tasks in addition to owners. By default heads read the top layer.

    mixers              path of a layer -> the mixer of its columns
    adapters            path of a layer -> the adapter on it
    readout             how a head reads the layers
    head_layers         task -> path of the topmost layer that its head reads; other heads read the top
    cascades            task -> tasks whose label distributions are added to its features, after the layer that the
                        heads of these tasks read
    cascade_order       all tasks, each after those whose labels it receives
    label_distribution  (task, params of its head, hidden [R, T, D], segment, start, length) -> float32[R, T, C], the
                        distribution of its label at each token; needed for cascades
    class_counts        task -> C, for the tasks whose labels are passed on
    """

    mixers: Mapping[str, Mixer] = {}
    adapters: Mapping[str, Adapter] = {}
    readout: Readout = top()
    head_layers: Mapping[str, str] = {}
    cascades: Mapping[str, Sequence[str]] = {}
    cascade_order: Sequence[str] = ()
    label_distribution: Callable[..., jax.Array] | None = None
    class_counts: Mapping[str, int] = {}

    @property
    def mixes_by_task(self) -> bool:
        """Whether a task's own columns are computed and mixed for that task only."""
        return len(self.mixers) == 1 and all(mixer.apply_to_task for mixer in self.mixers.values())

    @property
    def passes_all_columns(self) -> bool:
        """Whether every block passes through all columns."""
        return bool(self.mixers) and not self.mixes_by_task


class NetworkSpec(NamedTuple):
    """The static arguments of `network.network`; `modules` by path, bottom first.

    weight_paths  path of a layer -> path of its parameters, see `encoder_parts`
    """

    modules: Mapping[str, nn.Module]
    owners: Mapping[str, Owner]
    layout: BatchLayout
    sharing: SharingSpec
    column_execution: str
    remat_policy: str
    cached_layers: tuple[str, ...]
    weight_paths: Mapping[str, str]
