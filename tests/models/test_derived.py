"""What is made of weights follows every change of theirs."""

import copy

import torch

from steersman.models.derived import Derived


def total(tensors):
    made.append(None)
    return sum(float(tensor.sum()) for tensor in tensors)


made: list[None] = []


def test_it_is_made_again_when_and_only_when_a_tensor_has_changed():
    made.clear()
    a, b, derived = torch.ones(2), torch.ones(3), Derived(total)
    assert derived.of([a, b]) == derived.of([a, b]) == 5
    assert len(made) == 1
    b.view(-1).mul_(2)
    assert derived.of([a, b]) == 8
    assert derived.of([a.clone(), b]) == 8
    assert derived.of([b]) == 6
    assert len(made) == 4


def test_a_copy_does_not_mistake_its_tensors_for_the_original_s():
    made.clear()
    tensor, derived = torch.zeros(2).add_(1), Derived(total)
    assert derived.of([tensor]) == 2
    other, others = copy.deepcopy((tensor, derived))
    other.add_(1)  # written to as often as the original by now
    assert others.of([other]) == 4
    assert derived.of([tensor]) == 2
