"""The README's Python runs as it stands there."""

import pathlib
import re
import textwrap

import jax
import numpy as np

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_examples_run(capsys):
    own_config, squad, pictures, sweep, own_loop = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    scope: dict = {}
    exec(compile(own_config, "README.md", "exec"), scope)
    config = scope["get_config"]()
    assert list(config.tasks) == ["sentiment", "ner"] and config.penalties.l2.kind == "l2_to_mean"
    from configs import default
    from mtl_jax.analysis.ablation import plan
    from mtl_jax.checks import check

    check(config, default)
    for part in (squad, pictures):
        own = scope["get_config"]()
        exec(compile(textwrap.dedent(part), "README.md", "exec"), scope | {"config": own})
        check(own, default)
    exec(compile(textwrap.dedent(sweep), "README.md", "exec"), scope | {"config": config})
    planned = plan.make(config, lambda c: check(c, default, "ablate"))
    assert len(planned.seeds) == 5
    assert {name for program in planned.programs for name in program.choices} == {"sentences"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(own_loop, "README.md", "exec"), scope)
    assert np.isfinite(scope["losses"]).all() and scope["losses"].mean() < 1.0


def test_every_penalty_is_in_the_table():
    from mtl_jax.sharing import PENALTIES

    table = README.read_text().split("## Penalties")[1].split("##")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.M)) == set(PENALTIES)
