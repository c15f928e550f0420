"""`fbjax plan`: bytes, FLOPs and collectives against hand counts, the written model against its formulas, bad input."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fbjax.cli.main import main
from fbjax.config.schema import MeshConfig, ModelConfig, PatchConfig
from fbjax.model.encoder import Encoder
from fbjax.monitoring.flops import program_flops
from fbjax.parallel.mesh import AXES, make_mesh, scatter_shards
from fbjax.tools.plan.cost import Span, collective_seconds, step_time
from fbjax.tools.plan.plan import largest_batch, memory_error, scaling
from fbjax.tools.plan.program import Program, first_group, shape_bytes
from fbjax.tools.plan.topology import TPUS, find, nothing_kept, rings
from tests.support.runs import CONFIG_FILE

DATA, FSDP, TENSOR = AXES


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.py").write_text(CONFIG_FILE.format(train="none.csv", validation="", prepared=""))


def compiled_over_devices(function, shape: tuple[int, ...]):
    """`function` of one array, run by each of 2 x 2 x 2 devices on its own part of `shape`, as a `Program`."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=PartitionSpec(AXES), out_specs=PartitionSpec(AXES), check_vma=False
    )
    whole = jax.ShapeDtypeStruct((8 * shape[0], *shape[1:]), jnp.float32)
    return Program(jax.jit(mapped).lower(whole).compile().as_text(), 8)


@pytest.mark.parametrize(
    "function, kind, size, group",
    [
        (lambda x: jax.lax.psum(x, DATA), "all-reduce", 4 * 128, (0, 4)),
        (lambda x: jax.lax.psum(x, (DATA, TENSOR)), "all-reduce", 4 * 128, (0, 1, 4, 5)),
        (lambda x: jax.lax.all_gather(x, FSDP), "all-gather", 2 * 4 * 128, (0, 2)),
        (lambda x: jax.lax.psum_scatter(x, TENSOR, tiled=True), "reduce-scatter", 4 * 128, (0, 1)),
        (lambda x: jax.lax.all_to_all(x, FSDP, 0, 0, tiled=True), "all-to-all", 4 * 128, (0, 2)),
        (lambda x: jax.lax.ppermute(x, TENSOR, [(0, 1), (1, 0)]), "collective-permute", 4 * 128, (0, 1)),
    ],
)
def test_a_collective_is_found_with_its_bytes_and_its_group(function, kind, size, group):
    (found,) = compiled_over_devices(function, (4, 32)).collectives()
    assert (found.kind, found.size, found.group, found.times) == (kind, size, group, 1)


def test_a_collective_in_loops_counts_as_often_as_they_turn():
    def inner(x, _):
        return jnp.sin(jax.lax.psum(x, DATA)), None

    def outer(x, _):
        return jax.lax.scan(inner, x, length=5)[0] + 1, None

    found = compiled_over_devices(lambda x: jax.lax.scan(outer, x, length=3)[0], (4, 32)).collectives()
    assert [(c.kind, c.size, c.times) for c in found] == [("all-reduce", 512, 15)]


COUNTED_BY_TWOS = """HloModule m

%cond (p: (f32[4], u32[])) -> pred[] {
  %bound = u32[]{:T(128)} constant(8)
  %p = (f32[4]{0}, u32[]) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (q: (f32[4], u32[])) -> (f32[4], u32[]) {
  %q = (f32[4]{0}, u32[]) parameter(0)
  %x = f32[4]{0} get-tuple-element(%q), index=0
  %j = u32[]{:T(128)} get-tuple-element(%q), index=1
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%j, %two)
  %moved = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %both = (f32[4]{0}, u32[]) tuple(%moved, %next)
}

ENTRY %main (start: (f32[4], u32[])) -> (f32[4], u32[]) {
  %start = (f32[4]{0}, u32[]) parameter(0)
  ROOT %loop = (f32[4]{0}, u32[]) while(%start), condition=%cond, body=%body
}
"""


