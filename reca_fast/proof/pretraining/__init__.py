"""How the base of the toy world is made: `python -m reca_fast.proof.pretraining`."""
