"""report.html: well formed, self-contained, escaped, and with what the data say."""

import base64
import html.parser
import json
import re

import fake_grids
import pytest
from fake_grids import lane

from mtl_jax.analysis import html as page
from mtl_jax.analysis import report, settings
from mtl_jax.analysis.ablation import results
from mtl_jax.config import default
from mtl_jax.config.plain import to_plain
from mtl_jax.errors import UserError
from mtl_jax.storage import workdir

EVIL = '<script>"&'


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, the text, tables as lists of rows; every tag that is opened has to be closed."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.tables, self.open = [], "", [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data
        if self.open[-1:] in (["td"], ["th"]):
            self.tables[-1][-1][-1] += data


def read(file):
    actual = Reader(file.read_text(encoding="utf-8"))
    for tag, attributes in actual.tags:  # nothing is fetched
        assert tag not in ("script", "link", "iframe")
        assert not {name for name in attributes if name.startswith("on")}
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    return actual


def make_run(folder, accuracy, tasks=("pos", "ner"), done=True):
    folder.mkdir()
    scores = {task: {"dev": {"accuracy": accuracy}, "test": {"accuracy": accuracy - 0.1}} for task in tasks}
    config = to_plain(default.get_config())
    config["optimizer"]["learning_rate"] = 0.125
    workdir.write_json(folder / "config.json", config)
    lines = [{"step": 1, "kind": "train", "loss": dict.fromkeys(tasks, 1.0)}]
    lines.append({"step": 2, "kind": "dev", "tasks": {t: s["dev"] for t, s in scores.items()}, "score": accuracy})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step"')
    if done:
        summary = {
            "tasks": scores,
            "examples": {},
            "step": 2,
            "seconds": 3.0,
            "parameters": 7,
            "skipped": {"shared": 3},
            "warnings": [{"kind": "length", "text": f"<b> {n} cut", "count": n, "total": 9} for n in range(5)],
            "distances": {"pos | ner": {"distance": 2.5, "relative": 0.5}},
        }
        workdir.write_json(folder / "summary.json", summary)


def test_everything_is_escaped():
    parts = [
        page.heading(EVIL),
        page.paragraph(EVIL),
        page.bullet_list([EVIL]),
        page.code(EVIL),
        page.details(EVIL, EVIL),
        page.table([EVIL], [[EVIL]]),
        EVIL,
    ]
    text = page.page(EVIL, parts)
    actual = Reader(text)
    assert "<script" not in text and actual.text.count(EVIL) == 2 + 9
    assert actual.tables == [[[EVIL], [EVIL]]]


