"""The checker: right on real images, however shifted or slightly turned; wrong on every wrong image."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import ndimage

from rank_e.errors import RankEError
from rank_e.shapes import world
from rank_e.shapes.captions import COLOURS, COMPOSITIONS, SHAPES, parse_caption
from rank_e.shapes.checker import check, read
from rank_e.shapes.render import render
from rank_e.shapes.scene import Background, Object, Scene

GREY = Background("diagonal", 1, False)


def draw(*objects: Object, background: Background = GREY) -> np.ndarray:
    """uint8 [3, 48, 48]."""
    return render(Scene(objects, background, "", "", 0)).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def real() -> tuple[list[world.Scene], list[world.Prompt], torch.Tensor]:
    scenes, prompts = world.scenes("held_out", 300, seed=1), world.prompts("held_out", 300, seed=1)
    return scenes, prompts, world.images(scenes)


@pytest.mark.parametrize("split", world.SPLITS)
def test_real_images_are_right(split: str) -> None:
    verdicts = world.check_images(world.images(world.scenes(split, 2000, seed=0)), world.prompts(split, 2000, seed=0))
    assert verdicts.dtype == torch.bool and verdicts.float().mean() >= 0.995


def test_reading_a_scene_gives_back_its_objects(real: tuple) -> None:
    for scene, image in zip(real[0], real[2], strict=True):
        seen = read(image.numpy())
        assert len(seen) == len(scene.objects)
        for item in scene.objects:
            near = [b for b in seen if abs(b.row - item.row) < 1 and abs(b.col - item.col) < 1]
            assert [(b.shape, b.colour) for b in near] == [(item.shape, item.colour)], scene


@pytest.mark.parametrize("degrees", [-10, -5, 5, 10])
def test_turned_images_stay_right(real: tuple, degrees: float) -> None:
    turned = [ndimage.rotate(p.numpy(), degrees, (2, 1), reshape=False, order=1, mode="nearest") for p in real[2]]
    verdicts = [check(image, prompt.composition) for image, prompt in zip(turned, real[1], strict=True)]
    assert np.mean(verdicts) >= 0.99


@pytest.mark.parametrize("shift", [(2, 1), (-1, 2), (0.5, -1.5)])
def test_shifted_images_stay_right(real: tuple, shift: tuple[float, float]) -> None:
    moved = [ndimage.shift(p.numpy(), (0, *shift), order=1, mode="nearest") for p in real[2]]
    verdicts = [check(image, prompt.composition) for image, prompt in zip(moved, real[1], strict=True)]
    assert np.mean(verdicts) >= 0.99


def test_soft_and_slightly_noisy_images_stay_right(real: tuple) -> None:
    rng = np.random.default_rng(0)
    soft = [ndimage.gaussian_filter(p.numpy(), (0, 0.8, 0.8)) for p in real[2]]
    noisy = [np.clip(p + rng.normal(0, 0.02, p.shape), 0, 1) for p in soft]
    verdicts = [check(image, prompt.composition) for image, prompt in zip(noisy, real[1], strict=True)]
    assert np.mean(verdicts) >= 0.99


def test_recoloured_reshaped_and_recounted_scenes_are_rejected(real: tuple) -> None:
    tried = 0
    for scene, prompt in zip(real[0], real[1], strict=True):
        first, rest = scene.objects[0], scene.objects[1:]
        wrong = [rest]
        # Object 0 is the one whose colour the caption names, if it names any.
        if prompt.composition.items[0].colour:
            wrong += [(replace(first, colour=colour), *rest) for colour in COLOURS if colour != first.colour]
        wrong += [(replace(first, shape=s, inradius=5), *rest) for s in SHAPES if s != first.shape]
        for objects in wrong:
            tried += 1
            assert not check(draw(*objects, background=scene.background), prompt.composition), (
                objects,
                prompt,
            )
    assert tried > 1000


def test_an_additional_object_is_rejected() -> None:
    one = Object("circle", "red", 14, 14, 6)
    for extra in (Object("circle", "red", 34, 34, 6), Object("square", "blue", 34, 14, 5)):
        assert check(draw(one), parse_caption("a red circle"))
        assert not check(draw(one, extra), parse_caption("a red circle"))
    three = [
        Object("circle", "red", 10, 10, 6),
        Object("circle", "red", 10, 36, 6),
        Object("circle", "red", 36, 24, 6),
    ]
    assert check(draw(*three), parse_caption("three red circles")) and not check(
        draw(*three), parse_caption("two red circles")
    )
    assert check(draw(*three[:2]), parse_caption("two red circles"))
    assert not check(draw(*three[:2]), parse_caption("three red circles"))


@pytest.mark.parametrize("row, col, true", [(24, 8, "left"), (24, 40, "right"), (8, 24, "above"), (40, 24, "below")])
def test_only_the_direction_that_holds_is_accepted(row: int, col: int, true: str) -> None:
    words = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
    places = {"left": "left", "right": "right", "above": "top", "below": "bottom"}
    circle = Object("circle", "red", row, col, 6)
    image = draw(circle, Object("square", "blue", 24, 24, 5))
    for direction, relation in words.items():
        assert check(image, parse_caption(f"a circle {relation} a square")) == (direction == true)
        assert check(image, parse_caption(f"a red circle {relation} a square")) == (direction == true)
        assert not check(image, parse_caption(f"a blue circle {relation} a square"))
        assert check(draw(circle), parse_caption(f"a circle at the {places[direction]}")) == (direction == true)
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}[true]
    assert check(image, parse_caption(f"a square {words[opposite]} a circle"))
    assert not check(image, parse_caption(f"a square {words[true]} a circle"))


def test_an_object_in_the_middle_is_at_no_side() -> None:
    image = draw(Object("circle", "red", 24, 26, 6))
    assert check(image, parse_caption("a circle"))
    assert not any(
        check(image, parse_caption(f"a circle at the {place}")) for place in ("left", "right", "top", "bottom")
    )


def test_colours_belong_to_their_objects() -> None:
    image = draw(Object("circle", "red", 14, 14, 7), Object("square", "blue", 34, 34, 6))
    assert check(image, parse_caption("a red circle and a blue square"))
    assert check(image, parse_caption("a blue square and a red circle"))
    assert check(image, parse_caption("a red circle and a square"))
    assert not check(image, parse_caption("a blue circle and a red square"))
    assert not check(image, parse_caption("a blue circle and a square"))


def test_a_image_satisfies_only_the_captions_that_are_true_of_its_scene(real: tuple) -> None:
    """Against a second reading of the caption, on the scene's data in place of its pixels."""
    for scene, image in zip(real[0][:24], real[2][:24], strict=True):
        for text in [*list(COMPOSITIONS)[scene.id % 6 :: 6], scene.caption]:
            assert check(image.numpy(), parse_caption(text)) == _true_of(text, scene), (text, scene)


