"""Pictures to tensors."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
from PIL import Image

from server.errors import InvalidRequest, PayloadTooLarge, ServingError
from server.pipeline.foreground import _median, _quantile
from server.pipeline.image import ImagePipeline, ImageSteps
from server.pipeline.image_spec import Decode, Decoder, Foreground, ImageSpec, Normalize, Resize
from server.types import ImageInput, RowInput, TextInput
from tests.support.drawn_digits import DRAWINGS, STYLES, Style, draw, encode, transparent
from tests.support.models import SMALL_SPEC, write_image_model

PLAIN = Normalize(mean=(0.0,), std=(1.0,))
INK_SPEC = ImageSpec(
    mode="L",
    decode=Decode(background="contrast", max_side=256),
    foreground=Foreground(),
    resize=Resize(height=20, width=20),
    normalize=PLAIN,
)


WithDecode = Callable[..., ImageSteps]


@pytest.fixture(params=get_args(Decoder))
def with_decode(request: pytest.FixtureRequest) -> WithDecode:
    """Makes the steps of a small grey model with this `decode`: each test runs with every decoder."""

    def make(**decode: object) -> ImageSteps:
        settings = Decode.model_validate({"decoder": request.param, **decode})
        return ImageSteps(SMALL_SPEC.model_copy(update={"decode": settings}))

    return make


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is this large, and is a few bytes long."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def pipeline(tmp_path: Path) -> ImagePipeline:
    return ImagePipeline(SMALL_SPEC, write_image_model(tmp_path / "m"))


def test_a_row_for_each_picture_in_the_declared_layout(pipeline: ImagePipeline) -> None:
    """[B, C, H, W] of FP32, from 0 to 1, in the order of the inputs."""
    pictures = [ImageInput(encode(Image.new("L", (9, 5), grey), "PNG")) for grey in (0, 255, 51)]
    tensor = pipeline.preprocess(pictures)["image"]
    assert (tensor.shape, tensor.dtype) == ((3, 1, 4, 6), np.float32)
    np.testing.assert_allclose(tensor.mean(axis=(1, 2, 3)), [0, 1, 0.2], atol=1e-6)


def test_channels_are_normalised_each_by_its_own_mean_and_std() -> None:
    """(value * scale - mean) / std per channel, in NCHW and NHWC alike."""
    norm = Normalize(mean=(0.5, 0.0, 1.0), std=(0.5, 2.0, 1.0))
    spec = ImageSpec(mode="RGB", resize=Resize(height=2, width=3), normalize=norm)
    picture = Image.new("RGB", (4, 4), (255, 102, 0))
    chw = ImageSteps(spec).tensor(picture)
    hwc = ImageSteps(spec.model_copy(update={"layout": "NHWC"})).tensor(picture)
    np.testing.assert_allclose(chw[:, 0, 0], [1.0, 0.2, -1.0], rtol=1e-6)
    assert (chw.shape, hwc.shape) == ((3, 2, 3), (2, 3, 3))
    np.testing.assert_array_equal(chw.transpose(1, 2, 0), hwc)


def test_a_cropped_fit_keeps_the_aspect() -> None:
    """fit crop cuts both sides off; stretch keeps them."""
    picture = Image.new("L", (30, 10), 255)
    picture.paste(0, (10, 0, 20, 10))
    spec = SMALL_SPEC.model_copy(update={"resize": Resize(height=10, width=10, filter="box", fit="crop")})
    assert ImageSteps(spec).tensor(picture).max() == 0


def test_exif_orientation_is_obeyed_if_the_spec_says_so(with_decode: WithDecode) -> None:
    """A camera held upright stores a lying picture and a note."""
    picture = Image.new("L", (40, 20), 0)
    picture.paste(255, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    upright = with_decode().decode(buffer.getvalue(), "x")
    assert upright.height == 2 * upright.width
    top, bottom = (upright.getpixel((upright.width // 2, y)) for y in (1, upright.height - 2))
    assert (top, bottom) == (255, 0)
    stored = with_decode(exif_orientation=False).decode(buffer.getvalue(), "x")
    assert stored.width == 2 * stored.height


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_usual_pixel_mode_is_read(with_decode: WithDecode, mode: str) -> None:
    """White is white whatever the picture's mode."""
    picture = Image.new("L", (8, 8), 255).convert(mode)
    assert with_decode().decode(encode(picture, "PNG"), "x").getextrema() == (255, 255)


def test_cmyk_jpegs_are_read(with_decode: WithDecode) -> None:
    """Print shops send them."""
    data = encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    low, _ = with_decode().decode(data, "x").getextrema()
    assert low > 250


