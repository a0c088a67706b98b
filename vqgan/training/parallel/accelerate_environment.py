"""Checks the environment variables of accelerate, which a launcher sets from an accelerate config file.

A run's arithmetic is defined by its own config. Variables that would change it, and those of unsupported features, are
refused in one line; the others determine where processes run and how they find each other. Sharding
(`ACCELERATE_USE_FSDP` and what belongs to it) is read by `vqgan.training.parallel.sharding`.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from vqgan.config.schema import ConfigError


class Refused(NamedTuple):
    """A variable that may have none but the `harmless` values (lower case), and what to do instead."""

    harmless: frozenset[str]
    remedy: str


def _unless(*harmless: str, remedy: str) -> Refused:
    return Refused(frozenset(harmless), remedy)


_OFF = ("", "0", "false", "no", "none", "off")
_NO_FP8 = _unless(*_OFF, remedy="nothing is computed in fp8 here: task.precision is fp32, bf16 or fp16")
_NO_CONTEXT = _unless("", "1", remedy="weights are sharded and replicated, nothing else is: set this size to 1")

REFUSED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": _unless(
        "", "1", remedy="it would divide every gradient: gradients are accumulated by loop.gradient_accumulation_steps"
    ),
    "ACCELERATE_GRADIENT_CLIPPING": _unless(
        *_OFF, "auto", remedy="gradients are clipped by the optimizer's clip_norm (task.optimizer.clip_norm)"
    ),
    "ACCELERATE_MIXED_PRECISION": _unless(
        *_OFF, remedy='precision is task.precision: set mixed_precision to "no" in the accelerate config'
    ),
    "ACCELERATE_DOWNCAST_BF16": _unless(*_OFF, remedy="precision is task.precision: set downcast_bf16 to no"),
    "ACCELERATE_DYNAMO_BACKEND": _unless(
        *_OFF, remedy="layers are compiled by task.compile_layers: set dynamo_backend to no"
    ),
    "ACCELERATE_USE_DEEPSPEED": _unless(
        *_OFF, remedy="DeepSpeed is not supported: configs/accelerate/fsdp2.yaml divides weights between GPUs"
    ),
    "ACCELERATE_USE_MEGATRON_LM": _unless(
        *_OFF, remedy="Megatron-LM is not supported: configs/accelerate/fsdp2.yaml divides weights between GPUs"
    ),
    "FSDP_IGNORED_MODULES": _unless(*_OFF, remedy="all of a network is divided: leave fsdp_ignored_modules out"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": _unless(
        *_OFF, remedy="activations stay on the devices: set fsdp_activation_checkpointing_offload to false"
    ),
    "PARALLELISM_CONFIG_TP_SIZE": _NO_CONTEXT,
    "PARALLELISM_CONFIG_CP_SIZE": _NO_CONTEXT,
    "PARALLELISM_CONFIG_SP_SIZE": _NO_CONTEXT,
}
"""What would change the arithmetic beside the run's config, or asks for what is not done."""

REFUSED_PREFIXES = {"ACCELERATE_FP8_": _NO_FP8}
"""The same for all variables that begin so."""

READ_BY_SHARDING = frozenset(
    {
        "ACCELERATE_USE_FSDP",
        "FSDP_VERSION",
        "FSDP_ACTIVATION_CHECKPOINTING",
        "FSDP_OFFLOAD_PARAMS",
        "FSDP_RESHARD_AFTER_FORWARD",
        "PARALLELISM_CONFIG_DP_REPLICATE_SIZE",
    }
)
"""Used, or refused, by `vqgan.training.parallel.sharding.requested_sharding`."""

WITHOUT_EFFECT = {
    "where processes run and how they find each other": (
        "ACCELERATE_CPU_AFFINITY",
        "ACCELERATE_DEBUG_RDV_FILE",
        "ACCELERATE_IN_TPU_POD",
        "ACCELERATE_NUM_PROCESSES",
        "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
        "ACCELERATE_TORCH_DEVICE",
        "ACCELERATE_USE_CPU",
        "ACCELERATE_USE_SAGEMAKER",
    ),
    "what is printed and checked": ("ACCELERATE_DEBUG_MODE", "ACCELERATE_ENABLE_RICH", "ACCELERATE_LOG_LEVEL"),
    "how large models are loaded, which accelerate does for nobody here": (
        "ACCELERATE_BYPASS_DEVICE_MAP",
        "ACCELERATE_INIT_INCLUDE_BUFFERS",
    ),
    "details of what is refused itself": (
        "ACCELERATE_ALLOW_CP_STANDALONE",
        "ACCELERATE_CONFIG_DS_FIELDS",
        "ACCELERATE_DEEPSPEED_",
        "ACCELERATE_DYNAMO_",
        "MEGATRON_LM_",
        "PARALLELISM_CONFIG_CP_BACKEND",
        "PARALLELISM_CONFIG_CP_COMM_STRATEGY",
        "PARALLELISM_CONFIG_SP_",
    ),
    "how accelerate itself would shard; here the network says what its layers are, and processes what is left": (
        "ACCELERATE_USE_PARALLELISM_CONFIG",
        "FSDP_AUTO_WRAP_POLICY",
        "FSDP_BACKWARD_PREFETCH",
        "FSDP_CPU_RAM_EFFICIENT_LOADING",
        "FSDP_FORWARD_PREFETCH",
        "FSDP_MIN_NUM_PARAMS",
        "FSDP_SHARDING_STRATEGY",
        "FSDP_STATE_DICT_TYPE",
        "FSDP_SYNC_MODULE_STATES",
        "FSDP_TRANSFORMER_CLS_TO_WRAP",
        "FSDP_USE_ORIG_PARAMS",
        "PARALLELISM_CONFIG_DP_SHARD_SIZE",
    ),
}
"""Reason -> variables, or what they begin with (`..._`), that change no number of a run."""


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError for a variable of accelerate that would change what a run computes."""
    for name, value in environment.items():
        prefix = next((prefix for prefix in REFUSED_PREFIXES if name.startswith(prefix)), None)
        refused = REFUSED.get(name) if prefix is None else REFUSED_PREFIXES[prefix]
        if refused is not None and value.strip().lower() not in refused.harmless:
            raise ConfigError(
                f"{name}={value[:60]!r} in the environment (an accelerate config file sets it too): {refused.remedy}"
            )
