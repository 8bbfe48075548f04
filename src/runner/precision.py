"""The device, the number type and the processes of a run: what was asked for, what is really there."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs

from runner.protocols import Fault, Mistake
from runner.settings import Cluster, Precision

AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ActivePrecision:
    """What a matrix product really does, found by doing one."""

    requested: str
    device: str
    autocast: str | None
    tf32: bool
    scaler: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def device_of(cluster: Cluster) -> str:
    """cpu, cuda or mps. Raises `Mistake` for a device that this machine lacks."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if cluster.device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[cluster.device]:
        raise Mistake(
            f"cluster.device={cluster.device}: this machine has none that torch can use. Set cluster.device=auto."
        )
    return cluster.device


def start_accelerator(precision: Precision, cluster: Cluster) -> tuple[Accelerator, ActivePrecision]:
    """Joins the run's other processes. Raises `Mistake` for a precision that the device lacks or for too few GPUs,
    `Fault` when what is active is not what was asked for."""
    device = device_of(cluster)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device == "cuda" and here > torch.cuda.device_count():
        raise Mistake(
            f"cluster.num_processes: {here} processes need a GPU each on this machine, which has "
            f"{torch.cuda.device_count()}. Set as many, or cluster.device=cpu."
        )
    if precision.compute in ("fp16", "tf32") and device != "cuda":
        raise Mistake(
            f"precision={precision.compute} needs an NVIDIA GPU; this run is on {device}. Set precision=fp32 or bf16."
        )
    if cluster.threads is not None:
        torch.set_num_threads(cluster.threads)
    torch.set_float32_matmul_precision("high" if precision.compute == "tf32" else "highest")
    # A sweep trains several runs in one process, and Accelerate keeps the first one's precision otherwise.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision.compute if AUTOCAST[precision.compute] is not None else "no",
        # A batch may lack a modality, and then its encoder goes unused; buffers are shared where they are read.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    if accelerator.device.type != device:
        raise Fault(f"cluster.device={cluster.device}: {device} was asked for and {accelerator.device} is in use.")
    if accelerator.num_processes != cluster.num_processes:
        raise Fault(f"{cluster.num_processes} processes were asked for and {accelerator.num_processes} are running.")
    return accelerator, probe(accelerator, precision)


def probe(accelerator: Accelerator, precision: Precision) -> ActivePrecision:
    with accelerator.autocast():
        ones = torch.ones(2, 2, device=accelerator.device)
        product = (ones @ ones).dtype
    wanted = AUTOCAST[precision.compute] or torch.float32
    if product != wanted:
        raise Fault(
            f"precision={precision.compute}: matrix products are {product} on {accelerator.device}, not {wanted}."
        )
    return ActivePrecision(
        requested=precision.compute,
        device=accelerator.device.type,
        autocast=None if product == torch.float32 else str(product).removeprefix("torch."),
        tf32=torch.get_float32_matmul_precision() == "high",
        scaler=accelerator.scaler is not None,
    )
