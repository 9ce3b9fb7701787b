"""CPython's output for JSON documents and datetimes, compared by tests/it/differential.rs.

`documents` writes records to stdout: three little-endian u32 lengths, then the document's text, json.dumps of it
with CPython's defaults, and the compact form. Both forms are empty for a document that contract section 2 refuses.
`datetimes` writes lines: microseconds since 1970, a space, isoformat(). All runs are equal: the seeds are fixed.
"""

import json
import math
import random
import struct
import sys
from datetime import datetime, timedelta, timezone

DOCUMENTS = 125_000
DATETIMES = 120_000
VALUE_DEPTH = 100
MAX_DIGITS = 4_300
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
FIRST = datetime(1, 1, 1, tzinfo=timezone.utc)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone.utc)

sys.set_int_max_str_digits(MAX_DIGITS)  # Python 3.11 or later
sys.setrecursionlimit(10_000)


class Members(list):
    """An object's members including duplicate keys. All must be valid, although only the last one counts."""


def judge(value, depth_left=VALUE_DEPTH):
    """Raises ValueError for a value that json.loads accepts and the contract refuses."""
    if isinstance(value, str):
        value.encode()  # lone surrogates
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("not finite")
    elif isinstance(value, list):
        if depth_left == 0:
            raise ValueError("nested too deep")
        for item in value:
            for part in item if isinstance(value, Members) else (item,):
                judge(part, depth_left - 1)


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def answer(text):
    """Returns both forms of the document, or None if it is refused."""
    try:
        text = text.decode()
        judge(json.loads(text, object_pairs_hook=Members))
    except ValueError:
        return None
    value = json.loads(text)
    return json.dumps(value).encode(), compact(value).encode()


