"""The train step of every config, task and patch network of the project, traced at tiny sizes.

Tracing finds what does not fit together in a second; `tests/slow/test_every_part_trains.py` runs the steps.
"""

import pytest

from fbjax.config.load import packaged_configs
from fbjax.config.schema import TASKS
from fbjax.model.backbones.registry import BACKBONES
from tests.support.every_part import of_config, of_network, of_task, traced_losses


@pytest.mark.parametrize("name", packaged_configs())
def test_the_step_of_every_config_is_traced(name, tmp_path):
    config = of_config(name, tmp_path)
    assert traced_losses(config) == config.tasks.keys()


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_step_of_every_task_alone_is_traced(name, tmp_path):
    config = of_task(name, tmp_path)
    assert traced_losses(config) == config.tasks.keys() >= {name}


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_step_of_every_patch_network_is_traced(name, tmp_path):
    config = of_network(name, tmp_path)
    assert traced_losses(config) == config.tasks.keys()
