#!/usr/bin/env python3
"""Writes made-up runs, one JSON object a line: `id` and the body of `PUT /v1/runs/{id}` (contract section 3).

The same arguments always give the same bytes, and a smaller --count gives a prefix of a larger one. Hosts are
reserved names (RFC 2606). The runs include values that break careless senders: many scripts, characters beyond 16
bits, control characters, integers beyond 64 bits, floats at the limits, payloads of about 200 KB.
"""

import argparse
import json
import random
import sys
import uuid
from datetime import datetime, timedelta, timezone

START = datetime(2025, 9, 1, 6, 0, tzinfo=timezone.utc)  # fixed, so that the file does not change with the date

SENTENCES = [
    "A lighthouse at dusk, long shadows on wet sand, seen from a low angle.",
    "Naïve café façade — “weathered” stone, jalousies à l’ancienne, Straßenbahn im Regen.",
    "一只橘猫坐在窗台上，看着外面的雨。远处的山被雾气笼罩。",
    "夕暮れの港に小さな漁船が並び、カモメが静かに飛んでいる。",
    "비가 그친 골목길에 노란 우산을 든 아이가 서 있다.",
    "قارب صغير في البحر عند الغروب، والسماء مليئة بالألوان.",
    "חתול ישן על ספסל עץ בגינה, והשמש שוקעת מאחורי העצים.",
    "नदी के किनारे एक पुराना बरगद का पेड़ और उसके नीचे बैठे कुछ यात्री।",
    "Старый трамвай едет по заснеженной улице, в окнах тёплый свет.",
    "Ένα λευκό σπίτι δίπλα στη θάλασσα, με μπλε παράθυρα και βουκαμβίλιες.",
    "เรือไม้ลำเล็กลอยอยู่กลางแม่น้ำยามเช้า มีหมอกบาง ๆ ปกคลุม",
    "மழைக்குப் பிறகு வயல்வெளியில் ஒரு வானவில் தோன்றியது.",
    "გემი მიცურავს წყნარ ზღვაზე, მთვარის შუქი კი ტალღებზე ირეკლება.",
    "Cây cầu gỗ bắc qua con suối nhỏ, hai bên là ruộng bậc thang.",
    "👩‍👩‍👧‍👦 having a picnic 🧺 under 🌸, 🏴‍☠️ and 🏳️‍🌈 flags, 👍🏽 from 🧑🏿‍🚀, ❤️‍🔥!",
]

ODD_TEXTS = [
    "nul \0, bell \a, backspace \b, tab \t, vertical tab \v, form feed \f, escape \x1b[31m, unit \x1f, del \x7f",
    'she said "it\'s \\"fine\\"" and left C:\\renders\\new\\tmp\\u0041, then </script><!-- &amp; /slash/',
    "line feed\ncarriage return\r\nnext line \x85 line separator \u2028 paragraph separator \u2029 end",
    "no-break\u00a0space, zero\u200bwidth, bom \ufeff, soft\u00adhyphen, rtl mark \u200f, nonchars \uffff \U0010ffff",
    "é (one) e\u0301 (two), ﬁ, Å Å Å, İ ı, ẞ ß, z\u0351\u0343\u0327a\u0315\u0360l\u0334g\u0321o\u035c",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎𠜱𠝹 𐀀𐀁 𓂀 𝄞 🂡 🫠, private \ue000 \U000f0000",
    "   leading, trailing and   inner blanks   ",
    "",
]

NUMBERS = [
    0, -0.0, 1.0, 0.1, 0.1 + 0.2, 1e-05, 0.0001, 1e16, 9999999999999998.0, 1e22, 123456789.12345679, -2.5e-7,
    5e-324, 2.225073858507201e-308, 1.7976931348623157e308, 0.47000000000000003, 3.141592653589793,
    2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**40 + 7, -(10**30), 7**300,
]

FAILURES = [  # code, message, stage
    ("input_invalid", "field 'image_url': expected http or https, got \"ftp://files.example.test/a\"", "validation"),
    ("input_download_failed", "https://uploads.example.test/in/4f1c.png answered 403 Forbidden", "input"),
    ("model_load_failed", "weights not found: C:\\models\\portrait\\v3\\unet.bin (checksum \\x00…)", "loading"),
    ("out_of_memory", "tried to allocate 2.50 GiB; 1.12 GiB free\n\tat step 31/50\n\tat tile (2, 3)", "inference"),
    ("content_rejected", "内容未通过安全检查：请修改提示词后重试。", "moderation"),
    ("timeout", "no result within 600 s", "inference"),
    ("worker_lost", "the worker stopped answering; its last heartbeat was 45 s ago", None),
    ("upload_failed", "Не удалось сохранить результат 🫤: квота исчерпана", "output"),
    ("internal_error", None, None),
]

BARE_OUTPUTS = ["42", None, ["a", 1, None, True, [], {}], 0.1, True, 2**70, ""]


