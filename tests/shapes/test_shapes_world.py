"""The image world: a closed language, a clean split, scenes that obey captions, repeatable images."""

import itertools

import numpy as np
import pytest
import torch

from rank_e.errors import RankEError
from rank_e.shapes import world
from rank_e.shapes.captions import (
    CATEGORIES,
    COMPOSITIONS,
    VOCABULARY,
    Composition,
    Item,
    attribute_pairs,
    caption,
    meaning,
    parse_caption,
    split_of,
)
from rank_e.shapes.render import render
from rank_e.shapes.scene import AREA, CIRCUMRADIUS, GAP, SIZE, Background, Object, Scene


def test_every_caption_parses_to_the_composition_it_was_made_from() -> None:
    assert len(COMPOSITIONS) == 273
    for text, composition in COMPOSITIONS.items():
        assert caption(parse_caption(text)) == text
        assert parse_caption(text) == composition
        assert set(text.split()) <= set(VOCABULARY)
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 23


def test_captions_mean_what_they_say() -> None:
    assert parse_caption("two blue squares") == Composition("counting", (Item("square", "blue", 2),))
    assert parse_caption("a red circle left of a square") == Composition(
        "position", (Item("circle", "red"), Item("square")), "left"
    )
    assert parse_caption("a circle at the top") == Composition("one object", (Item("circle"),), "above")
    assert parse_caption("a red circle and a blue square").category == "color attribution"
    assert parse_caption("a red circle and a square").category == "two objects"
    assert parse_caption("a red circle").category == "colors"


@pytest.mark.parametrize(
    "text, named",
    [("a purple circle", "'purple'"), ("circle a red", "order"), ("", "order"), ("a red circle ", "order")],
)
def test_a_foreign_caption_is_an_error_that_names_the_reason(text: str, named: str) -> None:
    with pytest.raises(RankEError, match=named):
        parse_caption(text)


def test_the_split_is_disjoint_in_meaning_and_leaves_every_word_in_training() -> None:
    train, validation, held = (world.compositions(split) for split in ("train", "validation", "held_out"))
    meanings = [{meaning(c) for c in split} for split in (train, validation, held)]
    assert sum(map(len, meanings)) == len(set().union(*meanings))
    unused = [text for text, c in COMPOSITIONS.items() if split_of(c) == "unused"]
    assert unused == ["three red circles", "three red squares", "three red triangles"]  # training has no three of red
    assert len(train) + len(validation) + len(held) + len(unused) == len(COMPOSITIONS)
    assert len(held) == 68
    joined = set().union(*(attribute_pairs(c) for c in train))
    assert all(attribute_pairs(c) <= joined for c in (*validation, *held))
    for category in CATEGORIES:
        ours, tuned = ({meaning(c) for c in split if c.category == category} for split in (held, validation))
        every = {meaning(c) for c in COMPOSITIONS.values() if c.category == category}
        assert len(ours) > 3 and len(ours) <= len(every) / 3
        assert 1 <= len(tuned) <= len(ours)
        words = {w for t, c in COMPOSITIONS.items() if c.category == category for w in t.split()}
        seen = {w for c in train if c.category == category for w in caption(c).split()}
        assert words == seen
    with pytest.raises(RankEError, match="'test'"):
        world.compositions("test")


@pytest.mark.parametrize(
    "first, second",
    [
        ("a circle left of a square", "a square right of a circle"),
        ("a circle above a square", "a square below a circle"),
        ("a red circle and a blue square", "a blue square and a red circle"),
        ("a circle and a square", "a square and a circle"),
    ],
)
def test_two_wordings_of_one_meaning_fall_on_one_side(first: str, second: str) -> None:
    assert meaning(parse_caption(first)) == meaning(parse_caption(second))
    assert split_of(parse_caption(first)) == split_of(parse_caption(second))


@pytest.mark.parametrize(
    "first, second",
    [
        ("a circle left of a square", "a square left of a circle"),
        ("a circle left of a square", "a circle above a square"),
        ("a red circle and a blue square", "a blue circle and a red square"),
        ("two red circles", "three red circles"),
    ],
)
def test_other_meanings_have_other_keys(first: str, second: str) -> None:
    assert meaning(parse_caption(first)) != meaning(parse_caption(second))


