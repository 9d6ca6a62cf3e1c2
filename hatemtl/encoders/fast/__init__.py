from hatemtl.encoders.fast.adapted import DoRALinear, LoRALinear, ScaledLinear
from hatemtl.encoders.fast.door import accelerate, choose, is_fast, merge, merged, restore, unmerge, verify
from hatemtl.encoders.fast.int8_linear import Int8Linear
from hatemtl.encoders.fast.layers import Bottleneck
from hatemtl.encoders.fast.rowwise import ACTIVATIONS

__all__ = ["ACTIVATIONS", "Bottleneck", "DoRALinear", "Int8Linear", "LoRALinear", "ScaledLinear"]
__all__ += ["accelerate", "choose", "is_fast", "merge", "merged", "restore", "unmerge", "verify"]
