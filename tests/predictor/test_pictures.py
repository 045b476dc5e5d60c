"""Pictures in every form: what the detector sees in them is what extraction stores, and answers follow from that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vinvl
from tests.picture_samples import broken_pictures, gradient, save, sixteen_bit, truncated, with_orientation
from tests.predictor.samples import QUESTIONS, USED_AS, close, picture_paths
from vinvl.predictor import PictureRegions
from vinvl.predictor import pictures as finding
from vinvl.predictor import predictor as working
from vinvl.predictor.pictures import pixels_of
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError

pytestmark = pytest.mark.slow


def assert_same_regions(found: PictureRegions, expected: PictureRegions) -> None:
    for name in ("features", "boxes", "classes", "class_scores", "attributes", "attribute_scores"):
        one, other = getattr(found.regions, name), getattr(expected.regions, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert (found.size, found.classes, found.attributes) == (expected.size, expected.classes, expected.attributes)


class TestWhatIsSeen:
    def test_it_is_what_extraction_stores(self, model: vinvl.Predictor, folder: Path) -> None:
        """With the settings of the store, which the model's checkpoint carries: the weight file says others."""
        paths = picture_paths(folder)
        assert len(paths) == len(RegionStore(folder / "features.h5")) == 6
        for image_id, path in paths.items():
            assert_same_regions(model.regions(path), model.regions(image_id))

    def test_the_detector_takes_boxes_and_gives_every_class(self, model: vinvl.Predictor, folder: Path) -> None:
        path = picture_paths(folder)["picture_0000"]
        found = model.regions(path)
        assert model.detector is not None
        with Image.open(path) as picture:
            (seen,) = model.detector.detect([picture], every_class=True)
            (given,) = model.detector.detect([picture], [found.boxes[::-1].copy()])
        assert seen.class_probabilities is not None and seen.class_probabilities.shape == (len(found), 81)
        np.testing.assert_allclose(given.boxes.numpy(), found.boxes[::-1], atol=1.1)

    def test_it_prints(self, model: vinvl.Predictor, folder: Path) -> None:
        path = picture_paths(folder)["picture_0000"]
        found = model.regions(path)
        assert repr(found).startswith(f"PictureRegions('{path}': {len(found)} regions of ")
        lines = str(found).splitlines()
        assert len(lines) == 1 + min(len(found), 20) + (len(found) > 20)
        assert found.classes[0] in lines[1] and f"{found.scores[0]:.2f}" in lines[1]
        assert found.classes[0].startswith("class ")
        assert all(score > 0.05 for attributes in found.attributes for _, score in attributes)
        assert all(name.startswith("attribute ") for attributes in found.attributes for name, _ in attributes)
        assert found.boxes.shape == (len(found), 4) and found.features.shape == (len(found), 256)

    def test_pictures_of_one_size_go_through_the_detector_together(
        self, model: vinvl.Predictor, folder: Path, own_runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches: list[list[Any]] = []
        alone = [model.regions(path) for path in picture_paths(folder).values()]
        together = vinvl.load(own_runs["vqa"], detector=folder / "detector.pth", device="cpu", detector_batch_size=3)
        detector = together._looking.detector
        assert detector is not None
        pixels_of = detector.detector.detect_pixels

        def counted(pixels: list[Any], sizes: list[Any]) -> Any:
            batches.append([tuple(-(-side // 32) for side in one.shape[:2]) for one in pixels])
            return pixels_of(pixels, sizes)

        monkeypatch.setattr(detector.detector, "detect_pixels", counted)
        found = together.regions(list(picture_paths(folder).values()))
        assert max(map(len, batches)) > 1 and sum(map(len, batches)) == 6
        assert all(len(set(one)) == 1 for one in batches)  # padded to multiples of 32
        for one, other in zip(found, alone, strict=True):
            assert one.classes == other.classes
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
            np.testing.assert_allclose(one.features, other.features, atol=2e-3)


class TestAnswers:
    def test_of_pictures_and_of_the_store_are_the_same(self, model: vinvl.Predictor, folder: Path) -> None:
        paths = picture_paths(folder)
        for question in QUESTIONS:
            of_files, of_store = model.ask(list(paths.values()), question), model.ask(list(paths), question)
            for one, other in zip(of_files, of_store, strict=True):
                assert [text for text, _ in one.top] == [text for text, _ in other.top]
                close([score for _, score in one.top], [score for _, score in other.top])
        assert len({round(one.score, 5) for one in of_store}) > 3

    def test_captions_and_matches_too(self, folder: Path, own_runs: dict[str, Path]) -> None:
        paths = picture_paths(folder)
        given: dict[str, Any] = {"detector": folder / "detector.pth", "features": folder / "features.h5"}
        writer = vinvl.load(own_runs["captioning"], device="cpu", **given)
        one, other = writer.caption(list(paths.values())), writer.caption(list(paths))
        assert [caption.text for caption in one] == [caption.text for caption in other]
        close([caption.score for caption in one], [caption.score for caption in other])
        matcher = vinvl.load(own_runs["retrieval"], device="cpu", **given)
        texts = [f"a red circle {i}" for i in range(len(paths))]
        close(matcher.score(list(paths.values()), texts), matcher.score(list(paths), texts))

    def test_half_precision_answers_nearly_the_same(
        self, model: vinvl.Predictor, folder: Path, own_runs: dict[str, Path]
    ) -> None:
        half = vinvl.load(own_runs["vqa"], features=folder / "features.h5", device="cpu", dtype="bfloat16")
        ids = list(picture_paths(folder))
        whole, rough = ([dict(one.top) for one in m.ask(ids, QUESTIONS[0], top=100)] for m in (model, half))
        pairs = [(one[name], other[name]) for one, other in zip(whole, rough, strict=True) for name in one]
        assert 0 < max(abs(one - other) for one, other in pairs) < 0.05


class TestForms:
    @pytest.fixture
    def picture(self, folder: Path) -> Path:
        return picture_paths(folder)["picture_0001"]

    def test_paths_images_and_arrays(self, model: vinvl.Predictor, picture: Path) -> None:
        expected = model.regions(picture)
        opened, array = Image.open(picture), np.asarray(Image.open(picture).convert("RGB"))
        loaded = Image.open(picture).convert("RGB")
        for form in (str(picture), opened, loaded, array, np.asfortranarray(array), array[:, ::-1][:, ::-1]):
            assert_same_regions(model.regions(form), expected)
        assert [one.name for one in model.regions([opened, loaded])] == [str(picture), "the picture"]

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
    def test_images_of_every_mode(self, mode: str, model: vinvl.Predictor, tmp_path: Path) -> None:
        image = Image.open(sixteen_bit(tmp_path / "wide.png")) if "I" in mode else gradient(64, 48).convert(mode)
        image = image.convert("I") if mode == "I" else image
        if "A" in mode:
            image.putalpha(gradient(64, 48).convert("L"))
        suffix = "tif" if mode in ("CMYK", "I") else "png"
        # Pillow 12.3 cannot read its own TIFF of YCbCr.
        path = save(tmp_path / f"picture.{suffix}", image.convert("RGB") if mode == "YCbCr" else image)
        assert_same_regions(model.regions(image), model.regions(path))

    def test_grey_arrays(self, model: vinvl.Predictor, tmp_path: Path) -> None:
        grey = np.asarray(gradient(64, 48).convert("L"))
        assert_same_regions(model.regions(grey), model.regions(np.stack([grey] * 3, axis=2)))

    @pytest.mark.parametrize("orientation", [1, 3, 6, 7])
    def test_orientation_is_ignored_or_applied(
        self, orientation: int, model: vinvl.Predictor, folder: Path, own_runs: dict[str, Path], tmp_path: Path
    ) -> None:
        path = with_orientation(tmp_path / "turned.jpg", orientation)
        given: dict[str, Any] = {"detector": folder / "detector.pth", "device": "cpu"}
        with pytest.warns(vinvl.predictor.OtherFeatures, match='exif_orientation was "apply" and is "ignore"'):
            ignoring = vinvl.load(own_runs["vqa"], reading={"exif_orientation": "ignore"}, **given)
        for one in (model, ignoring):
            assert_same_regions(one.regions(Image.open(path)), one.regions(path))
        assert ignoring.regions(path).size == (40, 30)
        assert model.regions(path).size == ((30, 40) if orientation > 4 else (40, 30))

    def test_the_id_of_an_image_goes_before_a_file_of_that_name(
        self, model: vinvl.Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        gradient(30, 30).save(tmp_path / "picture_0000", "PNG")
        assert model.regions("picture_0000").size != (30, 30)
        assert model.regions(Path("picture_0000")).size == model.regions("./picture_0000").size == (30, 30)


class TestRefusals:
    def test_broken_files_are_named(self, model: vinvl.Predictor, tmp_path: Path) -> None:
        for name, word in broken_pictures(tmp_path / "broken").items():
            with pytest.raises(UserError) as refused:
                model.ask(tmp_path / "broken" / name, "what is red?")
            sentence = str(refused.value)
            assert str(tmp_path / "broken" / name) in sentence and word in sentence and "\n" not in sentence

    def test_a_broken_file_that_pillow_has_opened(self, model: vinvl.Predictor, tmp_path: Path) -> None:
        image = Image.open(truncated(tmp_path / "cut.jpg"))
        with pytest.raises(UserError, match=r"cut\.jpg is cut off or damaged"):
            model.regions(image)

    @pytest.mark.parametrize(
        ("image", "sentence"),
        [
            (
                np.full((4, 4, 3), 2, dtype=np.float32),
                "An array of float32 from 2 to 2 is not a picture: give fractions",
            ),
            (np.full((4, 4), np.nan), "from nan to nan"),
            (np.zeros((4, 4, 4), dtype=np.uint8), "give uint8"),
            (np.zeros((2, 4, 4, 3), dtype=np.uint8), "give uint8"),
            (np.zeros(4, dtype=np.uint8), "give uint8"),
            (np.zeros((0, 4, 3), dtype=np.uint8), "nothing to see"),
            (torch.zeros(2, 3, 4, 4), "give uint8"),
            (Image.new("F", (4, 4)), "floating-point"),
            (b"photo.jpg", "A bytes is not a picture"),
            ((path for path in ["a.jpg"]), "A generator is not a picture: give"),
            (42, r"neither an image of RegionStore.*ids are like 'picture_0001', nor a picture file"),
            (None, "A NoneType is not a picture"),
            ({"a.jpg": 1}, "A dict is not a picture"),
            (Path("nowhere.jpg"), r"There is no picture nowhere\.jpg"),
            ("nowhere.jpg", r"neither an image of RegionStore.*ids are like 'picture_0001', nor a picture file"),
            (".", "is a folder"),
        ],
    )
    def test_what_is_no_picture(self, image: Any, sentence: str, model: vinvl.Predictor) -> None:
        for given in (image, [image]):
            with pytest.raises(UserError, match=sentence) as refused:
                model.regions(given)
            assert "\n" not in str(refused.value)

    def test_without_a_detector_pictures_are_refused(self, own_runs: dict[str, Path], folder: Path) -> None:
        of_store = vinvl.load(own_runs["vqa"], features=folder / "features.h5", device="cpu")
        of_nothing = vinvl.load(own_runs["vqa"], device="cpu")
        path = picture_paths(folder)["picture_0000"]
        for given in (path, str(path), Image.open(path), np.zeros((4, 4), dtype=np.uint8)):
            with pytest.raises(UserError, match=r"without a detector.*or give the id of an image in features"):
                of_store.regions(given)
            with pytest.raises(UserError, match=r"without a detector.*weights=FILE\)\."):
                of_nothing.regions(given)
        with pytest.raises(UserError, match="There is no picture picture_0000"):
            of_nothing.regions("picture_0000")


class TestMany:
    @pytest.fixture
    def looked_at(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of pictures that the detector was asked about."""
        names: list[str] = []
        regions = finding.Looking.regions

        def counted(self: finding.Looking, pictures: Any) -> Any:
            names.extend(one.name for one in pictures)
            return regions(self, pictures)

        monkeypatch.setattr(finding.Looking, "regions", counted)
        monkeypatch.setattr(working, "WINDOW", 2)
        return names

    def test_a_picture_that_comes_again_is_looked_at_once(
        self, model: vinvl.Predictor, folder: Path, looked_at: list[str]
    ) -> None:
        paths = [str(path) for path in picture_paths(folder).values()][:3]
        single = [model.regions(path) for path in paths]
        looked_at.clear()
        many = [Path(path) if i % 2 else path for i, path in enumerate(paths * 3)]
        for one, other in zip(model.regions(many), single * 3, strict=True):
            assert_same_regions(one, other)
        assert looked_at == paths

    def test_lists_need_no_room_for_what_they_have_seen(
        self, model: vinvl.Predictor, folder: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(finding, "KEPT", 1)
        paths = list(picture_paths(folder).values())[:4]
        asked = [(path, question) for question in QUESTIONS for path in paths]
        found = model.ask([path for path, _ in asked], [question for _, question in asked])
        assert looked_at == [str(path) for path in paths]
        for one, (path, question) in zip(found, asked, strict=True):  # in the order of the list
            close([score for _, score in one.top], [score for _, score in model.ask(path, question).top])

    def test_objects_are_told_apart_and_looked_at_once(
        self, model: vinvl.Predictor, folder: Path, looked_at: list[str]
    ) -> None:
        path, other = list(picture_paths(folder).values())[:2]
        image, array = Image.open(path), np.asarray(Image.open(other).convert("RGB"))
        found = model.regions([image, array, image, array, image])
        assert len(looked_at) == 2
        assert_same_regions(found[4], model.regions(path))
        assert_same_regions(found[3], model.regions(other))
        looked_at.clear()
        model.ask(image, QUESTIONS * 3)
        assert len(looked_at) == 1


def test_the_settings_of_the_features_may_be_overridden_and_then_it_warns(
    own_runs: dict[str, Path], folder: Path
) -> None:
    given: dict[str, Any] = {"detector": folder / "detector.pth", "device": "cpu"}
    known = []

    def configure(found: Any) -> Any:
        known.append(found)
        return replace(found, min_boxes=3, max_boxes=5)

    with pytest.warns(vinvl.predictor.OtherFeatures, match="max_boxes was 100 and is 5") as warned:
        model = vinvl.load(own_runs["vqa"], detector_config=configure, **given)
    assert known == [USED_AS] and len(warned) == 1 and warned[0].filename == __file__
    assert 3 <= len(model.regions(picture_paths(folder)["picture_0000"])) <= 5
    with pytest.warns(vinvl.predictor.OtherFeatures, match="score_threshold was 0.2 and is 0.9"):
        vinvl.load(own_runs["vqa"], detector_config=replace(USED_AS, score_threshold=0.9), **given)


def test_tensors_and_fractions_are_the_pixels_that_they_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    colours_first = torch.from_numpy(pixels).permute(2, 0, 1)
    fractions = pixels.astype(np.float32) / 255
    for given in (pixels, colours_first, torch.from_numpy(pixels), fractions, torch.from_numpy(fractions)):
        np.testing.assert_array_equal(pixels_of(given), pixels)
    assert pixels_of(torch.ones(1, 5, 7)).shape == (5, 7) and pixels_of("photo.jpg") == "photo.jpg"
