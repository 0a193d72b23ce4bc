"""Kedro on Vineyard: runners that hand datasets over through a volume, and a dataset for catalogs.

Run a project without changing a line of it::

    kedro run --runner vineyard.contrib.kedro.runner.SequentialRunner
"""

from vineyard.contrib.kedro.dataset import VineyardDataset

__all__ = ["VineyardDataset"]
