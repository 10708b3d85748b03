"""A run's life: prepared, trained, resumed, divided, evaluated, compared; and what it will cost."""
