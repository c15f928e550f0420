"""The paper's recipe and token-patch alignment on a catalogue of 35,063 products: which word goes to which patch.

    fbjax train --config configs/catalogue_alignment.py --workdir runs/alignment
    fbjax explain --workdir runs/alignment --id 1163 --method alignment --html alignment.html
    fbjax report --workdir runs/alignment

`configs/catalogue_paper.py` and the task tpa, by the weight that UNITER gives it beside matching (Chen et al. 2020,
arXiv 1909.11740: .1). The report draws some alignments. Guide: docs/guides/alignment.md. Not measured yet.

Departs from the paper: it has no such task and names it as future work; otherwise as `configs/catalogue_paper.py`.
"""

from catalogue_paper import get_config as paper


def get_config():
    c = paper()
    c.tasks = c.tasks.to_dict() | {"tpa": {"weight": 0.1}}
    return c
