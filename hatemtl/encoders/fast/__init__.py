from hatemtl.encoders.fast.door import accelerate, is_fast, merge, merged, restore, unmerge, verify
from hatemtl.encoders.fast.int8_linear import Int8Linear
from hatemtl.encoders.fast.lora_linear import LoRALinear

__all__ = ["Int8Linear", "LoRALinear", "accelerate", "is_fast", "merge", "merged", "restore", "unmerge", "verify"]
