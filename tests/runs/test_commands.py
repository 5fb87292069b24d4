"""Commands that are recommended work as they are typed; what can be refused is refused before anything is read."""

import shlex
from types import SimpleNamespace

import pytest

from mtl_jax import command_line
from mtl_jax.analysis import paired_test
from mtl_jax.config import default
from mtl_jax.config.plain import to_plain
from mtl_jax.errors import UserError
from mtl_jax.runs import commands, evaluate, merge
from mtl_jax.storage import checkpoint
from mtl_jax.storage import workdir as folders


def run_of(folder, texts=("text",), tasks=("topic",), **sharing):
    """The folder of a run that was never trained: config.json alone. Returns (folder, config)."""
    config = default.get_config()
    default.add_dataset(config, "d", reader="jsonl", text=texts, splits={"train": "d.jsonl"})
    for task in tasks:
        default.add_task(config, task, kind="classification", dataset="d", label="label")
    config.sharing.update(sharing)
    folder.mkdir(parents=True)
    folders.write_json(folder / "config.json", to_plain(config))
    return folder, config


@pytest.mark.parametrize("name", ["plain", "two words", "it's", 'a "b"', "$HOME", "a,b", "new\nline", "~x; rm -r y"])
def test_commands_are_quoted_for_the_shell(tmp_path, name):
    folder, _ = run_of(tmp_path / name)
    for line in commands.next_commands(folder):
        words = shlex.split(line)
        assert words[:2] == ["python", "launch.py"] and words[2] == f"--workdir={folder}"
        assert all(word.startswith("--") for word in words[2:])


def test_only_commands_that_work_are_recommended(tmp_path):
    def modes(name, **options):
        return [shlex.split(line)[3:] for line in commands.next_commands(run_of(tmp_path / name, **options)[0])]

    export = ["--mode=export", f"--output={tmp_path / 'plain' / 'export'}"]
    assert modes("plain") == [["--mode=predict", "--input=texts.txt"], export]
    assert modes("pairs", texts=("question", "context"))[0] == ["--mode=predict", "--input=records.jsonl"]


def test_a_comma_in_a_name_is_quoted_in_the_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "c"):
        (tmp_path / name).mkdir()
    parser = command_line.flags.FLAGS["runs"].parser
    runs = SimpleNamespace(name="runs", value=parser.parse('"a,b",c'))
    assert [str(folder) for folder in command_line._folders(runs)] == ["a,b", "c"]
    broken = SimpleNamespace(name="runs", value=parser.parse("a,b,c"))
    with pytest.raises(UserError, match=r"no folder 'a', but one 'a,b'.*'--runs=\"a,b\"'"):
        command_line._folders(broken)
    (tmp_path / "a").mkdir()  # then it may be meant
    assert len(command_line._folders(broken)) == 3


def test_what_is_wrong_is_said_before_data_are_read(tmp_path, monkeypatch):
    def build(*_, **__):
        raise AssertionError("data are read")

    for module in (paired_test, evaluate, merge):
        monkeypatch.setattr(module, "build", build)
    (first, a), (second, b) = run_of(tmp_path / "a"), run_of(tmp_path / "b", tasks=("other",))
    with pytest.raises(UserError, match=r"no task in common: .*a: topic; .*b: other"):
        paired_test.compare_runs([first], [second], {first: a, second: b}.get)
    third, c = run_of(tmp_path / "c")
    with pytest.raises(UserError, match="a: no checkpoint 'best' in best/"):
        paired_test.compare_runs([first], [third], {first: a, third: c}.get)
    for which in ("best", "last", "7"):
        with pytest.raises(UserError, match=f"no checkpoint '{which}'"):
            evaluate.evaluate(a, first, which)
    (first / "best" / "7").mkdir(parents=True)
    (first / "best" / "8.orbax-checkpoint-tmp").mkdir()
    checkpoint.require_checkpoint(first, "best")
    checkpoint.require_checkpoint(first, "7")
    with pytest.raises(UserError, match="no checkpoint '8'"):
        checkpoint.require_checkpoint(first, "8")
    folders.write_json(first / "summary.json", {"step": 7, "tasks": {}})
    monkeypatch.setattr(merge.artifacts, "load", lambda _: SimpleNamespace(vocabularies={"topic": None}))
    with pytest.raises(UserError, match="has one column for all its tasks"):
        merge.merge(a.merging, [first], tmp_path / "merged")