def test_sixteen_bit_greys_keep_their_brightness(with_decode: WithDecode) -> None:
    """Pillow's own conversion would clip everything above 255 of 65535 to white."""
    picture = Image.fromarray(np.full((8, 8), 65535 // 5, dtype=np.uint16))
    assert with_decode().decode(encode(picture, "PNG"), "x").getextrema() == (51, 51)


@pytest.mark.parametrize(("background", "grey"), [((255, 255, 255), 255), ((0, 0, 0), 0)])
def test_transparent_pixels_show_the_declared_background(
    with_decode: WithDecode, background: tuple[int, int, int], grey: int
) -> None:
    """What lies below alpha 0 is never seen, whatever colour it has."""
    data = encode(Image.new("RGBA", (8, 8), (90, 90, 90, 0)), "PNG")
    assert with_decode(background=background).decode(data, "x").getextrema() == (grey, grey)


@pytest.mark.parametrize("ink", [0, 90, 255])
def test_ink_on_nothing_is_seen_in_any_colour(ink: int) -> None:
    """background contrast lays the paper that the ink stands out from."""
    tensor = ImageSteps(INK_SPEC).row(ImageInput(encode(transparent("7", ink), "PNG")), "x")
    plain = ImageSteps(INK_SPEC).row(ImageInput(encode(draw("7", STYLES[0]), "PNG")), "x")
    assert np.abs(tensor - plain).mean() < 0.02


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_drawing_becomes_bright_ink_of_full_height_whatever_it_is_drawn_on(style: Style, kind: str) -> None:
    """Polarity, contrast, size, place and light of the paper do not change what the model sees."""
    tensor = ImageSteps(INK_SPEC).row(ImageInput(encode(draw("0", style), kind)), "x")[0]
    rows, columns = np.flatnonzero(tensor.max(axis=1) > 0.2), np.flatnonzero(tensor.max(axis=0) > 0.2)
    assert (rows[0], rows[-1]) == (0, 19)
    assert abs((columns[0] + columns[-1]) / 2 - 9.5) <= 1
    assert tensor[9:11, 9:11].max() < 0.2, "the middle of a zero is empty"
    assert tensor.max() > 0.2


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 10, 11, 12, 101, 1000])
def test_quantiles_are_numpys_to_the_bit(size: int) -> None:
    """Models were trained and certified with numpy's own, which brings more into a server than it needs."""
    values = np.random.default_rng(size).uniform(0, 255, size)
    for drawn in (values, np.round(values)):
        assert _median(drawn) == np.median(drawn)
        for share in (0.0, 0.1, 0.5, 0.9, 0.999, 1.0):
            assert _quantile(drawn.astype(np.float32), share) == float(np.quantile(drawn.astype(np.float32), share))


def test_specks_do_not_move_the_box() -> None:
    """Lone pixels of dust far from the digit are not part of it."""
    picture = draw("8", Style("small", height=0.4))
    clean = ImageSteps(INK_SPEC).tensor(picture)
    for place in ((30, 40), (250, 30), (240, 260)):
        picture.putpixel(place, 0)
    np.testing.assert_allclose(ImageSteps(INK_SPEC).tensor(picture), clean, atol=0.05)


@pytest.mark.parametrize("size", [(280, 280), (1, 1), (1, 500), (3, 2)])
def test_a_blank_picture_is_refused(size: tuple[int, int]) -> None:
    """There is no digit to answer with, and a guess would look like an answer."""
    data = encode(Image.new("L", size, 200), "PNG")
    with pytest.raises(InvalidRequest, match=r"inputs\[4\]: nothing stands out"):
        ImageSteps(INK_SPEC).row(ImageInput(data), "inputs[4]")


def test_noise_is_not_ink() -> None:
    """Grain of a few grey levels is no drawing."""
    grain = np.random.default_rng(0).normal(128, 3, (200, 200)).astype(np.uint8)
    with pytest.raises(InvalidRequest, match="nothing stands out"):
        ImageSteps(INK_SPEC).row(ImageInput(encode(Image.fromarray(grain), "PNG")), "x")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(with_decode: WithDecode) -> None:
    """A header is enough to know; 40 gigapixels would not fit into memory."""
    with pytest.raises(PayloadTooLarge, match="pixels"):
        with_decode().decode(png_header(200_000, 200_000), "inputs[0]")
    with pytest.raises(PayloadTooLarge, match="101 pixels, over the limit of 100 pixels"):
        with_decode(max_pixels=100).decode(png_header(101, 1), "inputs[0]")


def test_the_servers_own_limit_holds_whatever_the_spec_allows() -> None:
    """max_pixels is the smaller of the two."""
    with pytest.raises(PayloadTooLarge, match="limit of 50 pixels"):
        ImageSteps(SMALL_SPEC, max_pixels=50).decode(png_header(10, 10), "inputs[0]")


