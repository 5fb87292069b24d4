"""Command line of mtl_jax.

    python launch.py --config=configs/x.py --workdir=runs/x                      train, or go on
    python launch.py --config=configs/x.py --mode=inspect                        look at the data, do not train
    python launch.py --workdir=runs/x --mode=evaluate                            score a checkpoint
    python launch.py --workdir=runs/x --mode=evaluate --config.datasets.d.splits.test=FILE    on another test set
    python launch.py --workdir=runs/x --mode=predict --input=a.jsonl --output=b.jsonl
    python launch.py --workdir=runs/x --mode=attribute --input=a.txt --output=folder      which words it rests on
    python launch.py --workdir=runs/x --mode=export --output=folder              a Hugging Face folder for each column
    python launch.py --config=configs/x.py --workdir=runs/x --mode=ablate        a grid of settings, or go on with it
    python launch.py --config=configs/x.py --workdir=runs/x --mode=relate        which tasks help which
    python launch.py --mode=merge --runs=runs/a,runs/b --output=runs/merged      columns of runs as one encoder
    python launch.py --workdir=runs/x --mode=adapt --config=configs/new.py --output=folder    new tasks, few examples
    python launch.py --mode=report --runs=runs/a,runs/b --output=runs/report     report.html of runs and ablations
    python launch.py --mode=compare --runs=runs/a,runs/b --output=runs/compare   runs side by side
    python launch.py --mode=compare --runs=runs/a0,runs/a1 --against=runs/b0,runs/b1 --output=runs/test    a paired test

Modes that read a finished run take its own config.json unless --config names another; --config.FIELD=VALUE changes it
for this command. A command that is stopped by a signal ends with status 128 + the signal.
"""

import contextlib
import errno
import os
import pathlib
import shlex
import signal
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from mtl_jax.config.plain import from_plain
from mtl_jax.errors import Stopped, UserError
from mtl_jax.runtime import config_file, interruption, terminal
from mtl_jax.runtime.flags import entry_point, parse

