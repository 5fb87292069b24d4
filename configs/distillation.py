"""Distillation: intent and slots of SNIPS from 1,000 labelled utterances, from single-task teachers to one student.

    for seed in 0 1 2; do
        python launch.py --config=configs/distillation.py:teachers --config.seed=$seed --workdir=runs/teachers_$seed
    done
    python launch.py --config=configs/distillation.py:student --workdir=runs/student
    python launch.py --config=configs/distillation.py:compare --workdir=runs/distillation --mode=ablate

    :teachers  a BiLSTM for each of the two tasks, trained separately (in one run: nothing is shared)
    :student   one BiLSTM for both tasks, taught by the mean of three seeds of teachers, with teacher annealing (BAM;
               Clark et al. 2019)
    :compare   without teachers; annealed; with teachers only, to the end. Three seeds, paired tests

Data: snips.
Scores: test intent accuracy and slot F1, means of three seeds: teachers 0.946 and 0.697; the student without teachers
0.952 and 0.660, annealed 0.952 and 0.670, with teachers only 0.955 and 0.654. Annealed against none, mean of both
scores: +0.005 (-0.009 to +0.018, p = 0.57), no significant difference.
"""

from mtl_jax.config import default

from . import snips_joint

RUNS = tuple(f"runs/teachers_{seed}" for seed in range(3))


def get_config(which: str = "student"):
    if which not in ("teachers", "student", "compare"):
        raise ValueError(f"the argument of this config is 'teachers', 'student' or 'compare', not {which!r}")
    config = snips_joint.get_config("lstm")
    config.datasets.snips.max_examples.train = 1000
    config.tasks.slots.options = {"scheme": "iob2"}  # softmax: learned in fewer steps than a CRF
    config.model.hidden_size = 64
    config.model.dropout = 0.2
    config.optimizer.learning_rate = 1e-2
    config.data.row_length = 64
    config.data.rows_per_block = 8
    config.training.steps = 400
    config.training.eval_every = 100
    config.training.checkpoint_every = 100
    if which == "teachers":
        config.sharing.trunk = "none"
        return config
    for task in config.tasks:
        default.add_distillation(config, task, teachers=RUNS)
    if which == "compare":
        config.training.checkpoint_every = 0
        ways = {"none": {"weight": 0.0}, "annealed": {}, "constant": {"annealing": False}}
        default.add_choice(
            config,
            "teachers",
            settings={
                name: {"distillation": {task: dict(options) for task in config.tasks}} for name, options in ways.items()
            },
        )
        config.ablation.baselines.teachers = ("none",)
    return config
