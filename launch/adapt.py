"""Ways to adapt a run to products that it has not seen, side by side: what each learns, and what it forgets.

    python launch/adapt.py --products 3000 --out runs/adapt

One category of the table is left out of a first training, from which every variant starts and is trained on that
category alone. The figure is Rank@10 over the whole gallery, the mean of both directions, on validation products of
that category ("new") and of the others ("old"). Checkpoints are those of the last step. What is done already is not
done again.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet

from fbjax.config.load import load_config
from fbjax.core.console import say
from fbjax.evaluation.evaluate import evaluate
from fbjax.evaluation.galleries.gallery import DIRECTIONS
from fbjax.export.interpolation import interpolate
from fbjax.runs.vocabulary import make_vocabulary
from fbjax.training.loop import train

SPLITS = ("train", "validation")
BASE = ("model.text_bucket=32", "train.warmup_steps=10", "train.log_every=20", "train.evaluate_products=64")
LAYERS = "lora.layers=query,key,value,out,mlp_in,mlp_out"
PARTS = ("text_embeddings", "image_embeddings", "encoder")
FROZEN = tuple(f"groups.fashionbert/{part}.frozen=true" for part in PARTS)
VARIANTS = {
    "all parameters": ("train.learning_rate=2e-4",),
    "all, train.layer_decay .5": ("train.learning_rate=2e-4", "train.layer_decay=0.5"),
    "heads alone": ("train.learning_rate=2e-3", *FROZEN),
    **{f"LoRA, rank {r}": ("train.learning_rate=2e-3", LAYERS, f"lora.rank={r}") for r in (2, 8, 32)},
    "LoRA, rank 8, rate 6e-4": ("train.learning_rate=6e-4", LAYERS, "lora.rank=8"),
}
SHARES = (0.25, 0.5, 0.75)  # of the first variant's weights, beside the run before


def write_tables(arguments, out: Path) -> dict[str, Path]:
    """{"train-old", "train-new", "validation-old", "validation-new"}: tables of at most so many products, by a shuffle.

    A third as many are trained on of the new category, and a sixth of each in validation.
    """
    sizes = {"old": arguments.products, "new": arguments.products // 3}
    paths = {}
    for split, pattern in zip(SPLITS, (arguments.train, arguments.validation), strict=True):
        files = sorted(map(str, Path(pattern).parent.glob(Path(pattern).name)))
        table = pyarrow.dataset.dataset(files).to_table()
        is_new = pyarrow.compute.equal(table["category"], arguments.category)
        for kind, mask in (("new", is_new), ("old", pyarrow.compute.invert(is_new))):
            rows = table.filter(mask)
            size = sizes[kind] if split == "train" else arguments.products // 6
            chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:size])
            paths[f"{split}-{kind}"] = out / f"{split}-{kind}.parquet"
            pyarrow.parquet.write_table(rows.take(chosen), paths[f"{split}-{kind}"])
    return paths


def trained(workdir: Path, steps: int, arguments, *settings: str) -> Path:
    """The workdir of a run of the config with these settings, trained unless it is there."""
    sizes = (f"train.num_steps={steps}", f"train.save_every={steps}", f"train.batch_size={arguments.batch}")
    train(load_config(arguments.config, [*BASE, *sizes, *arguments.settings, *settings]), workdir)
    return workdir


def rank10(workdir: Path, table: Path) -> float:
    step = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    figures = evaluate(workdir, data=str(table), protocols=("full",), step=step)["full"]
    return float(np.mean([figures[direction]["rank@10"] for direction in DIRECTIONS]))


def checkpoint_bytes(workdir: Path) -> int:
    """Of the last checkpoint."""
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    return sum(path.stat().st_size for path in newest.rglob("*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", default="../shared/data/catalogue/train-00000*.parquet", help="tables, a glob")
    parser.add_argument("--validation", default="../shared/data/catalogue/validation-*.parquet", help="tables, a glob")
    parser.add_argument("--category", default="Footwear", help="value of the column category that is new")
    parser.add_argument("--config", default="catalogue_towers")
    parser.add_argument("--products", type=int, default=3000, help="to train the first run on")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs=2, default=(200, 60), help="of the first run, and of each variant")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", required=True, help="folder for tables and runs")
    parser.add_argument("settings", nargs="*", help="section.field=value, for all runs")
    arguments = parser.parse_intermixed_args()
    out = Path(arguments.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    arguments.settings.append(f"data.prepared={out}/prepared")
    tables = write_tables(arguments, out)
    words = out / "tokenizer.json"
    if not words.is_file():  # of both tables: a run starts from another one of the same vocabulary
        whole = [f"data.{split}={out}/{split}-*.parquet" for split in SPLITS]
        both = load_config(arguments.config, [*whole, *arguments.settings])
        make_vocabulary(both, say).save(words)
    old, new = (
        [f"model.vocabulary={words}", *(f"data.{split}={tables[f'{split}-{kind}']}" for split in SPLITS)]
        for kind in ("old", "new")
    )
    first = trained(out / "first", arguments.steps[0], arguments, *old)
    found, sizes = {"before": [[rank10(first, tables[f"validation-{k}"]) for k in ("new", "old")]]}, {}
    sizes["before"] = checkpoint_bytes(first)
    for seed in range(arguments.seeds):
        runs = {}
        for name, settings in VARIANTS.items():
            workdir = out / f"seed{seed}" / name.replace(" ", "-")
            settings = (*new, f"train.start_from={first}", f"train.seed={seed}", *settings)
            runs[name] = trained(workdir, arguments.steps[1], arguments, *settings)
            sizes[name] = checkpoint_bytes(workdir)
        mixed = out / f"seed{seed}" / "mixed"
        if not mixed.is_dir():
            interpolate(first, runs["all parameters"], SHARES, mixed, say)
        runs |= {f"all parameters, share {share}": mixed / f"{share}" for share in SHARES}
        for name, workdir in runs.items():
            found.setdefault(name, []).append([rank10(workdir, tables[f"validation-{k}"]) for k in ("new", "old")])
        print("\n".join(table_of(found, sizes)), flush=True)
    (out / "table.md").write_text("\n".join(table_of(found, sizes)) + "\n")


def table_of(found: dict[str, list], sizes: dict[str, int]) -> list[str]:
    """A line for each way: Rank@10 on new and on old products, each seed's, and the size of a checkpoint."""
    lines = ["| | new, Rank@10 | old, Rank@10 | checkpoint |", "|---|---|---|---|"]
    for name, rates in found.items():
        cells = [" / ".join(f"{100 * rate:.1f}" for rate in column) for column in zip(*rates, strict=True)]
        size = f"{sizes[name] / 2**20:.1f} MiB" if name in sizes else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {size} |")
    return lines


if __name__ == "__main__":
    main()
