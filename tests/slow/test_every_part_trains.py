"""Every config, task and patch network of the project trains: two steps at tiny sizes, on one device."""

import pytest

from fbjax.config.load import packaged_configs
from fbjax.config.schema import TASKS
from fbjax.model.backbones.registry import BACKBONES
from tests.support.every_part import assert_trains, of_config, of_network, of_task


@pytest.mark.parametrize("name", packaged_configs())
def test_every_config_trains(name, tmp_path):
    assert_trains(of_config(name, tmp_path))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_trains_alone(name, tmp_path):
    assert_trains(of_task(name, tmp_path))


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_patch_network_serves_training(name, tmp_path):
    assert_trains(of_network(name, tmp_path))
