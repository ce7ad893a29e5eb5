"""Build a quadtree from the coordinates in CSV or Parquet files.

python scripts/build_quadtree.py points=train.csv output=quadtree.parquet
python scripts/build_quadtree.py 'points=[a.csv,b.csv]' output=quadtree.parquet max_points_per_cell=500
python scripts/build_quadtree.py --config-name osv5m points=train.csv

The files are read in batches, so their length does not matter; configs/quadtree/ holds the settings. An
output that ends in .csv is written in OSV-5M's format, any other as GeoParquet.
"""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from quadtree import build_quadtree_from_batches
from quadtree.points import PointTable


@hydra.main(version_base="1.3", config_path="../configs/quadtree", config_name="world")
def main(config: DictConfig) -> None:
    """Build, write and describe the tree."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    table = PointTable(values["points"], config.latitude_column, config.longitude_column)
    tree = build_quadtree_from_batches(table, config.max_points_per_cell, config.max_depth, config.root)
    output = Path(config.output)
    if output.suffix == ".csv":
        tree.write_osv5m_csv(output)
    else:
        tree.write(output)
    print(f"{output}: {tree}")


if __name__ == "__main__":
    main()
