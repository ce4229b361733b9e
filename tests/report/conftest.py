"""Figures are drawn in memory, and closed."""

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def drawn_in_memory():
    plt.switch_backend("Agg")
    yield
    plt.close("all")
