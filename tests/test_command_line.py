"""The command line as a whole: wrong input of any kind is refused at once, in one line, with one exit status."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fractrain
from fractrain import build_parser, main
from hw.commands import options
from hw.console import Progress, console
from hw.design import ROOT
from hw.networks import Bits, network, spelled

RESNET8 = ["--model", "resnet8"]


def answer(*words: str) -> tuple[int, str]:
    """Exit status and standard error of a command in this process."""
    errors = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        status = main(list(words))
    return status, errors.getvalue()


def commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command that does something, with its words."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        yield path, parser
    for action in nested:
        for name, child in action.choices.items():
            yield from commands(child, (*path, name))


EVERY = dict(commands(build_parser()))

#: words -> what the message must name
REFUSED = {
    ("cost", *RESNET8, "--bits", "8/8/8", "--batch", "0"): "--batch",
    ("cost", *RESNET8, "--bits", "8/8/8", "--classes", "0"): "--classes",
    ("cost", *RESNET8, "--bits", "8/8/8", "--epochs", "nan"): "--epochs",
    ("cost", *RESNET8, "--schedule", "cp=200"): "200",
    ("cost", *RESNET8, "--schedule", "cp=1.2.3"): "cp=1.2.3",
    ("cost", *RESNET8, "--schedule", ""): "schedule",
    ("cost", *RESNET8, "--schedule", "/no/such/folder"): "/no/such/folder",
    ("cost", "--schedule", "/no/such/folder"): "/no/such/folder",
    ("report", "paper", "--out", "/dev/null"): "/dev/null",
    ("report", "roofline", *RESNET8, "--bits", "8/8/8", "--out", "/dev/null/x"): "/dev/null",
    ("explore", "--part", "xc7z045", *RESNET8, "--bits", "8/8/8", "--jobs", "0"): "--jobs",
    ("explore", "--part", "xc7z045", *RESNET8, "--bits", "8/8/8", "--max-lut", "200"): "--max-lut",
    ("explore", "--part", "xc7z045", *RESNET8, "--bits", "8/8/8", "--out", "/dev/null"): "/dev/null",
    ("generate", "--out", "/dev/null"): "/dev/null",
    ("csim", "--seeds", "0"): "--seeds",
    ("cosim", "--seed", "-3"): "--seed",
    ("cosim", "--programs", "0"): "--programs",
    ("synth", "--module", "no_such"): "no_such",
    ("synth", "--seconds", "-1"): "--seconds",
    ("saif", "--out", "/dev/null/x.saif"): "/dev/null",
    ("saif", "--out", "x.saif", "--images", "0"): "--images",
    ("bitstream", "--scripts-only", "--collect-only"): "--collect-only",
    ("bitstream", "--jobs", "0"): "--jobs",
    ("bench", "engine", "--bits", "17/8/8"): "17/8/8",
    ("bench", "engine", "--figure", "picture"): "picture",
    ("bench", "simulation", "--images", "0"): "--images",
    ("bench", "kernel", "--bits", "8,8"): "8,8",
    ("bench", "quantizers", "--bits", "0"): "--bits",
    ("bench", "quantizers", "--rounds", "0"): "--rounds",
    ("bench", "train", "--threads", "100000"): "--threads",
    ("bench", "accuracy", "methods", "--seeds", "1"): "--seeds",
    ("board", "serve", "--port", "80000"): "--port",
    ("board", "serve", "--device", "foo"): "tcp://HOST:PORT",
    ("board", "run", "/no/such.zip"): "/no/such.zip",
    ("train", "--threads", "100000"): "--threads",
    ("train", "--epochs", "99999999999999"): "--epochs",
    ("train", "--lr", "inf"): "--lr",
    ("train", "--bits", "17/8/8"): "17",
    ("train", "--bits", "8"): "'8'",
    ("train", "--recipe", "no-such"): "digits-demo",
    ("train", "--resume", "/no/such"): "/no/such",
    ("train", "--out", "/dev/null"): "/dev/null",
    ("export", "--recipe", "digits-demo", "--out", "/tmp"): "/tmp",
    ("compare", "/no/such"): "/no/such",
    ("demo", "--out", "/dev/null"): "/dev/null",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_bad_input_is_a_usage_error_that_names_the_value(words: tuple[str, ...]) -> None:
    status, error = answer(*words)
    assert status == 2
    assert REFUSED[words] in error
    assert "Traceback" not in error and error.count("\n") == 1


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nonsense_for_any_option_is_refused_without_a_traceback(data: st.DataObject) -> None:
    """Options that have a type of their own; whatever their text, the parser answers, and nothing is started."""
    words = data.draw(st.sampled_from(sorted(EVERY)))
    typed = [a for a in EVERY[words]._actions if a.type is not None and a.option_strings]
    if not typed:
        return
    action = data.draw(st.sampled_from(typed))
    nonsense = st.sampled_from(["", "-1", "x", "1e400", "nan", "\0", "0/0", "9" * 30, "/dev/null/below", "½", "1,,2"])
    value = data.draw(nonsense | st.text(max_size=8))
    try:
        parsed = EVERY[words]._get_value(action, value)
    except argparse.ArgumentError as error:
        assert str(error).strip()
    else:
        assert parsed is not None


def test_every_command_shows_its_defaults() -> None:
    for words, parser in EVERY.items():
        text = "".join(parser.format_help().split())  # argparse breaks lines at hyphens too
        for action in parser._actions:
            if action.option_strings and action.default not in (None, False, [], argparse.SUPPRESS):
                first = action.default[0] if isinstance(action.default, list) else action.default
                assert "".join(str(first).split()) in text or "default:" in (action.help or ""), (words, action.dest)


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert f'version = "{capsys.readouterr().out.split()[1]}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), 2),
        (FileNotFoundError(2, "gone", "f"), 2),
        (RuntimeError("x"), 1),
        (OSError(28, "full", "f"), 1),
    ],
)
def test_wrong_input_and_failures_have_statuses_of_their_own(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("hw.commands.generate_commands.load_design", fail)
    found, text = answer("generate")
    assert found == status and text.startswith("fractrain generate: ")
    found, text = answer("generate", "--verbose")
    assert found == status and "Traceback" in text


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sw_model.commands.training_commands._config", interrupt)
    status, text = answer("train", "--out", str(tmp_path))
    assert status == 130 and "--resume" not in text  # nothing has been saved
    (tmp_path / "checkpoint.pt").write_text("")
    status, text = answer("train", "--out", str(tmp_path))
    assert status == 130 and f"--resume {tmp_path}" in text


# -- values ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 32), min_size=3, max_size=4), st.sampled_from("/,"))
def test_one_syntax_for_precisions(widths: list[int], separator: str) -> None:
    bits = Bits.parse(separator.join(map(str, widths)))
    assert [bits.w, bits.a, bits.g] == [w or 32 for w in widths[:3]]
    assert (bits.weight_g or bits.g) == (widths[-1] or 32)
    for wrong in ("8/8", "8/8/33", "8/8/-1", "8/8/8/8/8", "a/b/c", ""):
        with pytest.raises(ValueError, match="write for example"):
            Bits.parse(wrong)


@pytest.mark.parametrize(
    "model", ["resnet8", "ResNet-8", "resnet_8", "transformer", "mobilenet-v2", "transformer_small"]
)
def test_a_model_has_one_name_however_it_is_spelled(model: str) -> None:
    assert network(spelled(model)) == network(model)
    assert spelled(spelled(model)) == spelled(model)


def test_recipes_and_models_go_by_any_of_their_names() -> None:
    from sw_model.train.recipe import TrainConfig
    from sw_model.train.recipes import RECIPES, find_recipe

    for path in RECIPES.rglob("*.toml"):
        assert find_recipe(path.relative_to(RECIPES).with_suffix("").as_posix()) == path
    assert TrainConfig(model="resnet8") == TrainConfig(model="resnet-8")
    for wrong in ("", "../designs/zc706", "/no/such", "paper"):
        with pytest.raises(ValueError, match="recipe"):
            find_recipe(wrong)


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        assert options.output_refusal(wrong, folder=True)
    for wrong in (tmp_path, tmp_path / "file" / "below"):
        assert options.output_refusal(wrong, folder=False)
    for right in (tmp_path, tmp_path / "new" / "deep"):
        assert options.output_refusal(right, folder=True) is None
    for right in (tmp_path / "file", tmp_path / "new" / "deep.json"):
        assert options.output_refusal(right, folder=False) is None


@pytest.mark.parametrize("words", [("train",), ("generate",), ("csim",), ("bitstream", "--scripts-only")], ids=" ".join)
def test_default_folders_that_cannot_be_written_are_refused_too(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "build"):
        (tmp_path / name).write_text("")
    status, text = answer(*words)
    assert status == 2 and ("--out" in text or "--build" in text) and text.count("\n") == 1


# -- results that are not what was asked for ----------------------------------------------------------------------------


def test_what_is_not_costed_as_asked_is_said() -> None:
    status, text = answer("cost", *RESNET8, "--bits", "17/8/8", "--machine", "sim-small")
    assert status == 0 and "host" in text and "w17/a8/g8" in text
    status, text = answer("cost", *RESNET8, "--schedule", "cp=50")
    assert status == 0 and "50 %" in text
    assert answer("cost", *RESNET8, "--schedule", "cp=3") == (0, "")


@pytest.mark.parametrize("text", ["{}", "[]", "{", "", '"x"', '{"modules": [{}]}', '{"modules": 3}'])
def test_damaged_results_are_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(text)
    (tmp_path / "metrics.csv").write_text("epoch,cc\n")
    for words in (("area", str(file), "--out", str(tmp_path / "area.svg")), ("compare", str(tmp_path))):
        status, error = answer(*words)
        assert status == 2 and str(file) in error and error.count("\n") == 1
    assert not (tmp_path / "area.svg").exists()


def test_compare_warns_of_runs_that_are_not_comparable(tmp_path: Path) -> None:
    for name, epochs, data in (("a", 1, "digits"), ("b", 2, "digits"), ("c", 2, "other")):
        folder = tmp_path / name
        folder.mkdir()
        rows = "".join(f"{epoch},0.5,10\n" for epoch in range(1, epochs + 1))
        (folder / "metrics.csv").write_text("epoch,test_accuracy,cc\n" + rows)
        result = {"metric": "accuracy", "test_score": 0.5, "cc": 10, "cc_full": 10, "finished": True}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "config.toml").write_text(f'data = "{data}"\n')
    status, text = answer("compare", *(str(tmp_path / name) for name in "ab"))
    assert status == 0 and "epochs" in text and "data" not in text
    status, text = answer("compare", *(str(tmp_path / name) for name in "bc"))
    assert status == 0 and "epochs" not in text and "data" in text
    assert answer("compare", str(tmp_path / "b"), str(tmp_path / "b")) == (0, "")


# -- what people see ------------------------------------------------------------------------------------------------


def test_long_work_shows_progress_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    monkeypatch.delenv("COLUMNS", raising=False)
    with redirect_stderr(errors), Progress("work", 4, interval=0.01) as progress:
        progress.at(3, "third")
        time.sleep(0.2)
    assert "work 3/4, third" in errors.getvalue()
    assert 2 <= errors.getvalue().count("\n") < 8  # waits get longer
    with redirect_stderr(errors := io.StringIO()), Progress("work", active=False, interval=0.01):
        time.sleep(0.05)
    assert errors.getvalue() == ""


def test_lines_are_not_broken_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    with redirect_stdout(io.StringIO()) as out:
        with Progress("work", stderr=False) as progress:
            progress.line("word " * 60)
        console().print("x" * 100)
    assert out.getvalue().count("\n") == 2


def test_the_parser_needs_only_what_the_board_has() -> None:
    code = "import sys, hw.commands.options; print({'numpy', 'torch', 'rich', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"
    assert fractrain.build_parser().prog == "fractrain"


def test_verbose_names_what_is_run(tmp_path: Path) -> None:
    words = ("csim", "--design", "sim-small", "--path", "native", "--out", str(tmp_path))
    status, text = answer(*words)
    assert status == 0 and "stimuli.txt" not in text
    status, text = answer(*words, "--verbose")
    assert status == 0 and "stimuli.txt" in text


def test_warnings_are_one_line_without_code(tmp_path: Path) -> None:
    small = ["--model", "resnet8", "--width", "4", "--epochs", "1", "--train-limit", "32", "--test-limit", "16"]
    words = [sys.executable, "-m", "fractrain", "train", *small, "--json", "--out", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert [line.startswith("warning: PFQ ended") for line in done.stderr.splitlines()] == [True]
    assert json.loads(done.stdout)["finished"]


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x80\x04cbuiltins\nprint\n."])
def test_files_that_hold_no_tensors_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    status, text = answer("train", "--init", str(file), "--out", str(tmp_path / "run"))
    assert status == 2 and str(file) in text and text.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_fourth_width_is_shown_where_a_precision_is_refused(tmp_path: Path) -> None:
    status, text = answer("train", "--bits", "4/4/4/0", "--device", "software", "--out", str(tmp_path / "run"))
    assert status == 2 and "4/4/4/0" in text
