"""Measuring a policy: held-out accuracy and grounding."""
