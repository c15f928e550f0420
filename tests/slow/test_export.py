"""A run on its way to PyTorch and back."""

import numpy as np
import pytest

from fbjax.cli.main import main
from fbjax.export.package import export
from tests.support.runs import tiny_config
from tests.support.untrained import parameters, random_images, silent

torch = pytest.importorskip("torch")
import transformers  # noqa: E402  (its models need torch)

torch.set_num_threads(1)  # on a busy machine its threads wait for each other


def test_trained_exported_trained_on_in_pytorch_and_back(tmp_path, capsys, trains_on_one_device):
    from fbjax.training.loop import train

    texts = ["A red cotton dress with two pockets.", "blue bag", "A grey hat of wool with a wide brim."]
    config = tiny_config(tmp_path, "train.num_steps=4", "train.save_every=4")
    train(config, tmp_path / "run")
    content = export(tmp_path / "run", "hf", tmp_path / "hf", say=silent)
    assert content["proof"]["real"]["match"]["examples"] == 24
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf", trust_remote_code=True).train()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    trained = [*model.tia.parameters(), *model.bert.encoder.layer[1].output.dense.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    model(ids, images=torch.tensor(random_images(32)), labels=torch.tensor([1, 0, 1])).loss.backward()
    optimizer.step()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "theirs")
    assert main(["import", "--from", str(tmp_path / "theirs"), "--workdir", str(tmp_path / "back")]) == 0
    before, after = parameters(tmp_path / "run"), parameters(tmp_path / "back")
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    touched = {f"{place}/{leaf}" for place in ("tia", "encoder/layer_1/mlp_out") for leaf in ("kernel", "bias")}
    assert before.keys() == after.keys() and changed == {f"fashionbert/{name}" for name in touched}
    step = after["fashionbert/tia/bias"] - before["fashionbert/tia/bias"]
    np.testing.assert_allclose(step, -0.1 * model.tia.bias.grad.numpy(), atol=1e-6)
    assert main(["evaluate", "--workdir", str(tmp_path / "back"), "--queries", "4"]) == 0
    assert "checkpoint 0" in capsys.readouterr().out
    assert int(train(config, tmp_path / "back").step) == 4
