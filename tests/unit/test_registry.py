"""Registry: files of a package register themselves, and a wrong name is answered with the right one."""

import sys

import pytest

from fbjax.core.registry import Registry


@pytest.fixture
def fruit(tmp_path, monkeypatch):
    """A registry `FRUIT` in the package `orchard`, whose one module registers the fruit "apple"."""
    folder = tmp_path / "orchard"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        'from fbjax.core.registry import Registry\n\nFRUIT = Registry("fruit", "orchard")\n'
    )
    _grow(folder, "apple")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder, __import__("orchard").FRUIT
    for name in [name for name in sys.modules if name.split(".")[0] == "orchard"]:
        del sys.modules[name]


def _grow(folder, name):
    source = f'from orchard import FRUIT\n\n\n@FRUIT.register("{name}")\ndef {name}():\n    return "a {name}"\n'
    (folder / f"{name}.py").write_text(source)


def test_a_file_in_the_package_is_all_it_takes(fruit):
    folder, registry = fruit
    _grow(folder, "pear")
    assert list(registry) == ["apple", "pear"]
    assert registry["pear"]() == "a pear"
    assert "pear" in registry and "plum" not in registry and len(registry) == 2


def test_a_module_elsewhere_registers_alike(fruit):
    _, registry = fruit
    kiwi = registry.register("kiwi")(object())
    assert registry["kiwi"] is kiwi
    assert list(registry) == ["apple", "kiwi"]


def test_an_unknown_name_is_answered_with_what_there_is(fruit):
    _, registry = fruit
    with pytest.raises(ValueError, match=r"^unknown fruit 'aple'; did you mean 'apple'\? \(known: apple\)$"):
        registry["aple"]
    with pytest.raises(ValueError, match=r"^unknown fruit 'xyz' \(known: apple\)$"):
        registry["xyz"]


def test_a_name_belongs_to_one_thing(fruit):
    _, registry = fruit
    thing = registry["apple"]
    assert registry.register("apple")(thing) is thing
    with pytest.raises(ValueError, match="fruit 'apple' is registered already"):
        registry.register("apple")(object())


def test_an_import_that_fails_is_not_hidden(fruit):
    folder, registry = fruit
    (folder / "rotten.py").write_text("import no_such_library\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        registry["apple"]


def test_no_package_is_an_error():
    with pytest.raises(ModuleNotFoundError):
        Registry("fruit", "no_such_package")["apple"]
