import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geoloc.errors import BadTableError, NotFoundError
from geoloc.files.tables import Columns, read_points

GOOD = 'id,latitude,longitude,country,note\n007,1.5,2.5,NA,\n8,,3,SE,"a, b"\n9,nan, 4.0 ,SE,x\n'


def write(folder, text, name="table.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv(tmp_path):
    table = read_points(write(tmp_path, GOOD))
    assert table.ids.tolist() == ["007", "8", "9"]  # an id is text: no zero is lost
    np.testing.assert_array_equal(table.latlon_deg, [[1.5, 2.5], [np.nan, 3], [np.nan, 4]])
    assert list(table.others) == ["country", "note"]
    assert table.text("country").tolist() == ["NA", "SE", "SE"]  # Namibia is not a missing value
    assert table.text("note").tolist() == ["", "a, b", "x"]


def test_other_formats_and_names(tmp_path):
    columns = Columns(id="img", latitude="LAT", longitude="LON")
    tsv = write(tmp_path, "img\tLAT\tLON\nä\t1\t2\n", "t.tsv")
    zipped = tmp_path / "t.csv.gz"
    zipped.write_bytes(gzip.compress(b"img,LAT,LON\n\xc3\xa4,1,2\n"))
    parquet = tmp_path / "t.parquet"
    pq.write_table(pa.table({"img": ["ä"], "LAT": [1], "LON": pa.array([2.0], pa.float32())}), parquet)
    for path in (tsv, zipped, parquet):
        table = read_points(path, columns)
        assert table.ids.tolist() == ["ä"], path
        assert table.latlon_deg.tolist() == [[1, 2]]


def test_numbers_of_another_column(tmp_path):
    table = read_points(write(tmp_path, "id,latitude,longitude,radius\na,1,2,\nb,1,2,5.5\nc,1,2,far\n"))
    with pytest.raises(BadTableError, match=r"table.csv line 4: radius is 'far', which is no number"):
        table.numbers("radius")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD + "10,1\n", r"table.csv line 5: 2 fields, but the header has 5; quote a field"),
        (GOOD + "10,1,2,SE,x,y\n", r"line 5: 6 fields, but the header has 5"),
        (
            "id,latitude,longitude\na,1,2\nb,north,2\n",
            r"table.csv line 3: latitude is 'north', which is no number",
        ),
        (
            'id,latitude,longitude\n"a\nb",1,2\nc,1,2E\n',
            r"table.csv line 4: longitude is '2E', which is no number",
        ),
        ("id,latitude,longitude\n\na,1,2\n\nb,x,2\n", r"table.csv line 5: latitude is 'x'"),
        ('id,latitude,longitude\na,1,2\n"b,1,2\n', r"table.csv line 3.*quote"),
        (
            "id,lat,lon\na,1,2\n",
            r"has no column 'latitude' of latitudes; its columns are id, lat, lon; rename the right one$",
        ),
        ("id,latitude,longitude,id\na,1,2,b\n", r"has 2 column 'id' of ids"),
        (
            "id;latitude;longitude\na;1,5;2,5\n",
            r"has semicolons between its columns: save it with commas there, and",
        ),
        ("id\tlatitude\tlongitude\na\t1\t2\n", r"table.csv has tabs between its columns: .*a .tsv has tabs"),
        ("", r"table.csv is empty: expected a header such as id,latitude,longitude"),
    ],
)
def test_a_broken_table_is_an_error_with_its_line(tmp_path, text, complaint):
    with pytest.raises(BadTableError, match=complaint):
        read_points(write(tmp_path, text))


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"id,latitude,longitude\na,1,2\n\xff,1,2\n")
    with pytest.raises(BadTableError, match=r"t.csv line 3 or after it: not UTF-8|t.csv line 1"):
        read_points(path)
    parquet = tmp_path / "t.parquet"
    parquet.write_bytes(b"nothing")
    with pytest.raises(BadTableError, match=r"t.parquet is no Parquet file"):
        read_points(parquet)
    with pytest.raises(NotFoundError, match=r"there is no table .*absent.csv"):
        read_points(tmp_path / "absent.csv")


def test_a_parquet_with_words_names_the_row(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "latitude": ["1", "north"], "longitude": [1.0, 2.0]}), path)
    with pytest.raises(BadTableError, match=r"t.parquet row 2: latitude is 'north'"):
        read_points(path)
    pq.write_table(pa.table({"id": ["a", None], "latitude": [1.0, 2.0], "longitude": [1.0, 2.0]}), path)
    with pytest.raises(BadTableError, match=r"the column 'id' of ids is empty in 1 rows"):
        read_points(path)


def test_a_spreadsheets_csv(tmp_path):
    text = "\ufeffid,latitude,longitude\r\nå.jpg,1.5,2\r\n"  # its mark of UTF-8, its ends of lines
    for table in (
        read_points(write(tmp_path, text)),
        read_points(write(tmp_path, text.replace(",", "\t"), "t.tsv")),
    ):
        assert (table.ids.tolist(), table.latlon_deg.tolist()) == (["å.jpg"], [[1.5, 2]])
    with pytest.raises(
        BadTableError, match=r"t\.tsv has commas between its columns: save it with tabs there"
    ):
        read_points(write(tmp_path, text, "t.tsv"))
