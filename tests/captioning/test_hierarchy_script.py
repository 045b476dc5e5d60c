"""The Open Images hierarchy, as constraints take it."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "open_images_hierarchy.py"


def test_kinds_get_their_parent_and_parts_do_not(tmp_path: Path) -> None:
    tree = {
        "LabelName": "/m/0",
        "Subcategory": [
            {
                "LabelName": "/m/vehicle",
                "Part": [{"LabelName": "/m/wheel", "Subcategory": [{"LabelName": "/m/spoked"}]}],
                "Subcategory": [{"LabelName": "/m/car", "Subcategory": [{"LabelName": "/m/taxi"}]}],
            }
        ],
    }
    names = {"vehicle": "Vehicle", "car": "Car", "taxi": "Taxi, yellow", "wheel": "Wheel", "spoked": "Spoked wheel"}
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    (tmp_path / "names.csv").write_text("".join(f'/m/{key},"{name}"\n' for key, name in names.items()))
    files = [str(tmp_path / name) for name in ("tree.json", "names.csv", "out.json")]
    subprocess.run([sys.executable, str(SCRIPT), *files], check=True, capture_output=True)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found == {"Car": "Vehicle", "Taxi, yellow": "Car", "Spoked wheel": "Wheel"}
