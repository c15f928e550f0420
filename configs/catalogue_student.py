"""Two layers that learn from six: a short FashionBERT on a catalogue, for answers in milliseconds.

    fbjax train --config configs/catalogue_fashionbert.py --workdir runs/teacher --config.train.start_from= \\
        --config.model.num_layers=6
    fbjax train --config configs/catalogue_student.py --workdir runs/student

It begins with the teacher's first layers, as the paper's application does (section 5), and learns the hidden states,
attention and match logits of all six beside the teacher's own tasks. On titles alone, with another teacher, two layers
kept 98.7 % of the AUC: docs/lab/measurements.md.
"""

from catalogue_fashionbert import get_config as fashionbert
from common import steps


def get_config():
    c = fashionbert()
    c.model.num_layers = 2
    c.tasks = {"tia": {"head": "cls+cosine"}, "itc": {}, "distillation": {"teacher": "runs/teacher"}}
    c.train.start_from = "runs/teacher"
    steps(c, 300, products=64, rate=2e-4, warmup=20, save_every=100, log_every=25)
    return c
