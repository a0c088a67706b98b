"""The captioning model: the diagram of "Partially auto-regressive Image-to-Text generation" (papers.md E.4).

    rows 1-3    convolutions; Show, Attend and Tell attends to image row 3 and produces text row 3
    rows 3-11   image and text in parallel, fused in each row
    rows 12-14  BertLayers only
    words       predicted after rows 3 (by Show, Attend and Tell itself), 7, 11 and 14 (by LSTM heads)

Rows of smaller trunks keep the numbers of the diagram (`parti.fused.rows`); row 7 is the deepest row there is.

No leak. The BertLayers after row 3 read the whole text at once, so text row 3 must not depend on the ground truth: the
state that has read word t would reveal it to the head that predicts word t. Training therefore runs Show, Attend and
Tell twice, and the trunk sees only the second pass:

1. it reads the true words and predicts the next ones, for its own loss;
2. without gradients it drafts a caption of its own;
3. it reads that draft, with some of its words masked, and so produces row 3 for the trunk;
4. the heads after the trunk predict the true words, each given the true words before it.

Legend: B captions, T text positions, C image channels, H W pixels, P image positions of row 3, V vocabulary, D width.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.fused.captioning.decoding import ROWS, Row
from parti.fused.captioning.lstm_head import LSTMHead, WordProjection
from parti.fused.captioning.show_attend_tell import AttentionOutput, EncodedImage, ShowAttendTell
from parti.fused.captioning.tokens import CaptionTokens
from parti.fused.captioning.word_loop import DecodedWords, KnownWords, generate_words
from parti.fused.rows import LAST_ROW, TrunkConfig
from parti.fused.text_side import refuse_outside
from parti.fused.trunk import FUSED_ROWS, RowParts, RowState
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import validate
from vqgan.hub.model_folder import ModelFolder, load_model
from vqgan.hub.pretrained import PretrainedMixin

_ATTENTION_ROW = 3
_LAST_IMAGE_ROW = 11


class CaptionerConfig(TrunkConfig, fixed=("kind", "attention_width")):
    """Sizes of the captioning model; the defaults are those of the diagram, with 219M parameters. A run that starts
    from a pretraining model takes that model's rows and text side."""

    kind: Literal["fused_captioning"] = "fused_captioning"
    """What a model folder holds."""
    attention_width: int = Field(512, gt=0)
    """Width of Show, Attend and Tell's attention."""

    @model_validator(mode="after")
    def _check_row_11(self) -> "CaptionerConfig":
        if _LAST_IMAGE_ROW not in self.rows:
            raise ValueError(
                f"deepest_row {self.deepest_row} leaves out row {_LAST_IMAGE_ROW}, which has a word head; set it to at "
                f"least {LAST_ROW - _LAST_IMAGE_ROW + 1}"
            )
        return self


class DraftNoise(NamedTuple):
    """Uniform random numbers in [0, 1) of each training caption: they sample the words of its draft, the share of
    them that is masked, and which ones."""

    words: Float[Tensor, "B T"]
    share: Float[Tensor, "B"]
    hidden: Float[Tensor, "B T"]


class TrainOutput(NamedTuple):
    """Logits of the true words after each of `ROWS` (those at position t predict the token at t + 1), and the
    attention of Show, Attend and Tell for each word."""

    logits: tuple[Float[Tensor, "B T V"], ...]
    attention_maps: Float[Tensor, "B T P"]


