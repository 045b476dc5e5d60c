"""`python -m vinvl.predict image=…`: what it prints and writes, what it takes from the command, and what it leaves."""

import json
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import vinvl
from tests.door_in_process import composed, refused_in_process
from tests.door_runs import call, door_environment
from tests.picture_samples import save, truncated
from tests.predictor.samples import QUESTIONS, picture_paths
from vinvl.predict import picture_arguments, predict
from vinvl.predictor.command import ids_of_pictures, pictures_at
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.options import IN_QUOTES

pytestmark = pytest.mark.slow

ON_CPU = "trainer.accelerator=cpu"


def asked(data: Path, output: Path, *overrides: str) -> tuple[str, str]:
    """What the door prints to stdout and to stderr, within this process."""
    printed, told = StringIO(), StringIO()
    with (
        redirect_stdout(printed),
        redirect_stderr(told),
        composed("predict", data, output, ON_CPU, *overrides) as config,
    ):
        predict(config)
    return printed.getvalue(), told.getvalue()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_as_a_person_gives_it(
    folder: Path, own_runs: dict[str, Path], demo_data: Path, tmp_path: Path
) -> None:
    """A question with everything in it that Hydra reads as its own; no run folder is left."""
    question = 'what\'s left (of it), and is {it} "red" [or] 50% ${blue}?'
    picture = save(tmp_path / "photo (1), mine.png")
    result = call(
        tmp_path, "vinvl.predict", f"ckpt_path={own_runs['vqa']}", f"weights={folder / 'detector.pth'}",
        f"image={picture}", f"question={question}", "output=answers.jsonl", "task=vqa", ON_CPU,
        environment=door_environment(demo_data),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    title, *lines = result.stdout.splitlines()
    assert title == f"{picture}: {question}"
    model = vinvl.load(own_runs["vqa"], detector=folder / "detector.pth", device="cpu")
    expected = model.ask(picture, question)
    assert lines == [f"  {score:.3f}  {text}" for text, score in expected.top] and len(lines) == 3
    top = [{"answer": text, "score": pytest.approx(score, abs=2e-6)} for text, score in expected.top]
    row = {"image": str(picture), "question": question, "answer": expected.answer}
    assert rows_of(tmp_path / "answers.jsonl") == [row | {"score": top[0]["score"], "top": top}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", picture.name]
    assert "warning" not in result.stderr


def test_a_folder_and_several_questions(
    folder: Path, own_runs: dict[str, Path], demo_data: Path, tmp_path: Path
) -> None:
    paths = sorted(str(path) for path in picture_paths(folder).values())
    given = [f"weights={folder / 'detector.pth'}", f"output={tmp_path / 'rows.jsonl'}", "question=[is it red,why]"]
    printed, _ = asked(
        demo_data, tmp_path / "run", f"ckpt_path={own_runs['vqa']}", f"image={folder / 'pictures'}", *given
    )
    rows = rows_of(tmp_path / "rows.jsonl")
    assert [(row["image"], row["question"]) for row in rows] == [(p, q) for p in paths for q in ("is it red", "why")]
    assert printed.count(": is it red\n") == 6
    named, _ = asked(
        demo_data, tmp_path / "run", f"ckpt_path={own_runs['vqa']}", f"image=[{','.join(paths[:2])}]", *given
    )
    assert printed.startswith(named)


def test_images_of_a_store_captions_and_scores(
    folder: Path, own_runs: dict[str, Path], demo_data: Path, tmp_path: Path
) -> None:
    store, output = folder / "features.h5", f"output={tmp_path / 'rows.jsonl'}"
    ids = list(picture_paths(folder))[:3]
    given = [f"features={store}", f"image=[{','.join(ids)}]", output]
    asked(demo_data, tmp_path / "run", f"ckpt_path={own_runs['captioning'].parents[1]}", *given,
          "++decoding.num_return_sequences=2", "++decoding.num_beams=3")  # fmt: skip
    writer = vinvl.load(own_runs["captioning"], features=store, device="cpu",
                        decoding={"num_beams": 3, "num_return_sequences": 2})  # fmt: skip
    rows = rows_of(tmp_path / "rows.jsonl")
    for row, caption in zip(rows, writer.caption(ids), strict=True):
        assert (row["caption"], row["score"]) == (caption.text, pytest.approx(caption.score, abs=1e-5))
        assert len(row["top"]) == 2 and row["top"][0]["caption"] == caption.text and "question" not in row
    printed, _ = asked(demo_data, tmp_path / "run", f"ckpt_path={own_runs['retrieval']}", *given, "text=a red circle")
    scores = vinvl.load(own_runs["retrieval"], features=store, device="cpu").score(ids, "a red circle")
    expected = [
        {"image": one, "text": "a red circle", "score": pytest.approx(score, abs=2e-6)}
        for one, score in zip(ids, scores, strict=True)
    ]
    assert rows_of(tmp_path / "rows.jsonl") == expected
    assert printed.splitlines()[:2] == [f"{ids[0]}: a red circle", f"  {scores[0]:.3f}"]


def test_pictures_of_a_store_are_found_by_their_names(
    folder: Path, own_runs: dict[str, Path], demo_data: Path, tmp_path: Path
) -> None:
    """Without a detector; the same as by their ids."""
    given = [f"ckpt_path={own_runs['vqa']}", f"features={folder / 'features.h5'}", "question=what is it"]
    by_id, _ = asked(demo_data, tmp_path / "run", *given, f"image=[{','.join(picture_paths(folder))}]")
    by_name, told = asked(demo_data, tmp_path / "run", *given, f"image={folder / 'pictures'}")
    assert sorted(by_name.splitlines()) == sorted(by_id.splitlines()) and "6 of 6 images" in told
    other = save(tmp_path / f"{next(iter(picture_paths(folder)))}.png")
    with pytest.raises(UserError, match=r"40 × 30 pixels, and image 'picture_0001' of .*it is another picture"):
        ids_of_pictures(RegionStore(folder / "features.h5"), str(other))


def test_pictures_in_an_archive(folder: Path, own_runs: dict[str, Path], demo_data: Path, tmp_path: Path) -> None:
    paths = list(picture_paths(folder).values())[:2]
    given = [f"ckpt_path={own_runs['vqa']}", f"weights={folder / 'detector.pth'}", "question=what is it"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in paths:
            archive.write(path, Path(path).name)
        archive.writestr("notes.txt", "words")
    by_path, _ = asked(demo_data, tmp_path / "run", *given, f"image=[{','.join(map(str, paths))}]")
    inside, told = asked(demo_data, tmp_path / "run", *given, f"image={tmp_path / 'a.zip'}")
    names = {str(path): f"{tmp_path}/a.zip/{Path(path).name}" for path in paths}
    for path, name in names.items():
        by_path = by_path.replace(path, name)
    assert inside == by_path and "1 files passed over: 1 .txt" in told


def test_settings_of_the_command_go_before_those_of_the_checkpoint(
    folder: Path, own_runs: dict[str, Path], demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture_paths(folder)["picture_0000"]
    given = [f"ckpt_path={own_runs['vqa']}", f"weights={folder / 'detector.pth'}", f"image={path}", "question=why"]
    usual, told = asked(demo_data, tmp_path / "run", *given)
    assert not told
    (tmp_path / "answers.json").write_text('["a", "b", "c"]')
    named, _ = asked(demo_data, tmp_path / "run", *given, f"++data.answers={tmp_path / 'answers.json'}")
    assert {line.split()[1] for line in named.splitlines()[1:]} == {"a", "b", "c"}
    blind, _ = asked(demo_data, tmp_path / "run", *given, "++data.use_regions=false")
    assert blind != usual
    few, told = asked(demo_data, tmp_path / "run", *given, "detector.max_boxes=1", "detector.min_boxes=1")
    assert few != usual and told.startswith("warning: ") and "max_boxes was 100 and is 1" in told
    half, _ = asked(demo_data, tmp_path / "run", *given, "trainer.precision=bf16-mixed")
    assert half.splitlines()[0] == usual.splitlines()[0]
    monkeypatch.setattr("vinvl.predictor.command.choose", lambda _: ("bf16-mixed", "it is faster"))
    faster, told = asked(demo_data, tmp_path / "run", *given, "trainer.precision=auto")
    assert faster == half and told == "trainer.precision=bf16-mixed: it is faster\n"


def test_broken_pictures_among_others_are_told_at_the_end(
    folder: Path, own_runs: dict[str, Path], demo_data: Path, tmp_path: Path
) -> None:
    given = [f"ckpt_path={own_runs['vqa']}", f"weights={folder / 'detector.pth'}", f"question={QUESTIONS[1]}"]
    save(tmp_path / "p" / "a.png")
    truncated(tmp_path / "p" / "b.jpg")
    save(tmp_path / "p" / "c.png")
    printed, told = asked(demo_data, tmp_path / "run", *given, f"image={tmp_path / 'p'}")
    assert [line for line in printed.splitlines() if line.endswith(QUESTIONS[1])] == [
        f"{tmp_path / 'p' / name}: {QUESTIONS[1]}" for name in ("a.png", "c.png")
    ]
    assert told.startswith(f"warning: {tmp_path / 'p' / 'b.jpg'} is cut off")
    output = tmp_path / "rows.jsonl"
    sentence = refused_in_process(
        "predict", demo_data, tmp_path / "run2", *given, f"image={tmp_path / 'p' / 'b.jpg'}", f"output={output}", ON_CPU
    )
    assert "b.jpg is cut off" in sentence and not output.exists()


@pytest.mark.parametrize(
    ("task", "overrides", "sentence"),
    [
        ("vqa", ["image=nowhere.jpg", "question=a"], "There is no picture nowhere.jpg"),
        ("vqa", ["image=x"], "is a model for vqa: pass question="),
        ("retrieval", ["image=x"], "is a model for retrieval: pass text="),
        ("vqa", ["image=x", "question=a", "text=b"], "Pass one of the two: question"),
        ("vqa", ["question=a"], "question=a is for pictures: pass image="),
        ("vqa", ["features=a.h5"], r"features=a.h5 is for pictures"),
        ("vqa", ["image=x", "question=a", "++data.batch_size=3"], "have no 'batch_size'"),
        ("vqa", ["image=x", "question=a", "++decoding.num_beams=3"], "writes no captions: leave decoding out"),
        ("vqa", ["image=x", "question=a", "trainer.precision=16-mixed"], "trainer.precision=16-mixed is not for"),
        ("vqa", ["image=EMPTY", "question=a"], "holds no pictures"),
    ],
)
def test_refusals(
    task: str, overrides: list[str], sentence: str, own_runs: dict[str, Path], demo_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    overrides = [one.replace("EMPTY", str(tmp_path / "empty")) for one in overrides]
    given = [f"ckpt_path={own_runs[task]}", ON_CPU, *overrides]
    assert sentence in refused_in_process("predict", demo_data, tmp_path / "run", *given)


def test_where_pictures_are_found(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "a.png", "x/c.JPG", ".hidden/d.png", "x/.e.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [str(tmp_path / name) for name in ("a.jpg", "a.png", "b.png", "x/c.JPG")]
    assert pictures_at(str(tmp_path)) == expected  # two of one name are two pictures
    (tmp_path / "list.txt").write_text("a.jpg\n\nx/c.JPG\tan id\n/elsewhere/f.png\n")
    assert pictures_at(str(tmp_path / "list.txt")) == [expected[0], expected[3], "/elsewhere/f.png"]
    assert pictures_at(str(tmp_path / "a.jpg")) == [expected[0]] and pictures_at("391895") == ["391895"]


def taken(argument: str) -> Any:
    """What Hydra and OmegaConf make of an argument."""
    return OmegaConf.create({"key": OverridesParser.create().parse_override(argument).value()}).key


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
@pytest.mark.parametrize("given_as", ["question={}", "text={}", "image={}"])
def test_texts_reach_hydra_as_they_are(given_as: str, text: str) -> None:
    quoted, *_ = picture_arguments([given_as.format(text), "image=x"])
    means_more = IN_QUOTES.fullmatch(text) or (text[0] == "[" and text[-1] == "]") or text == "null"
    assert means_more or taken(quoted) == text


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("question=what's this, and 'that'?", "what's this, and 'that'?"),
        ("question='what is this'", "what is this"),
        ('question="what, is this"', "what, is this"),
        ("question='one' or 'two'", "'one' or 'two'"),
        ("question=[what is this?,how many, really]", ["what is this?", "how many", "really"]),
        ("question=['what, this?', how's that]", ["what, this?", "how's that"]),
        ("image=007", "007"),
        ("image=[007,photo (1).jpg]", ["007", "photo (1).jpg"]),
        ("image=C:\\pictures\\", "C:\\pictures\\"),
        ("labels=null", None),
        ("output=true", "true"),
    ],
)
def test_what_reaches_hydra(argument: str, value: Any) -> None:
    assert taken(picture_arguments([argument, "image=x"])[0]) == value


def test_other_calls_are_left_alone() -> None:
    given = ["ckpt_path=best", "data.predict_split=test", "question=what's this"]
    assert picture_arguments(given) == given
    settings_of_run = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
    assert picture_arguments(["image=x"]) == ["image='x'", *settings_of_run]
    assert picture_arguments(["image=x", "hydra.run.dir=here"])[1:] == ["hydra.run.dir=here", *settings_of_run[1:]]
    assert picture_arguments(["image=a,b", "--multirun"])[:2] == ["image=a,b", "--multirun"]