def test_a_loop_that_xla_does_not_count_is_counted_by_its_bound_and_its_steps():  # as a TPU's products in windows are
    (found,) = Program(COUNTED_BY_TWOS, 2).collectives()
    assert (found.kind, found.size, found.times) == ("collective-permute", 16, 4)


def test_of_a_conditional_the_heavier_branch_counts():
    def branches(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: jax.lax.psum(jnp.sin(x), DATA), lambda x: x + 1, x)

    assert [c.kind for c in compiled_over_devices(branches, (4, 32)).collectives()] == ["all-reduce"]


@pytest.mark.parametrize(
    "written, group",
    [
        ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
        ("replica_groups=[4,2]<=[8]", (0, 1)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, y", tuple(range(8))),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, x", (0, 2, 4, 6)),
        ("replica_groups={}", tuple(range(8))),
    ],
)
def test_groups_are_read_in_every_form_that_xla_writes(written, group):
    assert first_group(written, 8) == group


def test_groups_in_an_unknown_form_are_no_groups_of_all():
    with pytest.raises(ValueError, match="form that is not known: replica_groups=ring"):
        first_group("replica_groups=ring(8)", 8)


def test_bytes_of_a_shape():
    assert shape_bytes("(bf16[12,64]{1,0:T(8,128)(2,1)S(1)}, f32[], pred[3]{0}, token[])") == [1536, 4, 3, 0]
    assert shape_bytes("(bf16[12,64]{1,0:T(8,128)(2,1)S(1)}, f32[5]{0:T(128)})", main_memory=True) == [0, 20]


def test_traffic_of_a_loop_is_that_of_its_body_times_its_turns():
    def turns(n):
        return compiled_over_devices(lambda x: jax.lax.fori_loop(0, n, lambda _, x: x @ x, x), (64, 64)).traffic()

    assert (turns(9) - turns(4)) / 5 == pytest.approx(3 * 64 * 64 * 4, rel=0.5)  # two operands, one result; a counter


def test_of_a_table_that_a_loop_takes_and_updates_rows_of_the_rows_count():
    def rows(table):
        def turn(i, table):
            return table.at[i].set(jnp.sin(table[i]) + 1)

        return jax.lax.fori_loop(0, 500, turn, table)

    row = 4 * 64
    assert 500 * 2 * row <= compiled_over_devices(rows, (500, 64)).traffic() < 500 * 10 * row  # the table: 500 rows


def test_flops_are_those_of_the_products_in_and_out_of_loops():
    a, b = jnp.ones((3, 5, 7)), jnp.ones((3, 7, 11))
    product = partial(jnp.einsum, "bij,bjk->bik")
    assert program_flops(jax.make_jaxpr(product)(a, b)) == 2 * 3 * 5 * 7 * 11

    def looped(a, b):
        return jax.lax.scan(lambda total, _: (total + jax.jit(product)(a, b), None), jnp.zeros((3, 5, 11)), length=4)

    assert program_flops(jax.make_jaxpr(looped)(a, b)) == 4 * 2 * 3 * 5 * 7 * 11
    image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
    conv = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    jaxpr = jax.make_jaxpr(partial(conv, dimension_numbers=("NHWC", "HWIO", "NHWC")))(image, kernel)
    assert program_flops(jaxpr) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4)


@pytest.mark.parametrize("remat, passes", [("none", 3), ("layers", 4)])
def test_an_encoders_gradient_costs_three_passes_and_a_fourth_where_it_recomputes(remat, passes):
    encoder = Encoder(ModelConfig(num_layers=2, width=32, num_heads=4, mlp_dim=64, remat=remat))
    x, mask = jnp.ones((2, 10, 32)), jnp.ones((2, 10), bool)
    params = jax.eval_shape(encoder.init, jax.random.key(0), x, mask)
    gradient = jax.grad(lambda params, x: encoder.apply(params, x, mask).sum(), argnums=(0, 1))
    tokens, weights, attention = 2 * 10, 2 * (4 * 32 * 32 + 2 * 32 * 64), 2 * 2 * 2 * 10 * 10 * 32
    forward = 2 * weights * tokens + 2 * attention  # 2 x parameters x tokens, and scores and their sums
    assert program_flops(jax.make_jaxpr(gradient)(params, x)) == passes * forward


