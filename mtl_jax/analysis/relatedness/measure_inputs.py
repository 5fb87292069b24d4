"""The inputs of the measures of relatedness: gradients along a joint run, columns trained separately, labels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.analysis.relatedness import measures
from mtl_jax.analysis.relatedness.grad_tag import Linearisation, Linearised
from mtl_jax.data.batch import Batch
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.sampler import BatchSampler, Mixing, evaluation_batches, evaluation_layout, make_layout
from mtl_jax.evaluation import inference
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.experiment.penalties import task_stacks
from mtl_jax.runtime import distributed
from mtl_jax.training import objective as terms
from mtl_jax.training.gradients.per_task import shared_parameters, shared_slices
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
    linearised  {task: {split: examples}}, see `grad_tag.Linearised`; None where no measure needs them
    """

    steps: list[int]
    cosines: np.ndarray
    affinities: np.ndarray
    fisher: dict[str, jax.Array]
    linearised: dict[str, dict[str, Linearised]] | None


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
    """Of one seed; `weights` of the K losses. A part that no measure needs is None."""

    joint: JointEvidence | None
    columns: ColumnEvidence | None
    corpus: Corpus
    weights: tuple[float, ...]


ShouldStop = Callable[[], bool]  # called after each step; True: stop


def common_owners(experiment: Experiment) -> Mapping[str, Sequence[int]]:
    """{path: owner of each task} of the trained leaves that several losses may reach; {} where there is none.

    These are the layers that several tasks share; with a mixer or cascades, which carry columns to other tasks, all.
    """
    trained, sharing = tuple(experiment.spec.multipliers), experiment.config.sharing
    if sharing.mixer or sharing.cascades:
        return {p: experiment.owners[p.split("/")[0]] for p in trained if p.split("/")[0] != "heads"}
    shared = shared_parameters(trained, experiment.owners, "parameters", "copies", 1)
    return shared.owners if shared else {}


class JointRun:
    """Joint training of all tasks, compiled once for all seeds."""

    def __init__(self, experiment: Experiment, every: int, lookahead: Lookahead, linearisation: Linearisation | None):
        """
        Args:
          experiment: of all tasks.
          every: steps between two measurements, on a batch that has all tasks; 0 = none.
          lookahead: of TAG.
          linearisation: of the examples around the parameters after the last step; None: not wanted.
        """
        config, corpus = experiment.config, experiment.corpus
        layout = make_layout(
            corpus.layout.datasets, corpus.layout.tasks, corpus.layout.dataset_of, Mixing(), corpus.layout.pictured
        )
        train = {name: rows["train"] for name, rows in corpus.rows.items()}
        objective = experiment.objective_for(layout)  # its layout knows the groups of tasks
        self._batches = BatchSampler(train, objective.layout, config.seed, config.data.rows_per_block)
        self._probe = jax.jit(_make_probe(experiment, objective, lookahead)) if every else None
        self._training, self._every, self._linearisation = _Training(experiment), every, linearisation

    @property
    def measures_gradients(self) -> bool:
        """Whether gradients are compared along the run."""
        return self._probe is not None

    def __call__(self, seed: int, tick: ShouldStop) -> JointEvidence | None:
        """Trains with a seed; None where `tick` asked to stop."""
        experiment, batches = self._training.experiment, self._batches.with_seed(seed)
        steps, cosines, affinities, fisher = [], [], [], None
        for step, state in self._training.states(seed, tick):
            if state is None:
                return None
            if self._probe and step % self._every == 0:
                batch = batches.batch(step // self._every)
                probe = self._probe(state, batch, experiment.hyper)
                steps.append(step)
                cosines.append(distributed.to_host(probe.cosine))
                affinities.append(distributed.to_host(probe.affinity))
                fisher = probe.squares if fisher is None else jax.tree.map(jnp.add, fisher, probe.squares)
        linearised = self._linearisation(state.params) if self._linearisation else None
        if not steps:
            count = len(experiment.tasks)
            return JointEvidence([], np.zeros((0, count, count)), np.zeros((0, count, count)), {}, linearised)
        mean = self._training.gathered(jax.tree.map(lambda leaf: leaf / len(steps), fisher))
        return JointEvidence(steps, np.stack(cosines), np.stack(affinities), mean, linearised)


class Lookahead(NamedTuple):
    """The steps of TAG.

    length  of a step for a gradient of mean length, relative to the shared parameters. (With the learning rate and its
            warm-up from 0, the losses would change by less than the precision of float32.)
    steps   on the gradient of the same task and batch
    """

    length: float
    steps: int = 1


def _make_probe(
    experiment: Experiment, objective: Objective, lookahead: Lookahead
) -> Callable[[TrainState, Batch, Hyperparameters], _Probe]:
    owners = common_owners(experiment)
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
        masks = {path: _mask(owners[path], leaf) for path, leaf in by_path.items()}
        gradients = {path: leaf * masks[path] for path, leaf in by_path.items()}

        lengths = jnp.sqrt(sum(jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))) for leaf in gradients.values()))
        used = {path: leaf * masks[path][0] for path, leaf in shared.items()}
        size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in used.values()))
        mean = lengths.mean()
        rate = jnp.where(mean > 0, lookahead.length * size / jnp.where(mean > 0, mean, 1.0), 0.0)

        def after(task):
            def step(leaves, gradient):
                return {path: leaf - rate * gradient[path] for path, leaf in leaves.items()}

            def further(_, leaves):
                gradient = jax.grad(lambda moved: losses(moved)[task])(leaves)
                return step(leaves, {path: leaf * masks[path][0] for path, leaf in gradient.items()})

            first = step(shared, {path: leaf[task] for path, leaf in gradients.items()})
            return losses(jax.lax.fori_loop(1, lookahead.steps, further, first) if lookahead.steps > 1 else first)

        present = (total > 0)[:, None] & (total > 0)[None, :]
        affinity = measures.tag_affinity(before, jax.lax.map(after, jnp.arange(count)))
        cosine = measures.gradient_cosine(gradients)
        return _Probe(
            jnp.where(present, cosine, jnp.nan),
            jnp.where(present, affinity, jnp.nan),
            jax.tree.map(jnp.square, gradients),
        )

    return probe


def _mask(owner: Sequence[int], gradients: jax.Array) -> jax.Array:
    """1 for slices that several tasks share, or that several of the losses reach; `gradients` [K, O, ...]."""
    reached = jnp.any(gradients != 0, axis=tuple(range(2, gradients.ndim)))  # [K, O]
    common = shared_slices(owner) | (reached.sum(axis=0) > 1)
    return common.astype(gradients.dtype).reshape(1, -1, *(1,) * (gradients.ndim - 2))


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
