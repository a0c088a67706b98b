"""Weights divided between processes: PyTorch's FSDP2 (`fully_shard`), as an accelerate config asks for it.

Each process holds a part of every weight, of its gradient, its moments and its average, all in fp32. A network's
stacked layers are the units: a unit's weights are brought together for its forward pass, given back, and brought
together once more for the backward pass (`fsdp_reshard_after_forward: true`), or kept in between (false).

Layers are brought together in the 16 bits that the task computes in, while the arithmetic within stays autocast's, to
the rounding: a layer's norms, which autocast leaves in fp32, are brought together in fp32. Autocast alone would do the
same, but it keeps its rounded copy of every weight for the backward pass, so that each process would hold the whole
network again. What is not in a layer (embeddings, the last norm, the head) stays fp32. Gradients are averaged in fp32.

Scalars cannot be divided; they, and parts that are used outside of a forward pass, stay whole on every process, and the
learner averages their gradients.
"""

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vqgan.config.schema import ConfigError
from vqgan.training.parallel.sharded_tensors import to_local

NetworkT = TypeVar("NetworkT", bound=nn.Module)
_NORMS = nn.LayerNorm | nn.RMSNorm | nn.GroupNorm
Layers = Callable[[NetworkT], Sequence[nn.Module]]
"""Which modules of a network are its units, in the order in which they run."""


@dataclass(frozen=True)
class Sharding:
    """Between which processes weights are divided, and what a unit does between the passes."""

    mesh: DeviceMesh
    reshard_after_forward: bool

    def shard(self, network: nn.Module, layers: Sequence[nn.Module], dtype: torch.dtype | None) -> None:
        """Divide the weights of `network`, in place, after giving every process those of the first.

        One unit after the other goes to the device: the whole network is never there. `dtype` is that of a layer's
        weights in its passes.
        """
        exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        rounded = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        # Nothing here changes a result in place, which is what FSDP2 warns of where that is a view (as logits are).
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        replicated = set(replicated_parameters(network))
        for layer in layers:
            self._broadcast_from_rank_zero(layer)
            norms: list[nn.Module] = [part for part in layer.modules() if isinstance(part, _NORMS)]
            if dtype is not None and norms:
                self._fully_shard(norms, exact, replicated)
            self._fully_shard(layer, rounded, replicated)
        self._broadcast_from_rank_zero(network)
        self._fully_shard(network, exact, replicated)

    def _fully_shard(
        self, unit: nn.Module | list[nn.Module], policy: MixedPrecisionPolicy, replicated: set[nn.Parameter]
    ) -> None:
        reshard = self.reshard_after_forward
        fully_shard(unit, mesh=self.mesh, reshard_after_forward=reshard, mp_policy=policy, ignored_params=replicated)

    def _broadcast_from_rank_zero(self, module: nn.Module) -> None:
        device = torch.device(self.mesh.device_type)
        for tensor in (*module.parameters(), *module.buffers()):
            if not isinstance(tensor, DTensor):
                # FSDP2 divides rows: no other memory layout (channels last).
                tensor.data = tensor.data.to(device).contiguous()
                dist.broadcast(tensor.data, 0)


def replicated_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that every process holds whole: scalars, and those of the parts that the network names.

    `replicated_modules()` are parts that are read or written outside of a forward pass, as a codebook is.
    """
    named: Callable[[], Sequence[nn.Module]] = getattr(network, "replicated_modules", list)
    whole = {parameter for module in named() for parameter in module.parameters()}
    return [parameter for parameter in network.parameters() if parameter.ndim == 0 or parameter in whole]


def is_sharding_requested() -> bool:
    """Returns whether a forward pass takes all processes of the launch, evaluation's too."""
    return _is_set("ACCELERATE_USE_FSDP")


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the weights of this launch's networks are divided."""
    return is_sharding_requested() and accelerator.num_processes > 1


def requested_sharding(accelerator: Accelerator) -> Sharding | None:
    """Returns what the accelerate config asks for (`distributed_type: FSDP`); None without it, and in a single process.

    Read from the launcher's environment, as accelerate itself takes FSDP for GPUs only. Raises ConfigError for what
    is not supported.
    """
    if not is_sharding_requested():
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("weights are sharded by FSDP2: set fsdp_version to 2 in fsdp_config of the accelerate config")
    if _is_set("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ConfigError(
            "fsdp_activation_checkpointing of the accelerate config is not read here: set it to false, and "
            "model.checkpoint_activations to true"
        )
    if _is_set("FSDP_OFFLOAD_PARAMS"):
        raise ConfigError("fsdp_offload_params: weights stay on the devices; set it to false in the accelerate config")
    processes = accelerator.num_processes
    if processes == 1:
        return None
    replicas = int(os.environ.get("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "1"))
    others = ("TP", "CP", "SP")
    if any(int(os.environ.get(f"PARALLELISM_CONFIG_{kind}_SIZE", "1")) != 1 for kind in others):
        raise ConfigError("parallelism_config: weights are sharded and replicated; set tp, cp and sp sizes to 1")
    if processes % replicas or replicas == processes:
        raise ConfigError(
            f"parallelism_config_dp_replicate_size {replicas} does not divide {processes} processes into groups of at "
            "least two; choose another"
        )
    device = accelerator.device.type
    if replicas == 1:
        mesh = init_device_mesh(device, (processes,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(device, (replicas, processes // replicas), mesh_dim_names=("replicate", "shard"))
    return Sharding(mesh, _is_set("FSDP_RESHARD_AFTER_FORWARD", True))


def meta_copy(network: NetworkT) -> NetworkT:
    """Returns a copy without weights (on the meta device), to be filled; buffers are copied."""
    memo = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in network.parameters()
    }
    return copy.deepcopy(network, memo)


@torch.no_grad()
def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Fill a network from another of the same kind that is divided in the same way."""
    ours, theirs = [*source.parameters(), *source.buffers()], [*target.parameters(), *target.buffers()]
    for own, other in zip(ours, theirs, strict=True):
        to_local(other).copy_(to_local(own))


def _is_set(name: str, default: bool = False) -> bool:
    return os.environ.get(name, str(default)).lower() in ("true", "1", "yes")
