"""What computes a run, as its folder and its checkpoints keep it, so that a resumed run goes on where it began.

Exact devices give the same bits wherever they run.  Floating point (device "fast") does not: its sums follow the number
of threads and of processes, so a resumed run that has others goes on with a warning.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch

from host.driver.fabric_engine import FabricEngine
from host.exact_engine import ExactEngine
from host.operands import Engine
from hw.design import Design, DesignError
from sw_model.nn.parallel import ALONE, Ranks
from sw_model.quantize.limits import refusal
from sw_model.train.recipe import ConfigError, TrainConfig
from sw_model.train.tasks import Task, smallest_batch

FAST = "fast"
BY_STEP = "by-step"


@dataclass(frozen=True)
class RunDevice:
    """What computes the quantized products of a run.

    Attributes:
        kind: "fast" (floating point), "software", the kind of a fabric's device ("reference", "hls", "rtl", "pynq"),
            "by-step" if the program that trains chooses anew at every step, or the class of another engine.
        threads: CPU threads of PyTorch in each process.
        processes: that train together.
        design: of the fabric, or whose order of results software follows; None without one.
        design_hash: as the device tells it, see :attr:`hw.design.Design.hash64`; 0 without a fabric.
        accelerator: where PyTorch computes, the kind of a :class:`torch.device`.
    """

    kind: str
    threads: int
    processes: int = 1
    design: Design | None = None
    design_hash: int = 0
    accelerator: str = "cpu"

    @classmethod
    def of(
        cls, engine: Engine | None, *, by_step: bool = False, ranks: Ranks = ALONE, accelerator: str = "cpu"
    ) -> RunDevice:
        """What a training with this engine (None: fast path) in this process computes with."""
        threads, processes = torch.get_num_threads(), ranks.part.size
        if accelerator != "cpu" and (by_step or engine is not None):
            raise ConfigError(f"accelerator {accelerator!r}: exact engines compute on the CPU; use 'cpu' with --device")
        if by_step or engine is None:
            return cls(BY_STEP if by_step else FAST, threads, processes, accelerator=accelerator)
        if isinstance(engine, FabricEngine):
            info = engine.device.info
            return cls(info.kind, threads, processes, info.design, info.hash64)
        if isinstance(engine, ExactEngine):
            design = engine.design
            return cls("software", threads, processes, design, 0 if design is None else design.hash64)
        return cls(type(engine).__name__, threads, processes)

    def __str__(self) -> str:
        return self.kind if self.design is None else f"{self.kind} with design {self.design.name} ({self._hash})"

    @property
    def _hash(self) -> str:
        return f"{self.design_hash:016x}"

    def record(self) -> dict[str, Any]:
        """Plain values, of which :meth:`from_record` makes the same again; the design is kept whole."""
        design = None if self.design is None else {"hash": self._hash, "parameters": asdict(self.design)}
        return {"device": self.kind, "threads": self.threads, "processes": self.processes, "design": design} | (
            {} if self.accelerator == "cpu" else {"accelerator": self.accelerator}
        )

    @classmethod
    def from_record(cls, record: Any) -> RunDevice:
        """The device that a record describes.

        Raises:
            ConfigError: if it is no such record, or its design means something else to this version.
        """
        try:
            kind, threads, processes = str(record["device"]), int(record["threads"]), int(record["processes"])
            if record["design"] is None:
                return cls(kind, threads, processes, accelerator=str(record.get("accelerator", "cpu")))
            design = Design(**record["design"]["parameters"])
            device = cls(kind, threads, processes, design, int(record["design"]["hash"], 16))
        except (DesignError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the run's record of its device cannot be used ({error!r}); resume with the version that wrote it"
            ) from error
        if device.design_hash != design.hash64:
            raise ConfigError(
                f"the run was trained on device {device}, but with these parameters this version makes a design "
                f"{design.hash64:016x}; resume with the version that wrote the run"
            )
        return device

    def check_same(self, before: RunDevice) -> None:
        """Refuses to go on with a run that was trained on another device.

        Raises:
            ConfigError: another kind of device, or another design.
        """
        if (self.kind, self.design_hash) != (before.kind, before.design_hash):
            raise ConfigError(
                f"the run was trained on device {before}, not {self}; resume it there, or train in another folder with "
                "init naming this one to start from its weights"
            )

    def warn_of_rounding(self, before: RunDevice) -> None:
        """Warns if a run goes on with other threads or processes, on which sums of floating point depend."""
        for name in ("threads", "processes", "accelerator"):
            now, then = getattr(self, name), getattr(before, name)
            if now != then and self.kind in (FAST, BY_STEP):
                warnings.warn(
                    f"the run was trained with {then} {name}, now it has {now}: float32 sums differ in their last bits, so "
                    f"the rest is not bit for bit what it would have been; use {then} for that",
                    stacklevel=2,
                )


def check_accelerator(config: TrainConfig, accelerator: str) -> None:
    """Refuses what PyTorch computes on the CPU only."""
    if config.norm == "fabric" and accelerator != "cpu":
        raise ConfigError(f"accelerator {accelerator!r}: norm 'fabric' computes on the CPU; use 'cpu', or norm 'batch'")


def check_engine(config: TrainConfig) -> None:
    """Refuses recipes whose products no integer engine computes."""
    if why := refusal("engine", config):
        raise ConfigError(why)
    for precision in config.precisions():
        if precision.quantized and max(precision.widths) > 16:
            raise ConfigError(
                f"stages: {precision} leaves an operand in float32, which integer engines do not multiply; give all "
                "operands 1..16 bits, or none, or take the fast path"
            )


def check_ranks(config: TrainConfig, task: Task, engine: bool, ranks: Ranks) -> None:
    """Refuses what several processes cannot train together."""
    if engine:
        raise ConfigError("exact engines take the whole batch; train with one process, or on the fast path")
    if why := refusal("processes", config):
        raise ConfigError(f"{why}, or train with one process")
    smallest = smallest_batch(task.data, config.batch)
    if smallest < ranks.part.size:
        raise ConfigError(
            f"an epoch's last batch has {smallest} inputs, too few for {ranks.part.size} processes; change batch "
            f"({config.batch}) or train_limit"
        )
