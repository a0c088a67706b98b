"""Word heads of the captioning model: an LSTM after a text row, and the projection to the vocabulary.

A row's state at position t depends on the whole draft; the LSTM reads it together with the previous word, so that the
predicted words fit each other (papers.md E.4: input [row; previous word], as wide as two text rows; 7.08M parameters at
768). The projection is tied to the word embeddings, as in BERT (arXiv 1810.04805; Press and Wolf, 1608.05859).

Legend: B captions, T text positions, D text width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from parti.fused.captioning.show_attend_tell import LSTMState


class LSTMHead(nn.Module):
    """One LSTM over the positions of a text row, left to right. Its initial state is zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.lstm = nn.LSTM(2 * width, width, batch_first=True)

    def forward(self, row: Float[Tensor, "B T D"], before: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Returns the states that predict the words; `before` at position t is the embedding of the previous word."""
        # fp32 even under autocast: rounding errors accumulate over the words.
        with torch.autocast(row.device.type, enabled=False):
            states, _ = self.lstm(torch.cat([row.float(), before.float()], dim=-1))
        return states

    def start(self, row: Float[Tensor, "B T D"]) -> LSTMState:
        """Returns the state before the first word."""
        zero = torch.zeros(len(row), self.width, device=row.device)
        return LSTMState(zero, zero)

    def step(self, row: Float[Tensor, "B D"], before: Float[Tensor, "B D"], state: LSTMState) -> LSTMState:
        """Computes one position of `forward`; h of the new state predicts its word."""
        with torch.autocast(row.device.type, enabled=False):
            read = torch.cat([row.float(), before.float()], dim=-1)[:, None]
            _, (h, c) = self.lstm(read, (state.h[None], state.c[None]))
        return LSTMState(h[0], c[0])


class WordProjection(nn.Module):
    """Logits of the words, in fp32 even under autocast: normalized states times the word embeddings, plus a bias.

    The norm is that of BERT's head. The entries of an LSTM's state are below 1, most of them far below: without the
    norm, logits stay small until the embeddings have grown.
    """

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, states: Float[Tensor, "*B D"], word_embeddings: Float[Tensor, "V D"]) -> Float[Tensor, "*B V"]:
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(self.norm(states.float()), word_embeddings.float(), self.bias)
