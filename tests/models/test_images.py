"""Opening pictures: every kind comes out upright and RGB, every bad one as one sentence."""

import base64
import io
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vistoken.core.errors import DataError
from vistoken.models._image_fetch import fetch_url
from vistoken.models.images import open_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def sample(width=6, height=4):
    """A picture whose four quarters differ, so that no turn or flip goes unseen."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = WHITE
    return Image.fromarray(pixels)


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def refused(source, says, **options):
    with pytest.raises(DataError, match=says) as error:
        open_image(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_kind_of_source_gives_the_same_picture(tmp_path):
    image = sample()
    data = encode(image)
    path = tmp_path / "x.png"
    path.write_bytes(data)
    pixels = np.asarray(image)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    sources = [path, str(path), data, url, image, pixels, pixels / 255, tensor, tensor / 255]
    for source in sources:
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), pixels)


def test_the_callers_picture_is_not_shared():
    image = sample()
    open_image(image).putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_note_is_applied(orientation):
    upright = sample(16, 8)
    turned = {
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]  # fmt: skip
    stored = upright
    for step in turned:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encode(stored, "PNG", exif=exif))
    assert np.array_equal(np.asarray(opened), np.asarray(upright))


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (*RED, 255))
    image.putpixel((1, 0), (*RED, 128))
    opened = open_image(encode(image))
    assert opened.getpixel((0, 0)) == RED
    assert opened.getpixel((1, 0)) == (255, 127, 127)
    grey = Image.new("LA", (1, 1), (0, 0))
    assert open_image(encode(grey)).getpixel((0, 0)) == WHITE


def test_palette_with_and_without_transparency():
    image = sample().quantize(8)
    assert np.array_equal(np.asarray(open_image(encode(image))), np.asarray(sample()))
    index = image.getpixel((0, 0))
    opened = open_image(encode(image, transparency=index))
    assert opened.getpixel((0, 0)) == WHITE
    assert opened.getpixel((5, 0)) == GREEN


def test_a_transparent_colour_of_an_rgb_png_is_white():
    opened = open_image(encode(sample(), transparency=RED))
    assert opened.getpixel((0, 0)) == WHITE
    assert opened.getpixel((5, 0)) == GREEN


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.allclose(open_image(encode(red, format)).getpixel((8, 8)), RED, atol=3)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    opened = open_image(encode(Image.fromarray(values), format))
    assert [opened.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]
    assert np.array_equal(np.asarray(open_image(values)), np.asarray(opened))


def test_grey_and_bilevel():
    assert open_image(encode(Image.new("L", (1, 1), 7))).getpixel((0, 0)) == (7, 7, 7)
    assert open_image(encode(Image.new("1", (1, 1), 1))).getpixel((0, 0)) == WHITE
    assert open_image(np.full((1, 1, 1), 7, np.uint8)).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_say_to_extract_a_frame(format, tmp_path):
    path = tmp_path / "moving.png"
    frames = [sample(), sample().transpose(Image.Transpose.ROTATE_180)]
    path.write_bytes(encode(frames[0], format, save_all=True, append_images=frames[1:]))
    message = refused(path, "2 frames or pages; extract the one")
    assert "moving.png" in message
    with Image.open(path) as lazily_opened:
        refused(lazily_opened, "2 frames or pages")
        assert open_image(lazily_opened.copy()).size == (6, 4)


def test_a_multi_picture_jpeg_is_a_photograph():
    data = encode(sample(16, 8), "MPO", save_all=True, append_images=[sample(16, 8)])
    assert open_image(data).size == (16, 8)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_files(format, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encode(noise, format)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: len(data) // 2])
    assert "cut.img" in refused(path, "truncated or corrupt", where="row 3")


def test_a_text_file_named_jpg(tmp_path):
    path = tmp_path / "note.jpg"
    path.write_text("not a picture")
    assert "note.jpg" in refused(path, "not a picture in a known format")


def test_what_needs_another_program_is_not_opened():
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture")


def test_missing_files_folders_and_empty_ones(tmp_path):
    assert refused(tmp_path / "no.png", "does not exist", where="row 3").startswith("row 3: ")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "not a picture")
    refused(b"", "is empty")
    refused("a\0b.png", "corrupt")


def test_pictures_without_area():
    refused(Image.new("RGB", (0, 5)), r"no area \(0x5 pixels\)")
    refused(np.zeros((5, 0, 3), np.uint8), r"no area \(0x5 pixels\)")
    refused(torch.zeros(3, 0, 5), r"no area \(5x0 pixels\)")


def test_huge_pictures_are_refused_before_decoding(recwarn):
    refused(png_header(10_000, 9_000), "10000x9000 pixels, more than the")
    refused(png_header(100_000, 100_000), "more pixels than is safe")
    refused(sample(), "6x4 pixels, more than the 20 allowed", max_pixels=20)
    refused(np.zeros((5, 5), np.uint8), "more than the 20 allowed", max_pixels=20)
    assert open_image(sample(), max_pixels=24).size == (6, 4)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((2, 2, 5), np.uint8), "shape"),
        (np.zeros((1, 2, 2, 3), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.full((2, 2), 1.5), "outside 0 to 1"),
        (np.full((2, 2), -0.5), "outside 0 to 1"),
        (np.full((2, 2), np.nan), "outside 0 to 1"),
        (torch.zeros(2, 2, 3), "shape"),
        (3, "cannot be opened"),
        (None, "cannot be opened"),
    ],
)
def test_pixels_that_are_no_picture(pixels, says):
    refused(pixels, says)


def test_floating_point_and_wide_integer_files():
    refused(encode(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "floating-point")
    wide = Image.fromarray(np.full((2, 2), 70_000, np.int32))
    refused(encode(wide, "TIFF"), "32-bit integer")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://example.invalid/x.png", "fetching is off"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png;base64,", "is empty"),
    ],
)
def test_urls_that_are_not_opened(url, says):
    refused(url, says)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data):
    original = encode(sample(8, 8), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP"])))
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        opened = open_image(bytes(damaged))
    except DataError:
        return
    assert opened.mode == "RGB"


class Answers(BaseHTTPRequestHandler):
    """Serves a picture, a redirect to a file and nothing else."""

    def do_GET(self):
        if self.path == "/x.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encode(sample()))
        elif self.path == "/file":
            self.send_response(302)
            self.send_header("Location", Path(__file__).as_uri())
            self.end_headers()
        else:
            self.send_error(404)

    def log_message(self, format, *args):
        """Keeps the test output clean."""


@pytest.fixture(scope="module")
def server():
    with HTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_urls_are_fetched_when_allowed(server, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert open_image(f"{server}/x.png", allow_url=True).size == (6, 4)
    refused(f"{server}/gone.png", "404", allow_url=True)
    refused(f"{server}/file", "cannot be fetched", allow_url=True)
    with pytest.raises(DataError, match="longer than 10 bytes"):
        fetch_url(f"{server}/x.png", "it", max_bytes=10)
    with pytest.raises(DataError, match="did not arrive|timed out"):
        fetch_url(f"{server}/x.png", "it", timeout_s=1e-9)
