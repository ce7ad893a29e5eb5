"""Cards: what is generated, what of a card that is there stays, and metrics as the Hub reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from geoloc.errors import ConfigError, NotFoundError
from geoloc.evaluate.recall_set import RecallRules, RecallSet, score_recall_set, write_recall_report
from geoloc.hub.card import (
    MISUSE,
    USES,
    Source,
    card_for_repository,
    database_card,
    read_metrics,
    render_card,
)

REPORT = {
    "protocol": "osv5m",
    "num_images": 210122,
    "num_missing": 3,
    "geoscore": 3361.5,
    "mean_km": 1814.25,
    "median_km": None,
    "accuracy_within_km": {"1": 0.02, "25": 0.25},
    "accuracy_by_admin": {"country": 0.68, "sub_region": 0.05},
    "recall_at": {"25": {"1": 0.5}},
    "rules": {"description": "OSV-5M's own rules."},
    "warnings": ["Training may have seen some of these."],
}
DATA = Source("photos", "OSV-5M", "cc-by-sa-4.0", "training")


def made(card: str, **options: object) -> str:
    parts = {"calibration": "On 100 photos.", "facts": {"input": "224 px"}} | options
    return card_for_repository(card, "me/model", **parts)  # type: ignore[arg-type]


def test_a_card_from_nothing() -> None:
    text = made("", licence="mit", reports=[REPORT], ledger=[DATA])
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert card.data.library_name == "geoloc"
    assert "image-geolocation" in card.data.tags
    assert 'Geolocalizer.from_pretrained("me/model")' in text
    assert "On 100 photos." in text
    assert all(line in text for line in (*USES, *MISUSE))
    assert "| photos | OSV-5M | cc-by-sa-4.0 | training |" in text
    assert "| weights | me/model | mit | this model |" in text
    assert "| code | geoloc " in text
    assert "- input: 224 px" in text


def test_metrics_are_a_model_index_that_names_the_protocol() -> None:
    text = made("# mine\n", reports=[REPORT])
    results = {result.metric_type: result for result in ModelCard(text).data.eval_results}
    assert results["geoscore"].metric_value == 3361.5
    assert results["accuracy_within_25_km"].metric_value == 0.25
    assert results["accuracy_sub_region"].metric_value == 0.05
    assert results["recall_at_1_within_25_m"].metric_value == 0.5
    assert "median_km" not in results
    assert results["geoscore"].dataset_type == "osv5m"
    assert results["geoscore"].dataset_name == "protocol osv5m, 210,122 images"
    assert "Protocol `osv5m`: 210,122 images, 3 without a prediction. OSV-5M's own rules." in text
    assert "| share within 25 km | 0.2500 |" in text
    assert "| mean error, km | 1,814.2 |" in text
    assert "- **Training may have seen some of these.**" in text


def test_what_a_card_says_stays() -> None:
    own = (
        "---\nlicense: cc-by-4.0\ntags: [mine]\nlanguage: en\n---\n\n# Mine\n\nMade by me.\n\n"
        '```python\nmodel = Geolocalizer.from_pretrained("somewhere/else", revision="v1")\n```\n\n'
        "## Confidence\n\nMy own words.\n\n## Measured\n\nThe table of last year.\n\n## Thanks\n\nTo all.\n"
    )
    text = made(own, reports=[REPORT])
    card = ModelCard(text)
    assert card.data.license == "cc-by-4.0"
    assert card.data.language == "en"
    assert card.data.tags[0] == "mine"
    assert 'from_pretrained("me/model")' in text
    assert "somewhere/else" not in text
    assert "My own words." in text
    assert "On 100 photos." not in text
    assert "The table of last year." not in text
    assert text.index("Protocol `osv5m`") < text.index("To all.")
    assert "The table of last year." in made(own)


def test_twice_is_once() -> None:
    once = made("", licence="mit", reports=[REPORT], ledger=[DATA])
    assert made(once, licence="mit", reports=[REPORT], ledger=[DATA]) == once


def test_a_card_of_a_recipe() -> None:
    text = render_card(
        name="earth", licence="apache-2.0", summary="It says where.", ledger=[DATA], metrics_markdown="| a |",
        metrics_command="make it", calibration="On views.", limits=["Not indoors."], facts={"cells": "12"},
    )  # fmt: skip
    assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: geoloc\n")
    assert "| a |\n\n`make it` measures this table again." in text
    assert all(line in text for line in (*MISUSE, "- Not indoors.", "- cells: 12", "On views."))
    assert 'from_pretrained("earth")' in text
    pushed = made(text, gallery=[Source("gallery", "in reference/", "cc0-1.0", "retrieval")])
    assert 'from_pretrained("me/model")' in pushed
    assert "| photos | OSV-5M |" in pushed


def test_a_header_that_is_no_yaml() -> None:
    with pytest.raises(ConfigError, match=r"the card's YAML header cannot be read .*correct README.md"):
        made("---\nlicense: [\n---\n# x\n")


def test_a_databases_card() -> None:
    text = database_card("me/refs", {"vectors": "8 x int8"}, {"cc-by-4.0": 1200, "": 3}, "cc-by-4.0")
    assert ModelCard(text).data.license == "cc-by-4.0"
    assert 'ReferenceDatabase.from_hub("me/refs", "refs/")' in text
    assert "| 1,200 references | me/refs | cc-by-4.0 |" in text
    assert "| 3 references | me/refs | not stated |" in text
    assert all(line in text for line in MISUSE)


def test_recall_is_of_the_set_that_it_was_measured_on(tmp_path: Path) -> None:
    eye = np.eye(3, dtype=np.float32)
    found = RecallSet("pitts", tuple("abc"), tuple("de"), (np.array([0]), np.array([2])), "what pitts says")
    write_recall_report(
        score_recall_set(found, eye, eye[:2], RecallRules((1, 5))), found, tmp_path / "report"
    )
    text = made("# mine\n", reports=[read_metrics(tmp_path / "report"), REPORT])
    first, second, *_ = ModelCard(text).data.eval_results
    assert (first.metric_type, first.metric_value, second.metric_value) == ("recall_at_1", 0.5, 1.0)
    assert (first.task_type, first.dataset_type) == ("image-retrieval", "place-recognition")
    assert first.dataset_name == "pitts, 2 queries among 3 photos"
    assert "`pitts`: 2 queries among 3 photos, 0 without a right one. right: what pitts says; query" in text
    assert "| recall@1 | 0.5000 |" in text
    assert "Protocol `osv5m`" in text


def test_reading_a_report(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(
        NotFoundError,
        match=r"there is no .*metrics.json: `geoloc evaluate --output` and `geoloc recall --output` write",
    ):
        read_metrics(tmp_path)
    path.write_text(json.dumps(REPORT))
    assert read_metrics(tmp_path) == read_metrics(path) == REPORT
    path.write_text("[]")
    with pytest.raises(ConfigError, match=r"is no JSON object: give the metrics.json of `geoloc evaluate`"):
        read_metrics(path)
    path.write_text('{"protocol": "osv5m"}')
    with pytest.raises(ConfigError, match=r"has no 'num_images'"):
        read_metrics(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"is not a readable JSON file"):
        read_metrics(path)