def test_prompts_repeat_by_seed_keep_the_mix_and_use_only_their_split() -> None:
    prompts = world.prompts("held_out", 200, seed=3)
    assert prompts == world.prompts("held_out", 200, seed=3)
    assert prompts != world.prompts("held_out", 200, seed=4)
    assert [p.id for p in prompts] == list(range(200))
    for split in world.SPLITS:
        assert {split_of(p.composition) for p in world.prompts(split, 200, seed=3)} == {split}
    counts = {category: sum(p.category == category for p in prompts) for category in CATEGORIES}
    assert counts == {category: round(200 * share) for category, share in world.SHARES.items()}
    # A category's captions come again only after all of them have come.
    colours = [p.text for p in prompts if p.category == "colors"]
    times = [colours.count(text) for text in set(colours)]
    assert len(times) == 4 and max(times) - min(times) <= 1
    assert prompts[7] == world.Prompt.from_text(7, prompts[7].text)
    assert sum(world.SHARES.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("n", [1, 7, 33])
def test_any_number_of_prompts_is_exact(n: int) -> None:
    assert len(world.prompts("train", n, seed=0)) == n


def test_no_prompts_or_scenes_is_an_error() -> None:
    with pytest.raises(RankEError, match="at least one"):
        world.prompts("train", 0, seed=0)
    with pytest.raises(RankEError, match="at least one"):
        world.images([])


def test_a_scene_depends_on_seed_and_prompt_alone() -> None:
    prompts = world.prompts("train", 20, seed=5)
    scenes = world.scenes("train", 20, seed=5)
    assert [world.scene_for(p, 5) for p in reversed(prompts)] == scenes[::-1]
    assert world.scene_for(prompts[0], 6) != scenes[0]
    assert [s.caption for s in scenes] == [p.text for p in prompts]
    drawn = world.images(scenes)
    assert torch.equal(drawn, world.images(world.scenes("train", 20, seed=5)))
    assert torch.equal(drawn[3:4], world.images(scenes[3:4]))


def test_every_caption_can_be_drawn_as_it_asks_without_touching_objects() -> None:
    for i, text in enumerate(COMPOSITIONS):
        prompt = world.Prompt.from_text(i, text)
        scene = world.scene_for(prompt, seed=11)
        wanted = [item for item in prompt.composition.items for _ in range(item.count)]
        assert len(scene.objects) == prompt.composition.count <= 3
        for item, drawn in zip(wanted, scene.objects, strict=True):
            assert drawn.shape == item.shape and item.colour in ("", drawn.colour)
            reach = drawn.inradius * CIRCUMRADIUS[drawn.shape]
            assert reach <= min(drawn.row, drawn.col, SIZE - drawn.row, SIZE - drawn.col) - 1
            assert drawn.inradius**2 * AREA[drawn.shape] >= 80
        for a, b in itertools.combinations(scene.objects, 2):
            reach = a.inradius * CIRCUMRADIUS[a.shape] + b.inradius * CIRCUMRADIUS[b.shape]
            assert np.hypot(a.row - b.row, a.col - b.col) >= reach + GAP
        row, col = scene.objects[0].row, scene.objects[0].col
        other = scene.objects[1:2] or (Object("", "", SIZE / 2, SIZE / 2, 0),)
        across, down = col - other[0].col, row - other[0].row
        lead = {"left": -across, "right": across, "above": -down, "below": down, "": None}
        if (along := lead[prompt.composition.direction]) is not None:
            assert along >= 8 and along > 1.5 * (abs(across) + abs(down) - along)


def test_images_are_floats_in_range_without_noise() -> None:
    drawn = world.images(world.scenes("train", 12, seed=0))
    assert drawn.shape == (12, 3, SIZE, SIZE) and drawn.dtype == torch.float32
    assert drawn.min() >= 0 and drawn.max() <= 1
    background = Background("rows", 1, False)
    empty = render(Scene((), background, "colors", "", 0))
    assert (empty == empty[:, :1]).all()  # stripes along the rows: every column is alike
    assert int((empty.max(axis=2) - empty.min(axis=2)).max()) < 0.1 * 255  # and nearly grey


def test_an_object_covers_its_area_in_its_colour_and_leaves_the_rest_alone() -> None:
    background = Background("gradient", 0, False)
    empty = render(Scene((), background, "colors", "", 0)).astype(int)
    for shape, inradius in (("circle", 8), ("square", 7), ("triangle", 6)):
        item = Object(shape, "red", 20.0, 30.0, inradius)
        drawn = render(Scene((item,), background, "colors", "a red " + shape, 0)).astype(int)
        changed = (drawn != empty).any(axis=2)
        red = (drawn[..., 0] - drawn[..., 2]) > 60
        assert red.sum() == pytest.approx(AREA[shape] * inradius**2, rel=0.06)
        rows, cols = np.nonzero(red)
        assert rows.mean() + 0.5 == pytest.approx(20, abs=0.3) and cols.mean() + 0.5 == pytest.approx(30, abs=0.3)
        rows, cols = np.nonzero(changed)
        assert np.hypot(rows + 0.5 - 20, cols + 0.5 - 30).max() <= inradius * CIRCUMRADIUS[shape] + 1.5
        rim, middle = drawn[rows.min() + 1 : rows.max()][red[rows.min() + 1 : rows.max()]], drawn[20, 30]
        assert rim[:, 0].min() < 0.75 * middle[0]  # the outline is darker than the face


def test_a_larger_image_shows_the_same_scene() -> None:
    scene = world.scenes("train", 1, seed=2)[0]
    small, large = render(scene).astype(float), render(scene, 2 * SIZE).astype(float)
    pooled = large.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))
    assert np.abs(pooled - small).mean() < 4
