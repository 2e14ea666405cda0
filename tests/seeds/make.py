"""Writes the seeds of `src/data/fuzz_tests.rs`: a folder for each reader, in it small files as other programs write them.

    python3 tests/seeds/make.py

needs numpy, pillow, pyarrow, scipy and zstandard. A seed whose name ends in `.gz` is unpacked before it is mutated. Inputs that once
failed are called `found-…`, come from no script, and stay.
"""

import csv
import gzip
import io
import json
import pickle
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import scipy.io
import zstandard
from PIL import Image

ROOT = Path(__file__).parent
RANDOM = numpy.random.default_rng(13)


def seed(reader, name, content, packed=False):
    folder = ROOT / reader
    folder.mkdir(exist_ok=True)
    if packed:
        name, content = f"{name}.gz", gzip.compress(content, 9, mtime=0)
    (folder / name).write_bytes(content)
    if len(content) > 2048:
        print(f"{reader}/{name} has {len(content)} bytes", file=sys.stderr)


def pixels(height, width, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return RANDOM.integers(0, 256, shape, dtype=numpy.uint8)


def saved(image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


RGB = Image.fromarray(pixels(6, 8))
GREY = Image.fromarray(pixels(6, 8, 1))
ALPHA = Image.fromarray(pixels(6, 8, 4), "RGBA")
SMOOTH = Image.fromarray(numpy.linspace(0, 255, 24 * 18 * 3).astype("u1").reshape(18, 24, 3))
WIDE = Image.fromarray((numpy.arange(48, dtype="u2") * 1365).reshape(6, 8))
EXIF = Image.Exif()
EXIF[0x0112] = 6
PROFILE = struct.pack(">I", 132) + bytes(128)


def pictures():
    png = {
        "rgb": (RGB, {}), "grey": (GREY, {}), "alpha": (ALPHA, {}), "grey-alpha": (ALPHA.convert("LA"), {}),
        "palette": (RGB.quantize(4), {}), "bit": (GREY.convert("1"), {}), "wide": (WIDE, {}),
        "profile": (RGB, {"icc_profile": PROFILE, "exif": EXIF}),
        "animated": (RGB, {"save_all": True, "append_images": [SMOOTH.resize(RGB.size)]}),
    }
    for name, (image, options) in png.items():
        seed("png", f"{name}.png", saved(image, "PNG", **options))
    jpeg = {
        "plain": (SMOOTH, {}), "full": (SMOOTH, {"subsampling": 0}), "half": (SMOOTH, {"subsampling": 1}),
        "progressive": (SMOOTH, {"progressive": True}), "grey": (SMOOTH.convert("L"), {}), "inks": (SMOOTH.convert("CMYK"), {}),
        "turned": (SMOOTH, {"exif": EXIF}), "restart": (SMOOTH, {"restart_marker_blocks": 1}), "profile": (SMOOTH, {"icc_profile": PROFILE}),
    }
    for name, (image, options) in jpeg.items():
        seed("jpeg", f"{name}.jpg", saved(image, "JPEG", quality=40, **options))
    webp = {
        "lossy": (SMOOTH, {"quality": 30}), "lossless": (RGB, {"lossless": True}), "alpha": (ALPHA, {"lossless": True}),
        "lossy-alpha": (ALPHA, {"quality": 30}), "exif": (SMOOTH, {"exif": EXIF, "icc_profile": PROFILE}),
        "animated": (RGB, {"save_all": True, "append_images": [SMOOTH.resize(RGB.size)], "quality": 20}),
    }
    for name, (image, options) in webp.items():
        seed("webp", f"{name}.webp", saved(image, "WEBP", **options))
    gif = {
        "plain": (RGB.quantize(8), {"interlace": 0}), "interlaced": (RGB.quantize(16), {"interlace": 1}),
        "clear": (RGB.quantize(4), {"transparency": 1}), "bit": (GREY.convert("1"), {}),
        "animated": (RGB.quantize(4), {"save_all": True, "append_images": [SMOOTH.resize(RGB.size).quantize(4)], "loop": 0}),
    }
    for name, (image, options) in gif.items():
        seed("gif", f"{name}.gif", saved(image, "GIF", **options))
    for name, image in {"rgb": RGB, "grey": GREY, "palette": RGB.quantize(4), "bit": GREY.convert("1"), "alpha": ALPHA}.items():
        seed("bmp", f"{name}.bmp", saved(image, "BMP"))
    for bits, compression in [(8, 1), (4, 2)]:
        seed("bmp", f"run-length-{bits}.bmp", run_length(bits, compression))
    pnm = {"rgb.ppm": RGB, "grey.pgm": GREY, "bit.pbm": GREY.convert("1"), "wide.pgm": WIDE}
    for name, image in pnm.items():
        seed("pnm", name, saved(image, "PPM"))
    seed("pnm", "text.pbm", b"P1\n# a comment\n3 2\n0 1 0\n1 0 1\n")
    seed("pnm", "text.pgm", b"P2 3 2 9\n0 1 2\n7 8 9\n")
    seed("pnm", "text.ppm", b"P3\n2 1\n255\n255 0 0  0 0 255\n")
    seed("pnm", "rgb.pam", b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + bytes(range(16)))
    tiff = {
        "plain": (RGB, {}), "grey": (GREY, {}), "bit": (GREY.convert("1"), {}), "wide": (WIDE, {}), "alpha": (ALPHA, {}),
        "lzw": (RGB, {"compression": "tiff_lzw"}), "deflate": (GREY, {"compression": "tiff_adobe_deflate"}),
        "packbits": (GREY, {"compression": "packbits"}), "jpeg": (SMOOTH, {"compression": "jpeg", "quality": 40}),
        "fax": (GREY.convert("1"), {"compression": "group4"}), "inks": (RGB.convert("CMYK"), {}),
        "refused-floats": (Image.fromarray(numpy.linspace(0, 1, 48, dtype="f4").reshape(6, 8)), {}),
        "pages": (GREY, {"save_all": True, "append_images": [GREY]}),
    }
    for name, (image, options) in tiff.items():
        seed("tiff", f"{name}.tif", saved(image, "TIFF", **options))
    big = struct.pack(">2sHIH", b"MM", 42, 8, 8)
    for tag, kind, count, value in [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 110), (278, 3, 1, 2), (279, 4, 1, 4)]:
        big += struct.pack(">HHI", tag, kind, count) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
    seed("tiff", "big-endian.tif", big + bytes(4) + bytes([1, 2, 3, 4]))


def run_length(bits, compression):
    """A bitmap of 4x2 pixels: a run, literal pixels, the end of the line."""
    data = {8: bytes([4, 1, 0, 0, 0, 3, 0, 1, 2, 0, 1, 3, 0, 1]), 4: bytes([4, 0x12, 0, 0, 4, 0x21, 0, 1])}[bits]
    palette = bytes([0, 0, 0, 0, 255, 0, 0, 0, 0, 255, 0, 0, 0, 0, 255, 0])
    start = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    return head + struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, bits, compression, len(data), 0, 0, 4, 0) + palette + data


