"""Ablations written, read back, and summed up: against numpy and scipy by hand."""

import csv
import json
import math

import fake_grids
import numpy as np
import pytest
from fake_grids import lane
from scipy import stats

from mtl_jax.analysis import tables
from mtl_jax.analysis.ablation import results
from mtl_jax.errors import UserError


def scored(table):
    """Lanes of a table {λ: scores of seeds 0, 1, …}."""
    return [lane(s, seed=i, values={"strength": x}) for x, scores in table.items() for i, s in enumerate(scores)]


def ends(line, table):
    return [lane(s, line, i, {"learning_rate": r}) for r, scores in table.items() for i, s in enumerate(scores)]


def only(grid):
    (combination,) = results.summarise(grid)["combinations"]
    return combination


def test_what_was_written_is_read_back(tmp_path):
    grid = fake_grids.realistic(tasks=2, points=3, seeds=2, choices={"penalty": ["l2", "trace"]})
    results.write_grid(tmp_path / "new", grid)
    assert results.read_grid(tmp_path / "new") == grid
    whole = json.loads((tmp_path / "new" / "ablation.json").read_text())
    assert whole["summary"] == json.loads(json.dumps(results.summarise(grid)))
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["ablation.csv", "ablation.json"]


def test_tidy_table_has_a_row_for_each_score(tmp_path):
    grid = fake_grids.realistic(tasks=2, points=3, seeds=2, choices={"task": ["50", "100"], "penalty": ["a,b", "c"]})
    results.write_grid(tmp_path, grid)
    with (tmp_path / "ablation.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "lane",
        "line",
        "choice_task",
        "penalty",
        "strength",
        "learning_rate",
        "seed",
        "status",
        "step",
        "steps",
        "left_out",
        "distance",
        "effective_rank",
        "task",
        "split",
        "metric",
        "value",
    ]
    actual = {(int(r["lane"]), r["task"], r["split"], r["metric"]): r["value"] for r in rows}
    wanted = {
        (i, task, split, metric): value
        for i, one in enumerate(grid.lanes)
        for task, splits in one.scores.items()
        for split, metrics in splits.items()
        for metric, value in metrics.items()
    }
    assert {key: float(value) for key, value in actual.items() if key[1]} == wanted
    lost = [r for r in rows if not r["task"]]  # lanes that froze are there, without a score
    assert len(lost) == sum(not one.scores for one in grid.lanes) and {r["status"] for r in lost} == {
        "frozen: not finite"
    }
    for r in rows:
        one = grid.lanes[int(r["lane"])]
        assert (r["line"], r["penalty"], int(r["seed"])) == (one.line, one.choices["penalty"], one.seed)
        assert r["strength"] == ("" if one.line != "sharing" else str(one.values["strength"]))
        assert r["learning_rate"] == ("" if one.line == "sharing" else str(one.values["learning_rate"]))


