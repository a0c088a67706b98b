"""The smallest networks of each paper, on images of 16 pixels."""

import torch
from accelerate import Accelerator
from torch import Tensor

from parti.mim.backbones import SwinConfig, ViTConfig
from parti.mim.beit import BEiT, BEiTConfig
from parti.mim.mae import MAE, MAEConfig, MAEDecoderConfig
from parti.mim.masking import row_generator
from parti.mim.mim_task import AbsoluteErrorTask, ClassTask, MaskedImageTask, SquaredErrorTask
from parti.mim.mpp import MPP, MPPConfig
from parti.mim.network import MaskedImageNetwork
from parti.mim.simmim import SimMIM, SimMIMConfig
from parti.mim.targets import MeanColors, TokenizerCodes
from tests.tiny import tiny_image_tokenizer
from vqgan.config.schema import validate
from vqgan.training.learner import LearnerConfig

VIT = ViTConfig(image_size=32, patch_size=4, width=32, depth=2, heads=2)
SWIN = SwinConfig(image_size=32, patch_size=2, width=16, depths=(2, 2), heads=(2, 4), window_size=4)
CLASSES = 32


def tiny_network(name: str, seed: int = 0) -> MaskedImageNetwork:
    """A network whose every weight is random, in fp32 and evaluation mode."""
    torch.manual_seed(seed)
    makers = {
        "mae": lambda: MAE(MAEConfig(encoder=VIT, decoder=MAEDecoderConfig(width=16, depth=2, heads=2))),
        "simmim": lambda: SimMIM(SimMIMConfig(encoder=SWIN, mask_size=8)),
        "simmim_vit": lambda: SimMIM(SimMIMConfig(encoder=VIT, mask_size=8)),
        "beit": lambda: BEiT(BEiTConfig(encoder=VIT, masked_patches=25, smallest_block=4), CLASSES),
        "mpp": lambda: MPP(MPPConfig(encoder=VIT)),
    }
    network: MaskedImageNetwork = makers[name]()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return network.eval()


NETWORKS = ("mae", "simmim", "simmim_vit", "beit", "mpp")


def pixels(count: int = 3, side: int = 32, seed: int = 0) -> Tensor:
    """Images in [-1, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def masks(network: MaskedImageNetwork, count: int = 3, step: int = 0) -> tuple[Tensor, ...]:
    generators = [row_generator(0, step, row) for row in range(count)]
    return network.draw_masks(generators, torch.device("cpu"))


def tiny_mim_task(name: str, accelerator: Accelerator, **settings: object) -> MaskedImageTask:
    """Its task in fp32; `settings` are those of the learner."""
    config = validate(LearnerConfig, {"precision": "fp32", "optimizer": {"learning_rate": 1e-3}} | settings, "test")
    network, steps, seed = tiny_network(name), 10, 0
    if name == "mae":
        return SquaredErrorTask(config, network, accelerator, steps, seed)
    if name.startswith("simmim"):
        return AbsoluteErrorTask(config, network, accelerator, steps, seed)
    targets = MeanColors(4) if name == "mpp" else TokenizerCodes(tiny_image_tokenizer(), (8, 8), 32)
    return ClassTask(config, network, targets, accelerator, steps, seed)
