"""The page of settings is current, and a setting says what it allows."""

from pathlib import Path

import pytest

from fbjax.config.load import load_config
from fbjax.config.reference import settings_page
from fbjax.config.renamed import RENAMED
from fbjax.config.schema import PatchConfig, TrainConfig
from fbjax.config.settings import meant, problems

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


def test_the_page_of_settings_is_what_the_schema_says():
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run python -m fbjax.config.reference > " + str(PAGE)


@pytest.mark.parametrize("name", RENAMED)
def test_a_setting_of_an_older_version_is_told_by_its_name(name):
    with pytest.raises(ValueError, match=f"config.{name} is "):
        load_config("my_catalogue", [f"{name}=1"])


def test_a_config_file_with_an_old_setting_is_told_its_new_name(tmp_path):
    code = "from fbjax.config import defaults\n\n\ndef get_config():\n    c = defaults()\n    c.{} = 1\n    return c\n"
    cases = {"patches.enlarge_to": "is config.patches.patch_input_size", "model.widht": "did you mean 'model.width'"}
    for setting, said in cases.items():
        (tmp_path / "old.py").write_text(code.format(setting))
        with pytest.raises(ValueError, match=said):
            load_config(tmp_path / "old.py")


def test_values_outside_an_interval_or_a_choice_are_problems():
    assert problems(TrainConfig(), "train") == problems(PatchConfig(), "patches") == []
    assert problems(TrainConfig(beta1=1.0), "train") == ["train.beta1 1.0 must be in [0, 1)"]
    assert problems(TrainConfig(learning_rate=float("nan")), "train") == ["train.learning_rate nan must be above 0"]
    (problem,) = problems(PatchConfig(geometry="feature_maps"), "patches")
    assert problem.endswith("(use 'per_patch' or 'feature_map'); did you mean 'feature_map'?")


def test_what_was_meant_is_offered_only_where_it_is_close():
    assert meant("widht", ["width", "depth"]) == "; did you mean 'width'?" and meant("colour", ["width"]) == ""


def test_two_folders_of_configs_may_each_have_a_module_of_the_same_name(tmp_path):
    for folder, steps in (("a", 7), ("b", 8)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "common.py").write_text(f"STEPS = {steps}\n")
        (tmp_path / folder / "run.py").write_text(
            "from common import STEPS\n\nfrom fbjax.config import defaults\n\n\ndef get_config():\n    c = defaults()\n"
            "    c.model.vocabulary, c.train.warmup_steps, c.train.num_steps = 'train:99', 1, STEPS\n    return c\n"
        )
    assert [load_config(tmp_path / folder / "run.py").train.num_steps for folder in "ab"] == [7, 8]
    assert load_config("quickstart_fashionbert").train.num_steps == 8000
