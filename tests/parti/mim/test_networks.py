"""The networks of the papers: their sizes, and the modules of transformers and timm with the same weights."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModel,
    BeitForMaskedImageModeling,
    SwinForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from parti.mim.backbones import SwinConfig, ViTConfig, sincos_positions
from parti.mim.beit import BEiT, BEiTConfig
from parti.mim.export import ExportError, export_timm, export_transformers, load_transformers_weights
from parti.mim.mae import MAE, MAEConfig, MAEDecoderConfig
from parti.mim.mpp import MPP, MPPConfig
from parti.mim.simmim import SimMIM, SimMIMConfig
from parti.mim.targets import patchify, to_imagenet
from tests.parti.mim.tiny_mim import NETWORKS, masks, pixels, tiny_network

LARGE = {"width": 1024, "depth": 24, "heads": 16}
HUGE = {"patch_size": 14, "width": 1280, "depth": 32, "heads": 16}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def count(module: nn.Module, trainable: bool = False) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad or not trainable)


@pytest.mark.parametrize(
    ("sizes", "whole", "trainable"),
    [({}, 111_907_840, 111_655_680), (LARGE, 329_541_888, 329_239_296), (HUGE, 657_074_508, 656_613_964)],
)
def test_mae_has_the_papers_size(sizes: dict[str, int], whole: int, trainable: int) -> None:
    with torch.device("meta"):
        network = MAE(MAEConfig(encoder=ViTConfig(**sizes)))
    assert count(network) == whole
    assert count(network, trainable=True) == trainable


def test_simmim_has_the_papers_size() -> None:
    with torch.device("meta"):
        base = SimMIM(SimMIMConfig())
        large = SimMIM(SimMIMConfig(encoder=SwinConfig(width=192, heads=(6, 12, 24, 48), window_size=12)))
        vit = SimMIM(SimMIMConfig(encoder=ViTConfig(drop_path=0.1)))
    assert count(base.encoder) + base.mask_token.numel() == 86_725_304
    assert count(base) == 89_874_104
    assert count(large) == 199_881_204
    assert count(vit) == 86_256_720


@pytest.mark.parametrize(("sizes", "whole"), [({}, 91_965_776), (LARGE, 311_534_016)])
def test_beit_has_the_papers_size(sizes: dict[str, int], whole: int) -> None:
    with torch.device("meta"):
        assert count(BEiT(BEiTConfig(encoder=ViTConfig(**sizes)), 8192)) == whole


def test_mpp_is_vit_with_a_mask_token_and_a_head() -> None:
    with torch.device("meta"):
        assert count(MPP(MPPConfig())) == 85_798_656 + 768 + 768 * 512 + 512


def test_a_fresh_mae_has_fixed_positions_and_small_tokens() -> None:
    torch.manual_seed(0)
    config = ViTConfig(image_size=32, patch_size=4, width=32, depth=1, heads=2)
    network = MAE(MAEConfig(encoder=config, decoder=MAEDecoderConfig(width=16, depth=1, heads=2)))
    assert torch.equal(network.encoder.pos_embed, sincos_positions((8, 8), 32))
    assert network.encoder.pos_embed[:, 0].abs().sum() == 0
    bound = (6 / (48 + 32)) ** 0.5
    assert network.encoder.patch_embed.proj.weight.abs().max() <= bound
    assert network.encoder.patch_embed.proj.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert 0.01 < network.mask_token.std() < 0.04


def test_positions_are_those_of_transformers() -> None:
    config = ViTMAEConfig(image_size=32, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    theirs = ViTMAEForPreTraining(config).vit.embeddings
    for weight in (theirs.patch_embeddings.projection, *theirs.parameters()):
        weight._is_hf_initialized = False  # or else it leaves them as they are
    theirs.initialize_weights()
    assert theirs.position_embeddings.abs().max() > 0
    assert torch.allclose(sincos_positions((8, 8), 32), theirs.position_embeddings, atol=1e-6)


def exported(name: str, folder: Path, theirs: type) -> tuple:
    network = tiny_network(name)
    export_transformers(network, folder)
    other = theirs.from_pretrained(folder, attn_implementation="eager").eval()
    return network, other


def test_mae_is_that_of_transformers(tmp_path: Path) -> None:
    """Predictions, loss and gradients, from a folder that its own from_pretrained reads."""
    network, theirs = exported("mae", tmp_path, ViTMAEForPreTraining)
    images, (mask,) = pixels(), masks(network)
    noise = mask.float() + torch.rand(mask.shape) * 0.5  # the lowest stay
    other = theirs(to_imagenet(images), noise=noise)
    assert torch.equal(other.mask.bool(), mask)
    predictions = network(images, mask)
    torch.testing.assert_close(predictions, other.logits, **CLOSE)
    targets = network.targets(images)
    loss = (predictions - targets).square().mean(-1)[mask].mean()
    assert loss.item() == pytest.approx(other.loss.item(), rel=1e-5)
    loss.backward()
    other.loss.backward()
    torch.testing.assert_close(network.mask_token.grad, theirs.decoder.mask_token.grad, **CLOSE)
    ours, weight = network.encoder.patch_embed.proj, theirs.vit.embeddings.patch_embeddings.projection
    torch.testing.assert_close(ours.weight.grad, weight.weight.grad, **CLOSE)


def test_simmim_is_that_of_transformers(tmp_path: Path) -> None:
    network, theirs = exported("simmim", tmp_path, SwinForMaskedImageModeling)
    images, (mask,) = pixels(), masks(network)
    other = theirs(to_imagenet(images), bool_masked_pos=mask)
    predictions = network(images, mask)
    torch.testing.assert_close(predictions, patchify(other.reconstruction, 2), **CLOSE)
    loss = (predictions - network.targets(images)).abs().mean(-1)[mask].mean()
    assert loss.item() == pytest.approx(other.loss.item(), rel=1e-5)
    loss.backward()
    other.loss.backward()
    torch.testing.assert_close(network.mask_token.grad, theirs.swin.embeddings.mask_token.grad, **CLOSE)


def test_beit_is_that_of_transformers(tmp_path: Path) -> None:
    network, theirs = exported("beit", tmp_path, BeitForMaskedImageModeling)
    images, (mask,) = pixels(), masks(network)
    labels = torch.randint(32, (int(mask.sum()),), generator=torch.Generator().manual_seed(0))
    other = theirs(to_imagenet(images), bool_masked_pos=mask, labels=labels)
    logits = network(images, mask)
    torch.testing.assert_close(logits, other.logits[mask], **CLOSE)
    loss = F.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(other.loss.item(), rel=1e-5)
    loss.backward()
    other.loss.backward()
    torch.testing.assert_close(network.mask_token.grad, theirs.beit.embeddings.mask_token.grad, **CLOSE)


@pytest.mark.parametrize("name", ["mae", "simmim", "simmim_vit", "beit", "mpp"])
def test_automodel_opens_an_export_with_equal_states(name: str, tmp_path: Path) -> None:
    network = tiny_network(name)
    export_transformers(network, tmp_path)
    more = {"add_pooling_layer": False} if name in ("mpp", "simmim_vit", "beit", "simmim") else {"mask_ratio": 0.0}
    theirs = AutoModel.from_pretrained(tmp_path, attn_implementation="eager", **more).eval()
    images = pixels()
    if name == "mae":
        count = network.grid[0] * network.grid[1]
        noise = torch.arange(count).float().expand(len(images), -1)
        states = theirs(to_imagenet(images), noise=noise).last_hidden_state[:, 1:]
    else:
        states = theirs(to_imagenet(images)).last_hidden_state
        states = states if name == "simmim" else states[:, 1:]
    if name == "beit":  # its norm belongs to the head there
        states = network.encoder.norm(states)
    torch.testing.assert_close(network.layer_states(images)[-1], states, **CLOSE)


@pytest.mark.parametrize("name", NETWORKS)
def test_timm_opens_an_export_with_equal_features(name: str, tmp_path: Path) -> None:
    network = tiny_network(name)
    export_timm(network, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert count(theirs) == count(network.encoder)
    images = pixels()
    features = theirs.forward_features(to_imagenet(images))
    states = features.flatten(1, 2) if features.ndim == 4 else features[:, 1:]
    torch.testing.assert_close(network.layer_states(images)[-1], states, **CLOSE)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("mae", ViTMAEForPreTraining), ("simmim", SwinForMaskedImageModeling), ("beit", BeitForMaskedImageModeling)],
)
def test_weights_come_back_from_what_transformers_saves(name: str, theirs: type, tmp_path: Path) -> None:
    network, other = exported(name, tmp_path / "a", theirs)
    other.save_pretrained(tmp_path / "b")
    fresh = tiny_network(name, seed=1)
    load_transformers_weights(fresh, tmp_path / "b")
    for key, weight in network.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], weight), key


def test_a_folder_of_another_model_is_one_clear_error(tmp_path: Path) -> None:
    export_transformers(tiny_network("mpp"), tmp_path)
    with pytest.raises(ExportError, match="has no weight"):
        load_transformers_weights(tiny_network("mae"), tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_masked_does_not_reach_the_predictions(name: str) -> None:
    """Another image in the masked patches gives the same predictions; another in a visible one does not."""
    network, images = tiny_network(name), pixels()
    drawn = masks(network)
    hidden = drawn[1] if name == "mpp" else drawn[0]
    side = network.patch_size
    where = hidden.view(-1, 1, *network.grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
    if name == "mpp":  # its other chosen patches are seen, and may be copies
        drawn = (drawn[0], hidden, torch.arange(hidden.shape[1]).expand_as(hidden).contiguous())
    with torch.no_grad():
        expected = network(images, *drawn)
        torch.testing.assert_close(network(torch.where(where, pixels(seed=1), images), *drawn), expected, **CLOSE)
        assert (network(torch.where(where, images, pixels(seed=1)), *drawn) - expected).abs().max() > 1e-3


def test_maes_predictions_do_not_depend_on_the_order_of_the_batch() -> None:
    network, images = tiny_network("mae"), pixels()
    (mask,) = masks(network)
    with torch.no_grad():
        turned = network(images.flip(0), mask.flip(0)).flip(0)
        torch.testing.assert_close(turned, network(images, mask), **CLOSE)


def test_a_mask_of_everything_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="leaves 0 to be seen; at least one must be seen and one masked"):
        MAEConfig(encoder=ViTConfig(image_size=32, patch_size=16), mask_ratio=0.999)
    with pytest.raises(ValueError, match="of 36 squares masks all of them"):
        SimMIMConfig(mask_ratio=0.999)
    with pytest.raises(ValueError, match=r"masked_patches 64 must be .* fewer than all 64 patches"):
        BEiTConfig(encoder=ViTConfig(image_size=32, patch_size=4), masked_patches=64, smallest_block=4)


def test_one_patch_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="is one patch of 32"):
        ViTConfig(image_size=32, patch_size=32)
