import math

import numpy as np
import pandas as pd

from rectrio_lib.core import tables


def test_a_mean_is_written_with_its_interval():
    assert tables.with_interval(np.float64(0.84092), (0.8111, 0.8707)) == "0.841 (0.811 to 0.871)"


def test_several_values_are_written_with_their_sample_deviation_and_a_single_one_without():
    values = [0.5, 0.7, 0.9]
    assert tables.mean_and_spread(values) == f"0.700 ± {math.sqrt(0.04):.3f}"
    assert tables.mean_and_spread(pd.Series(values), 4) == "0.7000 ± 0.2000"
    assert tables.mean_and_spread([0.84092], 4) == "0.8409"