CONFIG = config_file.define_config_flag("config")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")
MODES = [
    "train",
    "evaluate",
    "predict",
    "attribute",
    "inspect",
    "export",
    "compare",
    "ablate",
    "relate",
    "merge",
    "adapt",
    "report",
]
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
CHECKPOINT = flags.DEFINE_list("checkpoint", ["best"], "best, last or steps; predict and export average several.")
INPUT = flags.DEFINE_string("input", "", "predict, attribute: any file of data, or lines; '-' is the standard input.")
DATASET = flags.DEFINE_string("dataset", "", "predict, attribute: the data set of the run as which --input is read.")
READER = flags.DEFINE_string("reader", "", "predict, attribute: the reader of --input; 'texts': a text a line.")
SPLIT = flags.DEFINE_string("split", "", "predict, attribute: the split, where a reader finds them inside of a file.")
TASKS = flags.DEFINE_list("tasks", [], "predict, attribute: only these tasks.")
OUTPUT = flags.DEFINE_string("output", "", "predict: file, '' prints; otherwise: folder.")
RUNS = flags.DEFINE_list(
    "runs", [], "merge, adapt, compare, report: folders of runs; a name with a comma is quoted: '\"a,b\",c'."
)
AGAINST = flags.DEFINE_list("against", [], "compare: runs that --runs are tested against, example by example.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "Several processes: host:port of the first; '' asks the cluster.")
PROCESSES = flags.DEFINE_integer("processes", 0, "Several processes: how many; 0 asks the cluster, or is one.")
PROCESS = flags.DEFINE_integer("process", -1, "Several processes: the number of this one, from 0; -1 asks the cluster.")
START_SECONDS = flags.DEFINE_integer("start_seconds", 300, "Several processes: how long to wait for all others.")
HEARTBEAT_SECONDS = flags.DEFINE_integer("heartbeat_seconds", 100, "Several processes: a silence that means death.")
BY = flags.DEFINE_string("by", "", "compare --against: a field of records; those of one value are drawn together.")


def main(argv):
    """Runs the mode; returns the exit status, None for 0."""
    if len(argv) > 1:
        raise UserError(f"what is {argv[1]!r}? Arguments are flags, e.g. --config=configs/quickstart.py")
    logging.set_verbosity(logging.FATAL)  # Orbax prints what it raises
    if not (COORDINATOR.value or PROCESSES.value):  # whose errors tell of processes that are lost
        terminal.silence_compiler()
    mode = {
        "train": _train,
        "evaluate": _evaluate,
        "predict": _predict,
        "attribute": _attribute,
        "inspect": _inspect,
        "export": _export,
        "compare": _compare,
        "ablate": _ablate,
        "relate": _relate,
        "merge": _merge,
        "adapt": _adapt,
        "report": _report,
    }[MODE.value]
    if MODE.value not in ("inspect", "report"):  # these compile nothing
        from mtl_jax.runtime import compilation_cache

        compilation_cache.enable()
    if MODE.value in ("train", "evaluate") and (COORDINATOR.value or PROCESSES.value or _found_around()):
        return _together(mode)
    elif COORDINATOR.value or PROCESSES.value or PROCESS.value >= 0:
        raise UserError(f"--mode={MODE.value} is for one process; leave out --coordinator, --processes and --process")
    return mode()


def _found_around() -> bool:
    from mtl_jax.runtime import distributed

    return distributed.is_distributed_environment()


def _together(mode):
    """A mode in one of several processes; the first alone prints."""
    from mtl_jax.runtime import distributed

    if distributed.WORKER_VARIABLE not in os.environ:
        return distributed.supervise(sys.orig_argv[1:], HEARTBEAT_SECONDS.value, saves=MODE.value == "train")
    distributed.end_with_parent()
    distributed.initialize(
        COORDINATOR.value, PROCESSES.value, PROCESS.value, START_SECONDS.value, HEARTBEAT_SECONDS.value
    )
    with contextlib.ExitStack() as stack:
        if not distributed.is_first():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        status = mode()
        distributed.wait_for_all("the end")
        return status


def _programs_ahead():
    """A context in which the programs of the last such run are read while this one begins."""
    from mtl_jax.runtime import compilation_prefetch, distributed

    if distributed.WORKER_VARIABLE in os.environ:
        return contextlib.nullcontext()
    config = flags.FLAGS["config"]
    name = config_flags.get_config_filename(config) if config.present else WORKDIR.value
    return compilation_prefetch.prefetching(f"{MODE.value} {name}")


def _train():
    if not WORKDIR.value:
        raise UserError("--mode=train needs --workdir=FOLDER")
    config = _config()
    with _programs_ahead():
        from mtl_jax.runs import train
        from mtl_jax.runtime import distributed
        from mtl_jax.storage import workdir as folders

        with folders.locked(WORKDIR.value) as workdir:
            summary = train.train(config, workdir)
        if summary is None:
            return interruption.exit_status()
        if distributed.is_first():
            from mtl_jax.analysis import report  # brings what draws, which takes as long as all else together

            print("\n" + report.training_report(workdir, summary))


def _evaluate():
    from mtl_jax.runs import evaluate, other_data
    from mtl_jax.runtime import distributed
    from mtl_jax.storage.workdir import read_config, write_json

    workdir = _workdir()
    if len(CHECKPOINT.value) != 1:
        raise UserError("--mode=evaluate scores one --checkpoint")
    config, which = _config(), CHECKPOINT.value[0]
    run = from_plain(read_config(workdir))
    other = other_data.changed_splits(config, run)
    with _programs_ahead():
        if other:
            result = other_data.evaluate(config, run, other, workdir, which)
        else:
            result = evaluate.evaluate(config, workdir, which)
    file = workdir / (other_data.file_name(result, which) if other else f"evaluation_{which}.json")
    if distributed.is_first():
        from mtl_jax.analysis import report

        write_json(file, result)
        lines = other_data.format_lines(result) if other else []
        lines += [report.results_table(result), *report.warning_lines(result, file)]
        print("\n".join([*lines, "", f"step {result['step']}; numbers in {file}"]))


def _predict():
    from mtl_jax.runs import predict

    workdir = _workdir()
    config = _config()
    with _programs_ahead():
        predict.predict(config, workdir, CHECKPOINT.value, INPUT.value, OUTPUT.value, TASKS.value, **_how_to_read())


def _how_to_read() -> dict[str, str]:
    return {"dataset": DATASET.value, "reader": READER.value, "split": SPLIT.value}


def _attribute():
    from mtl_jax.analysis import attribution

    workdir = _workdir()
    if not OUTPUT.value:
        raise UserError("--mode=attribute needs --output=FOLDER")
    out = pathlib.Path(OUTPUT.value).expanduser()
    config = _config()
    with _programs_ahead():
        print(attribution.attribute(config, workdir, CHECKPOINT.value, INPUT.value, out, TASKS.value, **_how_to_read()))


def _inspect():
    from mtl_jax.analysis import inspection

    print(inspection.describe_experiment(_config()))


def _export():
    from mtl_jax.runs import export

    workdir = _workdir()
    if not OUTPUT.value:
        raise UserError("--mode=export needs --output=FOLDER")
    for line in export.export(_config(), workdir, CHECKPOINT.value, pathlib.Path(OUTPUT.value)):
        print(line)


def _compare():
    from mtl_jax.analysis import report

    if AGAINST.value:
        return _test()
    if len(RUNS.value) < 2 or not OUTPUT.value:
        raise UserError("--mode=compare needs --runs=FOLDER,FOLDER,... and --output=FOLDER")
    out = pathlib.Path(OUTPUT.value)
    print(report.comparison_report(_folders(RUNS), out))
    print(f"\nnumbers in {out / 'compare.json'}, picture in {out / 'figures' / 'compare.png'}")


def _test():
    """--runs against --against: a paired test on the examples of test."""
    from mtl_jax.analysis import paired_test
    from mtl_jax.storage.workdir import prepare, write_json

    if not RUNS.value or not OUTPUT.value:
        raise UserError("--against needs --runs=FOLDER,... and --output=FOLDER")
    if CONFIG.value is not None:
        raise UserError("--against takes every run's own config.json; leave out --config")
    runs, against = _folders(RUNS), _folders(AGAINST)
    out = prepare(OUTPUT.value, "--output")
    tests = paired_test.compare_runs(runs, against, _config, by=BY.value)
    sides = {"runs": [str(run) for run in runs], "against": [str(run) for run in against], "by": BY.value}
    write_json(out / "paired.json", sides | {"tasks": {task: test._asdict() for task, test in tests.items()}})
    print(paired_test.describe(tests) + f"\n\nnumbers in {out / 'paired.json'}")


def _ablate():
    from mtl_jax.analysis import report
    from mtl_jax.analysis.ablation.runner import ablate

    return _lanes(ablate, report.ablation_report)


def _relate():
    from mtl_jax.analysis import report
    from mtl_jax.analysis.relatedness.relate import relate

    return _lanes(relate, report.relatedness_report)


def _lanes(run, tell):
    """What trains many lanes in --workdir, and its report; returns the status."""
    from mtl_jax import checks
    from mtl_jax.analysis.ablation import lanes
    from mtl_jax.storage import workdir as folders

    if not WORKDIR.value:
        raise UserError(f"--mode={MODE.value} needs --workdir=FOLDER")
    lanes.use_all_cores()
    config = _config()
    with folders.locked(WORKDIR.value) as workdir:
        if run(config, workdir, lambda c: checks.check(c, MODE.value)) is None:
            return interruption.exit_status()
        print("\n" + tell(workdir))


def _merge():
    from mtl_jax.analysis import report
    from mtl_jax.runs import merge
    from mtl_jax.storage import workdir as folders

    if not RUNS.value or not OUTPUT.value:
        raise UserError("--mode=merge needs --runs=FOLDER[,FOLDER...] and --output=FOLDER")
    runs = _folders(RUNS)
    config = _config(runs[0])
    with folders.locked(OUTPUT.value) as out:
        print(report.merging_report(out, merge.merge(config.merging, runs, out)))


def _adapt():
    from mtl_jax import checks
    from mtl_jax.analysis.ablation import lanes
    from mtl_jax.analysis.adaptation import report
    from mtl_jax.analysis.adaptation.adapt import adapt
    from mtl_jax.storage.workdir import prepare, read_config

    runs = _folders(RUNS) or _folders(WORKDIR)
    if not runs or not OUTPUT.value or CONFIG.value is None:
        raise UserError(
            "--mode=adapt needs --workdir=RUN or --runs=RUN,RUN,..., --config=FILE that names the new "
            "tasks, and --output=FOLDER"
        )
    if len(CHECKPOINT.value) != 1:
        raise UserError("--mode=adapt takes one --checkpoint")
    lanes.use_all_cores()
    out = prepare(OUTPUT.value, "--output")
    own = {run: from_plain(read_config(run)) for run in runs}
    for config in own.values():
        checks.check(config, "evaluate")
    which = CHECKPOINT.value[0] if CHECKPOINT.present else None
    found = adapt(CONFIG.value, own, which, out, lambda config: checks.check(config, MODE.value))
    print(report.render(found, out))


def _report():
    from mtl_jax.analysis import report

    runs = _folders(RUNS) or _folders(WORKDIR)
    if not runs:
        raise UserError("--mode=report needs --workdir=FOLDER, or --runs=FOLDER,FOLDER,... and --output=FOLDER")
    if len(runs) > 1 and not OUTPUT.value:
        raise UserError("--mode=report of several --runs needs --output=FOLDER")
    print(report.report_page(runs, pathlib.Path(OUTPUT.value or runs[0]).expanduser()))


def _folders(flag) -> list[pathlib.Path]:
    """The folders that a flag names.

    Raises UserError where a name is the part of one that has commas.
    """
    names = [flag.value] if isinstance(flag.value, str) else list(flag.value)
    parts = [(first, last) for last in range(len(names) + 1) for first in range(last - 1)]
    for first, last in parts:
        whole = ",".join(names[first:last])
        if pathlib.Path(whole).expanduser().is_dir() and not pathlib.Path(names[first]).expanduser().is_dir():
            quoted = shlex.quote(f'--{flag.name}="{whole}"')
            raise UserError(
                f"--{flag.name}: there is no folder {names[first]!r}, but one {whole!r}: a name with commas stands in "
                f"double quotes within the list, {quoted}"
            )
    return [pathlib.Path(name).expanduser() for name in names if name]


def _workdir() -> pathlib.Path:
    """The folder of a run that is there."""
    from mtl_jax.storage import workdir

    if not WORKDIR.value:
        raise UserError(f"--mode={MODE.value} needs --workdir=FOLDER")
    folder = pathlib.Path(WORKDIR.value).expanduser()
    workdir.read_config(folder)
    return folder


def _config(run: pathlib.Path | None = None):
    """The config of --config, else that of a run, by default the one in --workdir, checked."""
    from mtl_jax import checks
    from mtl_jax.storage import workdir

    config = CONFIG.value
    if config is None:
        if run is None and (MODE.value in ("train", "ablate", "relate") or not WORKDIR.value):
            raise UserError(f"--mode={MODE.value} needs --config=FILE")
        config = from_plain(workdir.read_config(run or pathlib.Path(WORKDIR.value).expanduser()))
    checks.check(config, MODE.value)
    return config


def run():
    """Runs main; mistakes that a person can mend end in one message and status 2."""
    terminal.replace_unencodable()
    sys.modules["__main__"].__doc__ = __doc__.replace("python launch.py", entry_point())  # what --help prints
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    try:
        with interruption.raising_on_sigterm():
            app.run(main, flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # what reads the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(
            f"error: {error.filename or WORKDIR.value}: {error.strerror}. Once that is mended, the same command goes "
            "on from the last whole checkpoint",
            file=sys.stderr,
        )
        sys.exit(2)
    except Exception as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = (str(error).strip() or "the machine has no more").splitlines()[0][:300]
        print(
            f"error: not enough memory: {reason}. Smaller config.data.rows_per_block (with "
            "config.training.grad_accum_steps), config.data.row_length or config.model.hidden_size need less; "
            "config.model.remat does too",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Stopped as stop:
        print(f"stopped by {signal.Signals(stop.number).name}", file=sys.stderr)
        sys.exit(128 + stop.number)
