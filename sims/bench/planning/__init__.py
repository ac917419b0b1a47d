"""The parts of `planner.py`: what is asked, and what each way of asking costs."""
