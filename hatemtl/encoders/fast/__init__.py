from hatemtl.encoders.fast.comparison import verify
from hatemtl.encoders.fast.door import Adapted, accelerate, is_fast, merged, restore

__all__ = ["Adapted", "accelerate", "is_fast", "merged", "restore", "verify"]
