"""Our tokenizers and public ones of the same size, each as one call: encode + decode, or a training step.

What is compared with what, and why: benchmarks/tokenizer_throughput.py.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.autoencoder_task import AutoencoderTask, AutoencoderTaskConfig
from vqgan.data.batch import Batch
from vqgan.discriminator_trainer import AdversarialConfig
from vqgan.image_losses import PerceptualTermConfig
from vqgan.layers.transformer import TransformerConfig
from vqgan.losses.reconstruction import l2
from vqgan.models import build_autoencoder
from vqgan.models.cnn_vqgan import CNNVQGANConfig
from vqgan.models.discriminator import StyleGAN2DiscriminatorConfig
from vqgan.models.vit_vqgan import ViTVQGANConfig
from vqgan.quantizers import NearestConfig
from vqgan.training.optim.optimizer import OptimizerConfig
from vqgan.training.parallel.distributed import build_accelerator

HEAD_WIDTH = 32
CODE_DIM = 8
LEARNING_RATE = 3e-4
MULTIPLIERS = (1, 2, 4, 4)
R1_EVERY = 16
Call = Callable[[], object]


@dataclass(frozen=True)
class Baseline:
    """One call, and how many parameters the autoencoder and the discriminator behind it have."""

    call: Call
    parameters: int
    discriminator_parameters: int = 0


@dataclass(frozen=True)
class Setting:
    """What every contender is built for."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    codes: int
    channels: int
    batch: int
    precision: str
    compiled: bool
    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def images(self) -> Tensor:
        """In [-1, 1]."""
        shape = (self.batch, 3, self.image_size, self.image_size)
        return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(self.device)

    def compile(self, *modules: nn.Module) -> None:
        if self.compiled:
            for module in modules:
                module.compile()

    def finished(self, call: Call) -> Call:
        """The call, over only when the device is done."""
        if self.device.type != "cuda":
            return call

        def waiting() -> None:
            call()
            torch.cuda.synchronize()

        return waiting


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


# Ours.


def vit_config(setting: Setting) -> ViTVQGANConfig:
    size = TransformerConfig(
        depth=setting.depth, width=setting.width, heads=setting.width // HEAD_WIDTH, mlp_width=4 * setting.width
    )
    return ViTVQGANConfig(
        image_size=setting.image_size,
        patch_size=setting.patch_size,
        encoder=size,
        decoder=size,
        quantizer=NearestConfig(codebook_size=setting.codes, code_dim=CODE_DIM),
    )


def cnn_config(setting: Setting) -> CNNVQGANConfig:
    return CNNVQGANConfig(
        image_size=setting.image_size,
        base_channels=setting.channels,
        channel_multipliers=MULTIPLIERS,
        residual_blocks=1,
        attention_resolutions=(),
        latent_channels=CODE_DIM,
        quantizer=NearestConfig(codebook_size=setting.codes, code_dim=CODE_DIM, l2_normalize=False),
    )


def our_reconstruction(config: ViTVQGANConfig | CNNVQGANConfig, setting: Setting) -> Baseline:
    autoencoder = build_autoencoder(config).to(setting.device).eval()
    setting.compile(autoencoder.encoder, autoencoder.decoder)
    images = setting.images()

    @torch.no_grad()
    def call() -> Tensor:
        with setting.autocast():  # not by ImageTokenizer, which is fp32 always
            return autoencoder(images).decoded.images.clamp(-1, 1)

    return Baseline(call, count(autoencoder))


def our_task(setting: Setting, *, peers_way: bool, players: bool, step: int) -> Baseline:
    """The training step of the project, `step` decides whether R1 is due."""
    discriminator_trainer = AdversarialConfig(
        loss="hinge" if peers_way else "non_saturating",
        adaptive=peers_way,
        r1_every=1 if peers_way else R1_EVERY,
        discriminator=StyleGAN2DiscriminatorConfig(channels=discriminator_channels(setting)),
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
    )
    config = AutoencoderTaskConfig(
        perceptual=PerceptualTermConfig(weights="random", weight=0.1 if players else 0.0),
        adversarial=discriminator_trainer.model_copy(
            update={"weight": discriminator_trainer.weight if players else 0.0}
        ),
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
        precision="bf16" if setting.precision == "bf16" else "fp32",
    )
    autoencoder = build_autoencoder(vit_config(setting))
    task = AutoencoderTask(config, autoencoder, build_accelerator(), steps=1000, seed=0)
    setting.compile(autoencoder.encoder, autoencoder.decoder)
    images = setting.images()
    batches = [Batch(images, captions=[""] * len(images), names=[""] * len(images))]
    discriminator = count(task.discriminator_trainer.discriminator) if task.discriminator_trainer is not None else 0
    return Baseline(lambda: task.train_step(batches, step), count(autoencoder), discriminator)


