"""Small sums to train on: seeded rows of which the untrained embedded model rewrites some but not all."""

from __future__ import annotations

# Name, things, how many, how many more.
SUMS = (
    ("Ida", "pens", 12, 7),
    ("Tom", "cards", 30, 14),
    ("Eva", "plums", 9, 8),
    ("Max", "stamps", 41, 19),
    ("Lea", "books", 16, 6),
    ("Jan", "coins", 55, 12),
    ("Mia", "shells", 23, 31),
    ("Ben", "keys", 4, 9),
)


def sum_rows(count: int = len(SUMS)) -> list[dict[str, str]]:
    """The first of them as demonstrations, with a terse expert."""
    return [
        {
            "question": f"{name} has {a} {things} and buys {b} more. How many {things} does {name} have?",
            "answer": f"{a}+{b}={a + b}\n#### {a + b}",
        }
        for name, things, a, b in SUMS[:count]
    ]
