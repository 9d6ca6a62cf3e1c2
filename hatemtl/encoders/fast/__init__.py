from hatemtl.encoders.fast.door import accelerate, is_fast, merge, merged, restore, unmerge, verify
from hatemtl.encoders.fast.lora_linear import LoRALinear

__all__ = ["LoRALinear", "accelerate", "is_fast", "merge", "merged", "restore", "unmerge", "verify"]