class WordHeads(nn.Module):
    """The word heads: Show, Attend and Tell, an LSTM after each of the other rows, and a projection for each."""

    def __init__(self, config: CaptionerConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.text.width
        channels, side = config.width(_ATTENTION_ROW), config.side(_ATTENTION_ROW)
        self.show_attend_tell = ShowAttendTell(channels, side, width, config.attention_width)
        self.heads = nn.ModuleDict({str(row): LSTMHead(width) for row in ROWS if row != _ATTENTION_ROW})
        self.words = nn.ModuleDict({str(row): WordProjection(width, vocab_size) for row in ROWS})


class Captioner(nn.Module, PretrainedMixin):
    """The captioning network; see the module's docstring.

    Raises ConfigError if the BERT of the trunk cannot be loaded or does not fit.
    """

    kinds = ("fused_captioning",)
    folder_holds = ("captioner", "give the folder of a run with objective: fused_captioning")

    def __init__(self, config: CaptionerConfig, tokenizer: TextTokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokens = CaptionTokens(tokenizer)
        self.parts = RowParts(
            config,
            self.tokens.space,
            image_rows=range(1, _LAST_IMAGE_ROW + 1),
            text_rows=range(_ATTENTION_ROW + 1, LAST_ROW + 1),
            fused_rows=FUSED_ROWS,
        )
        self.tellers = WordHeads(config, self.tokens.space.vocab_size)
        # Nothing reads the image after row 11, so the layers that only it depends on get no gradient. They stay, so
        # that a captioner has all weights of a pretrained trunk's row 11.
        last = self.parts.fusions[str(_LAST_IMAGE_ROW)]
        for part in (last.text_value, last.image_read, last.image_last):
            cast(nn.Module, part).requires_grad_(False)

    def forward(self, images: Float[Tensor, "B 3 H W"], ids: Int64[Tensor, "B T"], noise: DraftNoise) -> TrainOutput:
        """Training pass over images in [-1, 1] and their captions `ids`. The numbers are the module docstring's."""
        context = self.context(images)
        # 2. A draft that does not depend on `ids`.
        with torch.no_grad():
            draft = context.draft(noise.words, 1.0).ids
        hidden = self.tokens.predicted(draft) & (noise.hidden < noise.share[:, None])
        # 1. and 3. in one pass: the loop over words is sequential, and the captions of a batch are independent.
        before = self.parts.embeddings(ids)
        seen = self.parts.embeddings(draft.masked_fill(hidden, self.tokens.mask))
        read = self.tellers.show_attend_tell(torch.cat([before, seen]), context.image.twice())
        (truth, drafted), attention_maps = read.states.chunk(2), read.attention_maps[: len(ids)]
        # 4. The true words, from features of the draft.
        logits = {_ATTENTION_ROW: self.logits(3, truth)}
        for state in context.run_rows(drafted, self.tokens.real(draft)):
            row = self.head_row(state.row)
            if row is not None:
                logits[row] = self.logits(row, self.head(row)(state.text, before))
        return TrainOutput(tuple(logits[row] for row in ROWS), attention_maps)

    def repeated_layers(self) -> list[nn.Module]:
        """Returns the layers of the trunk's rows."""
        return self.parts.repeated_layers()

    def context(self, images: Float[Tensor, "B 3 H W"]) -> "ImageContext":
        """Encodes images up to row 3, from which captions are decoded."""
        row = images
        for number in range(1, _ATTENTION_ROW + 1):
            row = self.parts.image_step(number, row)
        return ImageContext(self, row)

    def head(self, row: Row) -> LSTMHead:
        """Returns the LSTM after a row other than 3."""
        return cast(LSTMHead, self.tellers.heads[str(row)])

    def logits(self, row: Row, states: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Returns the logits of the words predicted after `row`."""
        return self.tellers.words[str(row)](states, self.parts.embeddings.weight)

    def head_row(self, row: int) -> Row | None:
        """Returns the diagram's number of the LSTM head after a row of the trunk; None if there is no head."""
        if row == self.config.deepest_row:
            return 7
        return 11 if row == 11 else 14 if row == LAST_ROW else None

    def _stored(self) -> tuple[dict[str, Any], nn.Module]:
        values = self.config.model_dump(mode="json")
        values["text"]["bert"] = None  # its weights are in the folder
        return values, self

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors and text_tokenizer.json."""
        super().save_pretrained(folder)
        self.tokens.tokenizer.save_pretrained(Path(folder))

    @classmethod
    def _load(cls, folder: ModelFolder) -> "Captioner":
        config = validate(CaptionerConfig, folder.config, str(folder))
        tokenizer = TextTokenizer.from_pretrained(folder.path)
        refuse_outside(config.text, folder.path)
        return load_model(lambda: cls(config, tokenizer), folder.path).eval()


class ImageContext:
    """A batch of images, encoded up to row 3."""

    def __init__(self, captioner: Captioner, row_3: Float[Tensor, "B C h w"]) -> None:
        self._captioner = captioner
        self._row_3 = row_3
        self._show_attend_tell = captioner.tellers.show_attend_tell
        self.image: EncodedImage = self._show_attend_tell.encode(row_3)

    def draft(self, noise: Float[Tensor, "B T"] | None = None, temperature: float = 1.0) -> DecodedWords:
        """Captions by Show, Attend and Tell alone: sampled with `noise`, or else greedily decoded."""
        return generate_words(
            self._captioner.tokens,
            self._show_attend_tell.start(self.image),
            lambda _, before, state: self._show_attend_tell.step(before, state, self.image)[0],
            self._embed,
            partial(self._captioner.logits, 3),
            noise=noise,
            temperature=temperature,
        )

    def read(self, ids: Int64[Tensor, "B T"]) -> AttentionOutput:
        """Runs Show, Attend and Tell over given captions; its attention at position t is for the token at t + 1."""
        return self._show_attend_tell(self._captioner.parts.embeddings(ids), self.image)

    def run_rows(self, states: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"]) -> Iterator[RowState]:
        """Yields every row from row 3 on, given text row 3 (`states`); `real` is false at padding."""
        parts, config = self._captioner.parts, self._captioner.config
        image, text = parts.fuse(_ATTENTION_ROW, self._row_3, states, real)
        behind: dict[int, Tensor] = {_ATTENTION_ROW: image}
        yield RowState(_ATTENTION_ROW, image, text)
        for row in config.rows:
            if row <= _ATTENTION_ROW:
                continue
            text = parts.text_step(row, text, real)
            if row <= _LAST_IMAGE_ROW:
                image = parts.image_step(row, image)
                mirror = config.mirror(row)
                if config.skips and mirror is not None and mirror in behind:
                    image = image + behind[mirror]
                image, text = parts.fuse(row, image, text, real)
                behind[row] = image
            yield RowState(row, image, text)

    def predict(
        self,
        seen: Int64[Tensor, "B T"],
        real: Bool[Tensor, "B T"],
        row: Row,
        noise: Float[Tensor, "B T"] | None = None,
        temperature: float = 1.0,
        known: KnownWords | None = None,
    ) -> DecodedWords:
        """Captions decoded after `row`, from captions `seen` whose words may be masked; later rows are not computed.

        `real` is false at the padding of `seen`; `known` are words that keep their tokens.
        """
        states = self.run_rows(self.read(seen).states, real)
        text = next(state.text for state in states if self._captioner.head_row(state.row) == row)
        head = self._captioner.head(row)
        return generate_words(
            self._captioner.tokens,
            head.start(text),
            lambda t, before, state: head.step(text[:, t], before, state),
            self._embed,
            partial(self._captioner.logits, row),
            noise=noise,
            temperature=temperature,
            known=known,
        )

    def _embed(self, ids: Int64[Tensor, "B"], position: int) -> Float[Tensor, "B D"]:
        return self._captioner.parts.embeddings.bert(ids[:, None], past_key_values_length=position)[:, 0]
