from .candidates import Candidates as Candidates
from .cell_index import CellIndex as CellIndex
from .cell_slices import CellSlices as CellSlices
