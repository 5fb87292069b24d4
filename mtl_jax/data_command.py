"""`python -m mtl_jax data`: which data sets are known, what is in them, and their download before a run.

    python -m mtl_jax data list                            the known data sets, and which are on this machine
    python -m mtl_jax data show snips                      origin, licence, files, ten records
    python -m mtl_jax data show reviews configs/mine.py    the same of a data set of a config
    python -m mtl_jax data fetch configs/glue.py           all data and weights that a config reads
    python -m mtl_jax data fetch snips                     one known data set
    python -m mtl_jax data clean --days=30                 remove prepared data that no run has read for 30 days

Each command imports what it needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mtl_jax.runtime.flags import entry_point


def run(arguments: Sequence[str]) -> None:
    """Runs `data` with these arguments. Raises UserError, and SystemExit for a command that does not exist."""
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog=f"{entry_point()} data",
        description=description,
        epilog=rest.rpartition("\n\n")[0].replace("python -m mtl_jax", entry_point()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the known data sets")
    show = commands.add_parser("show", help="a data set, with ten records")
    show.add_argument("name", help="a known data set, or one of the config")
    show.add_argument("config", nargs="?", default="", help="as --config takes it")
    fetch = commands.add_parser("fetch", help="download and verify")
    fetch.add_argument("source", nargs="+", help="a config as --config takes it, or a known data set")
    clean = commands.add_parser("clean", help="remove prepared data that is not in use")
    clean.add_argument("--days", type=float, default=30, help="without a run that read it; 0 = all")
    options = parser.parse_args(arguments)
    if options.command == "list":
        from mtl_jax.runs import data_cards

        data_cards.print_list()
    elif options.command == "show":
        from mtl_jax.runs import data_cards

        data_cards.show(options.name, options.config)
    elif options.command == "clean":
        from mtl_jax.runs import data_clean

        data_clean.clean(options.days)
    else:
        from mtl_jax.runs import data_fetch

        data_fetch.fetch(options.source)
