"""Show, Attend and Tell with soft attention (Xu et al., arXiv 1502.03044, sections 3.1 and 4.2; papers.md E.4).

An LSTM decodes a caption word by word, and attends to another part of the image for each word. Its states are text
row 3 of the captioning model: the state before a word is that word's vector.

    e_p = w . relu(W_a a_p + W_h h)        score of position p for the next word
    alpha = softmax(e)                     attention
    z = sigmoid(W_b h) * sum_p alpha_p a_p gated context (section 4.2.1; here one gate for each channel)
    h, c = LSTM([previous word; z], h, c)

Departures from the paper: words are predicted by a tied projection (`lstm_head`), not by the deep output layer of
section 3.1.2. And a_p is the image row's vector plus a learned position embedding: the paper's vectors, from deep
within a VGG, have a receptive field of most of the image, those of the diagram's row 3 have one of 15 pixels and do not
encode where they are.

Legend: B captions, T text positions, P image positions, C image channels, A attention width, D text width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class EncodedImage(NamedTuple):
    """What is attended to: a vector a_p at each position, and its half of the attention's first layer, W_a a_p."""

    vectors: Float[Tensor, "B P C"]
    keys: Float[Tensor, "B P A"]

    def twice(self) -> "EncodedImage":
        """Repeats the batch, for two captions of each image."""
        return EncodedImage(self.vectors.repeat(2, 1, 1), self.keys.repeat(2, 1, 1))


class LSTMState(NamedTuple):
    """An LSTM's state: h and c of every caption."""

    h: Float[Tensor, "B D"]
    c: Float[Tensor, "B D"]


class AttentionOutput(NamedTuple):
    """For every text position, the state that predicts its word and the attention for it; rows of `attention_maps`
    sum to one."""

    states: Float[Tensor, "B T D"]
    attention_maps: Float[Tensor, "B T P"]


class ShowAttendTell(nn.Module):
    """The attending LSTM of the module's docstring, over `side` x `side` image positions."""

    def __init__(self, image_channels: int, side: int, text_width: int, attention_width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(side * side, image_channels))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.image_key = nn.Linear(image_channels, attention_width)
        self.text_key = nn.Linear(text_width, attention_width)
        self.score = nn.Linear(attention_width, 1, bias=False)  # softmax does not see a bias
        self.gate = nn.Linear(text_width, image_channels)
        self.first_h = nn.Linear(image_channels, text_width)
        self.first_c = nn.Linear(image_channels, text_width)
        self.cell = nn.LSTMCell(text_width + image_channels, text_width)

    def encode(self, images: Float[Tensor, "B C h w"]) -> EncodedImage:
        """Computes what all words attend to, once for an image row."""
        vectors = rearrange(images.float(), "b c h w -> b (h w) c") + self.positions
        with torch.autocast(images.device.type, enabled=False):
            return EncodedImage(vectors, self.image_key(vectors))

    def start(self, image: EncodedImage) -> LSTMState:
        """Returns the state before the first word, from the mean over the positions (section 3.1.2)."""
        mean = image.vectors.mean(1)
        with torch.autocast(mean.device.type, enabled=False):
            return LSTMState(self.first_h(mean), self.first_c(mean))

    def step(
        self, before: Float[Tensor, "B D"], state: LSTMState, image: EncodedImage
    ) -> tuple[LSTMState, Float[Tensor, "B P"]]:
        """Returns the state that predicts the next word and its attention; `before` embeds the previous word."""
        # fp32 even under autocast: rounding errors accumulate over the words.
        with torch.autocast(state.h.device.type, enabled=False):
            attention_maps = self.score(F.relu(image.keys + self.text_key(state.h)[:, None]))[..., 0].softmax(-1)
            context = torch.einsum("bp,bpc->bc", attention_maps, image.vectors)
            inputs = torch.cat([before.float(), self.gate(state.h).sigmoid() * context], dim=-1)
            return LSTMState(*self.cell(inputs, state)), attention_maps

    def forward(self, before: Float[Tensor, "B T D"], image: EncodedImage) -> AttentionOutput:
        """Computes all positions of given captions: `before` at position t is the embedding of the previous word.

        Position t depends only on the words before it.
        """
        state = self.start(image)
        states, attention_maps = [], []
        for word in before.unbind(1):
            state, attention = self.step(word, state, image)
            states.append(state.h)
            attention_maps.append(attention)
        return AttentionOutput(torch.stack(states, dim=1), torch.stack(attention_maps, dim=1))
