"""One layer of BERT alone, which goes down no further than somebody learns."""

from itertools import chain

import pytest
import torch
from encoders.fast.test_bert_stack import fused, padded_to
from encoders.fast.test_lora_linear import adapted

from hatemtl.encoders.fast.attention import Group
from hatemtl.encoders.fast.lora_linear import prepare


@pytest.mark.parametrize("without", [[], [0], [0, 1], [0, 1, 2, 3]], ids=str)
def test_the_factors_gradients_do_not_depend_on_whether_the_inputs_is_asked_for(without: list[int]) -> None:
    model = adapted()
    layer, groups, draw = fused(model)[0], [Group(0, 12, padded_to([6, 4], 6))], torch.Generator().manual_seed(3)
    for i in without:
        layer.joints[i].loras = []
    prepare(layer.joints, torch.float32)
    with torch.no_grad():
        y, kept = layer.forward(torch.randn(12, layer.output.layers[0].out_features, generator=draw), groups)
        dy = torch.randn(y.shape, generator=draw)
        (dx, found), (none, others) = (layer.backward(dy, groups, kept, dx=asked) for asked in (True, False))
    assert dx is not None and dx.abs().sum() > 0 and none is None
    assert [len(of) for of in found] == [len(of) for of in others] == [2 * bool(joint.loras) for joint in layer.joints]
    for gradient, other in zip(chain(*found), chain(*others), strict=True):
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(other, gradient)
