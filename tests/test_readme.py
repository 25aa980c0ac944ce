"""The README's Python examples run as they stand."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"^[A-Z]{4,}$", TEXT, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "call",
    ["parallel_env(", "communication_v0.env(", "make_vector(", "gymnasium.make(", "MarketVecEnv(", "MarketJaxEnv("],
)
def test_there_is_an_example_for_each_face(call):
    assert any(call in code for code in EXAMPLES)


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.split("\n", 1)[0])
def test_example_runs(code):
    exec(compile(code, "README.md", "exec"), {})
