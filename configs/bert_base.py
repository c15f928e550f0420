"""BERT-base over 64 pieces and 64 patches in bfloat16: the shapes of the benchmarks, and a large model of your own.

    fbjax bench --config bert_base --compare torch
    fbjax train --config bert_base --workdir runs/base --config.data.train=products.csv

Tasks, weights and masks on both pairs are the paper's; the patches are pixels, 16 x 16 of each 32 x 32, so that no
weights are needed. A GPU of 40 GB holds a batch of 64 products with room to spare (`--repeats 0` prints the plan).
"""

from common import dropout, own_table, pixels, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    own_table(c)
    pixels(c, size=256, patch=32)
    c.patches.patch_input_size = 16
    c.model.vocabulary, c.model.text_tokens, c.model.dtype = "train:30522", 64, "bfloat16"
    c.model.num_layers, c.model.width, c.model.num_heads, c.model.mlp_dim = 12, 768, 12, 3072
    dropout(c, 0.1, attention=0.0)
    steps(c, 10_000, products=64, rate=1e-4, warmup=500, save_every=1_000, log_every=50)
    c.train.evaluate_products = 512
    return c
