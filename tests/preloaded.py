"""What the server of the fixture `launch` imports once, so that its processes need not."""

from importlib import import_module

from reca_fast.models.parts.lean_import import lean_import

for name in ("reca_fast.cli.train", "reca_fast.train", "reca_fast.models.bagel"):
    import_module(name)
for name in ("torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure", "matplotlib.backends.backend_agg"):
    import_module(name)
with lean_import():
    import_module("diffusers.models.autoencoders.autoencoder_kl")
