"""Captioning of things that no training caption names, as in NoCaps: one shape is held out of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vinvl.data.demo.captions import describe_shape
from vinvl.data.demo.generate import image_file_name
from vinvl.data.demo.karpathy import CaptionedImage
from vinvl.data.demo.scene import Scene

NOVEL_SHAPE = "star"
OUT_OF_DOMAIN_SHARE = 0.5  # from this share of novel objects on a picture is out of domain


def domain(scene: Scene) -> str:
    """in-domain without novel objects, out-domain where at least half of the objects are novel, else near-domain.

    NoCaps calls a picture out of domain when all its labelled objects are novel; here few such pictures exist.
    """
    novel = sum(thing.shape == NOVEL_SHAPE for thing in scene.objects)
    if novel == 0:
        return "in-domain"
    return "out-domain" if novel >= OUT_OF_DOMAIN_SHARE * len(scene.objects) else "near-domain"


def without_novel(scenes: Iterable[Scene], images: Iterable[CaptionedImage]) -> list[CaptionedImage]:
    """The pictures that hold no novel object; their captions, being true, do not name it either."""
    return [image for scene, image in zip(scenes, images, strict=True) if domain(scene) == "in-domain"]


def nocaps_layout(
    scenes: Sequence[Scene], images: Sequence[CaptionedImage], rng: np.random.Generator
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """`images` and `annotations` of a COCO captions file with NoCaps' `domain` for every image.

    Pictures in domain keep their captions. The others get five that all name the novel shape; near domain the other
    objects named are known ones, out of domain novel ones where there are any.
    """
    entries: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for scene, image in zip(scenes, images, strict=True):
        where = domain(scene)
        captions: Sequence[str] = image.captions
        if where != "in-domain":
            captions = describe_shape(scene, NOVEL_SHAPE, where == "out-domain", rng)
        entries.append(
            {
                "id": scene.image_id,
                "file_name": image_file_name(scene.image_id),
                "width": scene.width,
                "height": scene.height,
                "domain": where,
            }
        )
        for caption in captions:
            annotations.append({"id": len(annotations) + 1, "image_id": scene.image_id, "caption": caption})
    return entries, annotations
