"""The inpainter tells words alone."""

import pytest
import torch
from tiny import CAPTIONS, tiny_text_tokenizer
from tiny_trunk import TRUNK, pictures, with_opinions
from torch import Tensor

from parti.fused.inpainting.inpainter import Inpainter
from parti.fused.inpainting.network import Completed, InpaintingNetwork
from parti.fused.text_side import text_space


def test_neither_padding_nor_the_hidden_token_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_text_tokenizer()
    torch.manual_seed(0)
    network = InpaintingNetwork(TRUNK, text_space(tokenizer))
    with_opinions(network)
    mask_id = network.trunk.parts.tokens.mask_id
    ids = tokenizer.encode(CAPTIONS[:3])
    blanks = ids != tokenizer.pad_id
    forward = InpaintingNetwork.forward
    for wanted in (tokenizer.pad_id, mask_id):

        def insisting(self: InpaintingNetwork, *given: Tensor, wanted: int = wanted) -> Completed:
            completed = forward(self, *given)
            logits = completed.logits.clone()
            logits[:, wanted] = 1e4
            return completed._replace(logits=logits)

        monkeypatch.setattr(InpaintingNetwork, "forward", insisting)
        hidden = ids.masked_fill(blanks, mask_id)
        told = Inpainter(network, tokenizer).fill(
            pictures(3), torch.zeros(3, 1, 16, 16, dtype=torch.bool), hidden, blanks
        )
        monkeypatch.undo()
        assert not torch.isin(told.ids[blanks], torch.tensor([tokenizer.pad_id, mask_id])).any()
        assert torch.equal(told.ids[~blanks], ids[~blanks])
