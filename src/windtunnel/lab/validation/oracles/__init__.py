"""Checks whose right answers are known in closed form, and naive variants that must fail them."""
