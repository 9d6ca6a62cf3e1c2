from hatemtl.encoders.fast.door import accelerate, is_fast, merged, restore, verify
from hatemtl.encoders.fast.lora_linear import LoRALinear

__all__ = ["LoRALinear", "accelerate", "is_fast", "merged", "restore", "verify"]