def test_not_finite_becomes_null_and_numpy_plain(tmp_path):
    bad = lane(math.nan, seed=np.int64(0), values={"strength": np.float64(0.5)}, distance=np.float32(math.inf))
    results.write_grid(tmp_path, fake_grids.grid([bad]))
    text = (tmp_path / "ablation.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    (back,) = results.read_grid(tmp_path).lanes
    assert back.score is None and back.distance is None and back.scores["pos"]["dev"]["accuracy"] is None
    assert "nan" not in (tmp_path / "ablation.csv").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no ablation.json"),
        ("{", "ablation.json:1: not JSON"),
        ("[]", "version None"),
        ('{"version": 99}', "version 99"),
        ('{"version": 3, "lanes": []}', "damaged, 'sweeps' is missing"),
        ('{"version": 3, "lanes": [{"line": "soft"}]}', "damaged, 'choices' is missing"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "ablation.json").write_text(text)
    with pytest.raises(UserError) as error:
        results.read_grid(tmp_path)
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_unknown_line_is_named(tmp_path):
    results.write_grid(tmp_path, fake_grids.grid([lane(0.5, values={"strength": 0.1})]))
    file = tmp_path / "ablation.json"
    file.write_text(file.read_text().replace('"sharing"', '"soft"'))
    with pytest.raises(UserError, match="lane 0: line 'soft' is not one of sharing, single, tied, hard"):
        results.read_grid(tmp_path)


def test_means_choice_and_differences(differs):
    table = {0.1: [0.70, 0.72, 0.71], 1.0: [0.75, 0.78, 0.73], 10.0: [0.74, 0.71, 0.72]}
    single = {1e-3: [0.70, 0.71, 0.70], 2e-3: [0.69, 0.74, 0.72], 4e-3: [0.60, 0.61, 0.62]}
    actual = only(fake_grids.grid(scored(table) + ends("single", single)))
    assert actual["chosen"] == 1 and actual["points"][1]["values"] == {"strength": 1.0}
    assert actual["ends"]["single"]["values"] == {"learning_rate": 2e-3}  # the highest mean
    assert [t["values"]["learning_rate"] for t in actual["ends"]["single"]["tried"]] == [1e-3, 2e-3, 4e-3]
    tests = [stats.ttest_rel(scores, single[2e-3]) for scores in table.values()]
    p = [test.pvalue for test in tests]
    first, second, third = np.argsort(p)
    corrected = [0.0] * 3
    corrected[first] = min(1, 3 * p[first])
    corrected[second] = min(1, max(corrected[first], 2 * p[second]))
    corrected[third] = min(1, max(corrected[second], p[third]))
    for point, test, scores, adjusted in zip(actual["points"], tests, table.values(), corrected, strict=True):
        low, high = stats.t.interval(0.95, 2, loc=np.mean(scores), scale=stats.sem(scores))
        against, bounds = point["against"]["single"], test.confidence_interval(0.95)
        differs(
            "summary of an ablation against scipy",
            [
                point["score"]["mean"],
                point["score"]["low"],
                point["score"]["high"],
                against["mean"],
                against["low"],
                against["high"],
                against["p"],
                against["corrected_p"],
            ],
            [
                np.mean(scores),
                low,
                high,
                np.mean(scores) - np.mean(single[2e-3]),
                bounds.low,
                bounds.high,
                test.pvalue,
                adjusted,
            ],
            1e-12,
        )
    assert actual["comparison"]["single"]["average"]["dev"] == actual["points"][1]["against"]["single"]
    assert "at strength 1 (chosen on dev)" in actual["verdict"] and "against single-task training" in actual["verdict"]
    assert "one of" not in actual["verdict"] and "nan" not in json.dumps(actual).lower()


def test_test_scores_decide_what_dev_chose():
    def lanes(line, values, dev, test):
        return [lane(d, line, i, values, test=t) for i, (d, t) in enumerate(zip(dev, test, strict=True))]

    grid = fake_grids.grid(
        [
            *lanes("sharing", {"strength": 0.1}, [0.70, 0.71, 0.72], [0.90, 0.91, 0.92]),
            *lanes("sharing", {"strength": 1.0}, [0.80, 0.81, 0.83], [0.60, 0.61, 0.64]),
            *lanes("single", {"learning_rate": 1.0}, [0.70, 0.72, 0.71], [0.70, 0.71, 0.72]),
        ]
    )
    actual = only(grid)
    assert actual["chosen"] == 1  # though the other is better on test
    test = actual["comparison"]["single"]["average"]["test"]
    assert test["mean"] == pytest.approx(-0.28 / 3) and test["corrected_p"] is None
    assert actual["comparison"]["single"]["tasks"]["pos"]["test"]["mean"] == pytest.approx(test["mean"])
    assert actual["verdict"].endswith(": worse.") and "on dev" in actual["verdict"] and "on test" in actual["verdict"]


def test_no_difference_is_said_as_such():
    actual = only(fake_grids.grid(scored({0.1: [0.7, 0.72]}) + ends("hard", {1.0: [0.71, 0.7]})))
    assert "against hard sharing" in actual["verdict"] and actual["verdict"].endswith(": no difference shown.")
    actual = only(fake_grids.grid(scored({0.1: [0.7, 0.72]}) + ends("hard", {1.0: [0.7, 0.72]})))
    assert actual["verdict"].endswith(": equal.")


def test_frozen_and_dropped_lanes_are_never_chosen_and_in_no_mean():
    lanes = scored({0.1: [0.7, 0.71], 1.0: [0.8, 0.81], 10.0: [0.9, 0.91], 100.0: [0.6, 0.6]})
    lanes[3] = lanes[3]._replace(status="frozen: not finite")
    lanes[4] = lanes[4]._replace(status="dropped", steps=2)
    lanes[0] = lanes[0]._replace(status="stopped early")
    actual = only(fake_grids.grid(lanes, method="halving"))
    assert [point["eligible"] for point in actual["points"]] == [True, False, False, True]
    assert actual["chosen"] == 0
    assert actual["points"][1]["score"]["n"] == 1 and actual["points"][1]["score"]["mean"] == 0.8
    text = " ".join(actual["warnings"])
    assert "strength 1 (seed 1)" in text and "1 lanes were dropped" in text
    assert "lowest of its values: widen the sweep" in text


def test_nothing_to_choose():
    lanes = [x._replace(status="dropped") for x in scored({0.1: [0.7], 1.0: [0.8]})]
    actual = only(fake_grids.grid(lanes))
    assert actual["chosen"] is None and actual["verdict"].startswith("Nothing can be chosen")
    frozen = [x._replace(status="frozen: not finite", score=None) for x in ends("hard", {1.0: [0.5], 2.0: [0.6]})]
    actual = only(fake_grids.grid(scored({0.1: [0.7]}) + frozen))
    assert actual["ends"]["hard"] is None and actual["comparison"] == {}
    assert any("hard sharing: no learning rate finished" in warning for warning in actual["warnings"])


def test_one_seed_is_said():
    actual = only(fake_grids.grid(scored({0.1: [0.7], 1.0: [0.8]}) + ends("single", {1.0: [0.6]})))
    assert actual["points"][1]["score"] == {"mean": 0.8, "low": None, "high": None, "sd": None, "n": 1}
    assert "+0.200 (one seed)" in actual["verdict"] and "one seed shows nothing" in actual["verdict"]
    assert any("no intervals" in warning for warning in actual["warnings"])


def test_an_end_at_the_edge_of_its_rates_is_said():
    rates = ends("single", {1.0: [0.5], 2.0: [0.6], 4.0: [0.7]})
    actual = only(fake_grids.grid(scored({0.1: [0.7], 1.0: [0.8], 9.0: [0.1]}) + rates))
    assert "single-task training is best at the highest of its learning rates: try ones beyond" in actual["warnings"]


def test_ends_that_leave_out_a_choice_are_everyones_unless_one_is_closer():
    def several(score, line, choices, key):
        return [lane(score, line, seed, {key: 1.0}, choices) for seed in (0, 1)]

    l2, trace = {"penalty": "l2"}, {"penalty": "trace"}
    sharing = several(0.7, "sharing", l2, "strength") + several(0.8, "sharing", trace, "strength")
    single = several(0.6, "single", {}, "learning_rate") + several(0.5, "single", trace, "learning_rate")
    grid = fake_grids.grid(sharing + single, choices={"penalty": ["l2", "trace", "never run"]})
    first, second = results.summarise(grid)["combinations"]
    assert first["choices"] == {"penalty": "l2"} and first["ends"]["single"]["score"]["mean"] == 0.6
    assert second["ends"]["single"]["score"]["mean"] == 0.5 and second["ends"]["single"]["lanes"] == [6, 7]


def test_without_a_sweep_over_lambda_there_are_no_ends():
    sweeps = {"rate": {"field": "optimizer.learning_rate", "scale": "log", "values": [0.1, 1.0]}}
    lanes = [
        lane(s, seed=i, values={"rate": r})
        for r, both in ((0.1, (0.5, 0.6)), (1.0, (0.7, 0.8)))
        for i, s in enumerate(both)
    ]
    summary = results.summarise(fake_grids.grid(lanes, sweeps))
    (actual,) = summary["combinations"]
    assert summary["strengths"] == [] and actual["ends"] == {} and actual["chosen"] == 1
    assert actual["verdict"].startswith("The best setting at rate 1, chosen on dev: dev 0.750 (95 % interval")


def test_learned_values_belong_together_by_seed():
    learned = [(0, 0.01, 0.7), (1, 0.04, 0.8), (0, 2.0, 0.5), (1, 8.0, 0.6)]
    lanes = [lane(s, seed=seed, values={"strength": x}) for seed, x, s in learned]
    (actual,) = results.summarise(fake_grids.grid(lanes, method="hypergradient"))["combinations"]
    assert [point["values"]["strength"] for point in actual["points"]] == pytest.approx([0.02, 4.0])  # geometric means
    assert actual["points"][0]["ranges"] == {"strength": [0.01, 0.04]} and actual["points"][0]["seeds"] == [0, 1]
    assert actual["chosen"] == 0 and not any("widen" in warning for warning in actual["warnings"])


def test_a_task_without_a_split_is_left_out_of_its_mean_and_one_without_a_value_is_not():
    scores = {"a": {"dev": {"accuracy": 0.5}, "test": {"accuracy": 0.6}}, "b": {"dev": {"accuracy": 0.7}}}
    one = lane(0.6, values={"strength": 1.0})._replace(scores=scores)
    actual = only(fake_grids.grid([one], tasks=("a", "b")))
    assert actual["points"][0]["average"]["test"]["mean"] == 0.6
    undefined = one._replace(scores=scores | {"b": {"dev": {"accuracy": 0.7}, "test": {"accuracy": None}}})
    assert only(fake_grids.grid([undefined], tasks=("a", "b")))["points"][0]["average"]["test"]["mean"] is None


def methods(scores, **rest):
    """A grid of a choice "method" without a sweep; {alternative: scores of seeds 0, 1, …}."""
    lanes = [
        lane(s, seed=i, choices={"method": name}, test=s - 0.1)
        for name, actual in scores.items()
        for i, s in enumerate(actual)
    ]
    return fake_grids.grid(lanes, {}, {"method": list(scores)}, baselines={"method": ["sum", "single"]}, **rest)


def test_alternatives_against_baselines_are_paired_and_corrected_over_the_alternatives(differs):
    rng = np.random.default_rng(0)
    scores = {
        name: (0.7 + shift + rng.normal(0, 0.01, 5)).tolist()
        for name, shift in (("single", -0.05), ("sum", 0.0), ("pcgrad", 0.004), ("cagrad", -0.02))
    }
    against_sum, against_single = results.summarise(methods(scores))["baselines"]
    assert (against_sum["baseline"], against_single["baseline"]) == ("sum", "single")
    assert [o["alternative"] for o in against_sum["others"]] == ["single", "pcgrad", "cagrad"]
    assert [o["alternative"] for o in against_single["others"]] == ["pcgrad", "cagrad"]  # the sum was told already
    actual = [o["average"]["test"] for o in against_sum["others"]]
    tests = [stats.ttest_rel(scores[o["alternative"]], scores["sum"]) for o in against_sum["others"]]
    differs("p against a baseline", [f["p"] for f in actual], [t.pvalue for t in tests], 1e-9)
    ordered = np.sort([t.pvalue for t in tests])
    holm = np.maximum.accumulate(ordered * [3, 2, 1]).clip(max=1.0)
    differs("Holm over the alternatives", np.sort([f["corrected_p"] for f in actual]), holm, 1e-9)
    assert against_sum["others"][1]["tasks"]["pos"]["test"]["mean"] == pytest.approx(actual[1]["mean"])
    assert results.summarise(methods({k: v for k, v in scores.items() if k != "sum"}))["baselines"][0]["baseline"] == (
        "single"
    )


def test_a_missing_part_is_named(tmp_path):
    results.write_grid(tmp_path, methods({"sum": [0.5, 0.6], "a": [0.6, 0.7]}))
    whole = json.loads((tmp_path / "ablation.json").read_text())
    del whole["baselines"]
    (tmp_path / "ablation.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match="damaged, 'baselines' is missing"):
        results.read_grid(tmp_path)


def test_what_alternatives_cost_stands_beside_their_scores():
    grid = methods({"sum": [0.5, 0.6], "a": [0.6, 0.7]})
    costs = [{"choices": {"method": "sum"}, "parameters": 12345, "step_seconds": 0.0123}]
    header, rows = tables.overview_rows(results.summarise(grid._replace(costs=costs)), "dev")
    assert header[-2:] == ["parameters", "ms per step"]
    assert [row[-2:] for row in rows] == [["12,345", "12.3"], [None, None]]
