"""The captioning model: the drawing of "Partially auto-regressive Image-to-Text generation" (papers.md E.4).

    rows 1-3    convolutions; Show, Attend and Tell looks at row 3 and tells the text row 3
    rows 3-11   image and text in parallel, fused in each row
    rows 12-14  BertLayers alone
    words       told behind rows 3 (by Show, Attend and Tell itself), 7, 11 and 14 (by LSTM heads)

Rows of smaller trunks keep the drawing's numbers (`parti.fused.rows`); row 7 is the deepest one there is.

No leak. The BertLayers behind row 3 read the whole text at once, so what stands there must not know the truth: the
state that has read word t would tell it to the head that has to tell word t. So training has two passes of Show, Attend
and Tell, and the trunk sees the second one only:

1. it reads the true words and tells the next ones, for its own loss;
2. without gradients it drafts a caption of its own;
3. it reads that draft, a share of whose words is hidden, and so writes row 3 for the trunk;
4. the heads behind the trunk tell the true words, each with the true words before it.

Legend: B captions, T text positions, C image channels, H W pixels, P image positions of row 3, V vocabulary, D width.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from parti.fused.captioning.decoding import ROWS, Row
from parti.fused.captioning.lstm_head import LSTMHead, WordProjection
from parti.fused.captioning.show_attend_tell import AttentionOutput, EncodedImage, ShowAttendTell
from parti.fused.captioning.tokens import CaptionTokens
from parti.fused.captioning.word_loop import DecodedWords, KnownWords, write
from parti.fused.rows import LAST_ROW, TrunkConfig
from parti.fused.text_side import refuse_outside
from parti.fused.trunk import FUSED_ROWS, RowParts, RowState
from parti.text.tokenizer import TextTokenizer
from vqgan.config.schema import validate
from vqgan.hub.model_folder import ModelFolderError, find_model_folder, load_model, read_model_config, save_model_folder

_LOOKED_AT = 3
_LAST_IMAGE_ROW = 11


class CaptionerConfig(TrunkConfig, fixed=("kind", "attention_width")):
    """Sizes of the captioning model; the defaults are drawn, with 219M parameters. Rows and text side are the
    pretraining model's where the run starts from one."""

    kind: Literal["fused_captioning"] = "fused_captioning"
    """What a model folder holds."""
    attention_width: int = Field(512, gt=0)
    """Width of Show, Attend and Tell's attention."""

    @model_validator(mode="after")
    def _check_row_11(self) -> "CaptionerConfig":
        if _LAST_IMAGE_ROW not in self.rows:
            raise ValueError(
                f"deepest_row {self.deepest_row} leaves out row {_LAST_IMAGE_ROW}, which tells words; set it to "
                f"{LAST_ROW - _LAST_IMAGE_ROW + 1} at least"
            )
        return self


class DraftNoise(NamedTuple):
    """What training draws for each caption, uniform in [0, 1): its draft's words, which share of them is hidden, and
    which."""

    words: Float[Tensor, "B T"]
    share: Float[Tensor, "B"]
    hidden: Float[Tensor, "B T"]


class TrainOutput(NamedTuple):
    """Logits of the true words behind each of `ROWS`: those at position t are of the token at t + 1. And where Show,
    Attend and Tell looked for them."""

    logits: tuple[Float[Tensor, "B T V"], ...]
    attention_maps: Float[Tensor, "B T P"]


