"""Command line of mtl_jax.

    python launch.py --config=configs/x.py --workdir=runs/x                      train, or resume
    python launch.py --config=configs/x.py --mode=inspect                        look at the data, do not train
    python launch.py --config=configs/x.py --mode=range_test                     learning rate, time, memory
    python launch.py --workdir=runs/x --mode=evaluate                            score a checkpoint
    python launch.py --workdir=runs/x --mode=evaluate --config.datasets.d.splits.test=FILE    on another test set
    python launch.py --workdir=runs/x --mode=predict --input=a.jsonl --output=b.jsonl
    python launch.py --workdir=runs/x --mode=attribute --input=a.txt --output=folder      which words decide
    python launch.py --workdir=runs/x --mode=export --output=folder              the tasks' models as others load them
    python launch.py --workdir=runs/x --mode=push --output=owner/name --dry_run   what would be sent to the Hub
    python launch.py --config=configs/x.py --workdir=runs/x --mode=ablate        a grid of settings, or resume it
    python launch.py --config=configs/x.py --workdir=runs/x --mode=relate        which tasks help which
    python launch.py --config=configs/x.py --workdir=runs/x --mode=ablate --shard=0/4    a part of the grid; then report
    python launch.py --mode=merge --runs=runs/a,runs/b --output=runs/merged      columns of runs as one encoder
    python launch.py --workdir=runs/x --mode=adapt --config=configs/new.py --output=folder    new tasks, few examples
    python launch.py --mode=report --runs=runs/a,runs/b --output=runs/report     report.html of runs and ablations
    python launch.py --mode=compare --runs=runs/a,runs/b --output=runs/compare   runs side by side
    python launch.py --mode=compare --runs=runs/a0,runs/a1 --against=runs/b0,runs/b1 --output=runs/test    a paired test
    python launch.py data list | show NAME | fetch CONFIG                        data sets: where from, download

Modes that read a finished run use its config.json unless --config names another; --config.FIELD=VALUE changes it
for this command. A command that a signal stops ends with status 128 + the signal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence

from absl import app, flags, logging

from mtl_jax import data_command, modes
from mtl_jax.errors import Stopped, UserError
from mtl_jax.runtime import config_file, interruption, terminal
from mtl_jax.runtime.flags import entry_point, parse
from mtl_jax.runtime.shards import Shard
from mtl_jax.runtime.shards import parse as parse_shard

CONFIG = config_file.define_config_flag("config")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")
MODE = flags.DEFINE_enum("mode", "train", list(modes.MODES), "What to do.")
CHECKPOINT = flags.DEFINE_list("checkpoint", ["best"], "best, last or steps; predict and export average several.")
INPUT = flags.DEFINE_string("input", "", "predict, attribute: any file of data, or lines; '-' is the standard input.")
DATASET = flags.DEFINE_string("dataset", "", "predict, attribute: the data set of the run whose format --input has.")
READER = flags.DEFINE_string("reader", "", "predict, attribute: the reader of --input; 'texts': one text on each line.")
SPLIT = flags.DEFINE_string("split", "", "predict, attribute: the split, for readers that find them inside a file.")
TASKS = flags.DEFINE_list("tasks", [], "predict, attribute, export: only these tasks.")
OUTPUT = flags.DEFINE_string("output", "", "predict: file, '' prints; otherwise: folder.")
RUNS = flags.DEFINE_list(
    "runs", [], "merge, adapt, compare, report: folders of runs; a name with a comma is quoted: '\"a,b\",c'."
)
AGAINST = flags.DEFINE_list("against", [], "compare: runs that --runs are tested against, paired by example.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "Several processes: host:port of the first; '' asks the cluster.")
PROCESSES = flags.DEFINE_integer("processes", 0, "Several processes: how many; 0 asks the cluster, or is one.")
PROCESS = flags.DEFINE_integer("process", -1, "Several processes: the number of this one, from 0; -1 asks the cluster.")
START_SECONDS = flags.DEFINE_integer("start_seconds", 300, "Several processes: how long to wait for all others.")
HEARTBEAT_SECONDS = flags.DEFINE_integer("heartbeat_seconds", 100, "Several processes: how long one may be silent.")
SHARD = flags.DEFINE_string("shard", "", "ablate, relate, predict: only part i of n, written i/n, e.g. 0/4.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "push: print what would be sent, and send nothing.")
BY = flags.DEFINE_string("by", "", "compare --against: a field of records; examples with one value form a group.")


def main(argv: Sequence[str]) -> int | None:
    """Runs the mode; returns the exit status, None for 0."""
    if len(argv) > 1:
        raise UserError(f"what is {argv[1]!r}? Arguments are flags, e.g. --config=configs/quickstart.py")
    logging.set_verbosity(logging.FATAL)  # Orbax logs what it raises
    mode, several = MODE.value, bool(COORDINATOR.value or PROCESSES.value)
    if not several:  # XLA's messages report lost processes
        terminal.silence_compiler()
    if mode not in modes.WITHOUT_PROGRAMS:
        from mtl_jax.runtime import compilation_cache

        compilation_cache.enable()
    if mode not in modes.SINGLE_PROCESS and (several or _is_distributed()):
        return _run_distributed()
    if several or PROCESS.value >= 0:
        raise UserError(f"--mode={mode} is for one process; leave out --coordinator, --processes and --process")
    _use_all_cores()
    return modes.MODES[mode](_options())


def _use_all_cores() -> None:
    """On CPU: a device for each core where lanes are trained; before JAX is used."""
    if MODE.value in modes.WITH_LANES:
        from mtl_jax.runtime import cpu_devices

        cpu_devices.use_all_cores()


def _options() -> modes.Options:
    return modes.Options(
        mode=MODE.value,
        config=CONFIG.value,
        workdir=WORKDIR.value,
        checkpoint=CHECKPOINT.value if CHECKPOINT.present else None,
        input=INPUT.value,
        dataset=DATASET.value,
        reader=READER.value,
        split=SPLIT.value,
        tasks=TASKS.value,
        output=OUTPUT.value,
        runs=_folders(RUNS),
        against=_folders(AGAINST),
        by=BY.value,
        shard=_shard(),
        dry_run=DRY_RUN.value,
    )


def _shard() -> Shard | None:
    """The shard of --shard. Raises UserError where the mode has no shards."""
    shard = parse_shard(SHARD.value)
    if shard is not None and MODE.value not in modes.IN_SHARDS:
        raise UserError(f"--shard: --mode={MODE.value} has no shards; {', '.join(modes.IN_SHARDS)} have")
    return shard


def _folders(flag: flags.FlagHolder) -> list[pathlib.Path]:
    """The folders that a flag names. Raises UserError where a name is a part of one that has commas."""
    names = list(flag.value)
    parts = [(first, last) for last in range(len(names) + 1) for first in range(last - 1)]
    for first, last in parts:
        joined = ",".join(names[first:last])
        if pathlib.Path(joined).expanduser().is_dir() and not pathlib.Path(names[first]).expanduser().is_dir():
            quoted = shlex.quote(f'--{flag.name}="{joined}"')
            raise UserError(
                f"--{flag.name}: there is no folder {names[first]!r}, but one {joined!r}: within the list, a name with "
                f"commas needs double quotes, {quoted}"
            )
    return [pathlib.Path(name).expanduser() for name in names if name]


def _is_distributed() -> bool:
    from mtl_jax.runtime import distributed

    return distributed.is_distributed_environment()


def _run_distributed() -> int | None:
    """Runs the mode in one of several processes, of which only the first prints."""
    from mtl_jax.runtime import distributed

    if distributed.WORKER_VARIABLE not in os.environ:
        return distributed.supervise(sys.orig_argv[1:], HEARTBEAT_SECONDS.value, MODE.value in modes.WITH_CHECKPOINTS)
    distributed.end_with_parent()
    _use_all_cores()
    distributed.initialize(
        COORDINATOR.value, PROCESSES.value, PROCESS.value, START_SECONDS.value, HEARTBEAT_SECONDS.value
    )
    with contextlib.ExitStack() as stack:
        if not distributed.is_first():
            null = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(null))
        stack.enter_context(distributed.ending_together(_describe_error))
        return modes.MODES[MODE.value](_options())


def _describe_error(error: Exception) -> tuple[str, int]:
    """The message of an error and the exit status; a defect is printed with its traceback, too."""
    message = _user_message(error)
    if message is not None:
        return message, 2
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}", 1


def run() -> None:
    """Runs main; mistakes that a person can correct end in one message and status 2."""
    terminal.replace_unencodable()
    sys.modules["__main__"].__doc__ = __doc__.replace("python launch.py", entry_point())  # what --help prints
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    try:
        with interruption.raising_on_sigterm():
            if sys.argv[1:2] == ["data"]:
                data_command.run(sys.argv[2:])
            else:
                app.run(main, flags_parser=parse)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Stopped as stop:
        print(f"stopped by {signal.Signals(stop.number).name}", file=sys.stderr)
        sys.exit(128 + stop.number)


def _user_message(error: Exception) -> str | None:
    """The message for an error that a person can correct; None for a defect, which needs its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return (
            f"{error.filename or WORKDIR.value}: {error.strerror}. Once this is corrected, the same command resumes "
            "from the last complete checkpoint"
        )
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        reason = (str(error).strip() or "the machine has no more").splitlines()[0][:300]
        return (
            f"not enough memory: {reason}. Smaller config.data.rows_per_block (with config.training.grad_accum_steps), "
            "config.data.row_length or config.model.hidden_size need less; so do config.model.remat_policy = "
            "'nothing_saveable', and devices along config.training.mesh.fsdp"
        )
    return None