def test_pictures_are_embedded_and_their_captions_escaped(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG rest")
    page.save(tmp_path / "x.html", "t", [page.picture(tmp_path / "a.png", EVIL)])
    (image,) = [attributes for tag, attributes in read(tmp_path / "x.html").tags if tag == "img"]
    assert base64.b64decode(image["src"].split(",")[1]) == b"\x89PNG rest" and image["alt"] == EVIL
    assert not list(tmp_path.glob("x.html.*"))


def test_cells():
    text = page.table(["a", "b"], [["x", 0.5], ["y", None]])
    assert Reader(text).tables == [[["a", "b"], ["x", "0.5000"], ["y", "–"]]]


def test_report_of_an_ablation(tmp_path):
    grid = fake_grids.realistic(tasks=2, points=4, seeds=3, choices={"penalty": ["l2", EVIL]})
    results.write_grid(tmp_path, grid)
    text = report.ablation_report(tmp_path)
    assert len(text.splitlines()) <= 60
    actual, summary = read(tmp_path / "report.html"), results.summarise(grid)
    for combination in summary["combinations"]:
        assert combination["verdict"] in actual.text and combination["verdict"] in text
    pictures = {attributes["src"] for tag, attributes in actual.tags if tag == "img"}
    assert len(pictures) == len(list((tmp_path / "figures").glob("*.png"))) > 3
    chosen = summary["combinations"][0]["points"][summary["combinations"][0]["chosen"]]
    mean, high = chosen["average"]["test"]["mean"], chosen["average"]["test"]["high"]
    assert any(f"{mean:.3f} ± {high - mean:.3f}" in row for table in actual.tables for row in table)
    assert f"--config.penalties.l2.strength={chosen['values']['strength']!r}" in actual.text
    for note in grid.notes:
        assert note in actual.text and note in text
    with pytest.raises(UserError, match=re.escape("no ablation.json")):
        report.ablation_report(tmp_path / "figures")


def test_terminal_text_stays_short(tmp_path, monkeypatch):
    monkeypatch.setattr("mtl_jax.analysis.ablation.figures.draw.draw", lambda *_: [])
    many = [str(i) for i in range(40)]
    lanes = [lane(0.5, choices={"sentences": c}, seed=s, values={"strength": 1.0}) for c in many for s in (0, 1)]
    lanes += [lane(0.4, "hard", s, {"learning_rate": 1.0}) for s in (0, 1)]
    results.write_grid(tmp_path, fake_grids.grid(lanes, choices={"sentences": many}))
    lines = report.ablation_report(tmp_path).splitlines()
    assert len(lines) <= 60 and any("more lines" in line for line in lines) and "report.html" in lines[-3]


def test_report_of_runs_and_ablations_mixed(tmp_path):
    make_run(tmp_path / "soft", 0.75)
    make_run(tmp_path / "hard", 0.5)
    make_run(tmp_path / "half", 0.25, done=False)
    results.write_grid(tmp_path / "grid", fake_grids.grid([lane(0.7, values={"strength": x}) for x in (0.1, 1.0)]))
    file = report.report_page([tmp_path / n for n in ("soft", "hard", "half", "grid")], tmp_path / "out")
    actual = read(file)
    assert file == tmp_path / "out" / "report.html"
    side = actual.tables[0]
    assert ["task", "split", "metric", "soft", "hard"] in side
    assert ["ner", "test", "accuracy", "0.6500", "0.4000"] in side
    assert any(["pos | ner", "2.5000", "0.5000"] in table for table in actual.tables)
    assert "<b> 4 cut" in actual.text and "… and 2 more of this kind" in actual.text
    assert "optimizer.learning_rate = 0.125" in actual.text
    assert "Not finished: there is no summary.json" in actual.text and "Logged up to step 2 of 1000" in actual.text
    assert "Soft sharing at strength 0.1" in actual.text
    assert sum(tag == "img" for tag, _ in actual.tags) >= 3 + 2


def test_an_ablation_that_is_not_finished(tmp_path):
    config = default.get_config()
    default.add_penalty(config, "l2")
    default.add_sweep(config, "strength", field="penalties.l2.strength", points=(0.1, 1.0))
    workdir.write_json(tmp_path / "config.json", to_plain(config))
    for name, files in (("sharing", ("lanes.json",)), ("hard", ())):
        (tmp_path / "programs" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "programs" / name / file).write_text("{}")
    text = read(report.report_page([tmp_path], tmp_path)).text
    assert "no ablation.json" in text and "sharing: all lanes trained" in text and "hard: in progress" in text


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        report.report_page([tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match="at least one"):
        report.report_page([], tmp_path)
    make_run(tmp_path / "bad", 0.5)
    (tmp_path / "bad" / "summary.json").write_text('{"tasks":')
    with pytest.raises(UserError, match=r"summary\.json: not complete JSON"):
        report.report_page([tmp_path / "bad"], tmp_path / "out")


def test_only_what_differs_from_the_defaults_is_listed():
    config = default.get_config()
    default.add_dataset(config, "d", reader="csv")
    config.model.hidden_size = 7
    fields = to_plain(config)
    assert settings.changed_settings(fields) == ["datasets.d.reader = 'csv'", "model.hidden_size = 7"]


def test_the_command_of_a_lane_sets_what_the_lane_had():
    config = default.get_config()
    for name in ("a", "b"):
        default.add_dataset(config, name, max_examples={"train": 10} if name == "a" else {})
    default.add_penalty(config, "p")
    default.add_sweep(config, "strength", field="penalties.p.strength", points=(0.1, 1.0))
    default.add_choice(config, "sentences", field="datasets.*.max_examples.train", alternatives=(50, 100))
    default.add_choice(config, "penalty", settings={"trace": {"penalties": {"p": {"kind": "trace_norm"}}}})
    grid = fake_grids.grid([lane(0.5, values={"strength": 0.1})])
    grid.sweeps["strength"]["field"] = "penalties.p.strength"
    choices = {"sentences": "50", "penalty": "trace"}
    lines = settings.command(grid, to_plain(config), choices, {"strength": 0.1}, 3).splitlines()
    assert [line.strip(" \\") for line in lines] == [
        "python launch.py --config=CONFIG.py --workdir=runs/lane",
        "--config.datasets.a.max_examples.train=50",
        "--config.penalties.p.kind=trace_norm",
        "--config.penalties.p.strength=0.1",
        "--config.seed=3",
        "# with, in CONFIG.py, config.datasets.b.max_examples.train = 50",
    ]
