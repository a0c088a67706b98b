"""The inpainter tells words alone."""

import pytest
import torch
from torch import Tensor

from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.network import InpaintingNetwork, InpaintingOutput
from parti.fused.text_side import text_space
from tests.parti.fused.tiny_trunk import TRUNK, random_images, with_opinions
from tests.tiny import CAPTIONS, tiny_text_tokenizer


def test_neither_padding_nor_the_hidden_token_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_text_tokenizer()
    torch.manual_seed(0)
    network = InpaintingNetwork(TRUNK, text_space(tokenizer))
    with_opinions(network)
    mask_id = network.trunk.parts.tokens.mask_id
    ids = tokenizer.encode(CAPTIONS[:3])
    masked_captions = ids != tokenizer.pad_id
    forward = InpaintingNetwork.forward
    for wanted in (tokenizer.pad_id, mask_id):

        def insisting(self: InpaintingNetwork, *given: Tensor, wanted: int = wanted) -> InpaintingOutput:
            completed = forward(self, *given)
            logits = completed.logits.clone()
            logits[:, wanted] = 1e4
            return completed._replace(logits=logits)

        monkeypatch.setattr(InpaintingNetwork, "forward", insisting)
        hidden = ids.masked_fill(masked_captions, mask_id)
        predicted = Inpainter(network, tokenizer).fill(
            random_images(3), torch.zeros(3, 1, 16, 16, dtype=torch.bool), hidden, masked_captions
        )
        monkeypatch.undo()
        assert not torch.isin(predicted.ids[masked_captions], torch.tensor([tokenizer.pad_id, mask_id])).any()
        assert torch.equal(predicted.ids[~masked_captions], ids[~masked_captions])