V5E, V5P = TPUS["v5e"], TPUS["v5p"]
POD = Span((16, 16), (True, True))


def test_axes_close_to_rings_where_the_sources_say_so():
    assert rings(V5E, (8, 16)) == (False, True) and rings(V5E, (16, 16)) == (True, True)
    assert rings(V5P, (2, 2, 4)) == (False,) * 3 and rings(V5P, (4, 8, 8)) == (True,) * 3
    assert Span.within(V5E, (16, 16), (16, 16)) == POD
    assert Span.within(V5E, (16, 16), (1, 8)) == Span((8,), (False,))
    assert Span.within(V5E, (4, 4), (1, 1)) == Span((), ())
    assert POD.hops == 16 and Span((4, 4), (False, False)).hops == 6


@pytest.mark.parametrize(
    "kind, size, span, seconds",
    [
        ("all-gather", 2048 * 8192 * 2, Span((4,), (False,)), 3 / 4 * 33_554_432 / 50e9),  # scaling book, quiz 2
        ("all-gather", 256 * 256 * 2, Span((4,), (False,)), 3e-6),  # its second part: three hops
        ("all-reduce", 453_000_000, POD, 2 * 255 / 256 * 453e6 / 200e9),
        ("reduce-scatter", 453_000_000, POD, 255 / 256 * 453e6 / 200e9),
        ("all-reduce", 4, POD, 2 * 16e-6),
        ("all-to-all", 8_000_000, Span((16,), (True,)), 16 * 8e6 / 4 / 100e9),
        ("collective-permute", 5_000_000, Span((2,), (False,)), 1e-4),
        ("all-reduce", 453_000_000, Span((), ()), 0.0),
    ],
)
def test_collectives_take_what_their_formulas_say(kind, size, span, seconds):
    assert collective_seconds(kind, size, span, V5E) == pytest.approx(seconds)


def test_a_step_is_bound_by_the_slower_of_flops_and_memory_and_waits_for_collectives_or_not():
    time = step_time(1.97e12, 8.19e9, [("all-reduce", 4, POD, 100)], V5E)
    assert (time.compute, time.memory, time.collectives) == pytest.approx((0.010, 0.010, 0.0032))
    assert (time.apart, time.overlapped) == pytest.approx((0.0132, 0.010))


def test_the_largest_batch_that_fits_is_found_and_the_next_one_does_not():
    for capacity in (8, 99, 100, 101, 250):
        tried = []

        def used(n, tried=tried):
            tried.append(n)
            return 7 + 3.1 * n + (n > 5) * 2

        found = largest_batch(used, capacity, 100, used(100), 7)
        assert found == max((n for n in range(1, 100) if used(n) <= capacity), default=0) and len(tried) < 110


@pytest.mark.parametrize(
    "verdict",
    [
        "Ran out of memory in memory space hbm. Used 20.12G of 15.75G hbm. Exceeded hbm capacity by 4.37G.",
        "the total memory required for HLO temporaries (20.12G) exceeds available HBM (15.75G).",
    ],
)
def test_what_libtpu_says_of_too_little_memory_is_understood(verdict):
    error = memory_error(RuntimeError(f"RESOURCE_EXHAUSTED: {verdict}"))
    assert (error.used, error.capacity) == (int(20.12 * 2**30), int(15.75 * 2**30))
    assert memory_error(RuntimeError("INTERNAL: something else")) is None


