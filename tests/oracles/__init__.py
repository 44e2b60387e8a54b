"""Independent, slow and obvious computations that fast code is compared with."""
