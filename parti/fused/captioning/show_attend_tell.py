"""Show, Attend and Tell with soft attention (Xu et al., arXiv 1502.03044, sections 3.1 and 4.2; papers.md E.4).

An LSTM tells a caption word by word, and looks at another part of the image for each of them. It writes the text rows
of the captioning model from row 3 on: what it has in mind before a word is that word's row.

    e_p = w . relu(W_a a_p + W_h h)        how much position p matters for the next word
    alpha = softmax(e)                     where it looks
    z = sigmoid(W_b h) * sum_p alpha_p a_p what it sees there (the gate is section 4.2.1's, here one for each channel)
    h, c = LSTM([word before; z], h, c)

Departures from the paper: words are told by the model's own tied projection (`lstm_head`), not by section
3.1.2's deep output layer. And a_p is the image row's vector plus a learned one of its position: the paper's vectors,
from deep within a VGG, have seen most of the image, those of the drawing's row 3 have seen 15 pixels and cannot know
where they are.

Legend: B captions, T text positions, P image positions, C image channels, A attention width, D text width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class EncodedImage(NamedTuple):
    """What is looked at: a vector a_p at each position, and its half of the attention's first layer, W_a a_p."""

    vectors: Float[Tensor, "B P C"]
    keys: Float[Tensor, "B P A"]

    def twice(self) -> "EncodedImage":
        """For two captions of each image, one batch behind the other."""
        return EncodedImage(self.vectors.repeat(2, 1, 1), self.keys.repeat(2, 1, 1))


class LSTMState(NamedTuple):
    """An LSTM's state: h and c of every caption."""

    h: Float[Tensor, "B D"]
    c: Float[Tensor, "B D"]


class AttentionOutput(NamedTuple):
    """Of every text position: the state that tells its word, and where the model looked for it; rows of
    `attention_maps` sum to one."""

    states: Float[Tensor, "B T D"]
    attention_maps: Float[Tensor, "B T P"]


class ShowAttendTell(nn.Module):
    """See the module's docstring. `side` x `side` positions are looked at."""

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

    def look(self, images: Float[Tensor, "B C h w"]) -> EncodedImage:
        """The image row that is looked at, once for all words."""
        vectors = rearrange(images.float(), "b c h w -> b (h w) c") + self.positions
        with torch.autocast(images.device.type, enabled=False):
            return EncodedImage(vectors, self.image_key(vectors))

    def start(self, image: EncodedImage) -> LSTMState:
        """The state before the first word, from the mean of the positions (section 3.1.2)."""
        mean = image.vectors.mean(1)
        with torch.autocast(mean.device.type, enabled=False):
            return LSTMState(self.first_h(mean), self.first_c(mean))

    def step(
        self, before: Float[Tensor, "B D"], mind: LSTMState, image: EncodedImage
    ) -> tuple[LSTMState, Float[Tensor, "B P"]]:
        """The state that tells the next word, and where it looked; `before` is the embedding of the word before."""
        # In fp32 whatever the autocast: rounding errors add up over the words.
        with torch.autocast(mind.h.device.type, enabled=False):
            attention_maps = self.score(F.relu(image.keys + self.text_key(mind.h)[:, None]))[..., 0].softmax(-1)
            seen = torch.einsum("bp,bpc->bc", attention_maps, image.vectors)
            heard = torch.cat([before.float(), self.gate(mind.h).sigmoid() * seen], dim=-1)
            return LSTMState(*self.cell(heard, mind)), attention_maps

    def forward(self, before: Float[Tensor, "B T D"], image: EncodedImage) -> AttentionOutput:
        """All words of captions that are given: `before` at position t is the embedding of the word before word t.

        What is told of a word depends on the words before it alone.
        """
        mind = self.start(image)
        states, attention_maps = [], []
        for word in before.unbind(1):
            mind, where = self.step(word, mind, image)
            states.append(mind.h)
            attention_maps.append(where)
        return AttentionOutput(torch.stack(states, dim=1), torch.stack(attention_maps, dim=1))
