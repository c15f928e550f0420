"""A model that is trained on a few drawn products until it knows them writes their texts."""

import pyarrow.parquet as pq
import pytest

from fbjax.cli.main import main
from fbjax.evaluation.evaluate import evaluate
from fbjax.runs.stored_evaluation import read_captions
from fbjax.training.loop import train
from tests.support.runs import tiny_config

PRODUCTS = 16
LONG = (
    "tasks=caption,tia",
    "adaptive.method=fixed",
    "tasks.caption.weight=0.9",
    "tasks.tia.weight=0.1",
    "data.columns.text=title,caption",
    "data.columns.category=subcategory",
    "patches.image_size=64",
    "patches.patch_size=16",
    "patches.patch_input_size=16",
    "model.width=64",
    "model.mlp_dim=128",
    "model.text_tokens=48",
    "model.hidden_dropout=0",
    "model.attention_dropout=0",
    "train.batch_size=16",
    "train.num_steps=500",
    "train.warmup_steps=20",
    "train.learning_rate=3e-3",
    "train.save_every=500",
)


@pytest.mark.slow
def test_a_model_that_knows_its_products_writes_their_texts(tmp_path, trains_on_one_device):
    assert main(["draw", "--out", str(tmp_path / "drawn"), "--products", "100"]) == 0
    table = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(tmp_path / "drawn" / "train.parquet").slice(0, PRODUCTS), table)
    workdir, others = tmp_path / "run", tmp_path / "drawn" / "validation.parquet"
    train(tiny_config(tmp_path, *LONG, f"data.train={table}", f"data.validation={others}"), workdir)
    for beams in (1, 3):
        figures = evaluate(workdir, data=str(table), protocols=("captioning",), beams=beams)["captioning"]
        wrong = [(text, caption) for _, text, caption, _ in read_captions(workdir)["captions"] if text != caption]
        assert not wrong and figures["same"] == 1 and figures["products"] == PRODUCTS
        assert figures["bleu4"] == pytest.approx(1) and figures["rouge_l"] == pytest.approx(1)
        assert figures["another"]["bleu4"] < 0.5
