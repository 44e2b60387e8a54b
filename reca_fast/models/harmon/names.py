"""What the public checkpoints call Harmon's tensors."""

from reca_fast.models.files import NameTable

HEAD, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
"""The head is the embedding. A file may hold it twice."""
VAE_PREFIX = "vae."
"""Before the VAE's tensors, where they lie in the file of weights."""

NETWORK_NAMES = NameTable(
    (("llm.*", "llm.model.*"), ("*", "*")),
    others=(VAE_PREFIX,),
    ignored=frozenset({HEAD}),
)
