"""The rules by which image bytes become pixels, each on a file made for it, with pixel values worked out by hand."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from miclip_core.images import FORMATS, MAX_PIXELS, THUMBNAIL_SIDE, decode, describe
from schemas.errors import ImageUndecodable
from tests.pictures import RED, WHITE, bomb, encode, half_a_jpeg, jpeg, noise, png, with_orientation

LOSSLESS = ("PNG", "BMP", "TIFF", "PPM")


def pixels(data: bytes, orientation: str = "upright") -> np.ndarray:
    image = decode(data, orientation)  # type: ignore[arg-type]
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(data: bytes) -> ImageUndecodable:
    with pytest.raises(ImageUndecodable) as caught:
        decode(data)
    with pytest.raises(ImageUndecodable) as described:
        describe(data)
    assert (described.value.reason, described.value.detail) == (caught.value.reason, caught.value.detail)
    assert "0x7f" not in caught.value.detail  # a table must not hold memory addresses
    return caught.value


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_file_gives_back_the_pixels_that_were_written(kind: str) -> None:
    written = noise(1)
    np.testing.assert_array_equal(pixels(encode(written, kind)), written)
    np.testing.assert_array_equal(pixels(encode(noise(2), "WEBP", lossless=True)), noise(2))


def test_no_bytes_are_empty() -> None:
    assert refusal(b"").reason == "empty"


@pytest.mark.parametrize(
    "data", [b"not an image at all", b"BMW is a car", b"P5 is a mode", b"<svg/>", b"\0" * 100, b"%!PS-Adobe"]
)
def test_text_and_other_bytes_are_not_an_image(data: bytes) -> None:
    found = refusal(data)
    assert found.reason == "not_an_image"
    assert str(data[:12]) in found.detail


def test_an_image_in_a_format_that_is_not_accepted_is_not_an_image() -> None:
    assert refusal(encode(noise(0), "ICO")).reason == "not_an_image"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_file_of_every_format_is_truncated_and_never_half_a_picture(kind: str, share: float) -> None:
    whole = encode(noise(3, 64, 48), kind)
    assert describe(whole).format == kind
    assert refusal(whole[: int(len(whole) * share)]).reason == "truncated"


def test_pillow_itself_opens_half_a_jpeg_and_only_load_notices() -> None:
    Image.open(io.BytesIO(half_a_jpeg())).verify()
    assert refusal(half_a_jpeg()).reason == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_png_with_broken_compression_inside_is_truncated() -> None:
    data = bytearray(encode(noise(4, 64, 64)))
    data[200:220] = bytes(20)
    assert refusal(bytes(data)).reason == "truncated"


def test_a_file_with_its_last_bytes_missing_but_every_pixel_there_is_accepted() -> None:
    whole = encode(noise(5))
    np.testing.assert_array_equal(pixels(whole[:-12]), noise(5))  # without PNG's end chunk


def test_a_decompression_bomb_is_too_large_by_its_header_and_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb())
    assert path.stat().st_size < 200_000
    program = (
        "import sys; from pathlib import Path; from miclip_core.images import decode; from schemas.errors import ImageUndecodable\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "data = open(sys.argv[1], 'rb').read(); before = peak()\n"
        "try: decode(data)\n"
        "except ImageUndecodable as error: print(error.reason)\n"
        "print((peak() - before) // 1024)"
    )
    run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    reason, megabytes = run.stdout.split()
    assert reason == "too_large"
    assert int(megabytes) < 8  # 196 million pixels would be 187 MB even as one byte each


def test_the_limit_counts_pixels_where_pillow_would_only_warn() -> None:
    side = 9_460  # 89,491,600 pixels: 0.01 % above the limit, far below twice the limit, where Pillow raises
    assert MAX_PIXELS < side**2 < 2 * MAX_PIXELS
    found = refusal(png(side, side, b"", 1, 0))
    assert (found.reason, "9460 x 9460" in found.detail) == ("too_large", True)


def test_one_pixel_is_an_image() -> None:
    assert pixels(encode(np.array([[RED]], np.uint8))).tolist() == [[[255, 0, 0]]]
    assert describe(encode(np.array([[RED]], np.uint8)))[:2] == (1, 1)


def test_cmyk_inks_become_rgb() -> None:
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    for kind in ("JPEG", "TIFF"):
        data = encode(inks, kind)
        assert describe(data).mode == "CMYK"
        assert np.abs(pixels(data).astype(int) - RED).max() <= 3


def test_sixteen_bit_grey_is_divided_and_not_clipped() -> None:
    grey = np.array([[0, 256, 257, 32767, 32896, 65534, 65535]], np.uint16)
    wanted = [0, 1, 1, 127, 128, 255, 255]  # round(v / 257)
    for data in (encode(grey), encode(grey, "TIFF"), b"P5\n7 1\n65535\n" + grey.astype(">u2").tobytes()):
        assert pixels(data)[0, :, 0].tolist() == wanted
        assert (pixels(data) == pixels(data)[..., :1]).all()


def test_sixteen_bit_colour_keeps_the_upper_bits() -> None:
    row = np.array([0, 255, 256, 65535, 32768, 4096], ">u2").tobytes()
    assert pixels(png(2, 1, b"\0" + row, 16, 2)).tolist() == [[[0, 0, 1], [255, 128, 16]]]


def test_a_sixteen_bit_transparent_colour_does_not_break_the_image() -> None:
    row = np.array([0, 255, 256, 65535, 32768, 4096], ">u2").tobytes()
    key = (b"tRNS", np.array([65535, 32768, 4096], ">u2").tobytes())
    assert pixels(png(2, 1, b"\0" + row, 16, 2, (key,))).tolist() == [[[0, 0, 1], [255, 128, 16]]]


def test_wide_integers_and_floats_are_unsupported_because_nothing_says_what_white_is() -> None:
    assert refusal(encode(np.array([[0, 70_000]], np.int32), "TIFF")).reason == "unsupported"
    assert refusal(encode(np.array([[0.0, 1.0]], np.float32), "TIFF")).reason == "unsupported"
    assert pixels(encode(np.array([[0, 65_535]], np.int32), "TIFF"))[0, :, 0].tolist() == [0, 255]


def test_a_palette_gives_its_colours_and_its_transparent_entry_gives_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert pixels(encode(image)).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    for data in (encode(image, transparency=1), encode(image, "GIF", transparency=1)):
        assert pixels(data).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_alpha_is_laid_over_white() -> None:
    # red at alpha 0, 51 and 255: white, a fifth of red (255 - 51 = 204 in green and blue), red
    colours = np.array([[[255, 0, 0, 0], [255, 0, 0, 51], [255, 0, 0, 255]]], np.uint8)
    assert pixels(encode(colours)).tolist() == [[[255, 255, 255], [255, 204, 204], [255, 0, 0]]]
    grey = Image.fromarray(np.array([[[0, 0], [0, 51], [0, 255]]], np.uint8), "LA")
    assert pixels(encode(grey)).tolist() == [[[255] * 3, [204] * 3, [0] * 3]]
    np.testing.assert_array_equal(pixels(encode(colours, "WEBP", lossless=True, exact=True)), pixels(encode(colours)))


def test_a_transparent_colour_of_rgb_and_grey_is_white() -> None:
    colours = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8)
    assert pixels(encode(colours, transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [1, 2, 4]]]
    assert pixels(encode(np.array([[7, 8]], np.uint8), transparency=7)).tolist() == [[[255] * 3, [8] * 3]]


def test_one_bit_is_black_and_white() -> None:
    image = Image.fromarray(np.array([[True, False]]))
    assert describe(encode(image)).mode == "1"
    assert pixels(encode(image)).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert np.abs(pixels(data).astype(int) - RED).max() <= 3


# Where EXIF says the stored first row and first column are to be seen; the red pixel is in both.
CORNER = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("tag", range(1, 9))
def test_each_of_the_eight_exif_orientations_puts_the_corner_where_exif_says(tag: int) -> None:
    seen = pixels(with_orientation(tag))
    turned = tag >= 5
    assert seen.shape == ((3, 2, 3) if turned else (2, 3, 3))
    row = 0 if "top" in CORNER[tag] else -1
    column = 0 if "left" in CORNER[tag] else -1
    assert tuple(seen[row, column]) == RED
    assert (seen == WHITE).all(2).sum() == 5
    stored = pixels(with_orientation(tag), "as_stored")
    assert stored.shape == (2, 3, 3) and tuple(stored[0, 0]) == RED
    assert describe(with_orientation(tag))[:2] == ((2, 3) if turned else (3, 2))
    assert describe(with_orientation(tag), "as_stored")[:2] == (3, 2)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_orientation_works_in_every_format_that_carries_it_and_is_applied_once(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(noise(6, 30, 20), kind, exif=exif)).size == (20, 30)


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_an_impossible_orientation_is_no_orientation(tag: int) -> None:
    assert decode(with_orientation(tag)).size == (3, 2)


def test_damaged_metadata_does_not_cost_the_image() -> None:
    data = encode(noise(7), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    assert decode(data).size == (20, 16)


def test_a_description_has_size_format_mode_and_a_small_thumbnail() -> None:
    found = describe(encode(noise(8, 300, 100), "JPEG"))
    assert found[:4] == (300, 100, "JPEG", "RGB")
    with Image.open(io.BytesIO(found.thumbnail)) as thumbnail:
        assert thumbnail.format == "JPEG"
        assert max(thumbnail.size) == THUMBNAIL_SIDE
        assert thumbnail.size[1] in (21, 22)  # 64 * 100 / 300


def test_many_threads_decode_as_one_does() -> None:
    files = (
        [jpeg(i) for i in range(8)] + [half_a_jpeg(i) for i in range(8)] + [with_orientation(i) for i in range(1, 9)]
    )

    def outcome(data: bytes) -> bytes | str:
        try:
            return decode(data).tobytes()
        except ImageUndecodable as error:
            return str(error)

    alone = [outcome(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files * 8)) == alone * 8
