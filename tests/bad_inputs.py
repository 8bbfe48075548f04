"""A corpus of inputs that are wrong, or only look so, written by code: each with the one answer that it has.

A bad row stands between two sound ones, `a` and `c`, so that what is left without it can be told.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

Content = bytes | Callable[[Path], object]
"""Of a file: its bytes, or what makes it at a path."""
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ALL = ("a", "b", "c")


@dataclass(frozen=True)
class Input:
    name: str
    files: Mapping[str, Content]
    said: str | None
    """Exact words of the refusal; None: it is read."""
    left: tuple[str, ...] | None = None
    """Ids of the rows that are read, the bad ones skipped; None: all is refused, whatever data.on_bad_row says."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the data node; `path` is below the corpus's folder."""
    option: str = "jsonl"


def line(**values: Any) -> bytes:
    return json.dumps({"messages": TALK, **values}).encode()


def between(bad: bytes) -> bytes:
    return line(id="a") + b"\n" + bad + b"\n" + line(id="c") + b"\n"


def inputs() -> Iterator[Input]:
    for kind in (bytes_of_lines, schema_of_lines, formats, data_files, pictures, sounds, series, paths, csv, tables):
        yield from kind()


def row(name: str, bad: bytes, said: str, **data: Any) -> Input:
    return Input(name, {"train.jsonl": between(bad)}, f"train.jsonl:2: {said}", ("a", "c"), data)


