"""The linear model of n-grams: the towers' linear branch alone, trained as a run like any other.

A text is a bag of its words and pairs of words, an image its patch features side by side; each n-gram and each feature
has a learned vector. The contrast is over large batches, each group masked.
"""

import dataclasses

from fbjax.config.load import build
from fbjax.config.schema import Config
from fbjax.core.console import say
from fbjax.data.batches.halves import rows_of_half
from fbjax.runs.splits import open_splits
from fbjax.runs.vocabulary import make_vocabulary

TEXT_TOKENS = 128
BATCH, PASSES, LEARNING_RATE = 1024, 15, 2e-3
SAVES = 3


def ngrams_config(config: Config, seed: int, dims: int) -> Config:
    """The run of the linear model on the tables and patch features of `config`.

    Prepares the records, to count them. Raises ValueError on a negative seed or dimension.
    """
    if dims < 1 or seed < 0:
        raise ValueError(f"--dims {dims}, --seed {seed}: give at least 1 dimension, and a seed from 0")
    products = open_splits(config, make_vocabulary(config, say))["train"]
    chosen = rows_of_half(products.groups, config.train.half)
    num_products = len(products if chosen is None else chosen)
    values = dataclasses.asdict(config)
    values["tasks"] = {"itc": {"branches": "linear", "embedding_dim": dims}}
    values["groups"], values["adaptive"] = {}, {"method": "fixed"}
    values["model"] |= {"text_tokens": TEXT_TOKENS, "text_bucket": TEXT_TOKENS}
    batch = min(BATCH, num_products)
    steps = max(PASSES * num_products // batch, SAVES)
    values["train"] |= {
        "batch_size": batch,
        "micro_batches": 1,
        "num_steps": steps,
        "warmup_steps": 0,
        "learning_rate": LEARNING_RATE,
        "beta1": 0.9,
        "beta2": 0.98,
        "weight_decay": 0.01,
        "seed": seed,
        "start_from": "",
        "save_every": -(-steps // SAVES),
        "log_every": max(1, steps // 10),
        "keep_last": 1,
    }
    return build(values)
