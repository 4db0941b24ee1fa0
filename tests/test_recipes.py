"""Recipes: files of options that come with the package, which any option given overrides."""

import pytest
from deepens.experiments.cli.entry import main, parse
from deepens.experiments.cli.recipes import recipes, take_recipe


@pytest.mark.parametrize("name", recipes())
@pytest.mark.parametrize("command", ["train", "compare"])
def test_every_option_of_a_recipe_is_known_and_shown(name, command):
    words, line = take_recipe([command, "--data", "digits", "--recipe", name])
    _, config = parse(words)
    assert line.startswith(f"recipe {name}: ")
    assert f"backbone {config.backbone}" in line
    assert f"optimizer.lr {config.optimizer.lr}" in line


@pytest.mark.parametrize("place", [1, 3])
def test_options_that_are_given_win_wherever_they_stand(place):
    words = ["train", "--epochs", "3"]
    words[place:place] = ["--recipe=fast"]
    _, config = parse(take_recipe(words)[0])
    assert (config.epochs, config.backbone, config.optimizer.norm_bias) == (3, "airbench94", 64)
    assert config.label_smoothing == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "--recipe", "fats"], "--recipe must be fast or standard, got 'fats'; did you "),
        (["train", "--recipe"], "--recipe must be fast or standard, got ''"),
        (["train", "--recipe", "fast", "--recipe=standard"], "must be given once, got fast, stand"),
        (["evaluate", "run", "--recipe", "fast"], "an option of train and compare, got it with ev"),
    ],
)
def test_wrong_recipes_are_one_line(capsys, words, line):
    assert main(words) == 2
    assert line in capsys.readouterr().err
