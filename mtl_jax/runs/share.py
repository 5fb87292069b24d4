"""--mode=push: a finished run on the Hugging Face Hub, and runs from there."""

from __future__ import annotations

import glob
import json
import pathlib
import re

from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.summary import Summary

SCHEME = "hf://"
_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")
# What predicting, evaluating, merging and teaching read; checkpoints for resuming stay.
FILES = ("config.json", "summary.json", "metrics.jsonl", "figures/*.png", "model/**/*", "best/**/*")


def push(config: Config, workdir: pathlib.Path, name: str, dry_run: bool) -> str:
    """Sends a finished run with a model card to a repository, which is made private where there is none.

    Args:
      config: of the run.
      workdir: its folder.
      name: "owner/name".
      dry_run: sends nothing.

    Returns:
      what is, or would be, sent, and where to.

    Raises:
      UserError: the run is not finished; no name of a repository; no login, no permission, no network.
    """
    match = _NAME.fullmatch(name.removeprefix(SCHEME))
    if not match or match[2]:
        raise UserError(f"--output={name}: name the repository as owner/name")
    summary = folders.read_summary(workdir)
    sent = sorted({file for pattern in FILES for file in workdir.glob(pattern) if file.is_file()})
    text = card(config, match[1], summary)
    size = sum(file.stat().st_size for file in sent) + len(text.encode())
    lines = [f"  {file.relative_to(workdir)}" for file in sent if file.relative_to(workdir).parts[0] != "best"]
    lines += [f"  best/ ({sum('best' in file.relative_to(workdir).parts[:1] for file in sent)} files)", "  README.md"]
    if dry_run:
        return "\n".join([f"would send {size / 1e6:,.1f} MB to {match[1]} (private):", *lines, "", text])
    import huggingface_hub  # late: half a second

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(match[1], private=True, exist_ok=True)
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=match[1])
        names = [glob.escape(file.relative_to(workdir).as_posix()) for file in sent]
        api.upload_folder(
            repo_id=match[1], folder_path=workdir, allow_patterns=names, commit_message="A run of mtl_jax"
        )
    except Exception as error:  # of many libraries (HTTP, file system, Hub)
        raise UserError(
            f"{match[1]}: could not be sent ({_cause(error)}); log in with `hf auth login` (or set HF_TOKEN) "
            "with permission to write, and start the command again"
        ) from error
    return "\n".join([f"sent {size / 1e6:,.1f} MB to {url}:", *lines])


def card(config: Config, name: str, summary: Summary) -> str:
    """README.md of the repository: tasks, data, scores, how to load it, the config."""
    rows = [
        f"| {task} | {split} | {metric} | {'–' if value is None else f'{value:.4f}'} |"
        for task, splits in summary["tasks"].items()
        for split, values in splits.items()
        for metric, value in values.items()
    ]
    data = [
        f"- `{dataset}`: {entry.origin or (entry.wheel and entry.wheel.get('name')) or f'{entry.reader} files'}"
        for dataset, entry in config.datasets.items()
    ]
    warnings = [f"- {warning['text']}" for warning in summary["warnings"]]
    return "\n".join(
        [
            "---\nlibrary_name: mtl_jax\ntags: [multi-task-learning]\n---",
            f"\n# {name}\n",
            f"Tasks: {', '.join(summary['tasks'])}. One run of seed {config.seed}, step {summary['step']}, "
            f"{summary['parameters']:,} parameters.\n",
            f"```python\nimport mtl_jax\nrun = mtl_jax.load('{SCHEME}{name}')\nrun.predict(['a text'])\n```\n",
            "| task | split | metric | value |\n|---|---|---|---|",
            *rows,
            *(["\nWhat affects the scores:\n", *warnings] if warnings else []),
            "\nData:\n",
            *data,
            f"\nConfig:\n\n```json\n{json.dumps(to_plain(config), indent=1)}\n```\n",
        ]
    )


def fetch(name: str) -> pathlib.Path:
    """The folder of a run "hf://owner/name" or "hf://owner/name@revision" in the Hub's cache, downloaded where needed.

    Raises:
      UserError: no such name; none on the Hub, a private one without login, no network.
    """
    match = _NAME.fullmatch(name.removeprefix(SCHEME))
    if not match:
        raise UserError(f"{name}: a run on the Hub is hf://owner/name or hf://owner/name@revision")
    import huggingface_hub  # late: half a second

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(match[1], revision=match[2]))
    except Exception as error:  # of many libraries (HTTP, file system, Hub)
        raise UserError(
            f"{name}: cannot be downloaded ({_cause(error)}). Check the name; for a private run log in with "
            "`hf auth login` (or set HF_TOKEN)"
        ) from error


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
