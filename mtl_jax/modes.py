"""The modes of the command line, one function each: from its options to a function of `runs` or `analysis`.

A mode imports what it needs, so that help and mistakes in flags are shown at once.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mtl_jax.config.plain import from_plain, to_plain
from mtl_jax.errors import UserError
from mtl_jax.runtime import interruption
from mtl_jax.runtime.shards import Shard, shards_in
from mtl_jax.storage.summary import Summary

TRAINING_MODES = ("train", "ablate", "relate")  # they need --config
WITH_LANES = ("ablate", "relate", "adapt")  # many small models, each on a core
WITH_CHECKPOINTS = ("train", "ablate", "relate")  # they save when a signal stops them
IN_SHARDS = ("ablate", "relate", "predict")  # modes that take --shard
WITHOUT_PROGRAMS = ("inspect", "push", "report")  # they compile nothing
SINGLE_PROCESS = ("inspect", "range_test", "export", "push", "compare", "report")


class Options(NamedTuple):
    """The flags, see `command_line`; folders are names where they may not exist yet.

    checkpoint     None where the flag is not given
    """

    mode: str
    config: ConfigDict | None
    workdir: str
    checkpoint: Sequence[str] | None
    input: str
    dataset: str
    reader: str
    split: str
    tasks: Sequence[str]
    output: str
    runs: Sequence[pathlib.Path]
    against: Sequence[pathlib.Path]
    by: str
    shard: Shard | None
    dry_run: bool = False

    def checkpoints(self) -> Sequence[str]:
        """Those of the flag, or the best."""
        return self.checkpoint or ["best"]

    def single_checkpoint(self) -> str:
        """Raises UserError where there are several."""
        if len(self.checkpoints()) != 1:
            raise UserError(f"--mode={self.mode} takes one --checkpoint")
        return self.checkpoints()[0]

    def require(self, condition: object, needs: str) -> None:
        """Raises UserError, with the flags that the mode needs, where the condition is false."""
        if not condition:
            raise UserError(f"--mode={self.mode} needs {needs}")

    def finished_run(self) -> pathlib.Path:
        """The folder of --workdir. Raises UserError where it is not that of a run."""
        from mtl_jax.storage.workdir import read_config

        self.require(self.workdir, "--workdir=FOLDER")
        folder = pathlib.Path(self.workdir).expanduser()
        read_config(folder)
        return folder

    def all_runs(self) -> Sequence[pathlib.Path]:
        """The folders of --runs, or else that of --workdir."""
        return self.runs or ([pathlib.Path(self.workdir).expanduser()] if self.workdir else [])

    def checked_config(self, run: pathlib.Path | None = None) -> ConfigDict:
        """The config of --config, else that of a run, by default the one in --workdir."""
        from mtl_jax import checks
        from mtl_jax.storage.workdir import read_config

        config = self.config
        if config is None:
            has_run = run is not None or (self.workdir and self.mode not in TRAINING_MODES)
            self.require(has_run, "--config=FILE")
            config = from_plain(read_config(run or pathlib.Path(self.workdir).expanduser()))
        checks.check(config, self.mode)
        return config


Mode = Callable[[Options], int | None]  # returns the exit status, None for 0


def train(options: Options) -> int | None:
    """Trains a run, or resumes it."""
    options.require(options.workdir, "--workdir=FOLDER")
    config = options.checked_config()
    from mtl_jax.runs.train import train
    from mtl_jax.storage import workdir as folders

    def print_report(workdir: pathlib.Path, summary: Summary) -> None:
        from mtl_jax.analysis import report  # imports matplotlib, as slow as all else together

        print("\n" + report.training_report(workdir, summary))

    with folders.locked(options.workdir) as workdir:
        summary = train(config, workdir, print_report)
    return interruption.exit_status() if summary is None else None


def evaluate(options: Options) -> int | None:
    """Scores a checkpoint, on the data of the run or on others."""
    from mtl_jax.runs import evaluate, other_datasets
    from mtl_jax.runtime import distributed
    from mtl_jax.storage.tracking import track_result
    from mtl_jax.storage.workdir import read_config, write_json

    workdir, which = options.finished_run(), options.single_checkpoint()
    config, run_config = options.checked_config(), from_plain(read_config(workdir))
    other = other_datasets.changed_splits(config, run_config)
    if other:
        result = other_datasets.evaluate(config, run_config, other, workdir, which)
    else:
        result = evaluate.evaluate(config, workdir, which)
    file = workdir / (other_datasets.file_name(result, which) if other else f"evaluation_{which}.json")
    if distributed.is_first():
        from mtl_jax.analysis import report

        write_json(file, result)
        lines = other_datasets.format_lines(result) if other else []
        lines += [report.results_table(result), *report.warning_lines(result, file)]
        print("\n".join([*lines, "", f"step {result['step']}; numbers in {file}"]))
        track_result(config, workdir, result, file)
    return None


def predict(options: Options) -> None:
    """Predicts labels of new records."""
    from mtl_jax.runs.predict import predict

    workdir, config = options.finished_run(), options.checked_config()
    predict(
        config,
        workdir,
        options.checkpoints(),
        options.input,
        options.output,
        options.tasks,
        dataset=options.dataset,
        reader=options.reader,
        split=options.split,
        shard=options.shard,
    )


def attribute(options: Options) -> None:
    """Explains predictions by words."""
    from mtl_jax.analysis.attribution import attribute

    workdir = options.finished_run()
    options.require(options.output, "--output=FOLDER")
    out, config = pathlib.Path(options.output).expanduser(), options.checked_config()
    text = attribute(
        config,
        workdir,
        options.checkpoints(),
        options.input,
        out,
        options.tasks,
        dataset=options.dataset,
        reader=options.reader,
        split=options.split,
    )
    print(text)


def inspect(options: Options) -> None:
    """Shows the data as they are encoded."""
    from mtl_jax.analysis import inspection

    print(inspection.describe_experiment(options.checked_config()))


def range_test(options: Options) -> None:
    """Tries learning rates in a few steps, and measures what a step takes."""
    from mtl_jax.analysis.range_test import describe
    from mtl_jax.analysis.range_test import range_test as run_test

    print(describe(run_test(options.checked_config())))


def export(options: Options) -> None:
    """Writes the models of the tasks as others load them."""
    from mtl_jax.runs.export import export

    workdir = options.finished_run()
    options.require(options.output, "--output=FOLDER")
    target = pathlib.Path(options.output).expanduser()
    for line in export(options.checked_config(), workdir, options.checkpoints(), target, options.tasks):
        print(line)


def push(options: Options) -> None:
    """Sends a finished run to the Hugging Face Hub."""
    from mtl_jax.runs.share import push

    workdir = options.finished_run()
    options.require(options.output, "--output=OWNER/NAME, the repository")
    print(push(options.checked_config(), workdir, options.output, options.dry_run))


def compare(options: Options) -> None:
    """Compares runs; with --against by a paired test."""
    from mtl_jax.analysis import report

    if options.against:
        _paired_test(options)
        return
    options.require(len(options.runs) > 1 and options.output, "--runs=FOLDER,FOLDER,... and --output=FOLDER")
    out = pathlib.Path(options.output)
    print(report.comparison_report(options.runs, out))
    print(f"\nnumbers in {out / 'compare.json'}, picture in {out / 'figures' / 'compare.png'}")


def _paired_test(options: Options) -> None:
    """--runs against --against on the examples of test."""
    from mtl_jax.analysis import paired_test
    from mtl_jax.storage.workdir import prepare, write_json

    if not options.runs or not options.output:
        raise UserError("--against needs --runs=FOLDER,... and --output=FOLDER")
    if options.config is not None:
        raise UserError("--against uses the config.json of every run; leave out --config")
    out = prepare(options.output, "--output")
    tests = paired_test.compare_runs(options.runs, options.against, options.checked_config, by=options.by)
    sides = {"runs": [*map(str, options.runs)], "against": [*map(str, options.against)], "by": options.by}
    write_json(out / "paired.json", sides | {"tasks": {task: test._asdict() for task, test in tests.items()}})
    print(paired_test.describe(tests) + f"\n\nnumbers in {out / 'paired.json'}")


def ablate(options: Options) -> int | None:
    """Trains a grid of settings, or resumes it."""
    from mtl_jax.analysis import report
    from mtl_jax.analysis.ablation.runner import ablate

    return _train_lanes(options, ablate, report.ablation_report)


def relate(options: Options) -> int | None:
    """Measures which tasks help which."""
    from mtl_jax.analysis import report
    from mtl_jax.analysis.relatedness.relate import relate

    return _train_lanes(options, relate, report.relatedness_report)


def _train_lanes(options: Options, run: Callable[..., Any], make_report: Callable[[pathlib.Path], str]) -> int | None:
    """Trains lanes in --workdir and prints the report."""
    from mtl_jax import checks
    from mtl_jax.analysis.ablation import gathering
    from mtl_jax.analysis.ablation.tracked_lanes import lanes_run
    from mtl_jax.runs import commands
    from mtl_jax.runtime import distributed
    from mtl_jax.storage import tracking
    from mtl_jax.storage import workdir as folders

    options.require(options.workdir, "--workdir=FOLDER")
    config, shard = options.checked_config(), options.shard

    def check(lane_config: ConfigDict) -> dict[str, str]:
        return checks.check(lane_config, options.mode)

    if shard is not None:
        common = folders.prepare(options.workdir)
        with folders.locked(shard.folder(common)) as workdir:
            distributed.from_first(lambda: gathering.claim(common, shard, config, options.mode))
            trained = run(config, workdir, check, shard)
        if trained is None:
            return interruption.exit_status()
        print(f"\n{shard}: {len(trained.lanes)} lanes in {workdir}\nnext  {commands.gather_command(common)}")
        return None
    with folders.locked(options.workdir) as workdir:
        if shards_in(workdir):
            raise UserError(f"{workdir} holds shards, which --mode=report gathers; take another --workdir")
        if run(config, workdir, check) is None:
            return interruption.exit_status()
        if distributed.is_first():
            print("\n" + make_report(workdir))
            files = ("relatedness.json", "relatedness.csv", "figures/*.png")
            tracking.track_files(config, lanes_run(config, workdir), *files)
    return None


def merge(options: Options) -> None:
    """Merges columns of runs, or Hugging Face folders, to one encoder."""
    if options.config is not None and options.config.merging.folders:
        _merge_folders(options)
        return
    from mtl_jax.analysis import report
    from mtl_jax.runs.merge import merge
    from mtl_jax.storage import workdir as folders

    options.require(options.runs and options.output, "--runs=FOLDER[,FOLDER...] and --output=FOLDER")
    config = options.checked_config(options.runs[0])
    with folders.locked(options.output) as out:
        print(report.merging_report(out, merge(config.merging, options.runs, out)))


def _merge_folders(options: Options) -> None:
    from mtl_jax import checks
    from mtl_jax.runs.merge_folders import merge_folders

    options.require(
        options.output and not options.runs, "--output=FOLDER, and no --runs next to config.merging.folders"
    )
    checks.check_merged_folders(options.config)
    print(merge_folders(options.config.merging, pathlib.Path(options.output).expanduser(), options.config.seed))


def adapt(options: Options) -> None:
    """Adapts runs to new tasks from few examples."""
    from mtl_jax import checks
    from mtl_jax.analysis.adaptation import report
    from mtl_jax.analysis.adaptation.adapt import adapt
    from mtl_jax.runtime import distributed
    from mtl_jax.storage.trackers import TrackedRun
    from mtl_jax.storage.tracking import track_files
    from mtl_jax.storage.workdir import prepare, read_config

    runs = options.all_runs()
    options.require(
        runs and options.output and options.config is not None,
        "--workdir=RUN or --runs=RUN,RUN,..., --config=FILE that names the new tasks, and --output=FOLDER",
    )
    which = options.single_checkpoint()
    out = prepare(options.output, "--output")
    run_configs = {run: from_plain(read_config(run)) for run in runs}
    for config in run_configs.values():
        checks.check(config, "evaluate")
    checkpoint = which if options.checkpoint else None
    result = adapt(options.config, run_configs, checkpoint, out, lambda config: checks.check(config, options.mode))
    if distributed.is_first():
        print(report.render(result, out))
        run = TrackedRun(out, out.absolute().name, to_plain(options.config), job="adapt")
        track_files(options.config, run, "adapt.json", "figures/*.png")


def report(options: Options) -> None:
    """Writes report.html about runs and ablations."""
    from mtl_jax.analysis import report

    runs = options.all_runs()
    options.require(runs, "--workdir=FOLDER, or --runs=FOLDER,FOLDER,... and --output=FOLDER")
    if len(runs) > 1 and not options.output:
        raise UserError("--mode=report of several --runs needs --output=FOLDER")
    print(report.report_page(_gathered(runs, options.output), pathlib.Path(options.output or runs[0]).expanduser()))


def _gathered(runs: Sequence[pathlib.Path], output: str) -> Sequence[pathlib.Path]:
    """The runs; those in shards are gathered first, each in its folder.

    Folders that hold some of the shards each are one experiment, which is gathered in --output.
    """
    shards_of = {run: shards_in(run) for run in dict.fromkeys(runs)}
    parts = [run for run, shards in shards_of.items() if shards and len(shards) < next(iter(shards)).count]
    if len(parts) < 2:
        parts = []
    for run in (run for run, shards in shards_of.items() if shards and run not in parts):
        _gather([run], run)
    if not parts:
        return runs
    out = pathlib.Path(output).expanduser()
    _gather(parts, out)
    return [*(run for run in runs if run not in parts), out]


def _gather(workdirs: Sequence[pathlib.Path], out: pathlib.Path) -> None:
    """The results of the shards in some workdirs, written to a folder as a run without shards writes them."""
    from mtl_jax import checks
    from mtl_jax.analysis.ablation import gathering
    from mtl_jax.analysis.relatedness import relate
    from mtl_jax.storage import run_warnings
    from mtl_jax.storage import workdir as folders

    shards = gathering.find_shards(workdirs)
    with folders.locked(out):
        if shards.mode == "relate":
            warnings, file = relate.gather(shards, out)["warnings"], "relatedness.json"
        else:
            grid = gathering.gather_ablation(shards, out, lambda config: checks.check(config, shards.mode))
            warnings, file = grid.warnings, "ablation.json"
    print(f"gathered from {len(shards.folders)} of {shards.count} shards: {out / file}")
    for warning in warnings:
        if warning["kind"] == run_warnings.PARTIAL:
            print(f"  {warning['text']}")


MODES: dict[str, Mode] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "attribute": attribute,
    "inspect": inspect,
    "range_test": range_test,
    "export": export,
    "push": push,
    "compare": compare,
    "ablate": ablate,
    "relate": relate,
    "merge": merge,
    "adapt": adapt,
    "report": report,
}
