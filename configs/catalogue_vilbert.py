"""ViLBERT on a catalogue of 35,063 products on a 2-core CPU: text stream and image stream attend to each other.

    fbjax train --config configs/catalogue_vilbert.py --workdir runs/vilbert
    fbjax evaluate --workdir runs/vilbert --protocol candidates,matching

Lu et al. 2019 (arXiv 1908.02265), small. Not measured yet. Features, texts, masks and steps are those of
`configs/catalogue_vlbert.py`.

Departs from the paper, beside what `fbjax/model/rivals/vilbert.py` says: 49 patches and the whole image stand in for
the boxes of a detector, and a hidden patch's features, made a distribution, for its classes; the neighbours of a hidden
patch stay; masks take whole words; of MiniLM's first two layers one reads the text alone, and the other follows the one
block of co-attention (the paper: twelve layers, six alone, six blocks).
"""

from catalogue_vlbert import get_config as vlbert


def get_config():
    c = vlbert()
    c.model.architecture, c.model.co_attention_blocks = "vilbert", 1
    c.tasks.tia.head = "product"
    return c
