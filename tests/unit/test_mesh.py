"""Where parameters lie on a mesh, and what is refused because it would lie somewhere by oversight."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fbjax.config.schema import MeshConfig
from fbjax.parallel import mesh as meshes
from fbjax.parallel.mesh import HostShard, check_fit, make_mesh, put_batch, scatter_shards, shardings
from fbjax.runs.state import abstract_state, make_optimizer
from tests.support.objectives import CONFIG, MODEL, make_objective, make_tasks

SPECS = {  # every kind of parameter
    "text_embeddings/word": P("tensor", "fsdp"),
    "text_embeddings/position": P(None, "fsdp"),
    "text_embeddings/segment": P(None, "fsdp"),
    "text_embeddings/norm/scale": P(None),
    "text_embeddings/norm/bias": P(None),
    "image_embeddings/projection/kernel": P(None, "fsdp"),
    "image_embeddings/position": P(None, "fsdp"),
    "image_embeddings/segment": P(None, "fsdp"),
    "image_embeddings/norm/scale": P(None),
    "image_embeddings/norm/bias": P(None),
    "encoder/layer_*/attention/query/kernel": P("fsdp", "tensor"),
    "encoder/layer_*/attention/query/bias": P("tensor"),
    "encoder/layer_*/attention/key/kernel": P("fsdp", "tensor"),
    "encoder/layer_*/attention/key/bias": P("tensor"),
    "encoder/layer_*/attention/value/kernel": P("fsdp", "tensor"),
    "encoder/layer_*/attention/value/bias": P("tensor"),
    "encoder/layer_*/attention/gate": P("tensor"),
    "encoder/layer_*/attention/out/kernel": P("tensor", "fsdp"),
    "encoder/layer_*/attention/out/bias": P("fsdp"),
    "encoder/layer_*/attention_norm/scale": P(None),
    "encoder/layer_*/attention_norm/bias": P(None),
    "encoder/layer_*/mlp_in/kernel": P("fsdp", "tensor"),
    "encoder/layer_*/mlp_in/bias": P("tensor"),
    "encoder/layer_*/mlp_out/kernel": P("tensor", "fsdp"),
    "encoder/layer_*/mlp_out/bias": P("fsdp"),
    "encoder/layer_*/mlp_norm/scale": P(None),
    "encoder/layer_*/mlp_norm/bias": P(None),
    "pooler/kernel": P("fsdp", None),
    "pooler/bias": P(None),
    "mlm/transform/kernel": P("fsdp", None),
    "mlm/transform/bias": P(None),
    "mlm/norm/scale": P(None),
    "mlm/norm/bias": P(None),
    "mlm/bias": P("tensor"),
    "mpm/kernel": P("fsdp", None),
    "tia/kernel": P("fsdp", None),
    "tia/bias": P(None),
    "projection/kernel": P("fsdp", None),
    "log_scale": P(),
}


def state_on(mesh, model=MODEL, **tasks):
    config = dataclasses.replace(CONFIG, model=model, tasks=make_tasks(**tasks))
    return abstract_state(make_objective(model, config.tasks), make_optimizer(config.train), config, mesh)


def test_every_kind_of_parameter_lies_where_it_should():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    state = state_on(mesh, dataclasses.replace(MODEL, cross_attention="gated"), itc={"embedding_dim": 8})
    found = {}
    for path, leaf in jax.tree.leaves_with_path(state.params["fashionbert"]):
        kind = re.sub(r"layer_\d+", "layer_*", jax.tree_util.keystr(path, simple=True, separator="/"))
        assert found.setdefault(kind, leaf.sharding.spec) == leaf.sharding.spec
    assert found == SPECS
    moments = [m for m in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(m, "mu")]
    for tree in (moments[0].mu, moments[0].nu):
        assert jax.tree.map(lambda x: x.sharding, tree) == jax.tree.map(lambda x: x.sharding, state.params)


def test_task_gradients_lie_in_shards_over_data():
    model = dataclasses.replace(MODEL, width=32)
    shards = scatter_shards(mesh := make_mesh(MeshConfig(2, 2, 2)), state_on(mesh, model).params["fashionbert"])
    layer = shards["encoder"]["layer_0"]
    assert layer["mlp_in"]["kernel"].spec == P(("fsdp", "data"), "tensor")
    assert layer["mlp_out"]["kernel"].spec == P("tensor", ("fsdp", "data"))
    assert layer["mlp_norm"]["scale"].spec == P(None)  # small, and whole on every device
    narrow = jax.ShapeDtypeStruct((24, 8), jnp.float32, sharding=NamedSharding(mesh, P("fsdp", "tensor")))
    assert scatter_shards(mesh, narrow).spec == P("fsdp", "tensor")  # 6 rows a device: no whole tile


def boxed(names=("embed", "heads"), shape=(8, 8)):
    """A tree that asks for every rule, and a matrix with `names`."""
    made = lambda names, shape: nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)  # noqa: E731
    tree = {name: made((name,), (8,)) for name, _ in meshes.RULES if name != meshes.BATCH}
    return tree | {"matrix": made(names, shape) if names else jax.ShapeDtypeStruct(shape, jnp.float32)}


@pytest.mark.parametrize(
    "tree, message",
    [
        (boxed(None), r"matrix \[8, 8\] names none of its axes"),
        (boxed(("embed", "haeds")), r"matrix \[8, 8\], axis 'haeds': no rule for it \(there are batch, vocabulary"),
        (boxed(shape=(8, 7)), r"matrix \[8, 7\], axis 'heads': mesh.tensor 2 does not divide it"),
    ],
    ids=["unnamed", "misspelt", "undivided"],
)
def test_what_would_be_replicated_by_oversight_is_an_error(tree, message):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    assert shardings(mesh, boxed())["matrix"].spec == P("fsdp", "tensor")
    with pytest.raises(ValueError, match=message):
        shardings(mesh, tree)


@pytest.mark.parametrize(
    "mesh, settings, message",
    [
        (MeshConfig(8, 1, 1), {"train": {"batch_size": 12}}, "train.batch_size 12 is not divisible by the 8 devices"),
        (MeshConfig(2, 1, 4), {"model": {"num_heads": 6}}, "mesh.tensor 4 does not divide model.num_heads 6"),
    ],
    ids=["batch", "heads"],
)
def test_a_mesh_that_does_not_divide_is_an_error(mesh, settings, message):
    changed = {name: dataclasses.replace(getattr(CONFIG, name), **values) for name, values in settings.items()}
    with pytest.raises(ValueError, match=message):
        check_fit(dataclasses.replace(CONFIG, **changed), make_mesh(mesh))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_a_share_of_the_batch_is_put_where_the_whole_batch_would_be(sizes):
    mesh = make_mesh(MeshConfig(*sizes))
    batch = np.arange(48).reshape(16, 3)
    share = HostShard.of(mesh, 16)
    assert share.rows.tolist() == list(range(16))  # one process feeds all
    assert put_batch(batch[share.rows], mesh, share).sharding == put_batch(batch, mesh).sharding
    for shard in put_batch(batch[share.rows], mesh, share).addressable_shards:
        np.testing.assert_array_equal(shard.data, batch[shard.index])
