"""The training of one program of an ablation: in the largest batches of lanes that fit into memory."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from mtl_jax.analysis.ablation import exact_optima, halving, hypergradient, lanes, memory, traced_fields
from mtl_jax.analysis.ablation.engine import Engine, resident
from mtl_jax.analysis.ablation.kept_runs import RUNS, KeptRuns, run_name
from mtl_jax.analysis.ablation.lane_batch import LaneBatch
from mtl_jax.analysis.ablation.lane_log import LaneResult
from mtl_jax.analysis.ablation.lane_program import Built, Sources, build
from mtl_jax.analysis.ablation.lane_turns import LaneId, plan_turns, rectangles, write_results
from mtl_jax.analysis.ablation.plan import Program
from mtl_jax.analysis.ablation.records import COUNTED_STATUSES, Lane
from mtl_jax.errors import Stopped, UserError
from mtl_jax.runtime import distributed
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.storage import run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.data_identity import data_metadata, require_same_data
from mtl_jax.storage.summary import RunWarning


class ProgramResults(TypedDict):
    """lanes.json: what a program has yielded.

    lanes       `records.Lane` as dicts
    fields      fields of the config that each setting changes
    references  see `records.Grid`
    cost        "parameters" and "step_seconds", see `records.Grid`
    notes       sentences for people
    warnings    about the data
    tasks       task -> its metrics
    data        what identifies the data, see `data_metadata`
    device      kind of device on which it was trained
    """

    lanes: list[dict[str, Any]]
    fields: list[dict[str, Any]]
    references: list[dict[str, Any]]
    cost: dict[str, Any]
    notes: list[str]
    warnings: list[RunWarning]
    tasks: dict[str, list[str]]
    data: dict[str, Any]
    device: str


class _Engines(NamedTuple):
    """(S, L) -> the engine for that many lanes; and S and L of a batch of lanes."""

    engine_for: Callable[[int, int], Engine]
    seeds: int
    settings: int


class ProgramTraining(NamedTuple):
    """The training of lanes of one program.

    What a lane computes does not depend on the other lanes: the program is built for all of its settings, whichever
    are trained. Lanes that run sequentially ("map") have the same program for any number of them; under "vmap" the
    number is in the shapes, so every batch is filled up to the same one.
    """

    program: Program
    lanes: Sequence[LaneId]
    folder: pathlib.Path
    stop: StopSignals
    bar: tqdm

    @property
    def config(self) -> ConfigDict:
        """The config of the program."""
        return self.program.config

    def run(self, sources: Sources) -> ProgramResults | None:
        """Trains all lanes and writes lanes.json; None where a signal stopped it."""
        self.bar.set_description(self.program.name, refresh=False)
        built = build(self.program, sources)
        for note in (*sources.new_notes(built.experiment.corpus), *built.notes):
            self.bar.write(f"  {note}")
        batches = self._train_batches(built, self._engines(built))
        if batches is None:
            return None
        done = self._results(built, *batches)
        distributed.wait_for_all("checkpoints closed")
        if distributed.is_first():
            folders.write_json(self.folder / "lanes.json", done)
            for folder in self.folder.glob("turn_*"):
                shutil.rmtree(folder)
        jax.clear_caches()  # or the programs that are done stay in memory
        return done

    def _engines(self, built: Built) -> _Engines:
        ablation = self.config.ablation
        seeds, count = (max(map(len, sides)) for sides in zip(*rectangles(self.lanes), strict=True))
        layout = ablation.lane_execution
        if layout == "auto":
            layout = "map" if jax.default_backend() == "cpu" else "vmap"
        shape_of = functools.partial(lanes.shape_of, layout=layout, mesh=self.config.training.mesh.to_dict())
        budget = memory.available_bytes(ablation.memory_fraction)
        rows = resident(built, shape_of(seeds, count).mesh, budget)

        @functools.lru_cache(maxsize=2)
        def engine_for(seeds: int, settings: int) -> Engine:
            return Engine(built, shape_of(seeds, settings), rows)

        wanted = (seeds, count)
        if ablation.max_lanes:
            wanted = (min(seeds, ablation.max_lanes), max(1, min(count, ablation.max_lanes // seeds)))
        size = memory.fit_lanes(
            lambda *size: max(distributed.gather(engine_for(*size).needed)), *wanted, budget, self.program.name
        )
        if size != (seeds, count):
            self.bar.write(
                f"  {self.program.name}: {size[0]} seeds × {size[1]} settings at once, the others after them"
            )
        if layout == "vmap" and ablation.method != "halving":  # which goes on with fewer lanes
            return _Engines(lambda *_: engine_for(*size), *size)
        return _Engines(engine_for, *size)

    def _train_batches(self, built: Built, engines: _Engines) -> tuple[dict[LaneId, LaneResult], list[float]] | None:
        """The results by (seed, setting), and the seconds of steps; None where a signal stopped the training."""
        config, is_sweep = self.config, built.settings[0].line == "sharing"
        rungs = halving.rungs(config, len(built.settings)) if is_sweep and config.ablation.method == "halving" else ()
        tuner_for = None
        if is_sweep and config.ablation.method == "hypergradient":
            tuner_for = functools.partial(hypergradient.Tuner, fields=self.program.moves)
        turns, done = plan_turns(self.folder, self.lanes, (engines.seeds, engines.settings))
        if rungs and len(turns) > 1:
            raise UserError(
                f"{self.program.name}: config.ablation.method = 'halving' compares all lanes at each rung, but only "
                f"{engines.seeds} × {engines.settings} of {len(self.lanes)} lanes fit at once; take fewer, or "
                "method = 'grid'"
            )
        data = data_metadata(built.experiment.corpus)
        for part in done:
            require_same_data(part["data"], built.experiment.corpus, config.training.steps)
            self.bar.update(config.training.steps * len(part["lanes"]))
        for turn in turns:
            keep = KeptRuns(self.folder / RUNS, self.program.moves) if config.ablation.keep else None
            batch = LaneBatch(
                engines.engine_for, turn.seeds, turn.settings, turn.folder, tuner_for, turn.parent, keep=keep
            )
            with batch:
                batch_results = self._train_batch(batch, rungs, built)
            if batch_results is None:
                return None
            lanes = [(*lane, result) for lane, result in batch_results.items()]
            done.append({"lanes": lanes, "step_seconds": batch.step_seconds, "data": data})
            write_results(turn, done[-1])
            self.stop.release()
        lane_results = {(seed, i): result for part in done for seed, i, result in part["lanes"]}
        return lane_results, [seconds for part in done for seconds in part["step_seconds"]]

    def _train_batch(self, batch: LaneBatch, rungs: Sequence[int], built: Built) -> dict[LaneId, LaneResult] | None:
        self.bar.update(batch.step * len(batch.logs))
        for rung in (*rungs, self.config.training.steps):
            if not batch.run(rung, self.stop, self.bar):
                return None
            if rung in rungs and not self._halve(batch, built):
                return None
        return batch.results(self.stop)

    def _halve(self, batch: LaneBatch, built: Built) -> bool:
        """Drops the worse lanes; False where a signal arrived meanwhile, which leaves all of them, saved."""
        batch.save()
        eta = halving.options(self.config)["eta"]
        try:
            ranks = batch.dev_ranks(self.stop)
            batch.drop_others(halving.survivors(ranks, batch.settings, built.settings, eta), self.stop)
        except Stopped:
            return False
        return True

    def _results(
        self, built: Built, lane_results: Mapping[LaneId, LaneResult], step_seconds: Sequence[float]
    ) -> ProgramResults:
        def lane(seed: int, index: int) -> Lane:
            result, setting = lane_results[seed, index], built.settings[index]
            values = {**setting.values, **result["values"]}
            kept = self.config.ablation.keep and result["status"] in COUNTED_STATUSES
            run = f"programs/{self.folder.name}/{RUNS}/{run_name(index, seed)}" if kept else ""
            fields = result | {"values": values, "run": run}
            return Lane(line=setting.line, choices=dict(self.program.choices), seed=seed, **fields)

        shapes = jax.eval_shape(lambda: built.experiment.init_params(0))
        return {
            "lanes": [lane(*key)._asdict() for key in self.lanes],
            "fields": [dict(setting.fields) for setting in built.settings],
            "references": _references(self.program, built) if self.config.ablation.exact_optimum else [],
            "cost": {
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
                "step_seconds": statistics.median(step_seconds) if step_seconds else None,
            },
            "notes": list(built.notes),
            "warnings": run_warnings.data_warnings(built.experiment.corpus),
            "tasks": {name: list(task.metrics) for name, task in built.experiment.tasks.items()},
            "data": data_metadata(built.experiment.corpus),
            "device": jax.devices()[0].device_kind,
        }


def _references(program: Program, built: Built) -> list[dict[str, Any]]:
    """The exact optimum at every point of the sweep, for the pictures."""
    exact_optimum, references = exact_optima.REFERENCES[program.config.ablation.exact_optimum], []
    for setting in built.settings if built.settings[0].line == "sharing" else ():
        config = traced_fields.with_values(program.config, setting.fields)
        if len(config.penalties) != 1:
            raise UserError("config.ablation.exact_optimum: the exact optimum is known for one penalty, not several")
        (penalty,) = config.penalties.values()
        references.append(
            {
                "label": "exact optimum",
                "choices": dict(program.choices),
                "values": dict(setting.values),
                "scores": exact_optimum(config, built.experiment.corpus, penalty.kind, penalty.strength).scores,
            }
        )
    return references


def read_program(folder: pathlib.Path) -> ProgramResults | None:
    """lanes.json of a program; None where it is not trained yet. Raises UserError where the file is damaged."""
    file = folder / "lanes.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        raise UserError(f"{file}: damaged; delete it to train this program's lanes again") from None
