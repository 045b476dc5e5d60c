"""Small downloads of every kind that a corpus is made of, in the forms they are offered in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def karpathy(path: Path, images: Sequence[dict[str, Any]], dataset: str = "coco") -> Path:
    """Images with "split", "filename", "sentences" as texts and, of COCO, "cocoid"."""
    number, listed = 0, []
    for place, image in enumerate(images):
        said = []
        for text in image["sentences"]:
            said.append({"raw": text, "tokens": text.split(), "imgid": place, "sentid": number})
            number += 1
        listed.append({**image, "imgid": place, "sentences": said, "sentids": [one["sentid"] for one in said]})
    return write(path, {"images": listed, "dataset": dataset})


def every_kind(folder: Path, images: Sequence[int]) -> dict[str, list[Path]]:
    """The files of each kind, about these images where they say which; two captions or questions an image."""
    folder.mkdir(exist_ok=True)
    first, second = images[:2]
    urls = [f"http://static.flickr.com/27/{4385058960 + number}_b0f291553e.jpg" for number in range(2)]
    annotations = [
        {"id": 7, "image_id": first, "caption": "a red circle .\n"},
        {"id": 8, "image_id": second, "caption": "a blue star"},
    ]
    listed = [{"id": image, "file_name": f"{image:012d}.jpg", "height": 2, "width": 3} for image in images]
    asked = [
        {"question_id": 10, "image_id": first, "question": "what is red?"},
        {"question_id": 11, "image_id": second, "question": "is it blue?"},
    ]
    people = [{"answer": answer, "answer_id": place} for place, answer in enumerate(["yes", "no", "no", "yes", "no"])]
    said = [
        {"question_id": 11, "image_id": second, "answers": people},
        {"question_id": 10, "image_id": first, "multiple_choice_answer": "circle", "answers": people},
    ]
    qas = [{"qa_id": 5, "image_id": first, "question": "What is red?", "answer": "The circle.", "q_objects": []}]
    star = {
        "cocoid": second,
        "filename": f"COCO_val2014_{second:012d}.jpg",
        "split": "restval",
        "sentences": ["a star"],
    }
    scored = {"cocoid": first, "filename": "COCO_val2014_1.jpg", "split": "test", "sentences": ["one", "two"]}
    files = {
        "coco_captions": [
            write(folder / "captions_train.json", {"info": {}, "images": listed, "annotations": annotations}),
            karpathy(folder / "dataset_coco.json", [star, scored]),
        ],
        "flickr30k": [
            write(folder / "results.token", f"{first}.jpg#0\tTwo shapes .\n{first}.jpg#1\tA circle.\n"),
            write(folder / "results.csv", f"image_name| comment_number| comment\n{second}.jpg| 0| A star .\n"
                  f"{second}.jpg| 4   A star again .\n"),
            karpathy(folder / "dataset_flickr30k.json",
                     [{"filename": f"{second}.jpg", "split": "train", "sentences": ["stars"]}], "flickr30k"),
        ],
        "conceptual_captions": [write(folder / "cc.tsv", "a star\thttp://a.b/1.jpg\nsome stars\thttp://a.b/2.jpg?x=1\n")],
        "sbu": [
            write(folder / "urls.txt", "\n".join(urls) + "\n"),
            write(folder / "captions.txt", "my circle\nmy star\n"),
        ],
        "vqa": [
            write(folder / "questions.json", {"info": {}, "questions": asked, "license": {}}),
            write(folder / "annotations.json", {"annotations": said}),
        ],
        "gqa": [
            write(folder / "gqa.json", {
                "02930152": {"imageId": str(first), "question": "Is it red?", "answer": "yes", "fullAnswer": "Yes."},
                "7": {"imageId": str(second), "question": "Unanswered?"},
            }),
        ],
        "vg_qa": [write(folder / "question_answers.json", [{"id": first, "qas": qas}, {"id": second, "qas": []}])],
        "open_images": [
            write(folder / "predictions.jsonl",
                  json.dumps({"image_id": str(first), "top": [{"caption": "a circle", "score": 0.5}]}) + "\n"
                  + json.dumps({"image_id": "9", "top": [{"caption": "a", "score": 0.1}], "filled_in": True}) + "\n"),
            write(folder / "captions.json", [{"image_id": second, "caption": "a star"}]),
            write(folder / "asked.jsonl", '{"image": "photos/0abc.jpg", "caption": "a cat", "score": 0.1, "top": [1]}'),
        ],
    }  # fmt: skip
    return files
