"""FashionBERT on top of the towers of `configs/catalogue_gpu.py`: alignment and contrast in one encoder, on one GPU.

    fbjax train --config configs/catalogue_gpu_fashionbert.py --workdir runs/gpu_fashionbert \\
        --config.train.start_from=runs/catalogue_gpu --config.data.arrays=arrays --config.data.on_device=true
    fbjax evaluate --workdir runs/gpu_fashionbert --protocol full --towers runs/catalogue_gpu --rerank 20

`launch/catalogue_gpu.sh` runs it after the towers. Not measured.

Departs from the paper as the towers do. Negatives of alignment are images of the batch that the towers confuse, and the
patch network stays as the towers have trained it.
"""

from catalogue_gpu import get_config as towers
from common import steps


def get_config():
    c = towers()
    c.tasks.tia = {"negatives": "batch"}
    c.groups = {"patches": {"frozen": True}}
    c.train.start_from = "runs/catalogue_gpu"
    steps(c, 800, products=256, rate=2e-4, warmup=40, save_every=200, log_every=25)
    return c
