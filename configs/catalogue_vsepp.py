"""VSE++ on a catalogue of 35,063 products: the towers of `configs/catalogue_towers.py` with its loss.

    fbjax train --config configs/catalogue_vsepp.py --workdir runs/vsepp
    fbjax evaluate --workdir runs/vsepp --protocol candidates,matching,full

Faghri et al. 2018 (arXiv 1707.05612, Eq. 6): a hinge of margin .2 for the hardest negative of the batch, in both
directions. Not measured yet. How to read the loss, and what to do where it stays at .4: docs/guides/rivals.md.

Departs from the paper: MiniLM's first two layers in place of a GRU, and one encoder for both sides; it reads the frozen
features of the whole image and of its quarters, where the paper maps one vector linearly. All negatives count in the
first epoch, without which a run may never begin to learn. The loss is the mean over the batch in place of the sum.
Products of one group, and equal texts, are no negatives. The learning rate and its schedule, and the
number of steps, are those of `configs/catalogue_towers.py`, so that the two compare.
"""

from catalogue_towers import get_config as towers


def get_config():
    c = towers()
    c.tasks = {"itc": {"form": "hardest", "hardest_from": 274}}  # an epoch
    c.train.clip_norm = 2.0
    return c
