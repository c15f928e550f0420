"""A step that does not fit is said before it runs, with a setting that fits."""

import dataclasses
import re

import jax
import pytest

from fbjax.config.schema import AdaptiveConfig, MeshConfig
from fbjax.parallel.mesh import make_mesh
from fbjax.runs.state import abstract_state, batch_shapes, make_optimizer
from fbjax.training import memory
from fbjax.training.memory import GIB, available_memory, check_memory, host_memory, out_of_memory_named, peak_bytes
from fbjax.training.step import compiled, make_step, with_seed
from tests.support.objectives import CONFIG, MODEL, TRAIN, make_objective, make_tasks
from tests.support.runs import make_one_device_mesh

MESH = make_one_device_mesh()


def sized(num_parts, batch_size=64, **adaptive):
    """A config whose activations outweigh its state."""
    train = dataclasses.replace(TRAIN, batch_size=batch_size, micro_batches=num_parts)
    model, tasks = dataclasses.replace(MODEL, num_layers=1), make_tasks("itc", "mlm", itc={"embedding_dim": 8})
    return dataclasses.replace(CONFIG, model=model, tasks=tasks, train=train, adaptive=AdaptiveConfig(**adaptive))


def state_of(config):
    return abstract_state(make_objective(config.model, config.tasks), make_optimizer(config.train), config, MESH)


def programs_of(config):
    objective, optimizer, state = (
        make_objective(config.model, config.tasks),
        make_optimizer(config.train),
        state_of(config),
    )
    shapes = [batch_shapes(config, objective.patches, MODEL.text_tokens)]
    step = make_step(objective, optimizer, config, MESH, state)
    return compiled(step, state, with_seed({"patches": {}}, config), shapes).programs, state


@pytest.mark.parametrize("method", ["fixed", pytest.param("gradient", marks=pytest.mark.slow)])
def test_the_micro_batches_that_are_named_do_fit(method):
    """Compiled, they need about what was estimated."""
    config = sized(1, method=method)
    programs, state = programs_of(config)
    needed = peak_bytes(programs[MODEL.text_tokens])
    check_memory(programs, state, config, MESH, needed)
    check_memory(programs, state, config, MESH, None)
    limit = int(0.45 * needed)
    with pytest.raises(ValueError, match="a step on texts of 16 tokens needs") as error:
        check_memory(programs, state, config, MESH, limit)
    assert f"which has {limit / GIB:.2f} GiB" in str(error.value) and "set model.remat to 'layers'" in str(error.value)
    parts = int(re.search(r"train.micro_batches to (\d+)", str(error.value))[1])
    assert parts in (4, 8)
    fitting, _ = programs_of(sized(parts, method=method))
    assert peak_bytes(fitting[MODEL.text_tokens]) <= limit


@dataclasses.dataclass
class Program:
    """A compiled program of known bytes."""

    argument_size_in_bytes: int
    output_size_in_bytes: int
    temp_size_in_bytes: int
    alias_size_in_bytes: int

    def memory_analysis(self):
        return self


def test_the_estimate_by_hand():
    """Of the larger program, 10 + 9 + 40 - 9 GiB: 40 of activations, halved until 10 and they are at most 24."""
    config = dataclasses.replace(sized(1, method="fixed"), model=dataclasses.replace(MODEL, remat="layers"))
    programs = {8: Program(GIB, GIB, GIB, GIB), 16: Program(10 * GIB, 9 * GIB, 40 * GIB, 9 * GIB)}
    state = state_of(config)
    with pytest.raises(ValueError) as error:
        check_memory(programs, state, config, MESH, 24 * GIB)
    assert str(error.value) == (
        "a step on texts of 16 tokens needs 50.00 GiB of a device, which has 24.00 GiB: set train.micro_batches to 4, "
        "which is estimated to need 20.00 GiB, as the 40.00 GiB of activations shrink in proportion and the rest "
        "stays; or lower train.batch_size to 22"  # 14 GiB of 40 for activations: 64 x 14 / 40
    )
    with pytest.raises(ValueError, match="10.00 GiB of it are state, gradients and batch, and no train.micro_batches"):
        check_memory(programs, state, config, MESH, 9 * GIB)
    check_memory(programs, state, config, MESH, 50 * GIB)


def test_an_out_of_memory_names_the_settings_and_another_error_stays(monkeypatch):
    config = sized(2)
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "gpu")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    with pytest.raises(ValueError, match="micro_batches .2 now.*batch_size .64 now.*JAX takes 75%") as error:
        with out_of_memory_named(config):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte\nmore lines")
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in str(error.value) and "more lines" not in str(error.value)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    with pytest.raises(ValueError) as error, out_of_memory_named(config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
    assert "FRACTION" not in str(error.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), out_of_memory_named(config):
        raise jax.errors.JaxRuntimeError("INTERNAL: another fault")


def test_devices_without_memory_of_their_own_share_the_host_s(tmp_path, monkeypatch):
    assert 2**28 < host_memory() < 2**50
    for text, expected in (("160000000\n", 160_000_000), ("max\n", None)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(memory, "CONTAINER_LIMITS", (str(tmp_path / "memory.max"),))
        if expected:
            assert host_memory() == expected and available_memory(make_mesh(MeshConfig(8, 1, 1))) == expected // 8
        else:
            assert host_memory() > 160_000_000