class Deck:
    """Deals cards in shuffled rounds: only their order is random, so every rare card is dealt.

    The cards are a list, or a dict with the number of each.
    """

    def __init__(self, rng, cards):
        self.rng = rng
        self.cards = cards if isinstance(cards, list) else [card for card in cards for _ in range(cards[card])]
        self.round = []

    def deal(self):
        self.round = self.round or self.rng.sample(self.cards, len(self.cards))
        return self.round.pop()


class Runs:
    """Generates runs without end."""

    def __init__(self, seed, callback_url):
        self.rng = rng = random.Random(seed)
        self.callback_url = callback_url
        self.clock = START

        self.status = Deck(rng, {"succeeded": 29, "failed": 7, "canceled": 3, "partial_succeeded": 3,
                                 "running": 3, "queued": 2, "dispatching": 1})
        self.output = Deck(rng, {self.images: 9, self.video: 4, self.text: 5, self.audio: 2, self.transcript: 2,
                                 self.embedding: 2, self.numbers: 2, self.empty: 3, self.bare: 2, self.batch: 1})
        self.metadata = Deck(rng, {self.nothing: 6, self.empty: 5, self.labels: 13, self.nested: 5,
                                   self.odd_keys: 3, self.deep: 1})
        self.has_callback = Deck(rng, {True: 14, False: 1})
        self.has_completed_at = Deck(rng, {True: 24, False: 1})
        self.omits_nulls = Deck(rng, {True: 1, False: 5})
        self.escapes = Deck(rng, {True: 1, False: 3})
        self.precision = Deck(rng, {"microseconds": 6, "milliseconds": 1, "seconds": 3})
        self.offset = Deck(rng, {"Z": 8, "+00:00": 2, "+05:30": 1, "-07:00": 1, "+09:00": 1})
        self.batch_bytes = Deck(rng, [50_000, 100_000, 195_000])
        self.sentence, self.odd_text = Deck(rng, SENTENCES), Deck(rng, ODD_TEXTS)
        self.failure, self.bare_output = Deck(rng, FAILURES), Deck(rng, BARE_OUTPUTS)

    def line(self):
        """Returns the next run as one line of JSON; some escape non-ASCII characters as \\uXXXX."""
        return json.dumps(self.run(), ensure_ascii=self.escapes.deal()) + "\n"

    def run(self):
        rng, status = self.rng, self.status.deal()
        self.id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        self.clock += timedelta(microseconds=rng.randrange(20_000_000, 15 * 60_000_000))
        run = dict.fromkeys(["id", "status_code", "output", "duration_ms", "created_at", "started_at", "completed_at",
                             "callback_url", "metadata", "failure_code", "failure_message", "failure_stage_code"])
        precision, offset = self.precision.deal(), self.offset.deal()
        terminal = status not in ("queued", "dispatching", "running")
        ended_early = status in ("queued", "dispatching") or (status == "canceled" and rng.random() < 0.5)

        if status in ("succeeded", "partial_succeeded"):
            run["output"] = self.output.deal()()
        if status == "failed" or (status == "partial_succeeded" and rng.random() < 0.7):
            code, message, stage = self.failure.deal()
            run.update(failure_code=code, failure_message=message, failure_stage_code=stage)
            if status == "failed":
                ended_early = stage in ("validation", "input")
                if rng.random() < 0.3:
                    run["output"] = {"error": {"code": code, "detail": message, "logs": [self.some_text()]}}

        waited = timedelta(microseconds=rng.randrange(40_000, 30_000_000))
        took = timedelta(milliseconds=rng.randrange(80, rng.choice([2_000, 30_000, 600_000])))
        run["created_at"] = moment(self.clock, precision, offset)
        if not ended_early:
            run["started_at"] = moment(self.clock + waited, precision, offset)
            run["duration_ms"] = took // timedelta(milliseconds=1) if terminal else None
        if terminal and self.has_completed_at.deal():
            run["completed_at"] = moment(self.clock + waited + took, precision, offset)
        if self.has_callback.deal():
            run["callback_url"] = self.callback_url.replace("{run_id}", self.id)
        run.update(id=self.id, status_code=status, metadata=self.metadata.deal()())
        if self.omits_nulls.deal():
            run = {key: value for key, value in run.items() if value is not None}
        return run

    # Outputs

    def images(self):
        width, height = self.rng.choice([(512, 512), (1024, 1024), (1344, 768), (768, 1344)])
        images = [{"url": self.url("png", index), "width": width, "height": height, "content_type": "image/png",
                   "safety_score": self.rng.random() * self.rng.choice([1e-07, 0.001, 1])}
                  for index in range(self.rng.randint(1, 4))]
        seed = self.rng.getrandbits(self.rng.choice([31, 53, 64, 80]))
        return {"images": images, "seed": seed, "prompt": self.some_text()}

    def video(self):
        seconds = self.rng.choice([4.0, 5.04, 8.333333333333334, 12.0])
        return {"video": {"url": self.url("mp4"), "fps": self.rng.choice([24, 29.97, 30]), "duration_s": seconds,
                          "thumbnail_url": self.url("webp"), "has_audio": self.rng.random() < 0.4}}

    def text(self):
        text = "\n\n".join(self.some_text() for _ in range(self.rng.randint(1, 12)))
        return {"text": text, "finish_reason": self.rng.choice(["stop", "length"]),
                "usage": {"input_tokens": self.rng.randint(5, 4000), "output_tokens": len(text) // 3}}

    def audio(self):
        return {"audio": {"url": self.url("flac"), "sample_rate": 48000, "channels": 2,
                          "loudness_lufs": -round(self.rng.uniform(9, 24), 2)}, "lyrics": None}

    def transcript(self):
        starts = sorted(self.rng.uniform(0, 600) for _ in range(self.rng.randint(2, 30)))
        return {"language": self.rng.choice(["zh", "ar", "hi", "el"]), "segments": [
            {"start": start, "end": start + self.rng.random() * 4, "speaker": f"speaker_{self.rng.randrange(3)}",
             "text": self.some_text(), "words": []} for start in starts]}

    def embedding(self):
        size = self.rng.choice([8, 64, 256, 768])
        return {"dimensions": size, "embedding": [
            self.rng.uniform(-1, 1) * self.rng.choice([1, 0.1, 1e-05]) for _ in range(size)]}

    def numbers(self):
        return {"statistics": self.rng.sample(NUMBERS, len(NUMBERS)), "elapsed": 1e-05, "scale": 1e16, "offset": -0.0}

    def bare(self):
        return self.bare_output.deal()

    def batch(self):
        """Returns a large output: images up to the wanted size."""
        items, size, wanted = [], 0, self.batch_bytes.deal()
        while size < wanted:
            items.append({"index": len(items), "url": self.url("jpg", len(items)), "caption": self.some_text(),
                          "scores": {"aesthetic": self.rng.random() * 10, "match": self.rng.random()}})
            size += len(json.dumps(items[-1]))
        return {"items": items}

    # Metadata

    def nothing(self):
        return None

    def empty(self):
        return {}

    def labels(self):
        labels = {"project": self.rng.choice(["storefront", "kiosk", "回归测试", "проба"]),
                  "user_id": self.rng.randrange(10**6),
                  "trace": f"{self.rng.getrandbits(64):016x}", "priority": self.rng.choice([0, 1, 0.5]),
                  "draft": self.rng.random() < 0.3, "note": self.some_text(), "parent": None}
        return dict(self.rng.sample(sorted(labels.items()), self.rng.randint(1, len(labels))))

    def nested(self):
        lines = [{"sku": f"SKU-{self.rng.randrange(9999):04}", "price": self.rng.randrange(9999) / 100,
                  "options": {}, "tags": []} for _ in range(self.rng.randint(1, 5))]
        address = {"lines": [self.some_text()], "geo": [self.rng.uniform(-90, 90), self.rng.uniform(-180, 180)]}
        return {"order": {"lines": lines, "address": address}, "empty": [[], {}, [[]], [{}], ""]}

    def odd_keys(self):
        return {"": "empty key", " ": None, "ключ": self.some_text(), "鍵🔑": self.odd_text.deal(),
                "a\"b\\c\n": True, "z": self.rng.choice(NUMBERS), "a": self.rng.choice(NUMBERS), "__proto__": {}}

    def deep(self):
        value = {"bottom": self.some_text()}
        for level in range(40):
            value = {"level": value} if level % 2 else {"list": [value]}
        return value

    # Parts

    def some_text(self):
        return self.odd_text.deal() if self.rng.random() < 0.15 else self.sentence.deal()

    def url(self, extension, index=0):
        host = self.rng.choice(["cdn.example.com", "media.example.test", "outputs.eu-1.storage.example.test"])
        return (f"https://{host}/runs/{self.id}/{index:04}.{extension}?expires={int(self.clock.timestamp()) + 86400}"
                f"&key-id=k{self.rng.randrange(100):02}&policy={self.rng.getrandbits(1024):0256x}"
                f"&signature={self.rng.getrandbits(256):064x}")


def moment(time, precision, offset):
    """Formats a time by RFC 3339 with this offset."""
    zone = datetime.fromisoformat("2000-01-01T00:00:00" + offset.replace("Z", "+00:00")).tzinfo
    text = time.astimezone(zone).isoformat(timespec=precision)
    return text.replace("+00:00", "Z") if offset == "Z" else text


def main():
    parser = argparse.ArgumentParser(description="write made-up runs as JSON lines")
    parser.add_argument("--count", type=int, default=320, metavar="N", help="how many runs (default: %(default)s)")
    parser.add_argument("--callback-url", default="https://example.com/callbacks/runs", metavar="URL",
                        help="callback URL; {run_id} is replaced (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the runs (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="file to write (default: standard output)")
    args = parser.parse_args()

    runs = Runs(args.seed, args.callback_url)
    with open(args.output, "wb") if args.output else sys.stdout.buffer as out:
        for _ in range(args.count):
            out.write(runs.line().encode())


if __name__ == "__main__":
    main()
