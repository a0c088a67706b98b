"""What every run says where a size in its config is 2,147,483,648; in a process of its own, as what is wrong takes all
memory, and as the tests' checks of shapes take most of the time."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import parti.fused.captioning.train_captioning as captioning
import parti.fused.inpainting.train_inpainting as inpainting
import parti.fused.synthesis.train_synthesis as synthesis
import parti.mim.train_mim as mim
import parti.next_token.train_next_token as next_token
import parti.reranker.train_reranker as reranking
import parti.text_encoder.train_text_encoder as warm_up
import parti.upsampler.train_upsampler as upsampling
import vqgan.train_tokenizer as stage_1
from parti.reranker.dual_encoder import build_processor
from tests.tiny import tiny_image_tokenizer, tiny_text_tokenizer
from vqgan.config.schema import Config, ConfigError, load_config, validate
from vqgan.hub.construction import counted_within_memory
from vqgan.training.parallel.distributed import build_accelerator
from vqgan.training.task import Task

ROOT = Path(__file__).parents[1] / "configs"
HUGE = 2147483648
ADDRESSES = 6 << 30
"""Bytes that the process may ask for; what it uses is far less."""
Build = Callable[[Any, Path], Task]

NETWORKS = {"model", "discriminators", "encoder", "discriminator"}
"""Sections of a config that networks are built from, wherever they stand in it."""


def rerank(config: Any, folder: Path) -> Task:
    tiny_text_tokenizer().save_pretrained(folder)
    return reranking.build_task(config, build_accelerator(), build_processor(config.model, folder))


def masked_codes(config: Any, folder: Path) -> Task:
    tiny_image_tokenizer().save_pretrained(folder)
    encoder = config.model.encoder
    small = {"target_size": 4 * encoder.image_size // encoder.patch_size, "image_tokenizer": str(folder)}
    return mim.build_task(config.model_copy(update=small), build_accelerator())


BUILDS: dict[type[Config], Build] = {
    stage_1.TrainVQGANConfig: lambda config, _: stage_1.build_task(config, build_accelerator()),
    next_token.TrainPartiConfig: lambda config, _: next_token.build_task(
        config, build_accelerator(), tiny_text_tokenizer(), tiny_image_tokenizer()
    ),
    upsampling.TrainUpsamplerConfig: lambda config, _: upsampling.build_task(
        config, build_accelerator(), tiny_image_tokenizer()
    ),
    reranking.TrainRerankerConfig: rerank,
    warm_up.TrainTextEncoderConfig: lambda config, _: warm_up.build_task(
        config, build_accelerator(), tiny_text_tokenizer()
    ),
    inpainting.TrainInpaintingConfig: lambda config, _: inpainting.build_task(
        config, build_accelerator(), tiny_text_tokenizer()
    ),
    captioning.TrainCaptioningConfig: lambda config, _: captioning.build_task(
        config, build_accelerator(), tiny_text_tokenizer()
    ),
    mim.TrainMAEConfig: lambda config, _: mim.build_task(config, build_accelerator()),
    mim.TrainSimMIMConfig: lambda config, _: mim.build_task(config, build_accelerator()),
    mim.TrainMPPConfig: lambda config, _: mim.build_task(config, build_accelerator()),
    mim.TrainBEiTConfig: masked_codes,
    synthesis.TrainSynthesisConfig: lambda config, _: synthesis.build_task(
        config, build_accelerator(), tiny_text_tokenizer()
    ),
}
SMALL: dict[str, type[Config]] = {
    "vqgan/shapes": stage_1.TrainVQGANConfig,
    "vqgan/shapes_cnn": stage_1.TrainVQGANConfig,
    "vqgan/shapes_dvae": stage_1.TrainVQGANConfig,
    "parti/shapes": next_token.TrainPartiConfig,
    "parti/shapes_dalle": next_token.TrainPartiConfig,
    "upsampler/shapes_2x": upsampling.TrainUpsamplerConfig,
    "reranker/shapes": reranking.TrainRerankerConfig,
    "text_encoder/shapes": warm_up.TrainTextEncoderConfig,
    "parti/fused_inpainting_shapes": inpainting.TrainInpaintingConfig,
    "parti/fused_captioning_shapes": captioning.TrainCaptioningConfig,
    "parti/fused_synthesis_shapes": synthesis.TrainSynthesisConfig,
    "mim/mae_shapes": mim.TrainMAEConfig,
    "mim/simmim_shapes": mim.TrainSimMIMConfig,
    "mim/mpp_shapes": mim.TrainMPPConfig,
    "mim/beit_shapes": mim.TrainBEiTConfig,
}
PAPERS: dict[str, type[Config]] = {
    "vqgan/vit_vqgan_large": stage_1.TrainVQGANConfig,
    "vqgan/cnn_vqgan_f16": stage_1.TrainVQGANConfig,
    "vqgan/dvae": stage_1.TrainVQGANConfig,
    "parti/parti_20b": next_token.TrainPartiConfig,
    "parti/dalle_12b": next_token.TrainPartiConfig,
    "upsampler/parti_512": upsampling.TrainUpsamplerConfig,
}


def sizes(values: Any, inside: bool = False, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a whole number of a network stands, or a text length or vocabulary."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        here = inside or key in NETWORKS or (path == ("text",) and key == "length")
        if here and type(value) is int:
            yield (*path, key)
        yield from sizes(value, here, (*path, key))


def with_value(values: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    key, *rest = path
    changed = with_value(values[key], tuple(rest), value)
    if isinstance(values, dict):
        return values | {key: changed}
    return [changed if number == key else old for number, old in enumerate(values)]


def refusals(
    name: str, config_type: type[Config], folder: Path, only: tuple[str, ...] = ()
) -> list[tuple[str, str, float]]:
    """Of each size, or of the last names of paths in `only`: what its huge value gives, and processor seconds."""
    whole = load_config(config_type, ROOT / f"{name}.yaml")
    values = whole.model_dump(mode="json")
    found = []
    for path in sizes(values):
        if only and path[-1] not in only:
            continue
        start = time.process_time()
        try:
            config = validate(config_type, with_value(values, path, HUGE), name)
            counted_within_memory(lambda config=config: BUILDS[config_type](config, folder))  # type: ignore[misc]
            said = "built"
        except ConfigError as error:
            said = str(error)
        except Exception as error:
            said = f"{type(error).__name__}\n{error}"
        found.append((".".join(map(str, path)), said, time.process_time() - start))
    return found


LAYERS = ("depth", "encoder_depth", "decoder_depth", "blocks", "blocks_per_group", "layers", "residual_blocks")


def main(folder: Path, wanted: set[str]) -> None:
    """Print the refusals of the wanted configs as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, resource.RLIM_INFINITY))
    found = []
    both: list[tuple[dict[str, type[Config]], tuple[str, ...]]] = [(SMALL, ()), (PAPERS, LAYERS)]
    for names, only in both:
        for name, config_type in ((name, names[name]) for name in names if name in wanted):
            found += [(name, *refusal) for refusal in refusals(name, config_type, folder, only)]
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    sys.stdout.write(json.dumps({"refusals": found, "peak_kilobytes": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), set(sys.argv[2:]))