def tar_of(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=members.pop("format", tarfile.GNU_FORMAT)) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue().rstrip(b"\0") + bytes(1024 + 512)


def zip_of(members, compression=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content, compression)
    return out.getvalue()


def archives():
    a, b = saved(GREY, "PNG"), saved(SMOOTH.resize((8, 6)), "JPEG", quality=40)
    members = {"a/1.png": a, "b/2.jpg": b, "__MACOSX/a/._1.png": b"x", "labels.csv": b"file,label\na/1.png,x\nb/2.jpg,y\n"}
    long = {"train/" + "long " * 30 + "/1.png": a, "test/b/2.png": a}
    plain = tar_of(dict(members))
    seed("tar", "gnu.tar", plain, packed=True)
    seed("tar", "long.tar", tar_of(dict(long)), packed=True)
    seed("tar", "pax.tar", tar_of({"format": tarfile.PAX_FORMAT, "ä/1.png": a, **long}), packed=True)
    seed("tar-gz", "set.tgz", gzip.compress(plain, 9, mtime=0))
    seed("tar-zst", "set.tar.zst", zstandard.compress(plain, 19))
    seed("tar-zst", "checked.tar.zst", zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(plain))
    seed("zip", "deflated.zip", zip_of(members))
    seed("zip", "stored.zip", zip_of(members, zipfile.ZIP_STORED))
    shard = {"0.png": a, "0.cls": b"1", "1.jpg": b, "1.json": b'{"label": 0}', "2.jpg": b, "2.cls": b"cat"}
    seed("webdataset", "shard.tar", tar_of(shard), packed=True)


def labels():
    table = io.StringIO()
    csv.writer(table).writerows([["file_name", "label"], ["1.png", "cat"], ["2.png", 'a, "b"']])
    seed("labels-csv", "header.csv", table.getvalue().encode())
    seed("labels-csv", "bare.csv", b"1\t7\n2\t0\n")
    seed("labels-csv", "split.csv", b"\xef\xbb\xbfId;Split;Target\r\n1;train;0\r\n2;test;1\r\n")
    seed("metadata-jsonl", "labels.jsonl", b'{"file_name": "1.png", "label": 3}\n{"file_name": "2.png", "label": "x"}\n')
    seed("metadata-jsonl", "texts.jsonl", b'{"file_name": "1.png", "text": "no label"}\n\n{"file_name": "2.png"}\n')
    for name, given in {"numbers": [["1.png", 6], ["2.png", 0]], "one-hot": [["1.png", [1, 0]], ["2.png", [0, 1]]],
                        "map": {"1.png": 1, "2.png": "x"}, "none": None}.items():
        seed("dataset-json", f"{name}.json", json.dumps({"labels": given}).encode())


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def batch(labels, key="labels"):
    """A pickle of protocol 2 as Python 2 and its NumPy wrote CIFAR's: {"data": u8 [n, 3072], KEY: labels}."""
    data = bytes(range(256)) * 12 * len(labels)
    return (
        b"\x80\x02}q\x01(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"K" + bytes([len(labels)]) + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        + b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(data)) + data
        + b"tbU" + bytes([len(key)]) + key.encode() + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu."
    )