def bytes_of_lines() -> Iterator[Input]:
    yield row(
        "half an object", b'{"id": "b", "messages": [', "is not JSON: Expecting value at character 27 of the line."
    )
    yield row("two objects", b'{"id": 1} {"id": 2}', "is not JSON: Extra data at character 11 of the line.")
    yield row("single quotes", b"{'id': 1}", "is not JSON: Expecting property name enclosed in double quotes at")
    yield row("a comment", b"// rows", "is not JSON: Expecting value at character 1 of the line.")
    yield row("a line end in a string", b'{"id": "b\rc"}', "is not JSON: Invalid control character at at character 10")
    yield row("NUL bytes", b"\0\0\0", "is not JSON: Expecting value at character 1 of the line.")
    yield row("a mark in the middle", b'\xef\xbb\xbf{"id": 1}', "is not JSON: Unexpected UTF-8 BOM")
    yield row("a list", b"[1]", "is not a JSON object but a list.")
    yield row("a string", b'"x"', "is not a JSON object but a string.")
    yield row("null", b"null", "is not a JSON object but null.")
    yield row("NaN", b'{"label": NaN}', "holds NaN, which is not a finite number.")
    yield row("minus infinity", b'{"label": -Infinity}', "holds -Infinity, which is not a finite number.")
    yield row("a number that overflows", b'{"label": 1e999}', "holds 1e999, which is not a finite number.")
    yield row(
        "a number without end", b'{"label": ' + b"9" * 5000 + b"}", "holds a whole number of more than 4,300 digits."
    )
    yield row("a whole number that overflows", b'{"label": ' + b"9" * 400 + b"}", "its label is 9999999999")
    yield row("a key twice", b'{"id": 1, "id": 2}', "has the key `id` twice.")
    yield row("a key twice inside", b'{"_a": {"b": 1, "b": 2}}', "has the key `b` twice.")
    yield row("half a character", b'{"label": "\\ud83d"}', "holds half of a surrogate pair, which is not a character.")
    yield row("half a character in a key", b'{"_\\udc00": 1}', "holds half of a surrogate pair")
    yield row("half a character raw", b'{"label": "\xed\xa0\xbd"}', "is not UTF-8 at byte 12 of the line;")
    yield row(
        "Latin-1", '{"label": "é"}'.encode("latin-1"), "is not UTF-8 at byte 12 of the line; a file in Latin-1 or"
    )
    yield row("deep lists", b'{"_a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply.")
    yield row("deep objects", b'{"_a":' * 100_000 + b"1" + b"}" * 100_000, "is nested too deeply.")
    yield row("an id twice", line(id="a"), "has the id `a`, which train.jsonl:1 has already.")


def schema_of_lines() -> Iterator[Input]:
    yield row("an id of a fraction", b'{"id": 1.5}', "its id is not a string or a whole number but a number.")
    yield row("an empty id", b'{"id": ""}', "its id is not a string or a whole number but empty.")
    yield row("a label of truth", b'{"label": true}', "its label is not a string or a number but a boolean.")
    yield row("an unknown key", b'{"lable": 1}', "has an unknown key `lable`; did you mean label?")
    yield row("no message", b'{"messages": []}', '`messages` is not a list of {"role", "content"}.')
    yield row("a role of nobody", line(messages=[{"role": "bot", "content": "x"}]), "message 1 has the role 'bot', not")
    yield row("two users", line(messages=[TALK[0], TALK[0]]), "message 2 is the user's where the assistant's is due")
    yield row("an answer first", line(messages=[TALK[1]]), "message 1 is the assistant's where the user's is due")
    yield row("no content", line(messages=[{"role": "user"}]), "the content of message 1 is not a string but null.")
    yield row(
        "a place without an item", line(messages=[{"role": "user", "content": "<image>"}]), "the messages hold 1 "
    )


def formats() -> Iterator[Input]:
    def told(name: str, bad: Any, said: str, format: str | None = None) -> Input:
        files: dict[str, Content] = {"train.jsonl": json.dumps(bad).encode()}
        return Input(name, files, f"train.jsonl:1: {said}", (), {"format": format})

    share = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    yield told("sharegpt unasked", share, "has an unknown key `conversations`; did you mean data.format=sharegpt?")
    yield told(
        "alpaca unasked", {"instruction": "x", "output": "y"}, "has an unknown key `instruction`; did you mean dat"
    )
    calls = {"messages": [TALK[0], {"role": "assistant", "content": None, "tool_calls": [{}]}]}
    yield told("calls of tools", calls, "message 2 has `tool_calls`: calls of tools are not learnt here.", "openai")
    tool = {"conversations": [{"from": "tool", "value": "x"}]}
    yield told("the role of a tool", tool, "message 1 has the role 'tool': calls of tools are not learnt", "sharegpt")
    yield told("openai as sharegpt", {"messages": TALK}, "has an unknown key `messages`", "sharegpt")
    yield told(
        "an answer of objects", {"question": "x", "answer": {}}, "`answer` is not a string but", "question_answer"
    )


def data_files() -> Iterator[Input]:
    def whole(name: str, content: Content, said: str | None, file: str = "train.jsonl") -> Input:
        return Input(name, {file: content}, said, None if said else ALL, {"path": file})

    three = b"\n".join(line(id=id) for id in ALL)
    packed = gzip.compress(three, compresslevel=0)
    yield whole("nothing", b"", "train.jsonl, the train split, has no rows.")
    yield whole("blank lines", b"\n \r\n\n", "train.jsonl, the train split, has no rows.")
    yield whole("a mark at the start", b"\xef\xbb\xbf" + three, None)
    yield whole("lines of Windows", three.replace(b"\n", b"\r\n"), None)
    yield whole("UTF-16", three.decode().encode("utf-16"), "train.jsonl is UTF-16, and files are read as UTF-8: iconv")
    yield whole("UTF-16 without a mark", three.decode().encode("utf-16-be"), "train.jsonl is UTF-16-BE, and files are")
    yield whole("UTF-32", three.decode().encode("utf-32-le"), "train.jsonl is UTF-32-LE, and files are read as UTF-8")
    yield whole("gzip", packed, None, "train.jsonl.gz")
    yield whole("gzip cut off", packed[:-20], "is not a whole gzip file: Compressed file ended", "train.jsonl.gz")
    yield whole("gzip that is none", three, "is not a whole gzip file: Not a gzipped file", "train.jsonl.gz")
    yield whole(
        "gzip with a wrong sum", packed[:-8] + bytes(8), "is not a whole gzip file: CRC check", "train.jsonl.gz"
    )
    yield whole("a pipe of rows", os.mkfifo, "data.path: ", "train.jsonl")
    yield whole("a link to zeros", lambda path: path.symlink_to("/dev/zero"), "is not a regular file.")
    yield Input("a folder without rows", {"x.txt": b"x"}, "there is no file ", data={"path": "."})
    yield Input("a file that is not there", {"trian.jsonl": three}, "did you mean trian.jsonl?", data={"path": "."})
    both: dict[str, Content] = {"train.jsonl": three, "train/a.jsonl": three}
    yield Input("two train splits", both, "only one can be the train split. Move one away.", data={"path": "."})
    mapped = {"fields": {"label": "klass"}}
    yield Input(
        "a key of no row", {"train.jsonl": three}, "data.fields.label=klass: no row has the key `k", data=mapped
    )


def item(name: str, modality: str, file: str, content: Content, said: str | None) -> Input:
    """`said` follows the name of the file; None: it is read."""
    text = between(line(id="b", **{modality: file}))
    told = None if said is None else f"{file}{said if said.startswith(':') else ' ' + said}"
    return Input(name, {"train.jsonl": text, file: content}, told, ALL if said is None else ("a", "c"))


def picture(mode: str = "RGB", size: tuple[int, int] = (64, 48), format: str = "PNG", **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, format, **options)
    return stream.getvalue()


def frames(format: str) -> bytes:
    several = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200)]
    stream = io.BytesIO()
    several[0].save(stream, format, save_all=True, append_images=several[1:])
    return stream.getvalue()


