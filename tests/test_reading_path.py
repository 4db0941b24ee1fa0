"""A new reader gets from one ensemble to a comparison by a few files, which CONTRIBUTING lists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 3000


@pytest.fixture
def path():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(r"^#+ Reading path\n(.*?)(?=^#|\Z)", text, re.M | re.S | re.I)
    if section is None:
        pytest.skip("CONTRIBUTING.md has no reading path")
    files = re.findall(r"[\w/]+\.py\b", section[1])
    return [ROOT / name for name in dict.fromkeys(files)]


def test_reading_path_is_short_and_leads_from_an_ensemble_to_a_comparison(path):
    missing = [str(file.relative_to(ROOT)) for file in path if not file.is_file()]
    assert not missing
    texts = [file.read_text(encoding="utf-8") for file in path]
    assert "class Ensemble" in texts[0]
    assert "def compare(" in texts[-1]
    assert sum(text.count("\n") for text in texts) <= LONGEST
