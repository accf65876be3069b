"""Reading with rendering: every bad record is placed by file and line."""

import orjson
import pytest

from steersman import jsonl
from steersman.attributes import OASST
from steersman.card import TemplateSpec
from steersman.errors import DataError
from steersman.text.read import read_rendered
from steersman.text.template import Template

GOOD = {"conversations": [{"from": "User", "value": "hi"}, {"from": "Assistant", "value": "yo", "label": "quality:4"}]}


def bad(**changes):
    return {"conversations": [{**GOOD["conversations"][1], **changes}]}


@pytest.mark.parametrize(
    ("record", "spec", "message"),
    [
        (bad(label="quality:5"), {}, "turn 1: quality must be a whole number from 0 to 4, not 5"),
        (bad(label="qualty:4"), {}, "turn 1: no attribute 'qualty'.*did you mean 'quality'"),
        (bad(label="fine"), {}, "turn 1: label 'fine': expected name:value"),
        (bad(**{"from": "Critic"}), {"kind": "chatml"}, "unknown role 'Critic'"),
        (bad(value="<extra_id_0>"), {"control": "text"}, "control string '<extra_id_0>'"),
        ({"conversations": []}, {}, "at least 1 item"),
    ],
)
def test_bad_records_are_placed(tmp_path, record, spec, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl.dumps(GOOD) + b"\n" + jsonl.dumps(record) + jsonl.dumps(GOOD))
    template = Template(TemplateSpec(**spec))
    with pytest.raises(DataError, match=rf"data\.jsonl:3: .*{message}"):
        list(read_rendered(path, template, OASST))
    rejects = jsonl.Rejects(tmp_path / "rejects.jsonl")
    kept = list(read_rendered(path, template, OASST, on_error="skip", rejects=rejects))
    rejects.close()
    assert [conversation.conversations[1].value for conversation, _ in kept] == ["yo", "yo"]
    assert [rendered for _, rendered in kept] == [template.render(conversation) for conversation, _ in kept]
    assert (rejects.count, orjson.loads(rejects.path.read_bytes())["line"]) == (1, 3)


def test_labels_are_free_without_a_schema(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl.dumps(bad(label="anything at all")))
    assert len(list(read_rendered(path, Template(TemplateSpec())))) == 1
