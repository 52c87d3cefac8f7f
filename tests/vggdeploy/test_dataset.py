"""Folders of images: found, labelled, chosen and known by digest; work done ahead in order."""

import os
import threading

import numpy as np
import pytest
from PIL import Image

from vggdeploy import dataset, preprocess
from vggdeploy.errors import DatasetError


def fill(root, *names):
    """Small images of different content, at these paths below a folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        value = sum(name.encode()) % 251
        Image.new("RGB", (6, 5), (value, 255 - value, 7)).save(path)
    return root


def names(found):
    return [sample.path.relative_to(found.root).as_posix() for sample in found.samples]


def test_class_folders_are_labelled_in_sorted_order(tmp_path):
    found = dataset.scan(fill(tmp_path, "dog/2.png", "cat/1.jpg", "ant/deep/er/3.bmp", "dog/1.PNG"))
    assert names(found) == ["ant/deep/er/3.bmp", "cat/1.jpg", "dog/1.PNG", "dog/2.png"]
    assert found.labelled
    assert found.labels().tolist() == [0, 1, 2, 2]
    assert found.labels().dtype == np.int64


def test_an_empty_class_folder_keeps_its_index(tmp_path):
    fill(tmp_path, "b/1.png", "c/1.png")
    (tmp_path / "a").mkdir()
    assert dataset.scan(tmp_path).labels().tolist() == [1, 2]


def test_wordnet_ids_are_imagenets_classes(tmp_path):
    # The first, a middle and the last of ILSVRC 2012's classes: tench, tabby, toilet tissue.
    fill(tmp_path, "n15075141/x.png", "n01440764/x.png", "n02123045/x.png")
    found = dataset.scan(tmp_path)
    assert found.labels().tolist() == [0, 281, 999]
    classes = dataset.imagenet_classes()
    assert len(classes) == 1000
    assert list(classes) == sorted(classes)


@pytest.mark.parametrize("other", ["cat", "n00000000", "n0144076"])
def test_a_name_among_wordnet_ids_that_is_none_is_an_error(tmp_path, other):
    fill(tmp_path, "n01440764/x.png", f"{other}/x.png")
    with pytest.raises(DatasetError, match=f"class folder '{other}' is not one of ImageNet"):
        dataset.scan(tmp_path)


def test_a_flat_folder_has_no_labels(tmp_path):
    fill(tmp_path, "b.png", "a.jpeg", "c.webp")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    found = dataset.scan(tmp_path)
    assert names(found) == ["a.jpeg", "b.png", "c.webp"]
    assert (found.labelled, found.labels(), found.ignored) == (False, None, 1)


def test_hidden_files_are_left_out_everywhere(tmp_path):
    fill(tmp_path, "a/1.png", "a/.2.png", ".b/3.png", "a/.thumbnails/4.png")
    assert names(dataset.scan(tmp_path)) == ["a/1.png"]


def test_an_empty_class_folder_moves_labels_and_what_depends_on_them(tmp_path):
    fill(tmp_path, "b/1.png", "c/2.png")
    before = dataset.scan(tmp_path)
    (tmp_path / "a").mkdir()
    after = dataset.scan(tmp_path)
    assert (before.labels().tolist(), after.labels().tolist()) == ([0, 1], [1, 2])
    assert before.digest() == after.digest()
    assert before.judged_digest() != after.judged_digest()


def test_labelled_and_flat_at_once_is_an_error(tmp_path):
    fill(tmp_path, "a/1.png", "2.png")
    with pytest.raises(DatasetError, match="both labelled and flat: got 1 images beside folders"):
        dataset.scan(tmp_path)


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="holds no image: got 0 other files"):
        dataset.scan(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("")
    with pytest.raises(DatasetError, match="holds no image: got 1 other files"):
        dataset.scan(tmp_path)
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        dataset.scan(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"notes\.txt is no folder"):
        dataset.scan(tmp_path / "a" / "notes.txt")


@pytest.fixture
def thirty(tmp_path):
    return dataset.scan(fill(tmp_path, *(f"{i % 3}/{i:02}.png" for i in range(30))))


def test_choosing_is_a_matter_of_the_seed(thirty):
    first = thirty.choose(10, seed=0)
    assert names(first) == names(thirty.choose(10, seed=0))
    assert names(first) != names(thirty.choose(10, seed=1))
    assert names(first) == sorted(names(first))
    assert len(set(names(first))) == len(first) == 10
    assert thirty.choose(None, seed=0) is thirty
    assert names(thirty.choose(30, seed=5)) == names(thirty)


def test_choosing_and_the_rest_are_the_whole(thirty):
    some = thirty.choose(12, seed=3)
    rest = thirty.without(some)
    assert not set(names(some)) & set(names(rest))
    assert sorted(names(some) + names(rest)) == names(thirty)


@pytest.mark.parametrize("count", [31, 0, -1])
def test_choosing_what_is_not_there_is_an_error(thirty, count):
    with pytest.raises(DatasetError, match=rf"got {count} of 30, expected 1 to 30 -- ask for"):
        thirty.choose(count, seed=0)


def test_the_digest_is_of_contents_and_names_and_not_of_the_place(tmp_path):
    def digest(place, *files):
        return dataset.scan(fill(tmp_path / place, *files)).digest()

    base = digest("one", "a/1.png", "b/2.png")
    assert digest("else/where", "a/1.png", "b/2.png") == base
    assert digest("renamed", "a/3.png", "b/2.png") != base
    assert digest("more", "a/1.png", "b/2.png", "b/3.png") != base
    Image.new("RGB", (6, 5), "white").save(tmp_path / "one" / "a" / "1.png")
    assert dataset.scan(tmp_path / "one").digest() != base


def test_files_are_read_once_for_the_digest(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    found = dataset.scan(tmp_path)
    said = found.digest()
    monkeypatch.setattr(dataset, "_content", lambda _: pytest.fail("it was read again"))
    assert found.digest() == said
    found.judged_digest()


def test_the_digest_refuses_what_is_no_image(tmp_path):
    fill(tmp_path, "1.png", "3.png")
    (tmp_path / "2.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"2\.png is of no known format"):
        dataset.scan(tmp_path).digest()


def test_pixels_come_in_order_and_a_bad_image_at_its_place(thirty):
    recipe = preprocess.Preprocess(size=(4, 4), resize="stretch")
    made = list(thirty.pixels(recipe))
    expected = [recipe.geometry(Image.open(sample.path)) for sample in thirty.samples]
    assert np.array_equal(made, expected)
    thirty.samples[7].path.write_bytes(thirty.samples[7].path.read_bytes()[:40])
    seen = []
    with pytest.raises(DatasetError, match=thirty.samples[7].path.name):
        seen.extend(iter(thirty.pixels(recipe)))
    assert len(seen) == 7


def test_batches_hold_every_image_once():
    images = [np.full((2, 3, 3), i, np.uint8) for i in range(7)]
    made = list(dataset.batches(iter(images), 3))
    assert [batch.shape for batch in made] == [(3, 2, 3, 3), (3, 2, 3, 3), (1, 2, 3, 3)]
    assert np.array_equal(np.concatenate(made), images)
    assert list(dataset.batches([], 3)) == []


def test_parallel_keeps_the_order_whichever_is_ready_first():
    second_done = threading.Event()

    def work(item):
        if item == 0:
            # Passes only if another thread does item 1 meanwhile.
            assert second_done.wait(30)
        if item == 1:
            second_done.set()
        return item * item

    assert list(dataset.parallel(work, range(9))) == [item * item for item in range(9)]


def test_parallel_looks_ahead_and_no_further():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    for given, _ in enumerate(dataset.parallel(lambda item: item, items(), ahead=4), start=1):
        assert len(taken) - given <= 4
    assert given == 100


def test_parallel_raises_at_the_place_of_the_error():
    started, seen = [], []

    def work(item):
        started.append(item)
        if item == 5:
            raise DatasetError("item 5 is bad", got=1, expected=2, fix="mend it")
        return item

    with pytest.raises(DatasetError, match="item 5"):
        for result in dataset.parallel(work, range(100), ahead=4):
            seen.append(result)
    assert seen == [0, 1, 2, 3, 4]
    assert max(started) <= 9


def test_parallel_left_early_does_no_more_work():
    started = []
    results = dataset.parallel(lambda item: started.append(item), range(100), ahead=4)
    next(results)
    results.close()
    assert len(started) <= 5


def test_a_class_folder_of_other_files_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(folder(tmp_path / "b") / "x.png")
    (folder(tmp_path / "a") / "notes.txt").write_text("no image")
    with pytest.raises(DatasetError, match=r"class folder .*a holds no image"):
        dataset.scan(tmp_path)


def test_a_thin_image_does_not_fill_memory(tmp_path):
    Image.new("L", (1, 1_000_000)).save(tmp_path / "thin.png")
    with pytest.raises(DatasetError, match=r"image .*thin\.png is too thin: got 1x1000000 pixels"):
        list(dataset.scan(tmp_path).pixels(preprocess.PRESETS["imagenet"]))


def folder(path):
    path.mkdir()
    return path


def test_a_dangling_link_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DatasetError, match=r"b\.png is no file: got a dangling link"):
        dataset.scan(tmp_path)


def test_a_pipe_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png is no file"):
        dataset.scan(tmp_path)


def test_words_may_follow_a_wordnet_id(tmp_path):
    assert dataset.class_indices(["n01440764-tench", "n01443537"]) == {
        "n01440764-tench": 0,
        "n01443537": 1,
    }


def test_a_name_that_is_not_utf8_is_taken(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"\xff\xfe.png"))
    assert len(dataset.scan(tmp_path).digest()) == 64
