"""Facts about tokens, against Python's own tokenizer, the text itself and rows laid out by hand."""

import io
import keyword
import tokenize
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from penstock.inspection.token_facts import (
    CLASSES,
    NO_TOKEN,
    REGIONS,
    scan_python,
    token_bytes,
    token_class,
    token_facts,
)
from penstock.language_models.model_source import EMBEDDED_FOLDER
from penstock.language_models.tokens import TokenRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS = 0

# f-strings are left out: from Python 3.12 on, tokenize takes them apart, and before it does not.
SNIPPETS = {
    "strings": "a = 'x' + \"y\" + ''\nb = r'\\' + \"it's # no comment\" + rb\"\\x00(\"\n",
    "escapes": "a = 'it\\'s', \"\\\\\", '\\\\\\'', \"\\\"\"\nb = 'one \\\ntwo'  # three\n",
    "triple quotes": "def f():\n    \"\"\"It's \"quoted\" (\n\n  # no comment\n    \"\"\"\n    return '''a\\'''b'''\n",
    "quotes at the end of triple quotes": 'a = """b\\""""\nc = ""\nd = """"e" """\n',
    "comments": "# one 'two\nx = 1  # (three \"\n    # four\ny = 2\n",
    "brackets": "f(a, [b, {c: (d)}], 'e)', # g]\n    h)\nk = (\n    1,\n        2,\n)\nl[m]\n",
    "indentation": (
        "class A:\n    def f(self):\n        if self:\n            for a in b:\n                c()\n\n"
        "            d()\n    x = (1,\n  2)\n\n    def g(self): pass\ny = 1 + \\\n        2\nz = 3\n"
    ),
    "tabs": "if a:\n\tif b:\n\t\tc = '\\t'\n\td\ne\n",
    "carriage returns": "if a:\r\n    b = 'c'  # d\r\n\r\n    e = '''f\r\n'''\r\ng\r\n",
    "other alphabets": "é = 'ü \"' # ‘ß’\nif é:\n    日本 = '語'\n",
}


def spans(text: str) -> list[tuple[tokenize.TokenInfo, int, int]]:
    """Python's tokens and the bytes from which to which they reach."""
    lines = io.StringIO(text, newline="").readlines()
    before = [0]
    for line in lines:
        before.append(before[-1] + len(line.encode()))

    def offset(place: tuple[int, int]) -> int:
        line, column = place
        return before[line - 1] + len(lines[line - 1][:column].encode()) if line <= len(lines) else before[-1]

    tokens = tokenize.generate_tokens(iter([*lines, ""]).__next__)
    return [(token, offset(token.start), offset(token.end)) for token in tokens]


@pytest.mark.parametrize("name", SNIPPETS)
def test_strings_and_comments_are_where_pythons_tokenizer_finds_them(name: str) -> None:
    text = SNIPPETS[name]
    expected = [0] * (1 + len(text.encode()))
    for token, start, end in spans(text):
        if token.type == tokenize.STRING:
            start += len(token.string) - len(token.string.lstrip("rbRB"))
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            region = REGIONS.index("string" if token.type == tokenize.STRING else "comment")
            expected[start + 1 : end + 1] = [region] * (end - start)
    assert scan_python(text.encode()).region.tolist() == expected


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_byte_is_in_brackets_from_an_opening_one_to_its_partner(name: str) -> None:
    text = SNIPPETS[name]
    expected = [0] * (1 + len(text.encode()))
    opened = []
    for token, start, end in spans(text):
        if token.type == tokenize.OP and token.string in "([{":
            opened.append(start)
        if token.type == tokenize.OP and token.string in ")]}":
            begin = opened.pop()
            expected[begin + 1 : end + 1] = [1] * (end - begin)
    assert scan_python(text.encode()).in_brackets.tolist() == expected


@pytest.mark.parametrize("name", SNIPPETS)
def test_indentation_is_the_depth_of_pythons_blocks(name: str) -> None:
    text = SNIPPETS[name]
    found = scan_python(text.encode()).indentation
    depth = 0
    for token, start, end in spans(text):
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            assert set(found[start + 1 : end + 1].tolist()) == {min(depth, 3)}, token


def test_blanks_belong_to_the_line_they_head_and_a_line_break_to_the_line_it_ends() -> None:
    #        d e : \n         x \n \n       \n \t # \n y
    text = b"d:\n    x\n\n  \n\t#\ny"
    expected = [0, 0, 0] + [0] + [1] * 6 + [1] + [1] * 3 + [1, 1] + [1] + [0]
    assert scan_python(text).indentation.tolist() == expected
    windows = b"\n  x\r\n\r\ny"
    assert scan_python(windows).indentation.tolist() == [0, 0] + [1] * 5 + [1, 1] + [0]


