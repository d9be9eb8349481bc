from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

import akd.registry
from akd.errors import ExperimentError
from akd.registry import Registry


@pytest.fixture
def fruit() -> Registry:
    registry = Registry("fruit", "akd.fruit")
    registry.register("apple", colour="red")(lambda: "an apple")
    registry.register("pear")(lambda: "a pear")
    return registry


def test_names_and_info(fruit: Registry) -> None:
    assert fruit.names() == ["apple", "pear"]
    assert fruit.info("apple") == {"colour": "red"}
    assert fruit.info("pear") == {}
    assert fruit.info("unheard") == {}
    assert fruit.get("apple")() == "an apple"


def test_twice_is_an_error(fruit: Registry) -> None:
    with pytest.raises(ValueError, match="fruit 'apple' is registered twice"):
        fruit.register("apple")(lambda: None)
    assert fruit.get("apple")() == "an apple"


def test_the_decorator_gives_the_function_back() -> None:
    def factory() -> None: ...

    assert Registry("fruit", "akd.fruit").register("x")(factory) is factory


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aple", "fruit = 'aple': there is no such fruit, did you mean 'apple'?"),
        ("zzz", "fruit = 'zzz': there is no such fruit, known are apple, pear"),
        ("", "fruit = '': there is no such fruit, known are apple, pear"),
    ],
)
def test_unknown_name(fruit: Registry, name: str, message: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        fruit.get(name)
    assert str(caught.value) == message


def test_unknown_name_says_where(fruit: Registry) -> None:
    with pytest.raises(ExperimentError) as caught:
        fruit.get("aple", key="student", where="f.yaml:2")
    assert str(caught.value) == "f.yaml:2: student = 'aple': there is no such fruit, did you mean 'apple'?"


def test_module_and_factory(fruit: Registry) -> None:
    assert fruit.get("akd.errors:near")("a", []) == ""


@pytest.mark.parametrize("name", ["no_such_module_1:x", "akd.errors:nothing", ":x", ".x:y", "akd.errors:", ":"])
def test_module_and_factory_that_cannot_be_imported(fruit: Registry, name: str) -> None:
    with pytest.raises(ExperimentError, match=r"^fruit = .*: cannot be imported: ") as caught:
        fruit.get(name)
    assert "\n" not in str(caught.value)


def test_names_of_other_packages(fruit: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mango", "akd.errors:one_of", "akd.fruit")
    monkeypatch.setattr(akd.registry, "entry_points", lambda group: [entry] if group == "akd.fruit" else [])
    assert fruit.names() == ["apple", "mango", "pear"]
    assert fruit.get("mango")(["x"]) == "one of x"
    with pytest.raises(ExperimentError, match="did you mean 'mango'"):
        fruit.get("mangoo")


def test_holds_its_own_names_and_those_of_other_packages(fruit: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [EntryPoint("fig", "no_such_module:fig", "akd.fruit")]
    monkeypatch.setattr(akd.registry, "entry_points", lambda group: offered if group == "akd.fruit" else [])
    assert "apple" in fruit
    assert "fig" in fruit
    assert "plum" not in fruit


def test_names_that_may_have_been_meant(fruit: Registry) -> None:
    with pytest.raises(ExperimentError, match="no such fruit, did you mean 'carrot'"):
        fruit.get("carot", also=["carrot"])
