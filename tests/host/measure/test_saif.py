"""Switching activity: what is refused, what the reader notices, and a recording of the RTL."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fractrain import main
from host.measure.saif import SaifError, fitting_layer, read_saif, record
from hw.design import load_design
from hw.networks import Bits, network

SMALL = load_design("sim-small")
BITS = Bits(4, 3, 6)
HEADER = '(SAIFILE (SAIFVERSION "2.0") (DIRECTION "backward") (TIMESCALE 1 ps) (DURATION 20)'
NET = r"(INSTANCE TOP (NET (a\[0\] (T0 5) (T1 15) (TZ 0) (TX 0) (TB 0) (TC 3))))"


def command(*words: str) -> int:
    """Exit status of ``fractrain`` with these words."""
    return main([*words])


def test_the_first_layer_that_fits() -> None:
    shape = fitting_layer(SMALL, network("resnet38"), BITS)
    assert (shape.kind, shape.stride) == ("conv", 1)
    assert shape.out_hw[1] <= SMALL.lanes
    assert fitting_layer(SMALL, network("resnet38"), BITS, "blocks.7.conv1").name == "blocks.7.conv1"


@pytest.mark.parametrize(
    ("layer", "depth_a", "message"),
    [
        ("stage9", 512, "name one of stem, blocks.0.conv1"),
        ("blocks.0.conv1", 16, "buffer A of 16 addresses"),
        (None, 16, "buffer A of 16 addresses"),
    ],
)
def test_layers_that_cannot_run(layer: str | None, depth_a: int, message: str) -> None:
    with pytest.raises(SaifError, match=message):
        fitting_layer(replace(SMALL, depth_a=depth_a), network("resnet38"), Bits(16, 16, 16), layer)


def test_layers_wider_than_the_array_run_if_they_are_named() -> None:
    assert fitting_layer(SMALL, network("resnet38"), BITS, "blocks.0.conv1").out_hw == (32, 32)
    with pytest.raises(SaifError, match="at most 16 pixels; name a layer"):
        fitting_layer(SMALL, network("resnet38")[:3], BITS)


def test_no_images_are_refused(tmp_path: Path) -> None:
    shape = fitting_layer(SMALL, network("resnet38"), BITS)
    with pytest.raises(SaifError, match="give at least 1"):
        record(SMALL, shape, BITS, tmp_path / "a.saif", images=0)


def test_a_folder_that_does_not_exist_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("saif", "--out", str(tmp_path / "nosuch" / "x.saif")) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "nosuch").exists()


def test_reading(tmp_path: Path) -> None:
    file = tmp_path / "a.saif"
    file.write_text(f"// comment (\n{HEADER} {NET})\n")
    duration, unit, (net,) = read_saif(file)
    assert (duration, unit) == (20, "1 ps")
    assert (net.path, net.t0, net.t1, net.toggles) == ("TOP/a[0]", 5, 15, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER} {NET}", "1 lists are not closed"),
        (f"{HEADER} {NET}))", "outside of any list"),
        (f"{HEADER})(SAIFILE)", "not one SAIFILE"),
        (NET, "not one SAIFILE"),
        ('(SAIFILE (SAIFVERSION "2.0") (TIMESCALE 1 ps))', "lacks DIRECTION, DURATION"),
        (f"{HEADER} (INSTANCE TOP loose))", "stands alone in instance TOP"),
        (f"{HEADER} (INSTANCE TOP (NET loose)))", "stands alone among the nets of TOP"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.saif"
    file.write_text(text)
    with pytest.raises(SaifError, match=message):
        read_saif(file)


def test_the_command_refuses_unknown_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("saif", "--out", str(tmp_path / "a.saif"), "--layer", "stage9") == 2
    assert "no layer 'stage9'" in capsys.readouterr().err


@pytest.mark.slow  # its build takes minutes
def test_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "activity.saif"
    assert command("saif", "--bits", "4,3,6", "--images", "1", "--out", str(file), "--json") == 0
    done = json.loads(capsys.readouterr().out)
    duration, unit, nets = read_saif(file)
    assert (unit, done["period_ps"]) == ("1 ps", round(1e6 / SMALL.clock_mhz))
    assert duration == done["cycles"] * done["period_ps"]
    assert done["cycles"] >= done["busy"] > 0
    clocks = [net for net in nets if net.path.endswith("/ap_clk")]
    assert clocks
    for clock in clocks:
        assert clock.toggles == 2 * done["cycles"]
        assert clock.t0 == clock.t1 == duration // 2
    assert all(net.t0 + net.t1 == duration for net in nets)
    assert all(
        net.toggles <= done["cycles"] + 1 for net in nets if net.toggles != 2 * done["cycles"]
    )  # edges of one kind
    assert len({net.path for net in nets}) == len(nets)
    assert not re.search(r"(?<!\\)[\[\]]", file.read_text())  # every bracket of a name is escaped
    assert any("/gen_lane[3]/gen_channel[2]/i_unit/" in net.path for net in nets)
    data = [net for net in nets if "out0_TDATA[" in net.path and net.path.startswith("TOP/fabric/")]
    assert len(data) == 64
    assert sum(net.toggles for net in data) > 64 * 10  # results left
