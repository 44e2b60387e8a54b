"""Networks that several models are built from. No part knows a model: sizes come as plain settings."""
