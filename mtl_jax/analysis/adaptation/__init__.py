"""--mode=adapt: how well finished runs adapt to new tasks from a few examples."""
