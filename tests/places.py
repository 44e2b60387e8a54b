"""Where tests find what they read: the checkout, and the files that are kept for them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
RECORDED = ROOT.parent / "shared" / "parity"
"""Cases recorded from the authors' code."""
WRITTEN = FIXTURES / "parity"
"""Cases that `bench/make_case.py` wrote."""
