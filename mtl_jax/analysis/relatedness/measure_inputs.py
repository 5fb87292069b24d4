"""The inputs of the measures of relatedness: gradients along a joint run, columns trained separately, labels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.analysis.relatedness import measures
from mtl_jax.data.batch import Batch
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.sampler import BatchSampler, Mixing, evaluation_batches, evaluation_layout, make_layout
from mtl_jax.evaluation import inference
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.experiment.penalties import task_stacks
from mtl_jax.runtime import distributed
from mtl_jax.training import objective as terms
from mtl_jax.training.gradients.per_task import SharedParameters, shared_parameters, shared_slices
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.objective import Objective, Params
from mtl_jax.training.parameter_paths import flatten, with_leaves
from mtl_jax.training.state import TrainState
from mtl_jax.training.step import train_step
from mtl_jax.training.token_corruption import corrupt_batch

T = TypeVar("T")


class JointEvidence(NamedTuple):
    """Measured at P steps of the joint training of all tasks; NaN where a task had no label.

    steps       [P]
    cosines     float32[P, K, K] between the tasks' gradients over what they share
    affinities  float32[P, K, K] of TAG
    fisher      {path: float32[K, ...]} mean squared gradients
    """

    steps: list[int]
    cosines: np.ndarray
    affinities: np.ndarray
    fisher: dict[str, jax.Array]


class ColumnEvidence(NamedTuple):
    """One column for each task, trained separately from common initial values.

    start, end       {path: float32[K, ...]} parameters before the first step and after the last, without heads
    representations  float32[K, N, D] of the same N texts by each column, means over tokens
    """

    start: dict[str, jax.Array]
    end: dict[str, jax.Array]
    representations: jax.Array

    @property
    def change(self) -> dict[str, jax.Array]:
        """{path: float32[K, ...]}: the difference that training made."""
        return jax.tree.map(jnp.subtract, self.end, self.start)


class Evidence(NamedTuple):
    """Of one seed. A part that no measure needs is None."""

    joint: JointEvidence | None
    columns: ColumnEvidence | None
    corpus: Corpus


ShouldStop = Callable[[], bool]  # called after each step; True: stop


def shared_leaves(experiment: Experiment) -> SharedParameters | None:
    """The trained parameters that several tasks share; None where there are none."""
    return shared_parameters(tuple(experiment.spec.multipliers), experiment.owners, "parameters", "copies", 1)


class JointRun:
    """Joint training of all tasks, compiled once for all seeds."""

    def __init__(self, experiment: Experiment, every: int, lookahead: float):
        """
        Args:
          experiment: of all tasks.
          every: steps between two measurements, on a batch that has all tasks.
          lookahead: length of TAG's step for a gradient of mean length, relative to the shared parameters. (With the
            learning rate and its warm-up from 0, the losses would change by less than the precision of float32.)
        """
        config, corpus = experiment.config, experiment.corpus
        layout = make_layout(
            corpus.layout.datasets, corpus.layout.tasks, corpus.layout.dataset_of, Mixing(), corpus.layout.pictured
        )
        train = {name: rows["train"] for name, rows in corpus.rows.items()}
        objective = experiment.objective_for(layout)  # its layout knows the groups of tasks
        self._batches = BatchSampler(train, objective.layout, config.seed, config.data.rows_per_block)
        self._probe = jax.jit(_make_probe(experiment, objective, lookahead))
        self._training, self._every = _Training(experiment), every

    def __call__(self, seed: int, tick: ShouldStop) -> JointEvidence | None:
        """Trains with a seed; None where `tick` asked to stop."""
        experiment, batches = self._training.experiment, self._batches.with_seed(seed)
        steps, cosines, affinities, fisher = [], [], [], None
        for step, state in self._training.states(seed, tick):
            if state is None:
                return None
            if step % self._every == 0:
                batch = batches.batch(step // self._every)
                probe = self._probe(state, batch, experiment.hyper)
                steps.append(step)
                cosines.append(distributed.to_host(probe.cosine))
                affinities.append(distributed.to_host(probe.affinity))
                fisher = probe.squares if fisher is None else jax.tree.map(jnp.add, fisher, probe.squares)
        mean = self._training.gathered(jax.tree.map(lambda leaf: leaf / len(steps), fisher))
        return JointEvidence(steps, np.stack(cosines), np.stack(affinities), mean)


def _make_probe(
    experiment: Experiment, objective: Objective, lookahead: float
) -> Callable[[TrainState, Batch, Hyperparameters], _Probe]:
    owners = shared_leaves(experiment).owners
    count = len(experiment.tasks)

    def probe(state: TrainState, batch: Batch, hyper: Hyperparameters) -> _Probe:
        flat = flatten(state.params)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        batch = corrupt_batch(objective, batch, key)
        total = terms.loss_denominators(objective, batch, hyper)

        def losses(shared):
            params = with_leaves(state.params, {**flat, **shared})
            return terms.loss_contributions(objective, params, batch, hyper, key, total)

        shared = {path: flat[path] for path in owners}
        before, pullback = jax.vjp(losses, shared)
        by_path = jax.lax.map(lambda task: pullback(task)[0], jnp.eye(count, dtype=before.dtype))
        gradients = {path: leaf * _mask(owners[path], leaf) for path, leaf in by_path.items()}

        lengths = jnp.sqrt(sum(jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))) for leaf in gradients.values()))
        used = {path: leaf * _mask(owners[path], leaf[None])[0] for path, leaf in shared.items()}
        size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in used.values()))
        mean = lengths.mean()
        rate = jnp.where(mean > 0, lookahead * size / jnp.where(mean > 0, mean, 1.0), 0.0)

        def after(task):
            return losses({path: leaf - rate * gradients[path][task] for path, leaf in shared.items()})

        present = (total > 0)[:, None] & (total > 0)[None, :]
        affinity = measures.tag_affinity(before, jax.lax.map(after, jnp.arange(count)))
        cosine = measures.gradient_cosine(gradients)
        return _Probe(
            jnp.where(present, cosine, jnp.nan),
            jnp.where(present, affinity, jnp.nan),
            jax.tree.map(jnp.square, gradients),
        )

    return probe


def _mask(owner: Sequence[int], leaf: jax.Array) -> jax.Array:
    """1 for slices that several tasks share; `leaf` [K, O, ...]."""
    return jnp.asarray(shared_slices(owner), leaf.dtype).reshape(1, -1, *(1,) * (leaf.ndim - 2))


class _Probe(NamedTuple):
    """One measurement, see `JointEvidence`: cosine and affinity [K, K], squared gradients {path: [K, ...]}."""

    cosine: jax.Array
    affinity: jax.Array
    squares: dict[str, jax.Array]


class _Training:
    """The training steps of an experiment, with parameters split as `config.training.mesh` says; rows are not split."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        placement = inference.placement_over_devices(experiment, inference.fits_a_process(experiment.config))
        self._put = None
        if math.prod(size for axis, size in placement.mesh_shape.items() if axis != "data") == 1:
            self._advance = jax.jit(lambda s, b, h: train_step(experiment.spec, s, b, h)[0], donate_argnums=0)
            return
        self._put = placement.put_state
        advance = placement.train(lambda s, b, h, axis: (train_step(experiment.spec, s, b, h, axis)[0], None))
        self._advance = lambda *arguments: advance(*arguments)[0]

    def gathered(self, tree: T) -> T:
        """Split arrays on the host; others as they are."""
        return distributed.to_host(tree) if self._put else tree

    def states(self, seed: int, tick: ShouldStop) -> Iterator[tuple[int, TrainState | None]]:
        """(step, state) before every step and after the last; it ends with (step, None) where `tick` asked to stop."""
        training = self.experiment.config.training
        state, batches = self.experiment.init(seed), self.experiment.batches(seed)
        state = self._put(state) if self._put else state
        for step in range(training.steps):
            yield step, state
            parts = [batches.batch(step * training.grad_accum_steps + i) for i in range(training.grad_accum_steps)]
            batch = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
            state = self._advance(state, batch, self.experiment.hyper)
            if tick():
                yield step + 1, None
                return
        yield training.steps, state


