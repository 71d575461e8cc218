"""Questions with choices, as the files of the benchmarks have them."""

from __future__ import annotations

FACTS = [
    {"query": "Which of these is hot?", "choices": ["the sun", "ice", "snow", "a cold lake"], "gold": 0},
    {"query": "What do cows eat?", "choices": ["stones", "grass", "iron", "glass"], "gold": 1},
    {"query": "Which animal can fly?", "choices": ["a dog", "a horse", "a sparrow", "a cow"], "gold": 2},
    {"query": "What do people drink?", "choices": ["sand", "wood", "steel", "water"], "gold": 3},
]