def published():
    seed("idx", "images", idx(pixels(2, 2, 2)))
    seed("idx", "images-gz", gzip.compress(idx(numpy.zeros((2, 28, 28), "u1")), mtime=0))
    seed("emnist-mapping", "letters.txt", b"0 65 97\n1 66 98\n")
    seed("emnist-mapping", "digits.txt", b"0 48\r\n1 49\r\n")
    record = bytes([3]) + bytes(range(256)) * 12
    seed("cifar-10", "data_batch_1.bin", record * 2, packed=True)
    seed("cifar-100", "train.bin", (bytes([1]) + record) * 2, packed=True)
    seed("cifar-10-python", "python-2", batch([1, 0]), packed=True)
    seed("cifar-100-python", "python-2", batch([1, 0], "fine_labels"), packed=True)
    for protocol in (2, 4):
        set = {"data": numpy.zeros((2, 3072), "u1"), "labels": [1, 0], "fine_labels": [1, 0], "filenames": ["a", "b"]}
        for reader in ("cifar-10-python", "cifar-100-python"):
            seed(reader, f"protocol-{protocol}", pickle.dumps(set, protocol), packed=True)
        seed("pickle", f"protocol-{protocol}", pickle.dumps({"data": numpy.arange(6, dtype="u1").reshape(2, 3), "labels": [7, 8]}, protocol))
        seed("pickle", f"names-{protocol}", pickle.dumps({"label_names": ["cat", "dog"], b"num": 3}, protocol))
    seed("pickle", "python-2", b"\x80\x02}q\x01(U\x06labels](K\x07K\x08eU\x05names](U\x01aU\x01beu.")
    for name, packed in {"plain": False, "compressed": True}.items():
        out = io.BytesIO()
        scipy.io.savemat(out, {"X": numpy.arange(36, dtype="u1").reshape(2, 3, 3, 2), "y": numpy.array([[10], [3]], "u1")}, do_compression=packed)
        seed("svhn", f"{name}.mat", out.getvalue())
    seed("stl-10", "train_X.bin", bytes(2 * 3 * 96 * 96), packed=True)


def arrays():
    images, answers = numpy.arange(24, dtype="u1").reshape(2, 2, 2, 3), numpy.array([1, 0])
    forms = {
        "bytes": images, "planes": images.transpose(0, 3, 1, 2), "fortran": numpy.asfortranarray(images[..., 0]),
        "floats": images.astype("f4") / 255, "doubles": images / 12.0 - 1,
    }
    for name, array in forms.items():
        out = io.BytesIO()
        numpy.save(out, array)
        seed("npy", f"{name}.npy", out.getvalue())
    sets = {
        "labelled": dict(images=images, labels=answers), "dumped": dict(arr_0=images, arr_1=answers.astype("i4")),
        "named": dict(x=images, y=numpy.array(["dog", "cat"])),
        "splits": dict(train_images=images[..., 0], train_labels=answers[:, None], test_images=images[..., 1], test_labels=answers[:, None]),
    }
    for name, arrays in sets.items():
        for save in (numpy.savez, numpy.savez_compressed):
            out = io.BytesIO()
            save(out, **arrays)
            seed("npz", f"{name}{'' if save is numpy.savez else '-compressed'}.npz", out.getvalue(), packed=save is numpy.savez)
    pictures = [{"bytes": saved(image, "PNG"), "path": "x.png"} for image in (GREY, GREY, GREY)]
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"image": pictures, "label": [0, 1, 0]}).replace_schema_metadata({"huggingface": json.dumps(features)})
    bare = pyarrow.table({"img": [picture["bytes"] for picture in pictures], "fine_label": [0, 1, 1]})
    for name, content, options in [
        ("plain", table, dict(compression="none", use_dictionary=False)), ("snappy", table, dict(compression="snappy")),
        ("zstd", table, dict(compression="zstd", data_page_version="2.0")), ("gzip", bare, dict(compression="gzip")),
        ("small", bare, dict(compression="none", write_statistics=False, row_group_size=2)),
    ]:
        out = io.BytesIO()
        pyarrow.parquet.write_table(content, out, store_schema=False, **options)
        seed("parquet", f"{name}.parquet", out.getvalue(), packed=len(out.getvalue()) > 2048)


pictures()
archives()
labels()
published()
arrays()