class WordHeads(nn.Module):
    """What tells words: Show, Attend and Tell, an LSTM behind each other row, and a projection for each."""

    def __init__(self, config: CaptionerConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.text.width
        channels, side = config.width(_LOOKED_AT), config.side(_LOOKED_AT)
        self.show_attend_tell = ShowAttendTell(channels, side, width, config.attention_width)
        self.heads = nn.ModuleDict({str(row): LSTMHead(width) for row in ROWS if row != _LOOKED_AT})
        self.words = nn.ModuleDict({str(row): WordProjection(width, vocab_size) for row in ROWS})


class Captioner(nn.Module):
    """See the module's docstring. Raises ConfigError where the trunk's BERT cannot be had or does not fit."""

    def __init__(self, config: CaptionerConfig, tokenizer: TextTokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokens = CaptionTokens(tokenizer)
        self.parts = RowParts(
            config,
            self.tokens.space,
            image_rows=range(1, _LAST_IMAGE_ROW + 1),
            text_rows=range(_LOOKED_AT + 1, LAST_ROW + 1),
            fused_rows=FUSED_ROWS,
        )
        self.tellers = WordHeads(config, self.tokens.space.vocab_size)
        # Nobody reads the image behind row 11, and nothing trains what only it depends on. It stays, so that a
        # captioner has all of a pretrained trunk's row 11.
        last = self.parts.fusions[str(_LAST_IMAGE_ROW)]
        for part in (last.text_value, last.image_read, last.image_last):
            cast(nn.Module, part).requires_grad_(False)

    def forward(self, images: Float[Tensor, "B 3 H W"], ids: Int64[Tensor, "B T"], noise: DraftNoise) -> TrainOutput:
        """One lesson about images in [-1, 1] with their captions `ids`. The numbers are the module docstring's."""
        context = self.context(images)
        # 2. A draft that knows nothing of `ids`.
        with torch.no_grad():
            draft = context.draft(noise.words, 1.0).ids
        hidden = self.tokens.predicted(draft) & (noise.hidden < noise.share[:, None])
        # 1. and 3. in one pass, as each of its words waits for the one before; captions of a batch do not meet.
        before = self.parts.embeddings(ids)
        seen = self.parts.embeddings(draft.masked_fill(hidden, self.tokens.mask))
        read = self.tellers.show_attend_tell(torch.cat([before, seen]), context.image.twice())
        (truth, drafted), attention_maps = read.states.chunk(2), read.attention_maps[: len(ids)]
        # 4. The truth, with features of the draft.
        logits = {_LOOKED_AT: self.logits(3, truth)}
        for state in context.run_rows(drafted, self.tokens.real(draft)):
            row = self.figure_row(state.row)
            if row is not None:
                logits[row] = self.logits(row, self.head(row)(state.text, before))
        return TrainOutput(tuple(logits[row] for row in ROWS), attention_maps)

    def context(self, images: Float[Tensor, "B 3 H W"]) -> "ImageContext":
        """What is told of these images."""
        row = images
        for number in range(1, _LOOKED_AT + 1):
            row = self.parts.image_step(number, row)
        return ImageContext(self, row)

    def head(self, row: Row) -> LSTMHead:
        """The LSTM behind a row other than 3."""
        return cast(LSTMHead, self.tellers.heads[str(row)])

    def logits(self, row: Row, states: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Logits of the words that are told behind `row`."""
        return self.tellers.words[str(row)](states, self.parts.embeddings.weight)

    def figure_row(self, row: int) -> Row | None:
        """Which of the LSTM heads stands behind a row of the trunk."""
        if row == self.config.deepest_row:
            return 7
        return 11 if row == 11 else 14 if row == LAST_ROW else None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and text_tokenizer.json."""
        values = self.config.model_dump(mode="json")
        values["text"]["bert"] = None  # its weights are in the folder
        save_model_folder(Path(folder), values, self.state_dict())
        self.tokens.tokenizer.save_pretrained(Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Captioner":
        """Read a model folder, a run folder that has one in `model/`, or owner/name on the Hugging Face Hub.

        Raises ModelFolderError where there is none.
        """
        found = find_model_folder(folder)
        values = read_model_config(found)
        if values.get("kind") != "fused_captioning":
            raise ModelFolderError(
                f"{found} holds no captioner (kind {values.get('kind')!r}); give the folder of a run with "
                "objective: fused_captioning"
            )
        config, tokenizer = validate(CaptionerConfig, values, str(found)), TextTokenizer.from_pretrained(found)
        refuse_outside(config.text, found)
        captioner = load_model(lambda: cls(config, tokenizer), found)
        return captioner.eval()


class ImageContext:
    """A batch of images, seen up to row 3."""

    def __init__(self, captioner: Captioner, row_3: Float[Tensor, "B C h w"]) -> None:
        self._captioner = captioner
        self._row_3 = row_3
        self._tell = captioner.tellers.show_attend_tell
        self.image: EncodedImage = self._tell.look(row_3)

    def draft(self, noise: Float[Tensor, "B T"] | None = None, temperature: float = 1.0) -> DecodedWords:
        """Show, Attend and Tell's own captions: drawn by `noise`, or the most probable words."""
        return write(
            self._captioner.tokens,
            self._tell.start(self.image),
            lambda _, before, mind: self._tell.step(before, mind, self.image)[0],
            self._embed,
            partial(self._captioner.logits, 3),
            noise=noise,
            temperature=temperature,
        )

    def read(self, ids: Int64[Tensor, "B T"]) -> AttentionOutput:
        """Show, Attend and Tell's states when it reads captions, and where it looks for the word behind each."""
        return self._tell(self._captioner.parts.embeddings(ids), self.image)

    def run_rows(self, states: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"]) -> Iterator[RowState]:
        """Every row in turn, from row 3, of captions that were read with these `states`; `real` is their extent."""
        parts, config = self._captioner.parts, self._captioner.config
        image, text = parts.fuse(_LOOKED_AT, self._row_3, states, real)
        behind: dict[int, Tensor] = {_LOOKED_AT: image}
        yield RowState(_LOOKED_AT, image, text)
        for row in config.rows:
            if row <= _LOOKED_AT:
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
        given: KnownWords | None = None,
    ) -> DecodedWords:
        """Captions told behind `row` of what the trunk makes of captions `seen`, in which words may be hidden; rows
        behind it are not computed."""
        states = self.run_rows(self.read(seen).states, real)
        text = next(state.text for state in states if self._captioner.figure_row(state.row) == row)
        head = self._captioner.head(row)
        return write(
            self._captioner.tokens,
            head.start(text),
            lambda t, before, mind: head.step(text[:, t], before, mind),
            self._embed,
            partial(self._captioner.logits, row),
            noise=noise,
            temperature=temperature,
            given=given,
        )

    def _embed(self, ids: Int64[Tensor, "B"], position: int) -> Float[Tensor, "B D"]:
        return self._captioner.parts.embeddings.bert(ids[:, None], past_key_values_length=position)[:, 0]