def test_bytes_are_counted_before_they_are_looked_at(with_decode: WithDecode) -> None:
    """A body over max_bytes is too large even if it is no picture."""
    with pytest.raises(PayloadTooLarge, match=r"inputs\[2\]: 11 bytes, over the limit of 10 bytes"):
        with_decode(max_bytes=10).decode(b"x" * 11, "inputs[2]")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_picture_that_is_cut_short_is_refused(with_decode: WithDecode, kind: str, part: float) -> None:
    """Half a picture is not answered as if it were whole."""
    whole = encode(Image.effect_noise((200, 200), 80), kind)
    with pytest.raises(InvalidRequest, match=r"inputs\[1\]"):
        with_decode().decode(whole[: int(len(whole) * part)], "inputs[1]")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"BM"])
def test_what_is_no_picture_is_refused(with_decode: WithDecode, data: bytes) -> None:
    """Whatever the bytes, the error is the caller's, and names the input."""
    with pytest.raises(InvalidRequest, match=r"inputs\[0\]"):
        with_decode().decode(data, "inputs[0]")


def test_flipped_bytes_never_escape_as_anything_but_our_errors(with_decode: WithDecode) -> None:
    """Decoders raise all kinds of exceptions on hostile bytes; callers see one kind."""
    generator = np.random.default_rng(3)
    steps = with_decode(max_pixels=1_000_000)
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = np.frombuffer(encode(draw("3", STYLES[0]), kind), dtype=np.uint8)
        for _ in range(60):
            broken = whole.copy()
            broken[generator.integers(0, len(broken), 6)] = generator.integers(0, 256, 6)
            try:
                steps.decode(broken.tobytes(), "x")
            except ServingError:
                continue


def test_a_format_outside_the_allow_list_is_refused(with_decode: WithDecode) -> None:
    """The bytes decide, not what the caller says of them."""
    data = encode(Image.new("L", (8, 8)), "GIF")
    with pytest.raises(InvalidRequest, match="PNG, JPEG"):
        with_decode(formats=("PNG", "JPEG")).row(ImageInput(data, "image/png"), "x")


def test_an_animation_is_refused(with_decode: WithDecode) -> None:
    """Which of its pictures was meant?"""
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 100, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidRequest, match="animation"):
        with_decode().decode(buffer.getvalue(), "x")


@pytest.mark.parametrize("item", [TextInput("seven"), RowInput([7])])
def test_another_kind_of_input_is_refused(pipeline: ImagePipeline, item: TextInput | RowInput) -> None:
    """The field says which of the inputs it is."""
    good = ImageInput(encode(Image.new("L", (8, 8)), "PNG"))
    with pytest.raises(InvalidRequest, match=r"inputs\[1\]: is not a picture"):
        pipeline.preprocess([good, item])


def test_no_inputs_are_refused(pipeline: ImagePipeline) -> None:
    """An empty batch has no answer."""
    with pytest.raises(InvalidRequest, match="inputs"):
        pipeline.preprocess([])


def test_large_jpegs_are_reduced_to_max_side(with_decode: WithDecode) -> None:
    """The longer side is max_side, the aspect stays, and small pictures are left alone."""
    steps = with_decode(max_side=100)
    assert steps.decode(encode(Image.new("L", (1600, 800), 9), "JPEG"), "x").size == (100, 50)
    assert steps.decode(encode(Image.new("L", (60, 20), 9), "PNG"), "x").size == (60, 20)


def photo(width: int, height: int) -> Image.Image:
    """Coloured areas with soft edges: what a photo has and noise has not."""
    areas = np.random.default_rng(5).integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
    return Image.fromarray(areas).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
@pytest.mark.parametrize(("oversample", "levels"), [(1, 2.0), (2, 0.5)])
def test_a_reduced_jpeg_differs_by_a_grey_level_or_so(
    mode: Literal["L", "RGB"], fit: Literal["stretch", "crop"], oversample: float, levels: float, progressive: bool
) -> None:
    """On average, as the spec says of `oversample`; whatever the fit and the way that the JPEG was written."""
    buffer = io.BytesIO()
    photo(1280, 960).save(buffer, "JPEG", quality=90, progressive=progressive)
    normalize = Normalize(scale=1.0, mean=(0.0,) * len(mode), std=(1.0,) * len(mode))
    spec = ImageSpec(mode=mode, resize=Resize(height=64, width=96, fit=fit), normalize=normalize)
    drafted = spec.model_copy(update={"decode": Decode(decoder="pillow-draft", oversample=oversample)})

    whole = ImageSteps(spec).row(ImageInput(buffer.getvalue()), "x")
    reduced = ImageSteps(drafted).row(ImageInput(buffer.getvalue()), "x")

    assert 0 < np.abs(whole - reduced).mean() < levels


