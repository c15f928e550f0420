"""Marqo's benchmark by hand: which queries a catalogue gives, which gallery a task has, what its figures count."""

import json

import numpy as np
import pytest

from fbjax.evaluation.galleries import marqo, queries
from fbjax.evaluation.galleries.queries import Asked

IDS = np.array(["a", "b", "c", "d"])
GALLERY = np.eye(4, dtype=np.float32)


def test_figures_are_those_counted_by_hand():
    asked = Asked([], [np.array([0]), np.array([1, 2])], np.array([1, 4]), {})  # two of four relevant ones are there
    texts = np.array([[0.9, 0.1, 0, 0], [0, 0.5, 0.1, 0.8]], np.float32)  # ranks: 1; 2 and 3
    figures = marqo.task_figures(texts, GALLERY, asked)
    expected = {"recall@1": 0.5, "recall@10": (1 + 2 / 4) / 2, "precision@1": 0.5, "precision@10": (0.1 + 0.2) / 2}
    expected |= {"average_recall": (0.5 + 0.75) / 2, "average_precision": (0.5 + 0.15) / 2, "mrr@10": (1 + 1 / 2) / 2}
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value), name
        assert figures[f"{name}.ci"][0] <= value <= figures[f"{name}.ci"][1]


def test_a_products_vector_is_nine_parts_image_and_one_part_text():
    found = marqo.product_vectors(GALLERY[:1], GALLERY[1:2])
    np.testing.assert_allclose(found, np.array([[0.9, 0.1, 0, 0]]) / np.sqrt(0.82), rtol=1e-6)


def test_a_catalogue_gives_its_texts_and_categories_with_all_products_that_have_them():
    drawn = marqo.drawn_tasks(IDS, ["red dress", "bag", "red dress", ""], ["Dress", "Bag", "Dress", "Bag"], None)
    by_task = {task: dict(zip(file.texts, file.relevant, strict=True)) for task, file in drawn.items()}
    assert by_task == {
        "text-to-image": {"red dress": ("a", "c"), "bag": ("b",)},
        "category-to-product": {"Dress": ("a", "c"), "Bag": ("b", "d")},
    }
    fewer = marqo.drawn_tasks(IDS, ["red dress", "bag", "hat", "coat"], [""] * 4, 2)
    assert list(fewer) == ["text-to-image"] and len(fewer["text-to-image"].texts) == 2


def test_a_file_names_the_task_of_each_query(tmp_path):
    path = tmp_path / "queries.jsonl"
    lines = [
        {"query": "red dress", "relevant": ["a"]},
        {"query": "Dress", "relevant": ["a", "c"], "task": "category-to-product"},
        {"query": "red", "relevant": ["c"], "task": "colour-to-product"},
        {"query": "bag", "relevant": ["b"], "task": "text-to-image"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    tasks = marqo.tasks_of(queries.read_queries(path))
    assert {task: file.texts for task, file in tasks.items()} == {
        "text-to-image": ("red dress", "bag"),
        "category-to-product": ("Dress",),
        "colour-to-product": ("red",),
    }
    path.write_text(json.dumps(lines[0] | {"task": "image-to-text"}))
    with pytest.raises(ValueError, match="has a query of task 'image-to-text': name it 'text-to-image', or as"):
        marqo.tasks_of(queries.read_queries(path))
