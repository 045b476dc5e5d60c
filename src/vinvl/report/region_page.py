"""Pictures with the boxes, tags and attributes of their regions, as one HTML file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vinvl.data.store import LabelMap, Regions
from vinvl.report.page import jpeg_source, write_page
from vinvl.report.region_summary import RegionSummary

LONGEST_SIDE = 640  # pixels of the pictures in the page
TOLD = (  # of a provenance, what a person looks at first
    "weights", "weights_sha256", "nms_filter", "boxes", "score_threshold", "min_boxes", "max_boxes", "min_size",
    "max_size", "pad_multiple", "colour_order", "exif_orientation", "precision", "made",
)  # fmt: skip
ATTRIBUTES_SHOWN = 3

STYLE = """
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.25rem; align-items: start }
header { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: flex-start }
h2 { font-size: 1rem; margin: 1.2rem 0 .4rem }
table { border-collapse: collapse }
td { padding: .1rem .8rem .1rem 0; vertical-align: top }
td:first-child { color: #555 }
details { margin-top: .8rem }
summary { cursor: pointer; font-weight: 600 }
.warning { color: #a11; font-weight: 600 }
.names { columns: 2; margin: 0; padding: 0; list-style: none; max-width: 24rem }
.names span, .rows .score { color: #777; font-variant-numeric: tabular-nums }
.bars { display: flex; align-items: flex-end; gap: 1px; height: 5rem; border-bottom: 1px solid #999; max-width: 26rem }
.bars div { flex: 1; background: #5b7aa8; min-width: 2px }
.controls { position: sticky; top: 0; background: #fffd; padding: .5rem 0; z-index: 1 }
.picture { position: relative }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100% }
rect { fill: transparent; stroke-width: 2; vector-effect: non-scaling-stroke }
rect.on { stroke-width: 4; fill: #fff3 }
figcaption { padding: .5rem .8rem }
.id { font-weight: 600; overflow-wrap: anywhere }
.rows { max-height: 15rem; overflow: auto; margin: .3rem 0 0; padding: 0; list-style: none }
.rows li { display: flex; gap: .5rem; padding: 0 .2rem; border-left: 4px solid var(--colour); margin: 1px 0 }
.rows li.on { background: #eef }
.rows .tag { flex: 1 }
.rows i { color: #777 }
.hidden { display: none !important }
"""

SCRIPT = """
const slider = document.getElementById("least");
const show = () => {
  document.getElementById("shown").textContent = Number(slider.value).toFixed(2);
  document.querySelectorAll("[data-score]").forEach(
    (one) => one.classList.toggle("hidden", Number(one.dataset.score) < Number(slider.value)));
};
slider.addEventListener("input", show);
document.querySelectorAll("figure").forEach((figure) => {
  const mark = (event, on) => {
    const one = event.target.closest("[data-region]");
    if (!one) return;
    figure.querySelectorAll(`[data-region="${one.dataset.region}"]`).forEach((same) => same.classList.toggle("on", on));
  };
  figure.addEventListener("mouseover", (event) => mark(event, true));
  figure.addEventListener("mouseout", (event) => mark(event, false));
});
show();
"""


@dataclass(frozen=True)
class RegionPicture:
    """An image's regions, and the picture if there is one; `note` says what is odd about it."""

    regions: Regions
    picture: Image.Image | None
    note: str = ""


def write_region_page(
    path: Path,
    title: str,
    pictures: Sequence[RegionPicture],
    summary: RegionSummary,
    label_map: LabelMap,
    detector: str,
    provenance: Mapping[str, Any],
) -> None:
    """The page: figures of the whole store first, then pictures with their regions.

    Raises:
        UserError: the file cannot be written.
    """
    figures = "\n".join(_figure(one, label_map) for one in pictures)
    controls = (
        '<p class="controls"><label>Regions with a score of at least <input id="least" type="range" min="0" max="1" '
        'step="0.05" value="0"> <b id="shown">0.00</b></label></p>'
    )
    head = _head(summary, detector, provenance)
    write_page(path, title, f"{head}\n{controls}\n<main>\n{figures}\n</main>", STYLE, SCRIPT)


def _head(summary: RegionSummary, detector: str, provenance: Mapping[str, Any]) -> str:
    signs = "".join(
        f"<tr><td>{html.escape(sign.name)}</td><td>{html.escape(sign.value)}{_warning(sign.warning)}</td></tr>"
        for sign in summary.signs
    )
    told = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_short(provenance[name]))}</td></tr>"
        for name in TOLD
        if name in provenance
    )
    return (
        f"<p>{html.escape(detector)}</p>\n<header>\n"
        f"<section><h2>Figures of {summary.images:,} images</h2><table>{signs}</table></section>\n"
        f"<section><h2>Regions an image</h2>{_bars(summary.region_counts)}</section>\n"
        f"<section><h2>Commonest tags</h2>{_names(summary.tags)}</section>\n"
        f"<section><h2>Commonest attributes</h2>{_names(summary.attributes)}</section>\n"
        "</header>" + (f"<details><summary>How they were made</summary><table>{told}</table></details>" if told else "")
    )


def _warning(text: str) -> str:
    return f'<div class="warning">⚠ {html.escape(text)}</div>' if text else ""


def _names(names: Sequence[tuple[str, float]]) -> str:
    if not names:
        return "<p>none</p>"
    items = "".join(f"<li>{html.escape(name)} <span>{100 * share:.1f} %</span></li>" for name, share in names)
    return f'<ul class="names">{items}</ul>'


def _bars(counts: Mapping[int, int]) -> str:
    """A histogram; one bar for each number of regions there is."""
    if not counts:
        return "<p>none</p>"
    highest, first, last = max(counts.values()), min(counts), max(counts)
    bars = "".join(
        f'<div style="height:{100 * counts.get(number, 0) / highest:.1f}%" '
        f'title="{number} regions: {counts.get(number, 0):,} images"></div>'
        for number in range(first, last + 1)
    )
    return f'<div class="bars">{bars}</div><div>{first} to {last}</div>'


def _figure(one: RegionPicture, label_map: LabelMap) -> str:
    regions = one.regions
    picture = one.picture or Image.new("RGB", (regions.width, regions.height), "#e8e8e8")
    source = jpeg_source(picture, LONGEST_SIDE)
    order = sorted(range(len(regions)), key=lambda index: regions.boxes[index].tolist() and -_area(regions, index))
    boxes = "".join(
        _box(regions, index, label_map) for index in order
    )  # small boxes last, so that all can be pointed at
    rows = "".join(_row(regions, index, label_map) for index in range(len(regions)))
    image_id = html.escape(regions.image_id)
    size = f"{regions.width} × {regions.height}, {len(regions)} regions"
    return (
        f'<figure><div class="picture"><img src="{source}" alt="image {image_id}">'
        f'<svg viewBox="0 0 {regions.width} {regions.height}" preserveAspectRatio="none">{boxes}</svg></div>'
        f'<figcaption><span class="id">{image_id}</span> {size}{_warning(one.note)}<ul class="rows">{rows}</ul>'
        "</figcaption></figure>"
    )


def _area(regions: Regions, index: int) -> float:
    x1, y1, x2, y2 = regions.boxes[index].tolist()
    return float((x2 - x1) * (y2 - y1))


def _box(regions: Regions, index: int, label_map: LabelMap) -> str:
    x1, y1, x2, y2 = regions.boxes[index].tolist()
    title = html.escape(f"{_tag(regions, index, label_map)} {regions.class_scores[index]:.2f}")
    return (
        f'<rect data-region="{index}" data-score="{regions.class_scores[index]:.3f}" x="{x1:.1f}" y="{y1:.1f}" '
        f'width="{max(0.0, x2 - x1):.1f}" height="{max(0.0, y2 - y1):.1f}" stroke="{_colour(index)}">'
        f"<title>{title}</title></rect>"
    )


def _row(regions: Regions, index: int, label_map: LabelMap) -> str:
    attributes = [
        f"{html.escape(_name(label_map.attributes, attribute))} <i>{score:.2f}</i>"
        for attribute, score in zip(
            regions.attributes[index].tolist(), regions.attribute_scores[index].tolist(), strict=True
        )
        if score > 0
    ]
    return (
        f'<li data-region="{index}" data-score="{regions.class_scores[index]:.3f}" style="--colour:{_colour(index)}">'
        f'<span class="tag">{html.escape(_tag(regions, index, label_map))}</span>'
        f"<span>{', '.join(attributes[:ATTRIBUTES_SHOWN])}</span>"
        f'<span class="score">{regions.class_scores[index]:.2f}</span></li>'
    )


def _tag(regions: Regions, index: int, label_map: LabelMap) -> str:
    return _name(label_map.classes, int(regions.classes[index]))


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"number {index}"


def _colour(index: int) -> str:
    """Colours that differ from those of the regions before: by the golden angle around the circle of hues."""
    return f"hsl({index * 137.5 % 360:.0f} 85% 45%)"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"
