"""Engines by the name of a device, for new runs and for runs that go on; PyTorch is imported only when they open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hw.design import Design, load_design

DESIGN = "sim-small"  #: of the fabric, unless said otherwise
DEVICES = ("fast", "software", "reference", "hls", "rtl", "reference-memory", "hls-memory", "rtl-memory")


def open_engine(device: str, design: str | Design | None) -> Any:
    """The engine of a device; None: fast path.

    Args:
        design: or the name of one in configs/designs, or a TOML file; None: :data:`DESIGN`, in software no design's order.
    """
    if device == "fast":
        return None
    if device == "software" and design is None:
        from host.exact_engine import ExactEngine

        return ExactEngine()
    design = load_design(design or DESIGN) if isinstance(design, str | None) else design
    if device == "software":
        from host.exact_engine import ExactEngine

        return ExactEngine(design)
    from host.devices.device import open_device
    from host.driver.fabric_engine import FabricEngine

    return FabricEngine(open_device(device, design), keep_rows=False)


def engine_to_resume(
    run: Path, kind: str | None = None, design: str | None = None, threads: int | None = None
) -> tuple[str, Any]:
    """Kind and engine of the device that a run was trained on; PyTorch's threads are set to the run's.

    Args:
        run: its folder.
        kind, design: what a user names, who may repeat what the run says but not change it; None takes the run's.
        threads: None takes the run's.

    Raises:
        ConfigError: another device or design, or one that cannot be opened again.
    """
    import torch

    from sw_model.train.folder import RunFolder
    from sw_model.train.recipe import ConfigError

    before = RunFolder(run).device()
    if before is None:
        if kind is None:
            raise ConfigError(
                f"{run} does not say on which device it was trained: an old version wrote it; name it with --device"
            )
        return kind, open_engine(kind, design or DESIGN)
    if kind not in (None, before.kind):
        raise ConfigError(f"--device {kind}: {run} was trained on device {before}; leave out --device to resume there")
    if design is not None and load_design(design).hash64 != before.design_hash:
        raise ConfigError(
            f"--design {design}: {run} was trained on device {before}; leave out --design to resume there"
        )
    if before.kind not in DEVICES:
        raise ConfigError(f"{run} was trained on device {before}, which only the program that began it can resume")
    if threads is None:
        torch.set_num_threads(before.threads)
    return before.kind, open_engine(before.kind, before.design)


def accelerator_of(run: Path | None) -> str:
    """Where PyTorch computed a run, which goes on there unless told otherwise; the CPU for a new one."""
    from sw_model.train.folder import RunFolder

    before = None if run is None else RunFolder(run).device()
    return "cpu" if before is None else before.accelerator
