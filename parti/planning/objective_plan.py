"""The plan of a config of any objective but the next token, and the run class of a config file."""

from pathlib import Path
from typing import Any

from parti.next_token.train_next_token import TrainPartiConfig
from parti.objectives import OBJECTIVES
from parti.planning.objective import rehearse_objective
from parti.reranker.train_reranker import TrainRerankerConfig
from parti.text_encoder.train_text_encoder import TrainTextEncoderConfig
from parti.upsampler.train_upsampler import TrainUpsamplerConfig
from vqgan.config.schema import Config, ConfigError, parse_overrides, read_yaml
from vqgan.data.loader import BatchShard
from vqgan.planning.parallelism import total
from vqgan.planning.plan import Hardware, Plan
from vqgan.planning.suggestions import find_remedies
from vqgan.train_tokenizer import TrainVQGANConfig


def config_type(path: Path, overrides: list[str]) -> type[Config]:
    """Returns the run class of a config file: by its `objective`, otherwise by keys that only one kind of run has.

    Raises ConfigError for an unknown objective, or a file that cannot be read.
    """
    values = read_yaml(path)
    model = values.get("model")
    keys = set(values) | {f"model.{key}" for key in (model if isinstance(model, dict) else {})}
    given = dict(parse_overrides(overrides)).get("objective", values.get("objective"))
    if given is not None:
        if given not in OBJECTIVES:
            raise ConfigError(f"{path}: objective {given!r} is not a choice; one of: {', '.join(OBJECTIVES)}")
        return OBJECTIVES[given].config_type
    if "image_tokenizer" in keys:
        return TrainPartiConfig if "text" in keys or "model.kind" in keys else TrainUpsamplerConfig
    if "model.image_encoder" in keys or "text" in keys:
        return TrainRerankerConfig if "model.text_encoder" in keys else TrainTextEncoderConfig
    return TrainVQGANConfig


def plan_objective(config: Any, name: str, hardware: Hardware, tokenizer: TrainVQGANConfig | None = None) -> Plan:
    """Plans the run. Raises ConfigError for sharding, which these objectives do not have, or an unknown vocabulary,
    DataError for a batch that does not divide over the GPUs."""
    parallelism = hardware.parallelism
    objective = getattr(config, "objective", _NAMES.get(type(config), "a run"))
    if parallelism.strategy != "ddp":
        raise ConfigError(
            f"--strategy {parallelism.strategy}: {objective} trains with whole weights on each GPU; use ddp"
        )
    at_a_time = _at_a_time(config, hardware)
    step = rehearse_objective(config, at_a_time, tokenizer=tokenizer)
    size = config.data.transform.image_size
    plan = Plan(
        name=name,
        what=f"{objective}, {step.parameters / 1e6:.1f} million weights, images of {size}",
        parts=step.parts,
        frozen_parts=step.frozen_parts,
        hardware=hardware,
        at_a_time=at_a_time,
        batch=config.data.batch_size,
        steps=config.loop.steps,
        codes_a_image=0,
        memory=parallelism.memory(step, config.task.precision != "fp32"),
        flops_a_image=step.flops,
    )
    if plan.fits:
        return plan

    def measure(changed: Any, on: Hardware) -> int:
        step = rehearse_objective(changed, _at_a_time(changed, on), tokenizer=tokenizer)
        return total(on.parallelism.memory(step, changed.task.precision != "fp32"))

    return plan.with_suggestions(find_remedies(measure, config, hardware, plan.needed, plan.room))


_NAMES: dict[type, str] = {
    TrainRerankerConfig: "reranker",
    TrainTextEncoderConfig: "text encoder",
    TrainUpsamplerConfig: "upsampler",
}


def _at_a_time(config: Any, hardware: Hardware) -> int:
    share = BatchShard(
        processes=hardware.parallelism.gpus, gradient_accumulation_steps=config.loop.gradient_accumulation_steps
    )
    return share.local_size(config.data.batch_size)