def _true_of(text: str, scene: Scene) -> bool:
    composition = parse_caption(text)
    wanted = [item for item in composition.items for _ in range(item.count)]
    if len(wanted) != len(scene.objects):
        return False
    for order in permutations(scene.objects):
        looks = all(o.shape == i.shape and i.colour in ("", o.colour) for o, i in zip(order, wanted, strict=True))
        row, col = (order[1].row, order[1].col) if len(order) > 1 else (24.0, 24.0)
        down, right = order[0].row - row, order[0].col - col
        where = {
            "": True,
            "left": -right > abs(down),
            "right": right > abs(down),
            "above": -down > abs(right),
            "below": down > abs(right),
        }[composition.direction]
        far = composition.direction == "" or max(abs(down), abs(right)) >= 4
        if looks and where and far:
            return True
    return False


@pytest.mark.parametrize("damage", ["half", "hole", "smear", "stray"])
def test_a_damaged_object_is_no_object(damage: str) -> None:
    image = draw(Object("circle", "red", 24, 24, 9))
    plain = draw()
    if damage == "half":
        image[:, :, 22:] = plain[:, :, 22:]
    elif damage == "hole":
        image[:, 20:28, 20:28] = plain[:, 20:28, 20:28]
    elif damage == "smear":
        image[:, 22:27, 24:44] = np.array([200, 40, 40])[:, None, None]
    else:
        image[:, 2:6, 2:6] = np.array([40, 80, 220])[:, None, None]
    assert not check(image, parse_caption("a red circle"))


def test_a_speck_is_no_object() -> None:
    image = draw(Object("circle", "red", 24, 24, 9))
    image[:, 3:5, 3:5] = np.array([40, 80, 220])[:, None, None]
    assert check(image, parse_caption("a red circle"))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_blank_images_hold_nothing(value: float) -> None:
    image = np.full((3, 48, 48), value, dtype=np.float32)
    assert read(image) == [] and not check(image, parse_caption("a circle"))


def test_floats_and_bytes_read_alike(real: tuple) -> None:
    for image in real[2][:20]:
        as_bytes = (image.numpy() * 255).round().astype(np.uint8)
        assert read(as_bytes) == read(image.numpy())


def test_unreadable_images_are_errors() -> None:
    with pytest.raises(RankEError, match=r"\[3, 48, 48\]"):
        read(np.zeros((48, 48, 3), dtype=np.float32))
    with pytest.raises(RankEError, match="int64"):
        read(np.zeros((3, 48, 48), dtype=np.int64))
    with pytest.raises(RankEError, match="not finite"):
        read(np.full((3, 48, 48), np.nan, dtype=np.float32))
    with pytest.raises(RankEError, match="2 images for 1 prompts"):
        world.check_images(torch.zeros(2, 3, 48, 48), world.prompts("train", 1, seed=0))
