"""What is shown of a gateway's last words."""

import pytest
from hatchery_controller.domain.words import last_words, newest_lines

NODE = """file:///app/start.js:10
    throw new Error("the port is gone")
    ^

Error: the port is gone
    at start (file:///app/start.js:10:11)
    at main (file:///app/main.js:1:1) {
  code: 'EGONE'
}

Node.js v24.4.1
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NODE, "Error: the port is gone"),
        ("first\nlast\n\n", "last"),
        ("    only a trace", "only a trace"),
        ("", ""),
        ("a" * 300, "a" * 199 + "…"),
    ],
)
def test_the_last_words_are_one_line_that_says_something(text, words):
    assert last_words(text) == words


def test_the_newest_lines_are_whole():
    text = "\n".join(f"line {number}" for number in range(100))
    kept = newest_lines(text, 50)
    assert kept == "line 94\nline 95\nline 96\nline 97\nline 98\nline 99"
    assert newest_lines("short", 50) == "short"
    assert newest_lines("before\n" + "x" * 60, 50) == "x" * 49 + "…"
    assert newest_lines("x" * 60 + "\nafter", 50) == "after"
    assert newest_lines("", 50) == ""
