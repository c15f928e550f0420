"""Grey to colour of Kaleido-BERT (Zhuge et al. 2021, arXiv 2103.16110): features of patches that are shown grey."""

import dataclasses

from fbjax.model.grids.cells import NUM_TURNED
from fbjax.tasks.base import About, register_task
from fbjax.tasks.pictures.scales import Restoration, Targets, shown


@register_task("grey")
@dataclasses.dataclass(frozen=True)
class Grey(Restoration):
    """Two patches of scale 4 are those of the grey picture."""

    scale = 4
    owns = ("grey",)
    reads_variants = rearranges = True
    about = About(
        "Grey image patches (grey)",
        "the colours of grey patches",
        "Distance (KL divergence) between a patch's features in colour and the model's guess from grey ones; 0 would "
        "be a perfect guess.",
    )

    def corrupt(self, key, example, spec):
        chosen = self.drawn(key, example, spec, 2)
        grey = spec.num_patches + NUM_TURNED + chosen - self.places(spec)[0]
        return example._replace(source=shown(example.source, chosen, grey)), Targets(chosen)
