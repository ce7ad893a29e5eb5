from .figures import save_quadtree_png as save_quadtree_png
from .map_html import MapPoint as MapPoint
from .map_html import write_map as write_map
from .map_html import write_quadtree_map as write_quadtree_map
from .outline import load_world_outline as load_world_outline
from .prediction_map import write_prediction_map as write_prediction_map
from .report_html import write_report_html as write_report_html
