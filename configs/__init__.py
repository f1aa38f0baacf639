"""Recipes: Python files with `get_config()`; `base.py` names and explains every field."""
