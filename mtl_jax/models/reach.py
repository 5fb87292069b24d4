"""Which losses can depend on which parameters, from the structure alone.

A slice of a leaf that several losses reach is shared, whoever owns it: a column below a cross-stitch unit, an expert,
the head of a task whose labels are fed to another. The rule is conservative: what may depend counts as dependent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtl_jax.models.network_spec import SharingSpec
from mtl_jax.models.ownership import ExpertColumns, Owner, adapter_path, mixer_path, owner_count, shared_adapter_path

Readers = tuple[frozenset[int], ...]  # for each slice of a leaf the tasks whose losses depend on it
HEADS = "heads"


def reach(
    owners: Mapping[str, Owner],
    layers: Sequence[str],
    weights: Mapping[str, str],
    sharing: SharingSpec,
    tasks: Sequence[str],
) -> dict[str, Readers]:
    """{path of what has parameters: the readers of each slice}, and "heads": those of the head of each of the K tasks.

    Args:
      owners: of layers, mixers, adapters and parts of the encoder as a whole.
      layers: paths, bottom first.
      weights: {path of a layer: path of its parameters}.
      sharing: what stands between layers and tasks.
      tasks: names, in the order of the K axis.
    """
    depends = _dependents(tasks, sharing.cascades)  # for each task the losses that depend on its features
    every = frozenset(range(len(tasks)))
    result: dict[str, Readers] = {HEADS: tuple(depends)}
    below_mixer = False

    def add(path: str, readers: Readers) -> None:
        known = result.get(path, (frozenset(),) * len(readers))
        result[path] = tuple(a | b for a, b in zip(known, readers, strict=True))

    for path in reversed(layers):
        mixer = sharing.mixers.get(path)
        is_expert = isinstance(owners[path], ExpertColumns)
        if mixer:
            add(mixer_path(path), _of_owner(owners[mixer_path(path)], depends, every))
            if below_mixer or not mixer.experts:  # columns of all tasks, or gates that all higher gates read
                depends = [every] * len(tasks)
        elif below_mixer and not is_expert and not sharing.mixes_by_task:
            depends = [every] * len(tasks)
        below_mixer |= mixer is not None
        add(weights.get(path, path), _of_owner(owners[path], depends, every))
        for adapter in (adapter_path(path), shared_adapter_path(path)):
            if adapter in owners:
                add(adapter, _of_owner(owners[adapter], depends, every))
    for path, owner in owners.items():
        if path not in result and weights.get(path, path) == path:
            add(path, _of_owner(owner, depends, every))
    return result


def _of_owner(owner: Owner, depends: Sequence[frozenset[int]], every: frozenset[int]) -> Readers:
    """The readers of each slice of a leaf with this owner."""
    if isinstance(owner, ExpertColumns):
        return tuple(every if task is None else depends[task] for task in owner.tasks)
    readers = [frozenset()] * owner_count(owner)
    for task, slice_number in enumerate(owner):
        readers[slice_number] |= depends[task]
    return tuple(readers)


def _dependents(tasks: Sequence[str], cascades: Mapping[str, Sequence[str]]) -> list[frozenset[int]]:
    """For each task the losses that depend on its features: its own, and those of tasks that receive its labels."""

    def sources(task: str) -> set[str]:
        return {task}.union(*(sources(source) for source in cascades.get(task, ())))

    used = [sources(task) for task in tasks]
    return [frozenset(k for k, names in enumerate(used) if task in names) for task in tasks]