def png(width: int, height: int, depth: int = 8) -> bytes:
    """A header alone says how large it is."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def pictures() -> Iterator[Input]:
    unknown = "is not a whole picture of a known format (JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM)"
    several = "holds several pictures (an animation or pages); save the one that is meant."

    def told(name: str, file: str, content: bytes, said: str | None) -> Input:
        return item(f"picture: {name}", "image", file, content, said)

    yield told("empty", "b.png", b"", "is empty.")
    yield told("a text", "b.png", b"not a picture", f"{unknown}.")
    yield told("a web page", "b.jpg", b"<!DOCTYPE html><html>Not found</html>", f"{unknown}.")
    yield told("SVG", "b.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', f"{unknown}.")
    yield told("an icon", "b.ico", picture(size=(16, 16), format="ICO"), f"{unknown}.")
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        whole = picture("P" if format == "GIF" else "RGB", format=format)
        yield told(f"half of {format}", f"b.{format.lower()}", whole[: len(whole) // 2], unknown)
    yield told("a header alone", "b.jpg", picture(format="JPEG")[:20], f"{unknown}.")
    yield told("a wrong sum", "b.png", picture()[:40] + b"\0\0\0\0" + picture()[44:], unknown)
    yield told("no width", "b.ppm", b"P6 0 4 255\n", unknown)
    yield told("a bomb of PNG", "b.png", png(60_000, 60_000), "has more than 50,000,000 pixels; make it smaller.")
    yield told("a small bomb", "b.png", png(8_000, 8_000), "is 8000 x 8000, more than 50,000,000 pixels; make it small")
    yield told("a bomb of BMP", "b.bmp", bmp(30_000, 30_000), "has more than 50,000,000 pixels; make it smaller.")
    yield told("a bomb of PPM", "b.ppm", b"P6 100000 100000 255\n", "has more than 50,000,000 pixels; make it smaller.")
    yield told(
        "floating point", "b.tiff", picture("F", format="TIFF"), "holds floating-point pixels, whose range is un"
    )
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        yield told(f"several in {format}", f"b.{format.lower()}", frames(format), several)
    yield told("another suffix", "b.jpg", picture(), None)
    yield told("CMYK", "b.jpg", picture("CMYK", format="JPEG"), None)
    yield told("16 bits", "b.png", picture("I;16"), None)
    yield told("a palette with one colour away", "b.png", picture("P", transparency=3), None)
    yield told("a palette with shades away", "b.png", picture("P", transparency=bytes(range(200))), None)
    yield told("grey with alpha", "b.png", picture("LA"), None)
    yield told("black and white", "b.png", picture("1"), None)
    yield told("lying on its side", "b.jpg", picture(format="JPEG", exif=exif(6)), None)
    yield told("an orientation that is none", "b.jpg", picture(format="JPEG", exif=exif(99)), None)
    yield told("broken EXIF", "b.jpg", picture(format="JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"), None)
    yield told("several of a telephone", "b.jpg", frames("MPO"), None)
    yield told("one pixel", "b.png", picture(size=(1, 1)), None)


def wav(
    data: bytes, kind: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, size: int | None = None
) -> bytes:
    frame = channels * bits // 8
    layout = struct.pack("<HHIIHH", kind, channels, rate, rate * frame % 2**32, frame, bits)
    said = len(data) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", said) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def sounds() -> Iterator[Input]:
    def told(name: str, content: bytes, said: str | None) -> Input:
        return item(f"sound: {name}", "audio", "b.wav", content, said)

    tone = np.sin(np.arange(800) / 5)
    whole = (tone * 20_000).astype("<i2").tobytes()
    broken = tone.astype("<f4")
    broken[5] = np.nan
    yield told("empty", b"", "is empty.")
    yield told(
        "a text", b"not a sound at all", "is not a WAV file; convert it (ffmpeg -i FILE -c:a pcm_s16le OUT.wav)."
    )
    yield told("MP3", b"ID3\x04\0\0\0\0\0\0" + bytes(100), "is not a WAV file; convert it")
    yield told("a header alone", wav(whole)[:12], "is not a whole WAV file: it ends before its samples.")
    yield told("no samples", wav(b""), "holds no sample.")
    yield told("cut off", wav(whole)[:-500], "is cut off: 1,100 of 1,600 bytes of samples are there.")
    yield told(
        "samples first", wav(whole)[:12] + b"data" + bytes(8), "is not a whole WAV file: its samples come before"
    )
    yield told("NaN", wav(broken.tobytes(), 3, bits=32), "holds samples that are not finite numbers (NaN or infinite).")
    infinite = np.full(9, np.inf, dtype="<f8")
    yield told("infinite", wav(infinite.tobytes(), 3, bits=64), "holds samples that are not finite numbers")
    yield told("larger than float32", wav(np.full(9, 1e300).tobytes(), 3, bits=64), "holds samples that are not finite")
    yield told("mu-law", wav(whole, 7, bits=8), "holds samples of 8 bits in WAV format 7, which is not read here;")
    yield told("12 bits", wav(whole, bits=12), "holds samples of 12 bits in WAV format 1, which is not read here;")
    yield told("no channel", wav(whole, channels=0), "is not a whole WAV file: 0 channels of 16 bits in 0 bytes.")
    yield told("no rate", wav(whole, rate=0), "says 0 Hz; sounds have 1,000 to 384,000.")
    yield told("a rate of nobody", wav(whole, rate=2**31), "says 2,147,483,648 Hz; sounds have 1,000 to 384,000.")
    yield told("stereo", wav(whole, channels=2), None)
    yield told("44.1 kHz", wav(whole, rate=44_100), None)
    yield told("8 bits", wav(whole, bits=8), None)
    yield told("24 bits", wav(whole + whole[:800], bits=24), None)
    yield told("32 bits of floating point", wav(tone.astype("<f4").tobytes(), 3, bits=32), None)
    yield told("64 bits of floating point", wav(tone.tobytes(), 3, bits=64), None)
    yield told("a length that was not known", wav(whole, size=0xFFFFFFFF), None)


def array(value: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, **options)
    return stream.getvalue()


def series() -> Iterator[Input]:
    def told(name: str, file: str, content: bytes, said: str) -> Input:
        return item(f"series: {name}", "series", file, content, said)

    huge = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
    yield told("empty", "b.csv", b"", "is empty.")
    yield told("half an array", "b.npy", array(np.arange(100.0))[:-80], "is not a whole .npy file of numbers")
    yield told("pickled objects", "b.npy", array(np.array([{}]), allow_pickle=True), "is not a whole .npy file of num")
    yield told("an array of three ways", "b.npy", array(np.zeros((2, 2, 2))), "holds float64 [2, 2, 2]; a series is an")
    yield told("an array that is not there", "b.npy", b"\x93NUMPY\x01\0\x76\0" + huge, "says it is larger than memory.")
    yield told("an object", "b.json", b"{}", "holds an object; a series is a list of channels")
    yield told("a word", "b.csv", b"x,y\n1,2\n1,two\n", ":3: `y` is 'two', no number.")


def paths() -> Iterator[Input]:
    def told(name: str, path: str, said: str, **files: Content) -> Input:
        rows = {"train.jsonl": between(line(id="b", image=path))}
        return Input(f"path: {name}", {**rows, **files}, f"train.jsonl:2: `image` {said}", ("a", "c"))

    def link(target: str) -> Callable[[Path], None]:
        return lambda path: path.symlink_to(target)

    yield told("missing", "b.png", "does not exist: 'b.png'; paths are relative to ")
    yield told("above", "../b.png", "does not exist: '../b.png'; paths are relative to ")
    yield told("outside", "/etc/passwd", "lies outside ")
    yield told("a device", "/dev/zero", "lies outside ")
    yield told("a link to a device", "b", "lies outside ", b=link("/dev/zero"))
    yield told("a link outside", "b", "lies outside ", b=link("/etc/passwd"))
    yield told("a link to nothing", "b", "does not exist: 'b'; paths are relative to ", b=link("nowhere"))
    yield told("a link to itself", "b", "does not exist: 'b'; paths are relative to ", b=link("b"))
    yield told("a folder", ".", "is not a regular file: '.'.")
    yield told("no name", "", "is not a regular file: ''.")
    yield told("a pipe", "b", "is not a regular file: 'b'.", b=os.mkfifo)
    yield told("a NUL", "b\0.png", "does not exist: 'b\\x00.png'; paths are relative to ")
    yield told("a name without end", "b" * 5000, "does not exist: 'bbb")
    yield told(
        "the web", "https://example.org/b.png", "is not a path but a URL, which is never fetched: https://exampl"
    )
    yield told("data inside", "data:image/png;base64,AAAA", "is not a path but a URL, which is never fetched: data:ima")
    yield told("a file of the web", "file:///etc/passwd", "is not a path but a URL, which is never fetched: file:///e")


def csv() -> Iterator[Input]:
    def told(name: str, text: bytes, said: str | None, left: tuple[str, ...] | None = None, **data: Any) -> Input:
        given = {"path": "train.csv", "format": "question_answer", **data}
        return Input(f"CSV: {name}", {"train.csv": text}, said, left, given, option="csv")

    def bad(name: str, cells: bytes, said: str) -> Input:
        return told(name, b"id,question,answer\na,Why?,So.\n" + cells + b"\nc,Why?,So.\n", said, ("a", "c"))

    sound = b"id,question,answer\na,Why?,So.\n"
    yield bad("a cell too few", b"b,Why?", "train.csv:3: has 2 cells, and the first line has 3.")
    yield bad("a cell too many", b"b,Why?,So.,x", "train.csv:3: has 4 cells, and the first line has 3.")
    yield bad("Latin-1", b"b,Why?,\xe9", "train.csv:3: is not UTF-8 at byte 8 of the line; a file in Latin-1 or")
    yield bad("an empty question", b"b,,So.", "train.csv:3: `question` is not a string but null.")
    yield told(
        "a quote left open", sound + b'b,"Why?,So.\nc,Why?,So.\n', "train.csv:3 is not CSV: unexpected end of data."
    )
    yield told("a text after a quote", sound + b'b,"Why"?,So.\n', "train.csv:3 is not CSV: ',' expected after '\"'.")
    yield told(
        "lines of an old Macintosh", sound.replace(b"\n", b"\r"), "train.csv:1 is not CSV: new-line character see"
    )
    yield told("semicolons", sound.replace(b",", b";"), "Did you mean data.delimiter=';'?")
    yield told("UTF-16", sound.decode().encode("utf-16"), "train.csv is UTF-16, and files are read as UTF-8")
    yield told("a column twice", b"id,question,id\n1,2,3\n", "train.csv:1 has two columns named `id`; name each column")
    yield told("a column without a name", b",question,answer\n1,2,3\n", "train.csv:1 has a column without a name;")
    yield told("an unknown column", b"id,question,anser\n1,2,3\n", "train.csv:1 has an unknown column `anser`; did you")
    yield told("a header alone", b"id,question,answer\n", "train.csv, the train split, has no rows.")
    yield told("nothing", b"", "train.csv, the train split, has no rows.")
    yield told("Windows", b"\xef\xbb\xbf" + sound.replace(b"\n", b"\r\n"), None, ("a",))
    cells = b'id,messages\na,"[{""role"": ""user""}"\n'
    yield told("half a list", cells, "train.csv:2: has a cell `messages` that is not JSON: Expecting", (), format=None)


def tables() -> Iterator[Input]:
    def told(name: str, content: Content, said: str, left: tuple[str, ...] | None = None) -> Input:
        given = {"path": "train.parquet", "format": "question_answer"}
        return Input(f"Parquet: {name}", {"train.parquet": content}, said, left, given, option="parquet")

    def table(**columns: list[Any]) -> bytes:
        stream = io.BytesIO()
        whole = {"id": list(ALL), "question": ["Why?"] * 3, "answer": ["So."] * 3, **columns}
        parquet.write_table(pyarrow.table(whole), stream)
        return stream.getvalue()

    inside = [{"bytes": b"x", "path": "x.png"}] * 3
    yield told("a text", b"id,question\n", "train.parquet is not a whole Parquet file: Parquet magic bytes not found")
    yield told("nothing", b"", "train.parquet is not a whole Parquet file: Parquet file size is 0 bytes")
    yield told("half of it", table()[: len(table()) // 2], "train.parquet is not a whole Parquet file: ")
    yield told(
        "pages of noise", table()[:20] + b"\xff" * 60 + table()[80:], "train.parquet is not a whole Parquet file"
    )
    yield told("NaN", table(label=[1.0, float("nan"), 2.0]), "train.parquet:2: holds nan in `label`", ("a", "c"))
    yield told(
        "bytes", table(_x=[b"x"] * 3), "train.parquet: the column `_x` holds binary, which a row cannot; take it"
    )
    yield told("pictures inside", table(image=inside), "Pictures and sounds inside a set are read by data=hub.")
    yield told("an unknown column", table(anser=[1] * 3), "train.parquet has an unknown column `anser`; did you mean a")
    yield told("no rows", table(id=[], question=[], answer=[]), "train.parquet, the train split, has no rows.")


def write(folder: Path, files: Mapping[str, Content]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content(folder / name)
