"""Writes tests/vectors.jsonl and tests/datetimes.jsonl: CPython's output for some documents and datetimes."""

import json
from pathlib import Path

from differential import EPOCH, FIRST, LAST, Generator, answer, micros, moments

HERE = Path(__file__).parent

PICKED = [
    "null", " true\n", "\tfalse\r", "[]", "{}", '""', "[ ]", "{ }", "[[],{}]",
    "0", "-0", "1", "-1", "9007199254740993", "18446744073709551616", "-9223372036854775809", "1" * 310,
    "0.0", "-0.0", "-0e0", "1.0", "1.50", "100e-2", "1e0", "1E5", "1e+5", "1e22", "1e23", "0.1", "0.30000000000000004",
    "1e-4", "0.0001", "0.00001", "1e-5", "1.5e-5", "1e15", "1e16", "1.5e16", "123456789012345678.0", "9999999999999998.0",
    "12345678901234567.0", "1e100", "1e-100", "5e-324", "3e-324", "1e-400", "2.2250738585072014e-308",
    "1.7976931348623157e308", "5.684341886080802e-14", "9.5367431640625e-07", "2.98023223876953125e-08",
    "1125899906842624.25", "-199495254748433.625", "7.120236347223045e-307", "5.641232424577593e-278", "4.35", "2.675", "1e-07", "1.0E-007",
    '"\\u0000\\u0001\\u001f\\u007f\\u0080"', '"\x7f"', '"\\b\\t\\n\\f\\r\\"\\\\\\/"', '"/"', '"é"', '"\\u00e9\\u00E9"',
    '"\\u2028\u2029"', '"日本語"', '"😀"', '"\\ud83d\\ude00"', '"\\uD83D\\uDE00"', '"\uffff\ufeff\ue000\ud7ff"',
    '"\U00010000\U0010ffff"', '"exactly16bytes.."', '"exactly16bytes..\\n"', '"fifteen bytes..\\u00e9 and on"',
    '{"a":1,"b":2,"a":3}', '{"a":1,"\\u0061":2}', '{"b":1,"a":2}', '{"":{"":{}}}', '{"é":"\\u0000"}',
    "[1 , 2\n,\t3\r]", '{ "a" : [ 1.0 , { "b" : null } ] }', "[" * 100 + "]" * 100, '{"a":' * 100 + "0" + "}" * 100,
]


def main():
    generator = Generator(7)
    made = (generator.document(depth) for depth in (0, 1, 2) for _ in range(80))
    texts = PICKED + [text for text in made if len(text) < 500]
    with open(HERE / "vectors.jsonl", "w", encoding="ascii") as file:
        for text in texts:
            python, compact = answer(text.encode())
            print(json.dumps({"text": text, "python": python.decode(), "compact": compact.decode()}), file=file)
    picked = [FIRST, LAST, EPOCH] + [moment for index, moment in enumerate(moments()) if index % 1_000 == 500]
    with open(HERE / "datetimes.jsonl", "w", encoding="ascii") as file:
        for moment in picked:
            print(json.dumps({"micros": micros(moment), "isoformat": moment.isoformat()}), file=file)


if __name__ == "__main__":
    main()
