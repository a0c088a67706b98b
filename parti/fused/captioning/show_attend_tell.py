"""Show, Attend and Tell with soft attention (Xu et al., arXiv 1502.03044, sections 3.1 and 4.2; SPEC E.4).

An LSTM tells a caption word by word, and looks at another part of the picture for each of them. It writes the text rows
of the captioning model from row 3 on: what it has in mind before a word is that word's row.

    e_p = w . relu(W_a a_p + W_h h)        how much position p matters for the next word
    alpha = softmax(e)                     where it looks
    z = sigmoid(W_b h) * sum_p alpha_p a_p what it sees there (the gate is section 4.2.1's, here one for each channel)
    h, c = LSTM([word before; z], h, c)

Departures from the paper: words are told by the model's own tied projection (`lstm_head`), not by section
3.1.2's deep output layer. And a_p is the image row's vector plus a learned one of its position: the paper's vectors,
from deep within a VGG, have seen most of the picture, those of the drawing's row 3 have seen 15 pixels and cannot know
where they are.

Legend: B captions, T text positions, P image positions, C image channels, A attention width, D text width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Picture(NamedTuple):
    """What is looked at: a vector a_p at each position, and its half of the attention's first layer, W_a a_p."""

    vectors: Float[Tensor, "B P C"]
    keys: Float[Tensor, "B P A"]

    def twice(self) -> "Picture":
        """For two captions of each picture, one batch behind the other."""
        return Picture(self.vectors.repeat(2, 1, 1), self.keys.repeat(2, 1, 1))


class Mind(NamedTuple):
    """An LSTM's state: h and c of every caption."""

    h: Float[Tensor, "B D"]
    c: Float[Tensor, "B D"]


class Told(NamedTuple):
    """Of every text position: the state that tells its word, and where the model looked for it; rows of `looks` sum
    to one."""

    states: Float[Tensor, "B T D"]
    looks: Float[Tensor, "B T P"]


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

    def look(self, images: Float[Tensor, "B C h w"]) -> Picture:
        """The image row that is looked at, once for all words."""
        vectors = rearrange(images.float(), "b c h w -> b (h w) c") + self.positions
        with torch.autocast(images.device.type, enabled=False):
            return Picture(vectors, self.image_key(vectors))

    def start(self, picture: Picture) -> Mind:
        """The state before the first word, from the mean of the positions (section 3.1.2)."""
        mean = picture.vectors.mean(1)
        with torch.autocast(mean.device.type, enabled=False):
            return Mind(self.first_h(mean), self.first_c(mean))

    def step(self, before: Float[Tensor, "B D"], mind: Mind, picture: Picture) -> tuple[Mind, Float[Tensor, "B P"]]:
        """The state that tells the next word, and where it looked; `before` is the embedding of the word before."""
        # In fp32 whatever the autocast: rounding errors add up over the words.
        with torch.autocast(mind.h.device.type, enabled=False):
            looks = self.score(F.relu(picture.keys + self.text_key(mind.h)[:, None]))[..., 0].softmax(-1)
            seen = torch.einsum("bp,bpc->bc", looks, picture.vectors)
            heard = torch.cat([before.float(), self.gate(mind.h).sigmoid() * seen], dim=-1)
            return Mind(*self.cell(heard, mind)), looks

    def forward(self, before: Float[Tensor, "B T D"], picture: Picture) -> Told:
        """All words of captions that are given: `before` at position t is the embedding of the word before word t.

        What is told of a word depends on the words before it alone.
        """
        mind = self.start(picture)
        states, looks = [], []
        for word in before.unbind(1):
            mind, where = self.step(word, mind, picture)
            states.append(mind.h)
            looks.append(where)
        return Told(torch.stack(states, dim=1), torch.stack(looks, dim=1))
