"""Steps that a CUDA graph can capture: nothing is read back to the host; on a GPU, the same codes with and without."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from parti.layers.options import TransformerOptions
from parti.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder, Generator
from parti.models.generator import PromptGroup
from parti.sampling.generate import SamplingConfig, generate_codes
from tests.stepping import stepped
from tests.tiny import GENERATOR, TOKENS, codes, text_ids, tiny_generator
from vqgan.config.schema import ConfigError

MODERN = TransformerOptions(norm="rms", feed_forward="swiglu", qk_norm=True, rotary=True)
DALLE = DecoderOnlyConfig(depth=4, width=32, heads=2, mlp_width=64, kernel=3)
NULL_IDS = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])


def models() -> dict[str, Generator]:
    torch.manual_seed(0)
    convolution = {"attention": "convolution", "kernel": 3}
    return {
        "full": EncoderDecoder(GENERATOR, TOKENS).eval(),
        "convolution": EncoderDecoder(GENERATOR.model_copy(update=convolution), TOKENS).eval(),
        "modern": EncoderDecoder(GENERATOR.model_copy(update={"options": MODERN}), TOKENS).eval(),
        "dalle": DecoderOnly(DALLE, TOKENS).eval(),
        "modern dalle": DecoderOnly(DALLE.model_copy(update={"options": MODERN}), TOKENS).eval(),
    }


@torch.no_grad()
@pytest.mark.parametrize("name", models())
def test_a_step_with_a_tensor_as_position_reads_nothing_back_to_the_host(name: str) -> None:
    model = models()[name]
    state = model.start([PromptGroup(model.encode_text(text_ids(2)))])
    for cache in state.caches:
        cache.layout.tables()
    with FakeTensorMode(allow_non_fake_inputs=True):
        previous, position = torch.zeros(2, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        assert model.step(previous, position, state).shape == (2, 32)
        with pytest.raises(DataDependentOutputException):
            position.item()  # what this test would see


@torch.no_grad()
@pytest.mark.parametrize("name", models())
def test_steps_of_fixed_shapes_give_the_logits_of_the_full_forward(name: str) -> None:
    model, text, image = models()[name], text_ids(3), codes(3)
    torch.nn.init.normal_(model.image_head_layer().weight, std=0.5)
    expected = model(text, image).image
    torch.testing.assert_close(stepped(model, text, image, fixed_shapes=True), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(stepped(model, text, image), expected, rtol=0, atol=1e-4)


def test_cuda_graphs_are_for_cuda_devices() -> None:
    with pytest.raises(ConfigError, match="cuda_graph is for CUDA devices, this is cpu; leave it out"):
        generate_codes(tiny_generator(), text_ids(1), NULL_IDS, [0], SamplingConfig(cuda_graph=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", models())
def test_a_graph_draws_the_same_codes(name: str) -> None:
    model, text = models()[name].cuda(), text_ids(3).cuda()
    torch.nn.init.normal_(model.image_head_layer().weight, std=0.5)
    settings = SamplingConfig(guidance_scale=1.5)
    plain = generate_codes(model, text, NULL_IDS, [0, 1, 2], settings)
    graphed = generate_codes(model, text, NULL_IDS, [0, 1, 2], settings.model_copy(update={"cuda_graph": True}))
    assert torch.equal(graphed, plain)
