"""Letters of other scripts are drawn where a font has them, and told where none has."""

from types import SimpleNamespace

import pytest
from deepens.experiments.cli import letters
from deepens.experiments.cli.describe_data import run_data
from deepens.experiments.cli.letters import font_of, undrawn
from deepens.experiments.cli.options import DataConfig
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from image_folders import labelled_folder
from matplotlib import font_manager


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes fonts with some letters the only ones that are installed."""

    def install(**fonts):
        entries = []
        for name, text in fonts.items():
            pen = TTGlyphPen(None)
            pen.moveTo((0, 0))
            for corner in ((0, 700), (500, 700), (500, 0)):
                pen.lineTo(corner)
            pen.closePath()
            square, names = pen.glyph(), [".notdef", *(f"g{ord(each)}" for each in text)]
            font = FontBuilder(1000, isTTF=True)
            font.setupGlyphOrder(names)
            font.setupCharacterMap({ord(each): f"g{ord(each)}" for each in text})
            font.setupGlyf(dict.fromkeys(names, square))
            font.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
            font.setupHorizontalHeader(ascent=800, descent=-200)
            font.setupNameTable({"familyName": name, "styleName": "Regular"})
            font.setupOS2()
            font.setupPost()
            font.save(tmp_path / f"{name}.ttf")
            entries.append(SimpleNamespace(fname=str(tmp_path / f"{name}.ttf"), name=name))
        manager = SimpleNamespace(ttflist=entries)
        monkeypatch.setattr(font_manager, "fontManager", manager)
        for cached in vars(letters).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()

    yield install
    for cached in vars(letters).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


def test_a_line_is_drawn_with_the_font_that_has_its_letters(installed):
    installed(cjk="猫犬abc", other="猫", **{"Last Resort": "猫犬鳥"})
    assert font_of("cat", 13).path.endswith("DejaVuSans.ttf")
    assert font_of("猫犬", 13).path.endswith("cjk.ttf")
    assert undrawn(["cat", "猫犬"]) == ""
    assert undrawn(["鳥", "猫犬鳥"]) == "鳥"


def test_letters_that_no_font_has_are_told_with_the_remedy(installed, tmp_path, capsys):
    installed(cjk="猫")
    labelled_folder(tmp_path / "pets", classes=("猫", "犬"))
    data = f"folder:{tmp_path / 'pets'}"
    how = {"cache": str(tmp_path / "cache"), "out": str(tmp_path / "sheet.png"), "quiet": True}
    assert run_data(DataConfig(data, **how)) == 0
    said = capsys.readouterr().out
    assert "1 letters are boxes in it (犬): no installed font has them; install one" in said
    installed(cjk="猫犬")
    assert run_data(DataConfig(data, **how)) == 0
    assert "boxes" not in capsys.readouterr().out
