"""Networks that several models are built from: a VAE, a vision tower, embeddings of positions and times.

No part knows a model. Its sizes come from a configuration of its own or as plain arguments, and its weights from
`reca_fast.models.files.fill`, by the part's own table of names.
"""