@pytest.mark.parametrize(
    ("lead", "depth"), [("", 0), (" ", 1), ("    ", 1), ("     ", 2), ("  \t", 1), ("\f    ", 1), (" " * 40, 3)]
)
def test_indentation_is_counted_in_levels_of_four_columns_rounded_up(lead: str, depth: int) -> None:
    assert scan_python(f"a\n{lead}b".encode()).indentation[-1] == depth


def test_a_text_may_begin_and_end_anywhere() -> None:
    for text in SNIPPETS.values():
        whole = scan_python(text.encode()).region
        for cut in range(len(text.encode())):
            states = scan_python(text.encode()[:cut])
            assert len(states.region) == cut + 1
            # The first two of three quotes at the cut look like an empty string, which they are not.
            agree = max(0, cut - 1)
            assert states.region[:agree].tolist() == whole[:agree].tolist()
    stray = scan_python(b")] x = (a)")
    assert stray.in_brackets.tolist() == [0] * 8 + [1, 1, 1]
    # An apostrophe costs its line, no more.
    assert scan_python(b"don't\nx").region.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert scan_python(b'"t\r\nx').region.tolist() == [0, 1, 1, 0, 0, 0]


def test_a_long_unfinished_text_takes_linear_time() -> None:
    for piece in (b"'''", b'"\\', b"(", b"\n ", b"''' '", b"# '"):
        assert len(scan_python(piece * 20000).region) == 20000 * len(piece) + 1


@pytest.fixture(scope="module")
def tokenizer() -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(EMBEDDED_FOLDER / "tokenizer.json"), bos_token="<|bos|>")


def ids_of(text: str, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def as_rows(segments: list[list[list[int]]]) -> TokenRows:
    """Rows of segments, a BOS that does not count before each segment, padded on the right."""
    rows = [[token for segment in row for token in [None, *segment]] for row in segments]
    width = max(map(len, rows))
    rows = [row + [None] * (width - len(row)) for row in rows]
    tokens = torch.tensor([[BOS if token is None else token for token in row] for row in rows])
    return TokenRows(tokens, torch.tensor([[token is not None for token in row] for row in rows]))


def test_the_bytes_of_tokens_make_up_the_text(tokenizer: "PreTrainedTokenizerFast") -> None:
    text = "".join(map(chr, range(0x250))) + "日本語 🙂\n\n\t x = 'é'"
    ids = ids_of(text, tokenizer)
    pieces = token_bytes(ids, tokenizer)
    assert b"".join(pieces) == text.encode()
    # Some token ends in the middle of a character, or this shows little.
    assert any(piece.decode(errors="replace").endswith("\ufffd") for piece in pieces)
    every = token_bytes(range(1, 257), tokenizer)
    assert sorted(every) == [bytes([byte]) for byte in range(256)]


def small_tokenizer(vocab: list[str], added: list[str], *, byte_level: bool) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({piece: number for number, piece in enumerate(vocab)}, merges=[]))
    if byte_level:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    else:
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    backend.add_tokens(added)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_bytes_of_tokenizers_without_a_byte_level_alphabet() -> None:
    tokenizer = small_tokenizer(["▁a", "é", "<0xC3>", "▁▁", "Ġ"], ["<|x|>"], byte_level=False)
    expected = [b" a", "é".encode(), b"\xc3", b"  ", "Ġ".encode(), b"<|x|>"]
    assert token_bytes(range(6), tokenizer) == expected


def test_added_tokens_are_plain_text_in_a_byte_level_vocabulary_too() -> None:
    tokenizer = small_tokenizer(["Ġa", "Ã"], ["    ", "Ġé"], byte_level=True)
    assert token_bytes(range(4), tokenizer) == [b" a", b"\xc3", b"    ", "Ġé".encode()]


def test_a_token_of_another_vocabulary_and_a_slow_tokenizer_are_errors(tokenizer: "PreTrainedTokenizerFast") -> None:
    with pytest.raises(ValueError, match="no token 4096; it knows 4096"):
        token_bytes([4096], tokenizer)
    slow: Any = SimpleNamespace(is_fast=False)
    with pytest.raises(ValueError, match="not a fast tokenizer"):
        token_bytes([1], slow)


