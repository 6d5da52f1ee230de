"""Finding sources, freezing them in a plan, and opening them again."""

import json
import os
import unicodedata
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packing.errors import InputError
from packing.store import Store
from pipeline.config import InputConfig
from pipeline.records import Source
from pipeline.sources import TEXT_LIMIT, SourceError, SourceFiles, clean_text, extend_plan, find_sources, plan_hash, read_plan


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode(errors="surrogateescape"))
    return tmp_path / "in"


def found(uri: object, **settings: object) -> list[Source]:
    return find_sources(InputConfig(uri=uri, **settings))  # type: ignore[arg-type]


def names(sources: list[Source]) -> list[str]:
    return [source.uri.rsplit("/", 1)[1] for source in sources]


def content_of(source: Source) -> bytes:
    files = SourceFiles()
    try:
        file = files.open(source)
        file.seek(0)  # as the decoder does
        return file.read()
    finally:
        files.close()


def mistake(uri: object, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        found(uri, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what is found -----------------------------------------------------------------------------------------------------


def test_a_folder_gives_all_its_files_sorted_and_no_hidden_ones(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "b.mp4", "a.mp4", "sub/c.webm", ".hidden.mp4", ".cache/d.mp4", "sub/.part")
    assert names(found(str(folder))) == ["a.mp4", "b.mp4", "c.webm"]


def test_a_hidden_folder_above_the_input_hides_nothing(tmp_path: Path) -> None:
    assert names(found(str(folder_of(tmp_path / ".cache", "a.mp4")))) == ["a.mp4"]


def test_a_single_file_and_a_glob_give_what_they_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4", "b.mp4", "c.txt", "d.mp4/e.bin")
    assert names(found(f"{folder}/b.mp4")) == ["b.mp4"]
    assert names(found(f"{folder}/*.mp4")) == ["a.mp4", "b.mp4"]


def test_a_source_that_two_inputs_name_counts_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4", "b.mp4")
    assert names(found([f"{folder}/b.mp4", str(folder), f"file://{folder}/a.mp4"])) == ["a.mp4", "b.mp4"]


def test_a_file_whose_name_is_a_glob_is_a_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "[x].mp4", "x.mp4")
    assert names(found(f"{folder}/[x].mp4")) == ["[x].mp4"]


ODD_NAMES = ["pipe:x.mp4", "concat:a|b.mp4", "%03d.mp4", "-i.mp4", "new\nline.mp4", "star*?.mp4", "#frag.mp4", "b\udcff.mp4"]


@pytest.mark.parametrize(
    "name",
    [*ODD_NAMES, "a::b.mp4"],
)
def test_a_file_under_any_name_is_found_and_read(tmp_path: Path, name: str) -> None:
    (source,) = found(str(folder_of(tmp_path, name)))
    assert source.uri == f"{tmp_path}/in/{name}"
    assert content_of(source) == name.encode(errors="surrogateescape")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_lists_sources_relative_to_itself_with_their_texts(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path, "sub/a.mp4", "b.mp4")
    rows = {"uri": ["sub/a.mp4", f"{folder}/b.mp4"], "title": ["first", "second"]}
    table = folder.parent / "in" / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(rows), table)
    else:
        lines = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        text = "\n".join(json.dumps(line) for line in lines)
        table.write_text(text if kind == "jsonl" else "uri,title\n" + "\n".join(",".join(line.values()) for line in lines))
    sources = found(str(table))
    assert [(source.uri, source.text) for source in sources] == [
        (f"{folder}/b.mp4", {"title": "second"}),
        (f"{folder}/sub/a.mp4", {"title": "first"}),
    ]