class SeparateColumns:
    """Trains a column for each task, and encodes the same texts by all columns. Compiled once for all seeds."""

    def __init__(self, separate: Experiment, trunk: Experiment, inputs: int):
        """
        Args:
          separate: an experiment in which each task owns all layers.
          trunk: one with a single trunk, which encodes the texts of all data sets with each column.
          inputs: maximum number of texts.
        """
        self._training, self._corpus = _Training(separate), trunk.corpus
        self._rows, self._inputs = trunk.config.evaluation.rows_per_batch, max(1, inputs // len(trunk.corpus.rows))
        self._pool_functions = {}
        for dataset in trunk.corpus.rows:
            objective = trunk.objective_for(evaluation_layout(trunk.corpus.layout, dataset))
            self._pool_functions[dataset] = objective, jax.jit(functools.partial(_pooled, objective))

    def __call__(self, seed: int, tick: ShouldStop) -> ColumnEvidence | None:
        """Trains with a seed; None where `tick` asked to stop."""
        experiment = self._training.experiment
        start = task_stacks(_layers(experiment.init_params(seed)), experiment.owners)
        for _, state in self._training.states(seed, tick):
            if state is None:
                return None
        end = task_stacks(_layers(state.params), experiment.owners)

        def column(k: int) -> Params:
            return {
                path: jax.tree.map(lambda leaf, o=experiment.owners[path][k]: leaf[o : o + 1], tree)
                for path, tree in state.params.items()
                if path != "heads"
            }

        representations = [self._represent(column(k)) for k in range(len(experiment.tasks))]
        return ColumnEvidence(start, self._training.gathered(end), jnp.stack(representations))

    def _represent(self, params: Params) -> jax.Array:
        """float32[N, D]: the same number of texts of each data set, from dev where there is one."""
        representations = []
        for dataset, rows in self._corpus.rows.items():
            split = next(name for name in ("dev", "test", "train") if name in rows)
            objective, pool = self._pool_functions[dataset]
            parts, size = [], 0
            for batch in evaluation_batches(rows[split], objective.layout, self._rows):
                parts.append(distributed.to_host(pool(params, batch))[batch.length[0].reshape(-1) > 0])
                size += len(parts[-1])
                if size >= self._inputs:
                    break
            representations.append(np.concatenate(parts)[: self._inputs])
        return jnp.concatenate(representations)


def _layers(params: Params) -> dict[str, jax.Array]:
    return flatten({path: tree for path, tree in params.items() if path != "heads"})


def _pooled(objective: Objective, params: Params, batch: Batch) -> jax.Array:
    """Means over the tokens of each example slot, float32[R·E, D]."""
    hidden = next(iter(objective.network.apply(params, batch).hidden.values())).astype(jnp.float32)
    slots = jnp.arange(1, batch.start.shape[-1] + 1, dtype=jnp.int32)
    member = (batch.segment[0][:, None, :] == slots[None, :, None]).astype(jnp.float32)  # [R, E, T]
    sums = jnp.einsum("ret,rtd->red", member, hidden, precision=jax.lax.Precision.HIGHEST)
    return (sums / jnp.maximum(member.sum(-1), 1.0)[..., None]).reshape(-1, hidden.shape[-1])
