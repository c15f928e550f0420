"""ViLBERT and VL-BERT beside towers, resumed, adapted, and as teachers."""

import pytest

from fbjax.evaluation.evaluate import evaluate
from fbjax.inference.rank import rank
from fbjax.training.loop import train
from tests.integration.test_streams import FEW, RUNS, TEXTS, kinds
from tests.support.runs import same, tiny_config, without_steps_after


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of both runs, and their last states."""
    folder = tmp_path_factory.mktemp("streams")
    return folder, {name: train(tiny_config(folder, *FEW, *RUNS[name]), folder / name) for name in RUNS}


def test_a_resumed_run_of_two_streams_ends_bit_identical(runs, tmp_path):
    folder, states = runs
    workdir = without_steps_after(folder / "vilbert", 4, tmp_path / "run")
    assert same(train(tiny_config(folder, *FEW, *RUNS["vilbert"]), workdir), states["vilbert"])


@kinds
def test_vectors_of_texts_and_images_alone_may_be_trained_with_them(runs, tmp_path, name):
    """A text alone is what BERT's layers make of it; the contrast then starts a run that matches."""
    folder, _ = runs
    towers = ("tasks=itc,tia", "tasks.itc.embedding_dim=8", *RUNS[name][: 2 if name == "vilbert" else 1])
    train(tiny_config(folder, *FEW, *towers), tmp_path / "towers")
    figures = evaluate(tmp_path / "towers", protocols=("full",), rerank=4)
    assert figures["full"]["rerank"] == 4
    assert rank(tmp_path / "towers", text=TEXTS[0], top=3, scored=4).num_scored == 4


def test_factors_of_both_streams_adapt_a_trained_run(runs, tmp_path):
    folder, _ = runs
    start = (f"train.start_from={folder / 'vilbert'}", "lora.layers=('query','value')")
    state = train(tiny_config(folder, *FEW, *RUNS["vilbert"], *start), tmp_path / "adapted")
    names = state.params["lora"]["encoder"].keys()
    assert names == {"layer_0", "layer_1", "text_over_image_0", "image_over_text_0", "image_layer_0"}


def test_a_single_stream_may_learn_from_vlbert_and_not_from_vilbert(runs, tmp_path):
    folder, _ = runs
    student = (*FEW, "tasks=distillation,tia", "model.num_layers=1")
    train(tiny_config(folder, *student, f"tasks.distillation.teacher={folder / 'vlbert'}"), tmp_path / "student")
    with pytest.raises(ValueError, match="reads the layers of one stream"):
        train(tiny_config(folder, *student, f"tasks.distillation.teacher={folder / 'vilbert'}"), tmp_path / "other")
