import io
import os
from pathlib import Path

import pytest

from geoloc.errors import NotFoundError
from geoloc.photos.find import find_images


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch):
    """A folder `photos` in the current one."""
    for name in (
        "b.jpg",
        "a.JPEG",
        "B.png",
        "sub/c.webp",
        "sub/deep/d.tif",
        "sub-2.jpg",
        "notes.txt",
        "noext",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in (".hidden.jpg", "sub/._c.webp", ".thumbnails/t.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


ALL = ["B.png", "a.JPEG", "b.jpg", "sub-2.jpg", "sub/c.webp", "sub/deep/d.tif"]


def ids(*arguments, listed=()):
    return [image.id for image in find_images(arguments, listed)]


@pytest.mark.parametrize("argument", ["photos", "photos/", "./photos", "photos//"])
def test_a_folder_is_searched_with_all_below_it_sorted_by_path(argument):
    images = find_images([argument])
    assert [image.id for image in images] == ALL
    assert all(Path("photos", image.id).samefile(image.path) for image in images)


def test_the_current_folder(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert ids(".") == ALL


def test_ids_do_not_depend_on_where_the_only_folder_is(photos):
    assert ids(str(photos)) == ids("photos") == ALL


def test_with_several_arguments_ids_are_the_paths_as_given():
    assert ids("photos/sub", "./photos/b.jpg") == [
        "photos/sub/c.webp",
        "photos/sub/deep/d.tif",
        "photos/b.jpg",
    ]
    assert ids("photos/b.jpg") == ["photos/b.jpg"]


def test_a_file_is_taken_whatever_its_suffix():
    assert ids("photos/notes.txt", "photos/.hidden.jpg") == ["photos/notes.txt", "photos/.hidden.jpg"]


def test_patterns_give_images_and_contents_of_folders():
    assert ids("photos/*") == ["photos/" + name for name in ALL]
    assert ids("photos/**/*.[jw]*") == [
        "photos/b.jpg",
        "photos/sub-2.jpg",
        "photos/sub/c.webp",
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(photos):
    (photos / "x[1].jpg").touch()
    (photos / "x1.jpg").touch()
    assert ids("photos/x[1].jpg") == ["photos/x[1].jpg"]


def test_the_list_on_standard_input_keeps_its_order_and_what_is_missing():
    listed = io.BytesIO(b"photos/b.jpg\r\n\nphotos/gone.jpg\nphotos/a.JPEG")
    assert ids("-", listed=listed) == ["photos/b.jpg", "photos/gone.jpg", "photos/a.JPEG"]


def test_what_is_named_twice_counts_once_at_its_first_place(photos):
    listed = [b"./photos/b.jpg\n", os.fsencode(photos / "sub" / "c.webp")]
    found = ids("photos/b.jpg", "photos/sub/../b.jpg", "photos/sub", "-", "photos/*", listed=listed)
    assert found[:3] == ["photos/b.jpg", "photos/sub/c.webp", "photos/sub/deep/d.tif"]
    assert sorted(found[3:]) == ["photos/B.png", "photos/a.JPEG", "photos/sub-2.jpg"]


def test_links_to_folders_are_followed_and_loops_end(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.jpg").touch()
    (photos / "sub" / "link").symlink_to(tmp_path / "elsewhere")
    (photos / "sub" / "up").symlink_to(photos)
    assert ids("photos") == [*ALL, "sub/link/e.jpg"]


def test_names_that_are_no_utf8_have_ids_that_are(photos):
    (photos / "only").mkdir()
    Path(os.fsdecode(os.fsencode(photos) + b"/only/caf\xe9.jpg")).touch()
    (image,) = find_images(["photos/only"])
    assert image.id == "caf\\xe9.jpg"
    assert image.path.exists()


def test_a_list_can_be_sliced():
    images = find_images(["photos"])
    assert [image.id for image in images[1:3]] == ALL[1:3]
    assert images[-1].id == ALL[-1]
    assert len(images) == len(ALL)


def test_an_argument_that_does_not_exist():
    with pytest.raises(NotFoundError, match=r"there is no file or folder 'photos/z.jpg'; check the path"):
        find_images(["photos", "photos/z.jpg"])


def test_nothing_found_says_what_was_looked_for(photos):
    (photos / "empty").mkdir()
    with pytest.raises(
        NotFoundError,
        match=r"no image found in photos/empty \(a folder, with all below it\), \*\.gif \(a pattern\), "
        r"standard input \(no line names a file\); looked for files that end in \.bmp .*\.jpg",
    ):
        find_images(["photos/empty", "*.gif", "-"], [b"\n"])