@pytest.mark.parametrize(
    ("size", "orientation", "oversample", "decoded"),
    [
        ((640, 480), 1, 1.0, (160, 120)),
        ((640, 480), 1, 1.5, (320, 240)),
        ((640, 480), 1, 4.0, (640, 480)),
        ((640, 480), 6, 1.0, (120, 160)),
        ((160, 480), 1, 1.0, (160, 480)),
        ((480, 160), 6, 1.0, (160, 480)),
        ((640, 90), 1, 1.0, (640, 90)),
        ((50, 50), 1, 1.0, (50, 50)),
        ((5600, 4000), 1, 1.0, (700, 500)),
    ],
)
def test_a_jpeg_is_reduced_to_no_less_than_the_models_size(
    size: tuple[int, int], orientation: int, oversample: float, decoded: tuple[int, int]
) -> None:
    """By 2, 4 or 8 while both sides stay long enough for a model of 100x90, the picture turned as EXIF says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", size, 9).save(buffer, "JPEG", exif=exif)
    decode = Decode(decoder="pillow-draft", oversample=oversample)
    spec = ImageSpec(mode="L", decode=decode, resize=Resize(height=90, width=100), normalize=PLAIN)

    assert ImageSteps(spec).decode(buffer.getvalue(), "x").size == decoded


def test_other_formats_are_decoded_whole_by_every_decoder(with_decode: WithDecode) -> None:
    """Only JPEG can be reduced while it is decoded; the pixels of a PNG are those of the picture."""
    picture = photo(320, 240).convert("L")

    assert with_decode().decode(encode(picture, "PNG"), "x").tobytes() == picture.tobytes()


def test_a_foreground_is_looked_for_at_max_side_by_every_decoder() -> None:
    """A reduced JPEG of a drawing gives nearly the tensor of the whole one: the ink is found all the same."""
    drafted = INK_SPEC.model_copy(update={"decode": INK_SPEC.decode.model_copy(update={"decoder": "pillow-draft"})})
    data = encode(draw("3", STYLES[0]).resize((1200, 900)), "JPEG")

    assert max(ImageSteps(drafted).decode(data, "x").size) == 256
    difference = ImageSteps(drafted).row(ImageInput(data), "x") - ImageSteps(INK_SPEC).row(ImageInput(data), "x")
    assert np.abs(difference).mean() < 0.02


def test_a_row_is_what_the_steps_say_to_the_bit() -> None:
    """(value * scale - mean) / std in FP32, each step rounded: committed models were verified against these bits."""
    picture = photo(200, 120)
    normalize = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    resize = Resize(height=32, width=40)
    spec = ImageSpec(mode="RGB", layout="NHWC", resize=resize, normalize=normalize)

    pixels = np.asarray(picture.resize((40, 32), Image.Resampling.BILINEAR)).astype(np.float32)
    mean, std = np.float32(normalize.mean), np.float32(normalize.std)
    expected = (pixels * np.float32(1 / 255) - mean) / std

    row = ImageSteps(spec).row(ImageInput(encode(picture, "PNG")), "x")
    assert row.tobytes() == expected.tobytes()


def test_one_pipeline_serves_many_threads_at_once() -> None:
    """Every thread gets the tensor that a lone caller gets."""
    steps = ImageSteps(INK_SPEC)
    pictures = [ImageInput(encode(draw(digit, STYLES[0]), "JPEG")) for digit in DRAWINGS]
    alone = [steps.row(picture, "x") for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda picture: steps.row(picture, "x"), pictures * 5))
    for index, tensor in enumerate(together):
        np.testing.assert_array_equal(tensor, alone[index % 10])


def test_the_pipeline_says_what_it_takes_and_its_example_is_valid(pipeline: ImagePipeline) -> None:
    """describe and example are what clients are shown."""
    described = pipeline.describe()
    assert described["task"] == "image-classification"
    assert described["labels"] == ["cat", "dog"]
    assert described["input"]["kind"] == "image"  # type: ignore[index]
    assert pipeline.preprocess([pipeline.example()])["image"].shape == (1, 1, 4, 6)


def test_answers_come_from_the_labels_of_the_folder(pipeline: ImagePipeline) -> None:
    """Column i of the output is line i of labels.txt."""
    answers = pipeline.postprocess({"logits": np.array([[0.0, 3.0], [3.0, 0.0]])}, top_k=1)
    assert [answer.label for answer in answers] == ["dog", "cat"]
