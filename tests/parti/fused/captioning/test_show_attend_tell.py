"""Show, Attend and Tell against its formulas; the LSTM heads against their own steps; the tied projection."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parti.fused.captioning.lstm_head import LSTMHead, WordProjection
from parti.fused.captioning.show_attend_tell import ShowAttendTell

pytestmark = pytest.mark.slow_threads

COUNT, LENGTH, CHANNELS, WIDTH, ATTENTION = 2, 5, 6, 8, 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model() -> ShowAttendTell:
    torch.manual_seed(1)
    return ShowAttendTell(CHANNELS, 3, WIDTH, ATTENTION)


def test_it_is_the_papers_formulas() -> None:
    predicted, row, before = model(), random(COUNT, CHANNELS, 3, 3), random(COUNT, LENGTH, WIDTH, seed=1)
    found = predicted(before, predicted.encode(row))
    for caption in range(COUNT):
        a = [row[caption, :, y, x] + predicted.positions[3 * y + x] for y in range(3) for x in range(3)]
        mean = torch.stack(a).mean(0)
        h, c = predicted.first_h(mean), predicted.first_c(mean)
        for t in range(LENGTH):
            e = [predicted.score(F.relu(predicted.image_key(a_p) + predicted.text_key(h)))[0] for a_p in a]
            alpha = torch.stack(e).exp() / torch.stack(e).exp().sum()
            z = torch.sigmoid(predicted.gate(h)) * sum(weight * a_p for weight, a_p in zip(alpha, a, strict=True))
            x = torch.cat([before[caption, t], z])
            i, f, g, o = (
                x @ predicted.cell.weight_ih.T
                + predicted.cell.bias_ih
                + h @ predicted.cell.weight_hh.T
                + predicted.cell.bias_hh
            ).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            torch.testing.assert_close(found.attention_maps[caption, t], alpha)
            torch.testing.assert_close(found.states[caption, t], h)


def test_sizes_as_generated() -> None:
    """Counted by hand; test_captioner.py has the shapes."""
    with torch.device("meta"):
        predicted, head = ShowAttendTell(256, 32, 768, 512), LSTMHead(768)
    attention = 256 * 512 + 512 + 768 * 512 + 512 + 512 + 1024 * 256
    gate_and_start = 768 * 256 + 256 + 2 * (256 * 768 + 768)
    cell = 4 * 768 * (768 + 256 + 768) + 8 * 768
    assert sum(weight.numel() for weight in predicted.parameters()) == attention + gate_and_start + cell
    # A cell's matrices and its two biases: 4 * 768 * (1536 + 768) + 8 * 768, papers.md E.4's 7.08M.
    assert sum(weight.numel() for weight in head.parameters()) == 7_084_032


def test_a_word_is_told_by_the_words_before_it() -> None:
    predicted, head = model(), LSTMHead(WIDTH)
    image = predicted.encode(random(COUNT, CHANNELS, 3, 3))
    before, row = random(COUNT, LENGTH, WIDTH, seed=1), random(COUNT, LENGTH, WIDTH, seed=2)
    for t in range(LENGTH):
        changed = before.clone()
        changed[:, t] += 1
        for one, other in (
            (predicted(before, image).states, predicted(changed, image).states),
            (head(row, before), head(row, changed)),
        ):
            assert torch.equal(one[:, :t], other[:, :t])
            assert (one[:, t:] != other[:, t:]).any(-1).all()


def test_where_it_looks_depends_on_the_words() -> None:
    predicted = model()
    image = predicted.encode(random(COUNT, CHANNELS, 3, 3))
    attention_maps = predicted(5 * random(COUNT, LENGTH, WIDTH, seed=1), image).attention_maps
    torch.testing.assert_close(attention_maps.sum(-1), torch.ones(COUNT, LENGTH))
    assert (attention_maps[:, 1:] - attention_maps[:, :-1]).abs().amax(-1).min() > 1e-3


def test_steps_of_a_head_are_its_whole_pass() -> None:
    torch.manual_seed(2)
    head, row, before = LSTMHead(WIDTH), random(COUNT, LENGTH, WIDTH), random(COUNT, LENGTH, WIDTH, seed=1)
    mind = head.start(row)
    states = []
    for t in range(LENGTH):
        mind = head.step(row[:, t], before[:, t], mind)
        states.append(mind.h)
    torch.testing.assert_close(torch.stack(states, dim=1), head(row, before))


def test_recurrences_and_logits_are_fp32_whatever_the_autocast() -> None:
    predicted, head, project = model(), LSTMHead(WIDTH), WordProjection(WIDTH, 11)
    row, before = random(COUNT, CHANNELS, 3, 3), random(COUNT, LENGTH, WIDTH, seed=1)
    plain = predicted(before, predicted.encode(row))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = predicted(before.bfloat16(), predicted.encode(row.bfloat16()))
        states = head(mixed.states, before.bfloat16())
        logits = project(states.bfloat16(), random(11, WIDTH))
    assert mixed.states.dtype == mixed.attention_maps.dtype == states.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(mixed.states, plain.states, atol=0.05, rtol=0)


def test_the_projection_is_the_embeddings() -> None:
    project, states, embeddings = (
        WordProjection(WIDTH, 11),
        random(COUNT, WIDTH),
        random(11, WIDTH, seed=1).requires_grad_(),
    )
    torch.nn.init.normal_(project.bias)
    logits = project(states, embeddings)
    normed = (states - states.mean(-1, keepdim=True)) / (states.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(logits, normed @ embeddings.T + project.bias)
    logits.sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().min() > 0, "the embeddings learn as outputs too"


def test_the_first_state_and_the_attention_learn_from_the_image() -> None:
    predicted, row = model(), random(COUNT, CHANNELS, 3, 3).requires_grad_()
    found = predicted(random(COUNT, LENGTH, WIDTH, seed=1), predicted.encode(row))
    (found.states.square().sum() + found.attention_maps.square().sum()).backward()
    assert row.grad is not None
    assert row.grad.abs().min() > 0
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in predicted.parameters())
