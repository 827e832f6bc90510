"""The action decoder: shapes, its loss, and that a chunk can be learned."""

import pytest
import torch

from model.action_decoder import ActionDecoder, l1_loss


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_chunk_of_seven_dimensions(blocks):
    decoder = ActionDecoder(hidden_size=16, width=24, chunk=8, blocks=blocks)
    assert decoder.queries.shape == (8, 16)
    assert len(decoder.blocks) == blocks
    actions = decoder(torch.randn(3, 8, 16))
    assert actions.shape == (3, 8, 7)
    actions.sum().backward()
    assert all(p.grad is not None for name, p in decoder.named_parameters() if name != "queries")


def test_loss_is_the_mean_over_real_actions():
    predicted, actions = torch.zeros(2, 3, 7), torch.zeros(2, 3, 7)
    actions[0, 0] = 1.0
    actions[1, 2] = 100.0  # past the end of the episode
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert l1_loss(predicted, actions, mask) == pytest.approx(7 / (4 * 7))


def test_steps_past_the_end_have_no_gradient():
    predicted = torch.randn(1, 3, 7, requires_grad=True)
    l1_loss(predicted, torch.zeros(1, 3, 7), torch.tensor([[True, True, False]])).backward()
    assert (predicted.grad[0, :2] != 0).all()
    assert (predicted.grad[0, 2] == 0).all()


def test_learns_a_chunk():
    torch.manual_seed(0)
    decoder = ActionDecoder(hidden_size=16, width=32, chunk=4, blocks=2)
    hidden, actions = torch.randn(8, 4, 16), torch.rand(8, 4, 7) * 2 - 1
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = l1_loss(decoder(hidden), actions, torch.ones(8, 4, dtype=torch.bool))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
