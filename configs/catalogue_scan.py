"""SCAN on a catalogue of 35,063 products: words attend to 49 regions of an image, by the hardest negatives.

    fbjax train --config configs/catalogue_scan.py --workdir runs/scan
    fbjax evaluate --workdir runs/scan --protocol candidates,matching
    fbjax evaluate --workdir runs/scan --protocol full --towers runs/towers --rerank 50

Lee et al. 2018 (arXiv 1803.08024), from text to image, by the mean. Not measured yet. The other direction is trained by
`--config.tasks.scan.direction=image_to_text --config.tasks.scan.attention_scale=4`, PFAN's positions by
`--config.tasks.scan.positions=true`. The last command re-ranks what the towers of `configs/catalogue_towers.py` find.

Departs from the paper: the regions are the cells of MobileNetV1's last map, not the boxes of a detector; MiniLM's first
two layers stand in for a bidirectional GRU, so that [CLS] and [SEP] are words too; all negatives count in the first
epoch, without which a run may never begin to learn; the loss is the mean over the batch in place of the sum. Products
of one group, and equal texts, are no negatives. The learning rate and its schedule, and the number of steps, are those
of `configs/catalogue_towers.py`, so that the two compare.
"""

from catalogue_towers import get_config as towers
from common import mobilenet


def get_config():
    c = towers()
    mobilenet(c, size=224, patch=32)
    c.patches.whole_image = False
    c.tasks = {"scan": {"hardest_from": 274}}  # an epoch
    c.train.clip_norm = 2.0
    return c