def discriminator_channels(setting: Setting) -> tuple[int, ...]:
    """From the full image down to 4x4; at 64 pixels as many operations as the peer's and a few more parameters."""
    levels = setting.image_size.bit_length() - 2
    multiples = (0.5, 1.0, 2.5, 5.0, 7.0)[-levels:]
    return tuple(round(multiple * setting.width) for multiple in (multiples[:1] * (levels - 5) + multiples))


def our_cnn_step(setting: Setting) -> Baseline:
    autoencoder = build_autoencoder(cnn_config(setting)).to(setting.device)
    setting.compile(autoencoder.encoder, autoencoder.decoder)

    def loss(images: Tensor) -> Tensor:
        output = autoencoder(images)
        return l2(output.decoded.images, images) + output.quantized.loss

    return plain_step(autoencoder, loss, setting)


# The peers.


def parti_pytorch(setting: Setting, *, players: bool, look_up_free: bool) -> Any:
    import torchvision
    from parti_pytorch.vit_vqgan import VitVQGanVAE

    vgg = None
    if players:
        vgg = torchvision.models.vgg16(weights=None)
        vgg.classifier = nn.Sequential(*vgg.classifier[:-2])
        vgg.requires_grad_(False)
    vae = VitVQGanVAE(
        dim=setting.width,
        image_size=setting.image_size,
        layers=setting.depth,
        codebook_size=setting.codes,
        lookup_free_quantization=look_up_free,
        vq_codebook_dim=CODE_DIM,
        encdec_patch_size=setting.patch_size,
        encdec_dim_head=HEAD_WIDTH,
        encdec_heads=setting.width // HEAD_WIDTH,
        use_vgg_and_gan=players,
        vgg=vgg,
    ).to(setting.device)
    setting.compile(vae.enc_dec.encoder, vae.enc_dec.decoder)
    return vae


def parti_pytorch_reconstruction(setting: Setting, look_up_free: bool) -> Baseline:
    vae, images = parti_pytorch(setting, players=False, look_up_free=look_up_free).eval(), setting.images()
    images = (images + 1) / 2

    @torch.no_grad()
    def call() -> Tensor:
        with setting.autocast():
            return vae(images).clamp(0, 1)

    return Baseline(call, count(vae))


def parti_pytorch_step(setting: Setting, players: bool, look_up_free: bool) -> Baseline:
    """As its trainer: without its penalty at every step the discriminator's step raises."""
    vae, images = parti_pytorch(setting, players=players, look_up_free=look_up_free), (setting.images() + 1) / 2
    from parti_pytorch.optimizer import get_optimizer

    vae.train()
    generator = [*vae.enc_dec.parameters(), *vae.quantizer.parameters()]
    optimizer = get_optimizer(generator, lr=LEARNING_RATE, wd=0.0)
    critic = get_optimizer(list(vae.discr.parameters()), lr=LEARNING_RATE, wd=0.0) if players else None

    def call() -> None:
        with setting.autocast():
            loss = vae(images, return_loss=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if critic is not None:
            critic.zero_grad()
            with setting.autocast():
                loss = vae(images, return_discr_loss=True)
            loss.backward()
            critic.step()

    return Baseline(call, sum(map(torch.numel, generator)), count(vae.discr) if players else 0)


def vq_model(setting: Setting) -> Any:
    from diffusers import VQModel

    widths = tuple(setting.channels * multiplier for multiplier in MULTIPLIERS)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=CODE_DIM,
        num_vq_embeddings=setting.codes,
        vq_embed_dim=CODE_DIM,
    ).to(setting.device)
    setting.compile(model.encoder, model.decoder)
    return model


def vq_model_reconstruction(setting: Setting) -> Baseline:
    model, images = vq_model(setting).eval(), setting.images()

    @torch.no_grad()
    def call() -> Tensor:
        with setting.autocast():
            return model(images).sample.clamp(-1, 1)

    return Baseline(call, count(model))


def vq_model_step(setting: Setting) -> Baseline:
    model = vq_model(setting)

    def loss(images: Tensor) -> Tensor:
        output = model(images)
        return F.mse_loss(output.sample.float(), images) + output.commit_loss

    return plain_step(model, loss, setting)


def plain_step(model: nn.Module, loss: Callable[[Tensor], Tensor], setting: Setting) -> Baseline:
    """Loss, backward, AdamW: what both sides of the CNNs get."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    images = setting.images()

    def call() -> None:
        with setting.autocast():
            total = loss(images)
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Baseline(call, count(model))
