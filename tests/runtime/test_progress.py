"""A forecast is told once, where minutes are left."""

from types import SimpleNamespace

from mtl_jax.runtime.progress import Forecast


def written(seconds_a_row, rows, batch=10, compile_seconds=40.0):
    """What a bar of so many rows writes, and at which row."""
    lines, now = [], 0.0
    bar = SimpleNamespace(total=rows, desc="dev", unit="row", write=lambda line: lines.append((done, line)))
    forecast = Forecast(bar, clock=lambda: now)
    for done in range(batch, rows + 1, batch):
        now += compile_seconds if done == batch else batch * seconds_a_row
        forecast(done)
    return lines


def test_a_forecast_of_minutes_is_told_once_and_without_the_time_to_compile():
    ((row, line),) = written(0.1, 6000)
    assert row == 60 and line == "dev: 6,000 rows, about 10 min more"
    assert written(0.1, 400) == []  # less than a minute is left
    assert written(0.001, 1000) == [] and written(0.1, 10) == []
