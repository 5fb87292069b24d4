"""The fault campaign in short: what is damaged on the disk is never taken for whole."""

import shutil
import signal

import pytest

from benchmarks import faults, launching
from mtl_jax.errors import UserError
from mtl_jax.runs import train, training_loop

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_damaged_checkpoints_end_equal_or_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    scope = {}
    exec(launching.CONFIG, scope)
    config = scope["get_config"]()
    whole, half = tmp_path / "whole", tmp_path / "half"
    whole.mkdir()
    train.train(config, whole)
    wanted = faults.result_of(whole)

    log = training_loop.TrainingLoop._report_step

    def stopping(run, step, metrics, bar):
        if step == 33:
            signal.raise_signal(signal.SIGTERM)
        log(run, step, metrics, bar)

    half.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(training_loop.TrainingLoop, "_report_step", stopping)
        assert train.train(config, half) is None

    def finish(workdir):
        try:
            train.train(config, workdir)
        except UserError as error:
            return faults.Ended(2, f"error: {error}")
        return faults.Ended(0, "")

    # first within the values of an array, of which Orbax notices nothing
    values = max((half / "checkpoints" / "34").rglob("d/*"), key=lambda file: file.stat().st_size)
    for part in (0.3, 0.6):
        workdir = tmp_path / f"values_{part}"
        shutil.copytree(half, workdir)
        launching.flip(workdir / values.relative_to(half), int(8 * part * values.stat().st_size))
        assert faults.judged("bit flip", "", workdir, finish(workdir), wanted).outcome == "equal"
        assert "resuming from step 30." in capsys.readouterr().out
    kinds = [("bit flip", n) for n in range(4)] + [("truncation", 0), ("deletion", 0)]
    cases = [faults.damaged(half, tmp_path, kind, n, finish, wanted) for kind, n in kinds]
    assert all(case.outcome in ("equal", "refused") for case in cases), cases