def test_rows_without_a_position_that_counts_are_an_error(tokenizer: "PreTrainedTokenizerFast") -> None:
    with pytest.raises(ValueError, match="no position that counts"):
        token_facts(TokenRows(torch.zeros(2, 3).long(), torch.zeros(2, 3).bool()), tokenizer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n", "whitespace"),
        (" ", "whitespace"),
        ("  \n", "whitespace"),
        ("    ", "indentation"),
        ("\t", "indentation"),
        ("\n ", "indentation"),
        ("\n\t\t", "indentation"),
        (" foo", "word"),
        ("_bar", "word"),
        ("ß", "word"),
        (" for", "keyword"),
        ("None", "keyword"),
        (" fort", "word"),
        ("7", "number"),
        (" 0x1F", "number"),
        ("3.5", "number"),
        (" +=", "operator"),
        (",", "operator"),
        ("):", "bracket"),
        ('")', "quote"),
        ("#", "other"),
        ("'s", "other"),
        (".append", "other"),
        ("\ufffd", "other"),
    ],
)
def test_the_class_of_a_token(text: str, expected: str) -> None:
    assert token_class(text, goes_on=False) == expected


def test_a_word_that_goes_on_without_a_blank_is_a_continuation() -> None:
    assert token_class("for", goes_on=True) == "continuation"
    assert token_class("_x", goes_on=True) == "continuation"
    assert token_class(" for", goes_on=True) == "keyword"
    assert token_class("7", goes_on=True) == "number"
    assert all(token_class(word, goes_on=False) == "keyword" for word in keyword.kwlist)


def test_where_tokens_stand_and_what_comes_before_them(tokenizer: "PreTrainedTokenizerFast") -> None:
    facts = token_facts(as_rows([[[5, 6, 7], [8]], [[9, 10]]]), tokenizer)
    assert facts.row.tolist() == [0, 0, 0, 0, 1, 1]
    assert facts.position.tolist() == [1, 2, 3, 5, 1, 2]
    assert facts.token.tolist() == [5, 6, 7, 8, 9, 10]
    assert facts.previous.tolist() == [NO_TOKEN, 5, 6, NO_TOKEN, NO_TOKEN, 9]
    assert facts.before_previous.tolist() == [NO_TOKEN, NO_TOKEN, 5, NO_TOKEN, NO_TOKEN, NO_TOKEN]


def test_a_row_without_a_bos_begins_a_document(tokenizer: "PreTrainedTokenizerFast") -> None:
    facts = token_facts(TokenRows(torch.tensor([[5, 6], [7, 8]]), torch.ones(2, 2).bool()), tokenizer)
    assert facts.previous.tolist() == [NO_TOKEN, 5, NO_TOKEN, 7]
    assert facts.position.tolist() == [0, 1, 0, 1]


def test_each_token_has_the_state_after_its_last_byte(tokenizer: "PreTrainedTokenizerFast") -> None:
    """The scanner on each segment's text up to the token's end, for segments that cut documents anywhere."""
    ids = [ids_of(SNIPPETS[name], tokenizer) for name in ("triple quotes", "other alphabets", "indentation")]
    segments = [[ids[0], ids[1]], [ids[2][:20], ids[2][20:]], [ids[0][5:]]]
    facts = token_facts(as_rows(segments), tokenizer)
    expected = []
    for segment in (segment for row in segments for segment in row):
        pieces = token_bytes(segment, tokenizer)
        states = scan_python(b"".join(pieces))
        for end in range(1, len(segment) + 1):
            place = len(b"".join(pieces[:end]))
            expected.append([states.region[place], states.indentation[place], states.in_brackets[place]])
    found = torch.stack([facts.region, facts.indentation, facts.in_brackets], dim=1)
    assert found.tolist() == expected
    assert all(len(set(column)) > 1 for column in zip(*expected, strict=True))


def test_a_state_does_not_leak_into_the_next_segment(tokenizer: "PreTrainedTokenizerFast") -> None:
    open_ended = ids_of("if x:\n    y = ('", tokenizer)
    facts = token_facts(as_rows([[open_ended, ids_of("z", tokenizer)], [ids_of("w", tokenizer)]]), tokenizer)
    assert [facts.region[-3].item(), facts.indentation[-3].item(), facts.in_brackets[-3].item()] == [1, 1, 1]
    for fact in (facts.region, facts.indentation, facts.in_brackets):
        assert fact[-2:].tolist() == [0, 0]


def test_classes_of_a_row_know_the_character_before(tokenizer: "PreTrainedTokenizerFast") -> None:
    vocab = tokenizer.get_vocab()
    ids = [vocab[piece] for piece in ("\u0120a", "c", "for", "(", "d", "if")]
    texts = [piece.decode() for piece in token_bytes(ids, tokenizer)]
    facts = token_facts(as_rows([[ids, [ids[1]]], [ids[1:]]]), tokenizer)
    row = [texts, [texts[1]], texts[1:]]
    expected = [
        token_class(text, goes_on=place > 0 and segment[place - 1][-1].isidentifier())
        for segment in row
        for place, text in enumerate(segment)
    ]
    assert [CLASSES[number] for number in facts.token_class] == expected
    assert "continuation" in expected and "word" in expected