def test_task_gradients_in_shards_are_reduce_scattered_by_a_tpu():
    mesh = make_mesh(MeshConfig(), find("v5e:2x4").devices)
    kernel = jax.ShapeDtypeStruct((768, 3072), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(FSDP, TENSOR)))
    x, y = (
        jax.ShapeDtypeStruct((2048, size), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(DATA)))
        for size in kernel.shape
    )

    def squared(x, y):
        gradient = jax.lax.with_sharding_constraint(x.T @ y, scatter_shards(mesh, kernel))
        return jnp.square(gradient).sum()

    with nothing_kept():
        program = Program(jax.jit(squared).lower(x, y).compile().as_text(), 8)
    heaviest = max(program.collectives(), key=lambda c: c.size)
    assert (heaviest.kind, heaviest.size) == ("reduce-scatter", 2 * 768 * 3072)


def test_a_chip_of_two_cores_is_one_device_and_no_program_is_kept_that_cannot_be_read():
    assert len(find("v4:2x2x4").devices) == len(find("v5p:2x2x4").devices) == 16
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    with nothing_kept():
        assert jax.config.jax_persistent_cache_min_compile_time_secs == math.inf
    assert jax.config.jax_persistent_cache_min_compile_time_secs == before


def test_scaling_is_told_against_the_smallest_of_the_same_chips():
    def figures(name, device, num_chips, step):
        seconds = {"step": step, "step_overlapped": 0.1}
        shared = {"topology": name, "device": device, "chips": num_chips, "batch_size": 8 * num_chips}
        return shared | {"seconds": seconds}

    rows = scaling(
        [figures("a", "x", 256, 0.125), figures("b", "x", 16, 0.1), figures("c", "y", 64, 1.0), {"seconds": None}]
    )
    assert [row["efficiency"] for row in rows] == pytest.approx([0.8, 1.0, 1.0])
    assert [row["efficiency_overlapped"] for row in rows] == pytest.approx([1.0, 1.0, 1.0])
    assert rows[0]["products_per_second"] == pytest.approx(8 * 256 / 0.125)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--topology", "v9:4x4"], ["'v9:4x4'", "v5e:4x4"]),
        (["--topology", "local,v5e:3x5"], ["v5e:3x5", "not divisible", "v5e:4x4"]),
        (["--topology", "v5e:32x32"], ["v5e:32x32", "16x16"]),
        (["--topology", "v5p:4x4"], ["v5p:4x4", "3 axes", "v5p:4x4x4"]),
        (["--per-chip", "0"], ["--per-chip 0"]),
        (["--plot", "p.docx"], ["p.docx", ".svg"]),
        (["--topology", "v5e:4x4"], ["train.batch_size 8", "16 devices", "multiple of 16"]),
        (["--config.mesh.data=3"], ["mesh [3, 1, 1]", "3 devices", "8"]),
        (["--config.mesh.tensor=8", "--config.mesh.data=1"], ["mesh.tensor 8", "model.num_heads 4"]),
    ],
)
def test_bad_input_is_one_line_before_anything_is_compiled(arguments, words, config_file, capsys):
    assert main(["plan", "--config", "c.py", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1, printed.err
    assert all(word in printed.err for word in words), printed.err


def test_without_libtpu_the_extra_is_named(monkeypatch):
    def missing(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology. See ..")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    with pytest.raises(ModuleNotFoundError, match=r"fbjax\[tpu\]"):
        find("v5e:4x4")


def test_no_patch_networks_weights_are_needed():
    from fbjax.model.patch_features import abstract_patch_network

    paper = replace(PatchConfig(), network="resnext101_32x8d", patch_input_size=224, mode="cached")
    outline = abstract_patch_network(paper)
    assert (outline.num_patches, outline.feature_size) == (64, 2048)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(outline.params)) == pytest.approx(86.7e6, rel=0.01)
    with pytest.raises(ValueError, match="patches.weights"):
        abstract_patch_network(replace(paper, network="mobilenet_v1"))
    assert np.isfinite(abstract_patch_network(PatchConfig()).feature_size)
