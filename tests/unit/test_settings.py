"""The page of settings is current, and a setting says what it allows."""

import json
from pathlib import Path

import pytest

from fbjax.config.load import config_to_json, load_config, read_config
from fbjax.config.reference import settings_page
from fbjax.config.renamed import RENAMED
from fbjax.config.schema import PatchConfig, TrainConfig
from fbjax.config.settings import problems
from fbjax.core.registry import meant, nearest

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


def test_a_plugin_on_the_command_line_is_imported(tmp_path):
    with pytest.raises(ValueError, match=r"nonesuch: ModuleNotFoundError: No module named 'nonesuch'"):
        load_config("my_catalogue", ["plugins=nonesuch"])
    (tmp_path / "plugin.py").write_text("raise RuntimeError('it runs')\n")
    with pytest.raises(ValueError, match=r"plugin.py line 1: RuntimeError: it runs"):
        load_config("my_catalogue", [f"plugins={tmp_path / 'plugin.py'}"])


def test_values_outside_an_interval_or_a_choice_are_problems():
    assert problems(TrainConfig(), "train") == problems(PatchConfig(), "patches") == []
    assert problems(TrainConfig(beta1=1.0), "train") == ["train.beta1 1.0 must be in [0, 1)"]
    assert problems(TrainConfig(learning_rate=float("nan")), "train") == ["train.learning_rate nan must be above 0"]
    assert problems(TrainConfig(seed=2**31), "train") == ["train.seed 2147483648 must be at most 2147483647"]
    (problem,) = problems(PatchConfig(geometry="feature_maps"), "patches")
    assert problem.endswith("(use 'per_patch' or 'feature_map'); did you mean 'feature_map'?")


def test_what_was_meant_is_offered_only_where_it_is_close():
    assert meant("widht", ["width", "depth"]) == "; did you mean 'width'?" and meant("colour", ["width"]) == ""


def test_a_setting_that_there_is_not_is_answered_with_the_nearest_not_with_all():
    wrong = {
        "train.batchsize": r"; did you mean 'train.batch_size'\?$",
        "batch_size": r" \(the nearest are train.batch_size, [\w.]+, [\w.]+\)$",
        "train.lr": r" \(the nearest are train.learning_rate, [\w.]+, [\w.]+\)$",
        "groups.x": r" \(the nearest are [\w.]+, [\w.]+, [\w.]+\)$",
        "": r" \(the nearest are [\w.]+, [\w.]+, [\w.]+\)$",
    }
    for name, said in wrong.items():
        with pytest.raises(ValueError, match=f"^no setting config.{name}{said}"):
            load_config("my_catalogue", [f"{name}=1"])
    assert nearest("dropout", ["model.width", "train.column_dropout", "data.train"], 1) == ["train.column_dropout"]


FAULTS = {  # a config file -> what is said after its path
    "": " has no function get_config(): see configs/my_catalogue.py for one",
    "get_config = 3": " has no function get_config(): see configs/my_catalogue.py for one",
    "def get_config(:\n": " line 1 is not Python: ",
    "import nonesuch\n": " line 1: ModuleNotFoundError: No module named 'nonesuch'",
    "\n\n1 / 0\n": " line 3: ZeroDivisionError: division by zero",
    "import sys\nsys.exit('no')\n": " line 2: SystemExit: no",
    "def get_config():\n    raise ValueError('no\\nway')\n": " line 2: no way",
    "def get_config():\n    return {}['x']\n": " line 2: KeyError: 'x'",
    "def get_config(size):\n    return size\n": ": TypeError: get_config() missing 1 required positional argument",
    "def get_config():\n    pass\n": ": get_config() returns NoneType, not the settings",
}
CHANGES = {  # a line of get_config(), the fifth of its file -> what is said after the file's path
    "c.lock().train.steps": " line 5: no setting 'steps' (the nearest are train.num_steps, ",
    "c.model = 3": " line 5: TypeError: ",
    "c.model.widht = 3": ": no setting config.model.widht; did you mean 'model.width'?",
    "c.tasks = {'tia': 1}": ": config.tasks.tia holds settings by their names, not 1",
    "c.groups = {'x': 1}": ": config.groups.x holds settings by their names, not 1",
    "c.patches.levels = ('a',)": ": config.patches.levels expects int only, not 'a'",
    "c.plugins = ('gone.py',)": ": gone.py: [Errno 2] No such file",
}
FAULTS |= {
    f"from fbjax.config import defaults\n\ndef get_config():\n    c = defaults()\n    {line}\n    return c\n": said
    for line, said in CHANGES.items()
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_faulty_config_file_is_one_line_with_its_path_and_line(code, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(ValueError) as error:
        load_config(path)
    said = str(error.value)
    assert said.startswith(f"{path}{FAULTS[code]}") and "\n" not in said


def test_a_fault_in_a_module_beside_the_config_is_told_by_its_own_line(tmp_path):
    (tmp_path / "common.py").write_text("def sizes(c):\n    return c.widths\n")
    (tmp_path / "mine.py").write_text("from common import sizes\n\ndef get_config():\n    return sizes(object())\n")
    with pytest.raises(ValueError, match=r"/common.py line 2: AttributeError: 'object' object has no attribute"):
        load_config(tmp_path / "mine.py")
    (tmp_path / "common.py").write_text("def sizes(:\n")
    with pytest.raises(ValueError, match=r"/common.py line 1 is not Python: "):
        load_config(tmp_path / "mine.py")


@pytest.mark.parametrize(
    "name, said", [("", "is a folder"), ("a.yaml", "is no Python file"), ("no.py", "no config file")]
)
def test_what_is_no_python_file_is_no_config(name, said, tmp_path):
    (tmp_path / "a.yaml").write_text("train: 3\n")
    with pytest.raises((OSError, ValueError), match=said):
        load_config(tmp_path / name)


def damaged_configs(text):
    """(what a workdir's config.json holds, what is said of it)"""
    changed = lambda **changes: json.dumps(json.loads(text) | changes).encode()  # noqa: E731
    model = json.loads(text)["model"]
    yield text.encode()[: len(text) // 2], "is damaged: "
    yield b"", "is damaged: "
    yield b"\xff", "is damaged: "
    yield b"[]", "is damaged: it holds settings by their names, not []"
    yield b"{}", "of this version of fbjax: it lacks data, patches, model, tasks, train"
    yield changed(model=3), "of this version of fbjax: config.model holds settings by their names, not 3"
    yield changed(model=model | {"widht": 3}), "no setting config.model.widht; did you mean 'model.width'?"
    yield changed(model=model | {"width": "3"}), "config.model.width expects int, such as 768, not '3'"
    yield changed(model=model | {"width": None}), "config.model.width expects int, such as 768, not None"
    yield changed(model=model | {"width": 0}), "config.model.width 0 must be at least 1"
    yield changed(model=model | {"attention": "flash"}), "config.model.attention 'flash' is unknown"
    yield changed(tasks={"gone": {}}), "no task 'gone'"
    yield changed(plugins="my.py"), "config.plugins expects list"


def test_a_damaged_config_of_a_workdir_is_one_line_with_its_path_and_the_remedy(tmp_path):
    path, config = tmp_path / "config.json", load_config("quickstart_fashionbert")
    for content, said in damaged_configs(config_to_json(config)):
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            read_config(path)
        message = str(error.value)
        assert message.startswith(f"{path} is ") and said in message and "\n" not in message
        assert message.endswith("(put a copy of the file there, or train in another --workdir)")
    path.write_text(config_to_json(config))
    assert read_config(path) == config


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
