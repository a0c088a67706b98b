"""Every kind of text network that is named as known runs alone; others are refused in one line."""

import pytest
import torch
from transformers import AutoConfig

from parti.text.encoders import _KNOWN, _build, _family, _keys_of, _settings, _states_alone
from vqgan.config.schema import ConfigError

TINY = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "emb_dim", "n_embd"), 16),
    **dict.fromkeys(("embedding_size", "input_embedding_size", "output_embedding_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer"), 2),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_heads", "n_head", "num_heads"), 2),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "d_inner", "n_inner"), 32),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    **{"vocab_size": 60, "max_position_embeddings": 64, "attention_window": 4, "intra_bottleneck_size": 16},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize("kind", _KNOWN)
def test_each_network_that_is_named_as_known_encodes(kind: str) -> None:
    own = AutoConfig.for_model(kind)
    values = {key: value for key, value in TINY.items() if key in _keys_of(own)}
    network = _states_alone(_build(_settings(AutoConfig.for_model(kind, **values)))).eval()
    ids = torch.ones(2, 16, dtype=torch.long)
    with torch.no_grad():
        states = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert states.shape == (2, 16, network.config.hidden_size)


@pytest.mark.parametrize("kind", ["squeezebert", "xmod"])
def test_networks_that_do_not_run_alone_are_one_line(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"model_type '{kind}' is no text encoder; one of: albert, "):
        _build({"model_type": kind})
    with pytest.raises(ConfigError, match=f"a {kind} is no text encoder that is known here; one of: albert, "):
        _family(AutoConfig.for_model(kind))
