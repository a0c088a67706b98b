"""Each kind of text network is asked for what it can read: no more, no less, whatever its config says of positions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

from parti.text.encoders import PretrainedTextEncoder, PretrainedTextEncoderConfig
from tests.tiny_text_models import write_t5
from vqgan.config.schema import ConfigError

_SMALL = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 18,
    "pad_token_id": 1,
}
KINDS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "bert": (18, {}),
    "albert": (18, {"embedding_size": 24}),
    "electra": (18, {"embedding_size": 24}),
    "deberta-v2": (18, {}),
    "roberta": (16, {}),
    "xlm-roberta": (16, {}),
    "camembert": (16, {}),
    "longformer": (16, {"attention_window": [4]}),
    "mpnet": (16, {}),
    "ibert": (16, {}),
    "data2vec-text": (16, {}),
    "nystromformer": (18, {"segment_means_seq_len": 18, "num_landmarks": 18}),
    "distilbert": (18, {"dim": 24, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}),
    "clip_text_model": (18, {"bos_token_id": 2, "eos_token_id": 3}),
    "gpt2": (18, {"n_embd": 24, "n_layer": 1, "n_head": 2, "n_positions": 18, "bos_token_id": 2, "eos_token_id": 3}),
    "t5": (None, {"d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}),
    "xlnet": (None, {"d_model": 24, "n_layer": 1, "n_head": 2, "d_inner": 32}),
}
"""By `model_type`: the longest text of a network whose table has 18 rows, and its own settings."""
_OWN_SIZES = {"t5", "xlnet", "gpt2", "distilbert"}


def written(kind: str, folder: Path) -> Path:
    _, own = KINDS[kind]
    shared = {
        key: value for key, value in _SMALL.items() if kind not in _OWN_SIZES or key in ("vocab_size", "pad_token_id")
    }
    if kind == "distilbert":
        shared["max_position_embeddings"] = 18
    config = AutoConfig.for_model(kind, **(shared | own))
    family = AutoModelForTextEncoding if kind in ("t5", "clip_text_model") else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        family.from_config(config).save_pretrained(folder)
    return folder


def encoder(folder: Path, length: int, width: int = 32) -> PretrainedTextEncoder:
    return PretrainedTextEncoder(PretrainedTextEncoderConfig(name=str(folder)), 41, length, width).eval()


@pytest.mark.filterwarnings("ignore")  # transformers', of attention that is not compiled and the like
@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_text_can_be_read_and_one_more_token_is_one_line(kind: str, tmp_path: Path) -> None:
    longest, _ = KINDS[kind]
    folder = written(kind, tmp_path)
    length = longest or 60
    ids = torch.arange(length)[None] % 30 + 5
    states = encoder(folder, length)(ids, torch.ones_like(ids, dtype=torch.bool))
    assert states.shape == (1, length, 32)
    assert states.isfinite().all()
    if longest is not None:
        with pytest.raises(ConfigError, match=f"reads at most {longest} tokens; set text.length to {longest}, not"):
            encoder(folder, longest + 1)


@torch.no_grad()
def test_states_beyond_fp16_stay_what_they_are_under_fp16(tmp_path: Path) -> None:
    """As T5's published weights have them. In bf16, whose exponents are fp32's, nothing changes."""
    folder = write_t5(tmp_path)
    network = encoder(folder, 16).network
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    for name in weights:
        if name.endswith("DenseReluDense.wo.weight"):
            weights[name] *= 1e6
    large = encoder(folder, 16)
    large.network.load_state_dict(weights)
    ids = torch.arange(16)[None] % 20 + 5
    mask = torch.ones_like(ids, dtype=torch.bool)
    exact = large.states(ids, mask)
    inner: list[float] = []
    block = large.network.get_submodule("block.0.layer.1.DenseReluDense.wo")
    block.register_forward_hook(lambda *found: inner.append(found[2].abs().max().item()))
    with torch.autocast("cpu", torch.float16):
        found = large.states(ids, mask)
        assert large(ids, mask).isfinite().all()
    assert inner[0] > 65504, "or this would show nothing"
    torch.testing.assert_close(found, exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.functional.cosine_similarity(large.states(ids, mask), exact, dim=-1).min() > 0.98
