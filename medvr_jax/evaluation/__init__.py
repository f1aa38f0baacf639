"""Measuring policies and other models: who answers questions, by which rules answers are right, and the tables."""
