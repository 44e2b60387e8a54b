"""A package, so that its helpers are imported as `tests.places`, `tests.oracles`, and by no other name."""