def test_a_listed_file_that_is_not_there_is_a_source_with_a_fate(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("uri\ngone.mp4\n")
    (source,) = found(str(table))
    with pytest.raises(SourceError) as caught:
        SourceFiles().open(source)
    assert caught.value.error == "io"


def test_other_file_systems_are_listed_and_read_by_their_urls() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/test-sources/a.mp4": b"aaa", "/test-sources/sub/b.mp4": b"bb"})
    try:
        sources = found("memory://test-sources")
        assert [(source.uri, source.size_bytes) for source in sources] == [
            ("memory:///test-sources/a.mp4", 3),
            ("memory:///test-sources/sub/b.mp4", 2),
        ]
        assert content_of(sources[1]) == b"bb"
    finally:
        memory.rm("/test-sources", recursive=True)


@pytest.mark.parametrize("place", ["", "*.webm", "gone.mp4", "gone/*.mp4"])
def test_an_empty_folder_and_a_missing_path_are_one_clear_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "in").mkdir()
    assert str(tmp_path / "in") in mistake(f"{tmp_path}/in/{place}".rstrip("/"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("list.csv", "name\nx\n", "no column `uri`"),
        ("list.jsonl", "{half", "not a readable table"),
        ("list.parquet", "not one", "not a readable table"),
        ("list.csv", "uri\nfoo://x\n", "foo"),
        ("list.csv", "uri\n", "no source"),
    ],
)
def test_a_table_that_lists_nothing_readable_is_one_clear_line(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    assert told in mistake(f"{tmp_path}/{name}")


@pytest.mark.parametrize("content", ['["x"]', '"x"', '{"uri": "a\\u0000b.mp4"}', '{"uri": "a\\ud800.mp4"}'])
def test_a_hostile_row_of_a_table_is_a_clear_line_or_a_source_with_a_fate(tmp_path: Path, content: str) -> None:
    (tmp_path / "list.jsonl").write_text(content)
    try:
        sources = found(f"{tmp_path}/list.jsonl")
    except InputError:
        return
    with pytest.raises(SourceError):
        SourceFiles().open(sources[0])


# ---- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sub/a.mp4", "{folder}/sub/a.mp4", "file://{folder}/sub/a.mp4"])
def test_titles_are_found_by_path_below_the_input_by_path_and_by_url(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, "sub/a.mp4", "b.mp4")
    titles = tmp_path / "titles.csv"
    titles.write_text(f"file,title,alt\n{name.format(folder=folder)},A title,\n")
    untitled, titled = found(str(folder), text=str(titles))
    assert titled.text == {"title": "A title"}
    assert untitled.text == {}


def test_titles_for_a_glob_and_a_single_file_are_found_by_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4")
    (tmp_path / "titles.jsonl").write_text('{"uri": "a.mp4", "title": "A title"}\n')
    for uri in (f"{folder}/*.mp4", f"{folder}/a.mp4"):
        assert found(uri, text=f"{tmp_path}/titles.jsonl")[0].text == {"title": "A title"}


def test_titles_beside_a_table_of_sources_win_over_the_tables_own(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4")
    (folder / "list.csv").write_text("uri,title,alt\na.mp4,old,kept\n")
    (tmp_path / "titles.csv").write_text("uri,title\na.mp4,new\n")
    assert found(f"{folder}/list.csv", text=f"{tmp_path}/titles.csv")[0].text == {"alt": "kept", "title": "new"}


@pytest.mark.parametrize(("name", "content"), [("t.csv", "x,title\n1,2\n"), ("t.txt", "a"), ("gone.csv", None)])
def test_a_text_table_that_names_no_sources_is_one_clear_line(tmp_path: Path, name: str, content: str | None) -> None:
    folder = folder_of(tmp_path, "a.mp4")
    if content:
        (tmp_path / name).write_text(content)
    assert name in mistake(str(folder), text=f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain", "plain"),
        (" two\t words\r\nin\x0blines\u2028 ", "two words in lines"),
        ("a\x00b\x1b[31mc\x7f", "a b [31mc"),
        ("x\ud800y\udfffz", "xyz"),
        ("\u202eevil\u202c \u200bzero\ufeff", "evil zero"),
        ("e\u0301", "\u00e9"),
        ("\ue000private", "private"),
        ("\u05e9\u05dc\u05d5\u05dd \u4f60\u597d 🎬", "\u05e9\u05dc\u05d5\u05dd \u4f60\u597d 🎬"),
        ("\x00\u200b", ""),
    ],
)
def test_texts_are_cleaned_of_what_is_not_to_be_read(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@given(st.text(st.characters()))
def test_a_clean_text_is_short_one_line_and_stays_as_it_is(text: str) -> None:
    clean = clean_text(text)
    assert len(clean) <= TEXT_LIMIT
    assert not {unicodedata.category(c) for c in clean} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert clean_text(clean) == clean
    assert clean.encode("utf-8").decode() == clean


def test_a_title_of_a_megabyte_is_cut(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4")
    (tmp_path / "titles.jsonl").write_text(json.dumps({"file": "a.mp4", "title": "word " * 200_000}))
    assert len(found(str(folder), text=f"{tmp_path}/titles.jsonl")[0].text["title"]) == TEXT_LIMIT


def test_a_title_of_a_megabyte_in_a_csv_does_not_stop_the_job(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4")
    (tmp_path / "titles.csv").write_text("file,title\na.mp4," + "word " * 200_000 + "\n")
    assert len(found(str(folder), text=f"{tmp_path}/titles.csv")[0].text["title"]) == TEXT_LIMIT


# ---- the plan ----------------------------------------------------------------------------------------------------------


def test_the_plan_is_written_once_and_the_same_sources_add_nothing(tmp_path: Path) -> None:
    store, sources = Store(f"{tmp_path}/run"), found(str(folder_of(tmp_path, "a", "b", "c")))
    first = extend_plan(store, sources, 2)
    before, digest = store.read("plan/000.json"), plan_hash(store)
    assert [len(partition.sources) for partition in first] == [2, 1]
    assert extend_plan(store, sources, 7) == first == read_plan(store)
    assert store.list("plan") == ["plan/000.json"]
    assert (store.read("plan/000.json"), plan_hash(store)) == (before, digest)


def test_new_files_go_into_a_new_part_and_leave_the_old_one_alone(tmp_path: Path) -> None:
    store, folder = Store(f"{tmp_path}/run"), folder_of(tmp_path, "b")
    first = extend_plan(store, found(str(folder)), 2)
    before = store.read("plan/000.json")
    second = extend_plan(store, found(str(folder_of(tmp_path, "a"))), 2)
    assert second[:1] == first
    assert [[source.uri for source in partition.sources] for partition in second[1:]] == [[f"{folder}/a"]]
    assert store.read("plan/000.json") == before
    assert len({partition.id for partition in second}) == 2


def test_a_file_that_is_gone_stays_in_the_plan(tmp_path: Path) -> None:
    store, folder = Store(f"{tmp_path}/run"), folder_of(tmp_path, "a", "b")
    first = extend_plan(store, found(str(folder)), 2)
    (folder / "a").unlink()
    assert extend_plan(store, found(str(folder)), 2) == first


def test_the_same_sources_give_the_same_plan_anywhere(tmp_path: Path) -> None:
    sources = found(str(folder_of(tmp_path, "a", "b")))
    one, two = Store(f"{tmp_path}/one"), Store(f"{tmp_path}/two")
    extend_plan(one, sources, 1)
    extend_plan(two, list(sources), 1)
    assert plan_hash(one) == plan_hash(two)


def test_a_sources_key_changes_when_its_file_changes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a", "b")
    one, other = found(str(folder))
    assert one.key != other.key
    assert found(str(folder))[0].key == one.key
    (folder / "a").write_bytes(b"longer than before")
    longer = found(str(folder))[0].key
    os.utime(folder / "a", ns=(0, 10**18))
    assert len({one.key, longer, found(str(folder))[0].key}) == 3


# ---- opening -----------------------------------------------------------------------------------------------------------


def error_of(source: Source) -> str:
    with pytest.raises(SourceError) as caught:
        SourceFiles().open(source)
    return caught.value.error


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    assert error_of(found(f"{tmp_path}/a.mp4")[0]) == "not_regular"


def test_a_folder_that_a_table_lists_is_not_regular(tmp_path: Path) -> None:
    folder_of(tmp_path, "sub/a.mp4")
    (tmp_path / "list.csv").write_text("uri\nin/sub\n")
    assert error_of(found(f"{tmp_path}/list.csv")[0]) == "not_regular"


def test_a_file_of_another_size_than_planned_has_changed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4")
    (source,) = found(str(folder))
    (folder / "a.mp4").write_bytes(b"something else by now")
    assert error_of(source) == "io"


def test_a_file_that_is_gone_is_an_io_failure(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4")
    (source,) = found(str(folder))
    (folder / "a.mp4").unlink()
    assert error_of(source) == "io"


def test_only_the_last_source_stays_open(tmp_path: Path) -> None:
    one, two = found(str(folder_of(tmp_path, "a", "b")))
    files = SourceFiles()
    first = files.open(one)
    assert files.open(one) is first
    files.open(two)
    assert first.closed
    files.close()
