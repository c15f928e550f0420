"""The sweep's table by hand, and that every variant of it is a config that trains."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from fbjax import config as configs

PATH = Path(__file__).parents[1] / "launch" / "sweep.py"
SPEC = importlib.util.spec_from_file_location("sweep", PATH)
sweep = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sweep)


@pytest.mark.parametrize("name", sweep.SWEEPS)
def test_every_variant_of_a_sweep_is_a_config(name, tmp_path):
    arguments = SimpleNamespace(towers=str(tmp_path), steps=600, settings=[])
    for variant in sweep.SWEEPS[name].values():
        configs.load(PATH.parents[1] / "configs" / "catalogue.py", sweep.overrides_of(variant, 1, arguments))


def test_the_table_by_hand():
    def metrics(rank):
        return {"image_to_text": {"rank@1": rank}, "text_to_image": {"rank@1": rank + 0.02}, "matching": {"auc": 0.9}}

    lines = sweep.table({"a": [metrics(0.40), metrics(0.44)], "b": [metrics(0.50), metrics(0.54)]})
    assert lines[2:4] == [
        "| a | 43.0% | 41.0% to 45.0% | +0.0 | 0.900 |",
        "| b | 53.0% | 51.0% to 55.0% | +10.0 | 0.900 |",
    ]
    # deviation .02 sqrt 2, 2 degrees of freedom: (4.303 + 1.061) x .0283 x sqrt(2 / 2) = .152
    assert lines[-1].endswith("15.2 points")
    assert len(sweep.table({"a": [metrics(0.4)]})) == 3  # one seed knows no spread


def test_a_folder_of_other_settings_is_not_taken_for_this_sweep_s(tmp_path):
    (tmp_path / "asked.json").write_text('["other"]')
    arguments = SimpleNamespace(config="c", lists="l", queries=3)
    with pytest.raises(ValueError, match="holds a run of other settings"):
        sweep.run(tmp_path, [], arguments, sweep.shares_of_cores(1))