class Generator:
    """Generates texts, not values, to vary whitespace, escapes and duplicate keys as well."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.characters = [self.character() for _ in range(20_000)]

    def document(self, depth=None):
        rnd = self.random
        if depth is None:
            depth = rnd.choice((0, 1, 1, 2, 2, 3)) if rnd.random() < 0.98 else rnd.randint(4, VALUE_DEPTH)
        if depth > 3:
            return self.chain(depth)
        return self.space() + self.value(depth) + self.space()

    def chain(self, depth):
        """Returns a document nested exactly `depth` deep, with few siblings."""
        text = self.scalar()
        for level in range(depth):
            beside = self.scalar() + self.space() + "," if level and self.random.random() < 0.1 else ""
            if self.random.random() < 0.5:
                text = "[" + beside + self.space() + text + "]"
            else:
                text = "{" + self.space() + self.key() + ":" + text + self.space() + "}"
        return text

    def value(self, depth):
        rnd = self.random
        if depth == 0 or rnd.random() < 0.15:
            return self.scalar()
        count = rnd.choice((0, 1, 2, 3, 5))
        if rnd.random() < 0.5:
            return "[" + ",".join(self.padded(self.value(depth - 1)) for _ in range(count)) + self.space() + "]"
        members = (self.padded(self.key()) + ":" + self.padded(self.value(depth - 1)) for _ in range(count))
        return "{" + ",".join(members) + self.space() + "}"

    def padded(self, text):
        return self.space() + text + self.space()

    def space(self):
        rnd = self.random
        return "" if rnd.random() < 0.8 else "".join(rnd.choices(" \t\n\r", k=rnd.randint(1, 3)))

    def key(self):
        # few keys, so that duplicates are common; some differ only in their escapes
        return self.random.choice(('"a"', '"\\u0061"', '"b"', '"\\/"', '"/"', '""')) if (
            self.random.random() < 0.6) else self.string()

    def scalar(self):
        kind = self.random.random()
        if kind < 0.40:
            return self.string()
        if kind < 0.65:
            return self.float()
        if kind < 0.90:
            return self.int()
        return self.random.choice(("null", "true", "false"))

    def string(self):
        rnd = self.random
        length = rnd.choice((0, 1, 2, 5, 15, 16, 17, 40)) if rnd.random() < 0.997 else rnd.randint(100, 3_000)
        return '"' + "".join(rnd.choices(self.characters, k=length)) + '"'

    def character(self):
        rnd = self.random
        kind = rnd.random()
        if kind < 0.5:
            code = rnd.randint(0x20, 0x7E)
        elif kind < 0.6:
            code = rnd.randint(0, 0x20)
        elif kind < 0.7:
            code = rnd.choice((0x00, 0x22, 0x2F, 0x5C, 0x7E, 0x7F, 0x80, 0x9F, 0x7FF, 0x800, 0x2028, 0x2029, 0xD7FF,
                               0xE000, 0xFEFF, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x1F600, 0x10FFFF))
        elif kind < 0.85:
            code = rnd.randint(0x80, 0xFFFF)
        else:
            code = rnd.randint(0, 0x10FFFF)
        if 0xD800 <= code <= 0xDFFF:
            code -= 0x800
        character = chr(code)
        short = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r",
                 "\t": "\\t"}.get(character)
        if short and rnd.random() < 0.7:
            return short
        if code < 0x20 or character in '"\\' or rnd.random() < 0.2:
            units = struct.unpack(f">{1 + (code > 0xFFFF)}H", character.encode("utf-16-be"))
            return "".join("\\u" + format(unit, rnd.choice(("04x", "04X"))) for unit in units)
        return character

    def int(self):
        rnd = self.random
        kind = rnd.random()
        sign = rnd.choice(("", "-"))
        if kind < 0.5:
            return sign + str(rnd.randint(0, 1_000))
        if kind < 0.9:
            return sign + str(rnd.getrandbits(rnd.randint(1, 130)))
        if kind < 0.97:
            return sign + "0"
        length = rnd.choice((rnd.randint(20, 400), rnd.randint(400, MAX_DIGITS), MAX_DIGITS - 1, MAX_DIGITS))
        return sign + rnd.choice("123456789") + "".join(rnd.choices("0123456789", k=length - 1))

    def float(self):
        rnd = self.random
        kind = rnd.random()
        if kind < 0.45:
            number = math.nan
            while not math.isfinite(number):
                (number,) = struct.unpack("<d", rnd.randbytes(8))
        elif kind < 0.7:
            number = rnd.choice((1, -1)) * rnd.random() * 10.0 ** rnd.randint(-8, 20)  # both notations
        elif kind < 0.85:
            number = rnd.choice((1, -1)) * rnd.randint(0, 10_000) / 10 ** rnd.randint(0, 6)
        else:
            whole = "".join(rnd.choices("0123456789", k=rnd.randint(1, 30))).lstrip("0") or "0"
            fraction = "." + "".join(rnd.choices("0123456789", k=rnd.randint(1, 30)))
            exponent = rnd.choice("eE") + rnd.choice(("", "+", "-")) + "0" * rnd.randint(0, 2) + str(rnd.randint(0, 250))
            return rnd.choice(("", "-")) + whole + rnd.choice((fraction, exponent, fraction + exponent))
        return rnd.choice((repr, "{:.17g}".format, "{:.16e}".format, "{:.25E}".format))(number)

    def doubles(self, count):
        """Half are any bit pattern, half have few binary places: only those can be halfway between two texts."""
        rnd = self.random
        patterns = struct.unpack(f"<{count}d", rnd.randbytes(8 * count))
        halfway = [math.ldexp(rnd.getrandbits(53), rnd.randint(-80, 20)) for _ in range(count // 2)]
        return [number for number in patterns if math.isfinite(number)][: count // 2] + halfway

    def broken(self, text):
        """Returns the document with one small change. Most are invalid, and then both sides must refuse them."""
        rnd = self.random
        at = rnd.randint(0, len(text))
        inserted = rnd.choice((b"", b"", b"0", b"-", b".", b"e", b'"', b",", b":", b"[", b"]", b"{", b"}", b" ", b"\\", b"\\u",
                               b"\\ud800", b"\\udc00", b"\0", b"\x1f", b"\x7f", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf",
                               b"NaN", b"-Infinity", b"1e999", b"nul", b"null", b"9" * (MAX_DIGITS + 1), b"[" * VALUE_DEPTH))
        return text[:at] + inserted + text[at + rnd.choice((0, 0, 1, 1, 2, 5)):]


def documents():
    generator = Generator(20_231_107)
    for plane in range(17):  # every character, raw and escaped
        characters = [chr(code) for code in range(plane << 16, (plane + 1) << 16) if not 0xD800 <= code <= 0xDFFF]
        yield json.dumps("".join(characters)).encode()
        yield compact("".join(characters)).encode()
    for exponent in range(-1074, 1024):  # the hardest case for shortest digits: the gap below is half the gap above
        power = math.ldexp(1.0, exponent)
        around = (math.nextafter(power, 0.0), power, math.nextafter(power, math.inf))
        yield "[{!r},{!r},{!r}]".format(*around).encode()
    for exponent in range(-330, 309):  # halfway cases and underflow
        yield f"[1e{exponent},-5e{exponent},9.5e{exponent},1.7976931348623157e{exponent}]".encode()
    for _ in range(2_000):
        yield "[{}]".format(",".join(map(repr, generator.doubles(100)))).encode()
    for index in range(DOCUMENTS):
        text = generator.document().encode()
        yield generator.broken(text) if index % 8 == 7 else text


def moments():
    rnd = random.Random(20_231_107)
    whole = (LAST - FIRST) // timedelta(seconds=1)
    yield from (FIRST, LAST, EPOCH, EPOCH - timedelta(microseconds=1), EPOCH + timedelta(microseconds=1))
    for year in range(1, 10_000):
        yield datetime(year, 12, 31, 23, 59, 59, rnd.choice((0, 999_999)), timezone.utc)
        yield datetime(year, 3, 1, tzinfo=timezone.utc) - timedelta(microseconds=rnd.choice((0, 1, 1_000_000)))
    for _ in range(DATETIMES - 2 * 9_999):
        micros = rnd.choice((0, 0, rnd.randrange(1_000_000), rnd.randrange(1_000) * 1_000, rnd.randrange(10)))
        yield FIRST + timedelta(seconds=rnd.randint(0, whole), microseconds=micros)


def micros(moment):
    return (moment - EPOCH) // timedelta(microseconds=1)


def main(what):
    out = sys.stdout.buffer
    if what == "datetimes":
        for moment in moments():
            out.write(f"{micros(moment)} {moment.isoformat()}\n".encode())
        return
    for text in documents():
        record = (text, *(answer(text) or (b"", b"")))
        out.write(struct.pack("<3I", *map(len, record)) + b"".join(record))


if __name__ == "__main__":
    main(sys.argv[1])
