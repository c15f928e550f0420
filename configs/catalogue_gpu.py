"""The recipe for a catalogue on one GPU: the towers of `configs/catalogue.py`, larger and with MiniLM beside the bag.

    fbjax prepare --config configs/catalogue_gpu.py --arrays arrays
    fbjax train --config configs/catalogue_gpu.py --workdir runs/catalogue_gpu --config.data.arrays=arrays \\
        --config.data.on_device=true

The second command needs JAX alone: arrays can be carried to the machine with the GPU, where `launch/catalogue_gpu.sh`
runs it. Not measured: docs/lab/winning.md says what was tried.

Departs from the paper as `configs/catalogue.py` does; the whole network is trained, pictures have 160 pixels and lie
on the GPU, and the first three layers of MiniLM read the first 64 tokens of a text.
"""

from common import adam, efficientnet, fashion_products, gentle_augmentation, linear_towers, minilm, steps

from fbjax.config import defaults


def get_config():
    c = defaults()
    fashion_products(c)
    efficientnet(c, size=160, patch=80, levels=(4, 10))
    c.patches.whole_image = True
    c.patches.mode, c.patches.dtype = "trained", "bfloat16"
    gentle_augmentation(c)
    minilm(c, layers=3, tokens=128)
    linear_towers(c, size=512, tokens=128, feature_dropout=0.3)
    c.tasks.itc.branches, c.tasks.itc.encoder_tokens = "both", 64
    c.model.dtype = "bfloat16"
    c.train.column_dropout = 0.5
    steps(c, 850, products=1024, rate=2e-3, warmup=40, save_every=170, log_every=25)
    adam(c)
    c.groups = {"patches": {"rate": 0.2, "weight_decay": 1e-4}}
    for part in ("encoder", "text_embeddings", "image_embeddings"):
        c.groups[f"fashionbert/{part}"] = {"rate": 0.1}
    c.train.evaluate_products = 512
    return c
