"""The pictures of docs/: sections of the report and a page of the explorer, as a browser shows them.

`python -m tests.picture_docs DEMO NIGHTLY` draws docs/pictures/*.png anew, from the store that `miclip demo` left and from one in which
jobs/examples/nightly.yaml has run. Needs Chromium (`CHROMIUM` says where).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL import Image

import miclip
from cluster.catalog import Scope, open_catalog
from cluster.explore.pages import write_pages
from cluster.explore.server import FolderServer
from cluster.stores import make_store
from tests.chromium import chromium
from tests.pages import render

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
WIDTH = 1000  # pixels
COLOURS = (128, 96, 64, 48, 32, 24, 16)
LARGEST = 60_000  # bytes

# section of the report: how much of it is shown, in pixels from its top
DEMO = {
    "runs": 520,
    "extract": 640,
    "explained": 550,
    "explanations": 712,
    "dictionary": 835,
    "zoo": 685,
}
NIGHTLY = {
    "saes": 640,
    "features": 810,
    "encoders": 560,
    "units": 750,
    "methods": 565,
    "interventions": 800,
    "traces": 750,
    "attention": 1128,
    "geometry": 1236,
    "textmap": 940,
    "inversions": 910,
}
EXPLORER = 1000
UNIT = "SELECT stage, unit FROM explorer_index WHERE unit_kind = 'features' AND text <> '' AND name <> '' ORDER BY text_iou DESC, stage, unit LIMIT 1"


def show_only(page: str, section: str) -> str:
    """The page with everything hidden but one section, at its top."""
    style = f"<style>header, nav, .skip, main > section:not(#{section}) {{ display: none !important }} .columns {{ display: block !important }}</style>"
    return page.replace("</head>", f"{style}</head>")


def take_picture(url: str, height: int) -> Image.Image:
    """What a window of `WIDTH` x `height` pixels shows of a page."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(chromium()), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=9000",
                 f"--window-size={WIDTH},{height}", f"--screenshot={folder}/page.png", url]  # fmt: skip
        subprocess.run(words, capture_output=True, timeout=100, check=True)
        return Image.open(BytesIO((Path(folder) / "page.png").read_bytes())).convert("RGB")


def make_palette(picture: Image.Image, colours: int) -> Image.Image:
    """Colours of a picture in which small things count: each shade once, however many pixels have it, and the four commonest nearly as they are."""
    commonest = _shades(picture)[-4:]
    shades = _shades(picture.quantize(256, Image.Quantize.FASTOCTREE).convert("RGB")) + 50 * commonest
    strip = Image.new("RGB", (len(shades), 1))
    strip.putdata(shades)
    return strip.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=4)


def _shades(picture: Image.Image) -> list[tuple[int, int, int]]:
    """Of an RGB picture, each once, the commonest last."""
    counted = sorted(picture.getcolors(picture.width * picture.height) or ())
    return [cast(tuple[int, int, int], shade) for _, shade in counted]


def pack(picture: Image.Image) -> bytes:
    """A PNG with a palette, of fewer colours where it would take more than `LARGEST` bytes."""
    for colours in COLOURS:
        packed = BytesIO()
        palette = make_palette(picture, colours)
        picture.quantize(palette=palette, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
        if packed.tell() <= LARGEST:
            break
    return packed.getvalue()


def save(name: str, picture: Image.Image) -> None:
    data = pack(picture)
    (PICTURES / f"{name}.png").write_bytes(data)
    print(f"{name}.png  {len(data):,} bytes")


def draw_sections(store: str, run: str | None, sections: Mapping[str, int]) -> None:
    """Raises AssertionError: the report of this store has no such section."""
    page = render(make_store(store), run)
    with tempfile.TemporaryDirectory() as folder:
        for section, height in sections.items():
            assert f'<section id="{section}"' in page, f"no section {section} in the report of {store}"
            (Path(folder) / "page.html").write_text(show_only(page, section))
            save(section, take_picture(f"file://{folder}/page.html", height))


def draw_explorer(store: str) -> None:
    """The page of the feature whose text finds it best."""
    unit = miclip.open(store).sql(UNIT).to_pylist()[0]
    with tempfile.TemporaryDirectory() as folder:
        write_pages(open_catalog(make_store(store), Scope()), Path(folder))
        server = FolderServer(Path(folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        save("explorer", take_picture(f"{server.url}#/unit/{unit['stage'][:12]}/{unit['unit']}", EXPLORER))
        server.shutdown()


def main(demo: str, nightly: str) -> None:
    draw_sections(demo, "demo-00001", DEMO)
    draw_sections(nightly, None, NIGHTLY)
    draw_explorer(nightly)


if __name__ == "__main__":
    main(*sys.argv[1:])
