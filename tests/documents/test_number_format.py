"""Numbers, dates and texts of cells read as Excel shows them."""

from __future__ import annotations

import pytest

from jambacli.documents.extract.number_format import BUILT_IN, general, number_format

SHOWN: list[tuple[str, float, str]] = [
    ("0%", 0.25, "25%"),
    ("0.00%", 0.12345, "12.35%"),
    ("#,##0.0%", 12.5, "1,250.0%"),
    ("#,##0.00", 1234567.891, "1,234,567.89"),
    ("#,##0_);(#,##0)", -1234, "(1,234)"),
    ("$#,##0.00_);[Red]($#,##0.00)", -0.5, "($0.50)"),
    (BUILT_IN[44], 1234.5, "$ 1,234.50"),
    (BUILT_IN[44], 0, "$ -"),
    ("#,##0.00\\ [$€-407]", 1234.5, "1,234.50 €"),
    ("[$USD] #,##0", 1500, "USD 1,500"),
    ('_-* #,##0.00\\ "€"_-;\\-* #,##0.00\\ "€"_-', -12.3, "- 12.30 €"),
    ("0.00E+00", 12345, "1.23E+04"),
    ("0.00E+00", 0.00012, "1.20E-04"),
    ("##0.0E+0", 12345, "12.3E+3"),
    ("0.0E+0", 9.96, "1.0E+1"),
    ("# ?/?", 1.25, "1 1/4"),
    ("# ??/??", 0.3125, "5/16"),
    ("# ?/8", 2.5, "2 4/8"),
    ("?/?", 1.5, "3/2"),
    ("# ?/?", 3, "3"),
    ("# ?/?", 0, "0"),
    ("# ?/?", -0.5, "-1/2"),
    ("yyyy-mm-dd", 45000, "2023-03-15"),
    (BUILT_IN[14], 45000, "2023-03-15"),
    ("d-mmm-yy", 45000, "15-Mar-23"),
    ("dd.mm.yyyy hh:mm", 45000.5208333333, "15.03.2023 12:30"),
    ("[$-407]d. mmmm yyyy", 45000, "15. März 2023"),
    ("[$-40C]dddd d mmmm", 45000, "mercredi 15 mars"),
    ("[$-F800]dddd\\,\\ mmmm\\ dd\\,\\ yyyy", 45000, "Wednesday, March 15, 2023"),
    ("yyyy\\-mm\\-dd\\Thh:mm", 45000.25, "2023-03-15T06:00"),
    ("mmm d, yyyy", 45000, "Mar 15, 2023"),
    ("mmmmm", 45000, "M"),
    ("d/m/yyyy", 59, "28/2/1900"),
    ("d/m/yyyy", 60, "29/2/1900"),
    ("d/m/yyyy", 61, "1/3/1900"),
    ("d/m/yyyy", -1, "-1"),
    ("d/m/yyyy", 1e12, "1000000000000"),
    ("h:mm AM/PM", 0.75, "6:00 PM"),
    ("h:mm:ss A/P", 0, "12:00:00 A"),
    ("[h]:mm:ss", 1.5, "36:00:00"),
    ("[mm]:ss", 0.0625, "90:00"),
    ("mm:ss.0", 0.000723, "01:02.5"),
    ("m/d h:mm", 45000.5, "3/15 12:00"),
    ("000-00-0000", 123456789, "123-45-6789"),
    ("(000) 000-0000", 5551234567, "(555) 123-4567"),
    ("00000", 42, "00042"),
    ("#.##", 0.5, ".5"),
    ("0.##", 1.5, "1.5"),
    ('0.0,,"M"', 12345678, "12.3M"),
    ("#,##0,", 1234567, "1,235"),
    ("#,###", 0, ""),
    (";;;", 5, ""),
    ("0;-0;;@", 0, ""),
    ('#,##0.00;-#,##0.00;"-"', 0, "-"),
    ('[>=1000]#,##0,"k";0', 2500, "3k"),
    ('[>=1000]#,##0,"k";0', -5, "-5"),
    ('[<0]"minus "0;0', -5, "minus 5"),
    ("[Red]0;[Blue]-0", -3, "-3"),
    ("General", 0.1 + 0.2, "0.3"),
    ("General", 123456789012, "123456789012"),
    ('General" kg"', 5, "5 kg"),
    ('0.0 "kg"', -5, "-5.0 kg"),
    ("@", 3.5, "3.5"),
    ("0.00", 2.675, "2.68"),
    ("0", 2.5, "3"),
    ("0.000000000000000000", 1 / 3, "0.333333333333333000"),
    ("0", 1e308, "1.00000000000000e+308"),
]


@pytest.mark.parametrize(("code", "value", "text"), SHOWN)
def test_a_number_is_shown_in_its_format(code: str, value: float, text: str) -> None:
    assert number_format(code).number(value) == text


def test_dates_from_1904_and_numbers_without_a_format() -> None:
    assert number_format("yyyy-mm-dd").number(0, from_1904=True) == "1904-01-01"
    assert number_format("yyyy-mm-dd").number(43538, from_1904=True) == "2023-03-15"
    shown = {
        5.0: "5",
        -2.5: "-2.5",
        1e-7: "0.0000001",
        1.5e-12: "1.5E-12",
        1e20: "100000000000000000000",
        2e30: "2E+30",
    }
    assert {value: general(value) for value in shown} == shown


def test_texts_and_strange_codes() -> None:
    assert number_format('0;0;0;"Note: "@').text("late") == "Note: late"
    assert number_format("0.00").text("late") == "late"
    for code in (
        "",
        ";",
        "[",
        '"',
        "0;;;;;0",
        "E+",
        "?/",
        "/",
        "%%%",
        "0" * 5000,
        "[h",
        "_",
        "*",
        "0.0.0",
        "e",
        "###,",
        ",",
        "[>x]0",
    ):
        assert isinstance(number_format(code).number(-1234.5678), str)
        assert isinstance(number_format(code).number(0), str)
        assert isinstance(number_format(code).number(float("inf")), str)
