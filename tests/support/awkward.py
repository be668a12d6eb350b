"""Two hundred strings that tokenizers disagree on."""

from __future__ import annotations

import random


def awkward_strings() -> list[str]:
    """At least 200 texts, the same ones every time: empty, spaces, scripts, emoji, code, bytes, markup, length."""
    texts = [*_PLAIN, *_spaces(), *_scripts(), *_code(), *_markup(), *_unprintable(), *_long()]
    texts += _random(240 - len(texts))
    return list(dict.fromkeys(texts))


_PLAIN = [
    "",
    "a",
    "Hello",
    " Hello",
    "Hello ",
    "Hello, world!",
    "hello,world,again",
    ",",
    ",,",
    ", ,",
    " , ",
    "a,b , c ,d",
    "it's don't WON'T I'll we've",
    "“Curly” ‘quotes’ — and – dashes…",
    "naïve café résumé Ærøskøbing",
    "cafe\u0301 vs café",
    "ﬁnancial ﬂow ½ ² ™ ℃",
    "UPPER lower Title cAmElCaSe snake_case kebab-case",
    "antidisestablishmentarianism",
    "supercalifragilisticexpialidocious",
    "The quick brown fox jumps over the lazy dog.",
    "The herons of Lake Tuz were counted on 14 May 2026.",
    "0",
    "1234567890",
    "3.14159265358979",
    "1,000,000.00",
    "2026-05-14T12:34:56Z",
    "+1 (555) 010-9999",
    "0xDEADBEEF 0b1010 1e-10",
    "٣٫١٤ ١٢٣",
    "१२३ ৪৫৬",
    "Ⅳ Ⅷ ① ⑳",
    "x²+y²=z²",
    "∀x∈ℝ: x≥0 ⇒ √x∈ℝ",
    "$100 €200 £300 ¥400 ₪500",
    "100% #1 @user a&b a*b a^b a~b a`b",
    "!!!???...;;;:::",
    "(((([[[[{{{{}}}}]]]]))))",
    "foo@example.com https://example.com/a?b=c&d=e#f",
    "C:\\Users\\name\\file.txt /usr/local/bin",
]


def _spaces() -> list[str]:
    runs = [" " * n for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100)]
    mixed = [
        "\t",
        "\t\t",
        "\t\t\tindent",
        "\n",
        "\n\n",
        "\n\n\n",
        "\r\n",
        "\r",
        "a\r\nb\rc\nd",
        "line one\nline two\n\nline four\n",
        " \n ",
        " \t \t ",
        "a  b   c    d     e",
        "   leading",
        "trailing   ",
        "  both  ",
        "a\u00a0b",
        "a\u3000b",
        "a\u2009b\u200ab",
        "zero\u200bwidth",
        "\u2003em",
        "▁",
        "▁▁",
        "a▁b",
        "▁ ▁",
        "\x0b\x0c",
        "\u0085\u2028\u2029",
        "\ufeffbom",
    ]
    return runs + mixed


def _scripts() -> list[str]:
    return [
        "שלום עולם",
        "שָׁלוֹם",
        "הכלב קפץ מעל הגדר ב-14 במאי.",
        "abc שלום def",
        "مرحبا بالعالم",
        "اَلسَّلَامُ عَلَيْكُمْ",
        "Привет, мир!",
        "Ёжик в тумане",
        "Γειά σου Κόσμε",
        "नमस्ते दुनिया",
        "வணக்கம் உலகம்",
        "สวัสดีชาวโลก",
        "你好，世界！",
        "漢字かな交じり文",
        "カタカナ ｶﾀｶﾅ",
        "안녕하세요 세계",
        "ᄒ\u1161\u11ab",
        "Xin chào thế giới",
        "ქართული ენა",
        "Հայերեն",
        "አማርኛ",
        "ខ្មែរ",
        "བོད་ཡིག",
        "𐍈𐌰 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
        "𠜎𠜱𠝹𠱓",
        "😀",
        "😀😁😂🤣",
        "👩‍👩‍👧‍👦 family",
        "👍🏽 👍🏿",
        "🇮🇱🇺🇸",
        "❤️ vs ❤",
        "e\u0301\u0323\u0308 z\u0335\u0321\u034f",
        "ﷺ ﷽",
        "\U0001f9ff\U0010ffff\U000e0041",
        "\ue000\uf8ff private",
        "\ufffd replacement",
        "İstanbul ıIiİ ß ẞ",
        "ǅ ǈ ŉ",
    ]


def _code() -> list[str]:
    return [
        "def f(x):\n    return x + 1\n",
        "def f(x):\n\tif x:\n\t\treturn\n",
        "for (int i = 0; i < n; ++i) { a[i] += b[i] * c; }",
        'print(f"{x!r:>10}")  # comment',
        '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
        "<html><body class='x'>&amp;&lt;</body></html>",
        "SELECT * FROM t WHERE a <> 'b' AND c >= 3;",
        "#include <stdio.h>\n\nint main(void) {\n        return 0;\n}\n",
        "a == b != c === d !== e => f -> g :: h",
        "x<<=2; y>>=3; z&=~1; w|=0x0F;",
        "    \n        \n            deep",
        "\\begin{align} \\frac{a}{b} &= c \\\\ \\end{align}",
        "rm -rf ./*.tmp && echo $? || exit 1",
        "0123456789abcdefABCDEF==",
        "```python\nprint('hi')\n```",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "- [ ] todo\n- [x] done",
        "_____ ----- ===== ..... *****",
    ]


def _markup() -> list[str]:
    return [
        "<|eom|>",
        "<|bom|><|user|> hi<|eom|>",
        "text<|bom|>text",
        "<documents>\n<document>\n</documents>",
        "<tool_calls>[]</tool_calls>",
        "<|eom|><|eom|>",
        "<|eom",
        "<|eom|",
        "< |eom|>",
        "<<|eom|>>",
        "<|e<|eom|>om|>",
        "<citations></citations>",
        "<|user|>,<|assistant|>",
        "<0x0A>",
        "<0x41>text<0xFF>",
        "[PAD5] [INST] <s> </s> <unk>",
        "<|im_start|>user\n<|im_end|>",
    ]


def _unprintable() -> list[str]:
    return ["\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\u0080\u009f", "a\u0300" * 20, "\u202eright to left\u202c"]


def _long() -> list[str]:
    return [
        "a" * 1000,
        "ab" * 500,
        "word " * 300,
        "1" * 257,
        "😀" * 100,
        "שלום " * 100,
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit. " * 20,
        "\n".join(f"{i}: {i * i}" for i in range(100)),
        "=" * 500,
        "ha" * 99 + "!",
    ]


def _random(n: int) -> list[str]:
    rng = random.Random(7)
    pools = [
        "abcdefghijklmnopqrstuvwxyz     ",
        "ABCabc012 ,.;:!?\n\t",
        "אבגדהוזחטיכלמנסעפצקרשת  ",
        "абвгдежзиклмн  ",
        "的一是不了人我在有他这",
        "😀😁🎉🔥❤️👍🏽‍",
        " ▁,<|>eom/",
    ]
    texts = ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 60))) for _ in range(n // 2)]
    for _ in range(n - len(texts)):  # any characters at all, from anywhere in Unicode
        points = [rng.choice((rng.randrange(1, 0x300), rng.randrange(0x300, 0xD800), rng.randrange(0xE000, 0x20000)))
                  for _ in range(rng.randint(1, 30))]  # fmt: skip
        texts.append("".join(map(chr, points)))
    return texts
