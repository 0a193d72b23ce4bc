"""Which flights out of New York will be late? A Kedro pipeline on the flights of 2013."""
